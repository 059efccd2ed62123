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
