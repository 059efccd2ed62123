//! Chat templates against transformers' `apply_chat_template` (fixture and its script: `external/check_formats.py`).

use serde_json::Value;
use smolten::template::{ChatTemplate, Message};

fn fixture() -> Vec<Value> {
    let json: Value = serde_json::from_str(include_str!("fixtures/templates.json")).unwrap();
    json["templates"].as_array().unwrap().clone()
}

fn messages(case: &Value) -> Vec<Message> {
    serde_json::from_value(case["messages"].clone()).unwrap()
}

#[test]
fn renders_what_transformers_renders() {
    let mut failures = Vec::new();
    let mut compared = 0;
    for template in fixture() {
        let field = |key: &str| template[key].as_str().unwrap();
        let name = field("name");
        let compiled = ChatTemplate::new(field("template"), field("bos"), field("eos"))
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        for (i, case) in template["cases"].as_array().unwrap().iter().enumerate() {
            let got = compiled.render(&messages(case), case["add_generation_prompt"] == true);
            compared += 1;
            match (got, case["text"].as_str()) {
                (Ok(got), Some(want)) if got == want => {}
                // Both refuse; what raise_exception says must arrive.
                (Err(got), None)
                    if name.starts_with("undefined")
                        || got.to_string().contains(case["error"].as_str().unwrap()) => {}
                (got, want) => {
                    failures.push(format!("{name}, case {i}:\n got {got:?}\nwant {want:?} {}", case["error"]))
                }
            }
        }
    }
    assert!(compared > 250, "{compared} cases");
    assert!(failures.is_empty(), "{} of {compared}:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn chatml_is_the_plain_template() {
    let fixture = fixture();
    let cases = fixture.iter().find(|t| t["name"] == "chatml").unwrap()["cases"].as_array().unwrap();
    for case in cases {
        let got =
            ChatTemplate::chatml().render(&messages(case), case["add_generation_prompt"] == true).unwrap();
        assert_eq!(got, case["text"].as_str().unwrap());
    }
}

#[test]
fn a_wrong_template_is_refused_with_its_line() {
    let error = ChatTemplate::new("a\n{% for x in %}", "", "").err().unwrap();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("line 2"), "{error}");
}

#[test]
fn broken_tags_are_errors() {
    for source in ["{%}", "{%", "{% generation", "{% generation %}", "%}{%-", "{%%}"] {
        assert!(ChatTemplate::new(source, "", "").is_err(), "{source}");
    }
}

fn talk() -> Vec<Message> {
    [("user", "a"), ("assistant", "é"), ("user", "c"), ("assistant", "\u{fdd0}d")]
        .map(|(role, content)| Message::new(role, content))
        .to_vec()
}

#[test]
fn generation_tags_give_their_parts_and_change_nothing() {
    let cases = [
        (
            "{% generation %}{{ m.content }}{% endgeneration %}|",
            "a|é|c|\u{fdd0}d|",
            [0..1, 2..4, 5..6, 7..11],
        ),
        // Whitespace control and the line end after a tag work as on any block.
        (
            " {%- generation -%}\n {{ m.content }}\n {%- endgeneration -%} |",
            "a|é|c|\u{fdd0}d|",
            [0..1, 2..4, 5..6, 7..11],
        ),
        ("{% generation %}\n{{ m.content }}{% endgeneration %}\n", "aéc\u{fdd0}d", [0..1, 1..3, 3..4, 4..8]),
        // What is set inside stays inside.
        (
            "{% set x = 0 %}{% generation %}{% set x = 1 %}{{ x }}{% endgeneration %}{{ x }}",
            "10101010",
            [0..1, 2..3, 4..5, 6..7],
        ),
    ];
    for (body, text, parts) in cases {
        let source = format!("{{% for m in messages %}}{body}{{% endfor %}}");
        let template = ChatTemplate::new(&source, "", "").unwrap();
        assert!(template.marks_generation());
        assert_eq!(template.render(&talk(), false).unwrap(), text, "{source}");
        assert_eq!(
            template.render_generation(&talk()).unwrap(),
            (text.to_owned(), parts.to_vec()),
            "{source}"
        );
    }
    assert!(!ChatTemplate::chatml().marks_generation());
    assert!(ChatTemplate::chatml().render_generation(&talk()).unwrap().1.is_empty());
    let every: String = ('\u{fdd0}'..='\u{fdef}').collect();
    let template = ChatTemplate::chatml();
    assert_eq!(template.render_generation(&[Message::new("user", every)]).unwrap_err().exit_code(), 2);
}
