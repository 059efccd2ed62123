//! Masks, cuts and counts, with a tokenizer of single bytes: every token can be read off the text.

mod common;

use common::bytes::{Setting, encode, source};
use smolten::batch::Example;
use smolten::dataset::{Dataset, Encoder, FieldNames, load};
use smolten::recipe::LossOn;
use smolten::template::ChatTemplate;

trait Parts {
    /// Text of the tokens that are not supervised, and of those that are.
    fn parts(&self, example: &Example) -> (String, String);
    /// Those of the one row.
    fn one(&self, row: &str, encoder: &Encoder<'_>) -> (String, String);
}

impl Parts for Setting {
    fn parts(&self, example: &Example) -> (String, String) {
        let text = |supervised: bool| {
            let of_kind = |(id, s): (&u32, &bool)| (*s == supervised).then_some(*id);
            let ids: Vec<u32> = example.ids.iter().zip(&example.supervised).filter_map(of_kind).collect();
            self.tokenizer.decode(&ids, false).unwrap()
        };
        (text(false), text(true))
    }

    fn one(&self, row: &str, encoder: &Encoder<'_>) -> (String, String) {
        let Dataset { examples, .. } = encode(&[row], encoder).unwrap();
        assert_eq!(examples.len(), 1);
        self.parts(&examples.get(0))
    }
}

const PROMPT: &str = "<|im_start|>user\np<|im_end|>\n<|im_start|>assistant\n";

#[test]
fn the_completion_is_supervised_up_to_the_newline_after_its_turn() {
    let setting = Setting::new();
    let encoder = setting.encoder(LossOn::Completion, 512);
    let row = r#"{"prompt":"p","response":"r s"}"#;
    assert_eq!(setting.one(row, &encoder), (PROMPT.into(), "r s<|im_end|>\n".into()));
    let lists =
        r#"{"prompt":[{"role":"user","content":"p"}],"completion":[{"role":"assistant","content":"r"}]}"#;
    assert_eq!(setting.one(lists, &encoder), (PROMPT.into(), "r<|im_end|>\n".into()));

    let all = setting.encoder(LossOn::All, 512);
    let rest = format!("{}r s<|im_end|>\n", &PROMPT["<|im_start|>".len()..]);
    assert_eq!(setting.one(row, &all), ("<|im_start|>".into(), rest), "nothing precedes the first token");
}

#[test]
fn the_system_turn_goes_where_there_is_none() {
    let setting = Setting::new();
    let encoder = Encoder { system: Some("S"), ..setting.encoder(LossOn::Completion, 512) };
    let system = "<|im_start|>system\nS<|im_end|>\n";
    let row = r#"{"prompt":"p","response":"r"}"#;
    assert_eq!(setting.one(row, &encoder).0, format!("{system}{PROMPT}"));
    let own = r#"{"messages":[{"role":"system","content":"own"},{"role":"assistant","content":"r"}]}"#;
    assert_eq!(setting.one(own, &encoder).0, "<|im_start|>system\nown<|im_end|>\n<|im_start|>assistant\n");
    let unprompted = r#"{"messages":[{"role":"assistant","content":"r"}]}"#;
    assert_eq!(setting.one(unprompted, &encoder).0, format!("{system}<|im_start|>assistant\n"));
    let all = Encoder { loss_on: LossOn::All, ..encoder };
    assert!(setting.one(own, &all).1.contains("own"));
    assert!(setting.one(unprompted, &all).1.contains("S<|im_end|>"));
}

#[test]
fn of_a_conversation_the_last_assistant_turn_is_learnt() {
    let setting = Setting::new();
    let row = r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},
        {"role":"user","content":"c"},{"role":"assistant","content":"d"},{"role":"user","content":"e"}]}"#
        .replace('\n', "");
    let (context, learnt) = setting.one(&row, &setting.encoder(LossOn::Completion, 512));
    assert!(context.contains("b<|im_end|>") && context.ends_with("c<|im_end|>\n<|im_start|>assistant\n"));
    assert_eq!(learnt, "d<|im_end|>\n");
    let (first, all) = setting.one(&row, &setting.encoder(LossOn::All, 512));
    assert_eq!(first, "<|im_start|>");
    assert!(all.contains("b<|im_end|>") && all.ends_with("e<|im_end|>\n"));

    let talk = [&row, r#"{"messages":[{"role":"user","content":"alone"}]}"#];
    let error = encode(&talk, &setting.encoder(LossOn::Completion, 512)).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("rows.jsonl:2") && text.contains("\"assistant\"") && text.contains("--loss-on all"),
        "{text}"
    );
    assert_eq!(error.exit_code(), 2);
}

#[test]
fn text_ends_in_one_end_token() {
    let setting = Setting::new();
    let encoder = setting.encoder(LossOn::Completion, 512);
    for text in ["ab", "ab<|im_end|>"] {
        let row = format!("{{\"text\":\"{text}\"}}");
        assert_eq!(setting.one(&row, &encoder), ("a".into(), "b<|im_end|>".into()));
    }
    let without = Encoder { eos: None, ..encoder };
    assert_eq!(setting.one(r#"{"text":"ab"}"#, &without), ("a".into(), "b".into()));
}

#[test]
fn a_prompt_that_merges_with_the_response_is_cut_at_the_common_prefix() {
    let setting = Setting::new();
    let data = [r#"{"prompt":"p","response":"\nr"}"#, r#"{"prompt":"p","response":"r"}"#];
    let encoded = encode(&data, &setting.encoder(LossOn::Completion, 512)).unwrap();
    let (context, learnt) = setting.parts(&encoded.examples.get(0));
    assert_eq!((context.as_str(), learnt.as_str()), (PROMPT.trim_end(), "\n\nr<|im_end|>\n"));
    assert_eq!(encoded.audit.boundary_mismatches, 1);
    assert_eq!(encode(&data, &setting.encoder(LossOn::All, 512)).unwrap().audit.boundary_mismatches, 0);
}

#[test]
fn cuts_and_drops_are_counted() {
    let setting = Setting::new();
    // PROMPT is 20 tokens, and the end of the answer, `<|im_end|>\n`, 2.
    let data = [
        r#"{"prompt":"p","response":"12345"}"#,      // 27, fits
        r#"{"prompt":"p","response":"1234567"}"#,    // 29, loses the newline only
        r#"{"prompt":"p","response":"12345678"}"#,   // 30, loses its end too
        r#"{"prompt":"p234567890","response":"1"}"#, // 32, the prompt alone has 29: dropped
        r#"{"prompt":"p23456789","response":"1"}"#,  // 31, the prompt alone has 28: dropped
        r#"{"prompt":"p2345678","response":"1"}"#,   // 30, one token left to learn
    ];
    let encoded = encode(&data, &setting.encoder(LossOn::Completion, 28)).unwrap();
    let a = &encoded.audit;
    assert_eq!((a.rows, a.examples, a.longest), (6, 4, 32));
    assert_eq!((a.tokens, a.supervised_tokens), (27 + 28 + 28 + 28, 7 + 8 + 8 + 1));
    assert_eq!((a.truncated, a.dropped, a.lost_turn_ends, a.turn_ends), (3, 2, 2, 2));
    assert_eq!((a.boundary_mismatches, a.duplicates), (0, 0));
    assert_eq!(setting.parts(&encoded.examples.get(1)).1, "1234567<|im_end|>");
    assert_eq!(setting.parts(&encoded.examples.get(3)).1, "1");
    assert_eq!(encoded.examples.tokens(), a.tokens);
    assert!(encoded.place(3).ends_with("rows.jsonl:6"), "{}", encoded.place(3));
}

#[test]
fn rows_that_teach_nothing_are_refused() {
    let setting = Setting::new();
    let data = [r#"{"prompt":"p","response":"r"}"#; 3];
    let error = encode(&data, &setting.encoder(LossOn::Completion, 20)).unwrap_err();
    let text = error.to_string();
    for part in ["rows.jsonl", "none of the 3 rows", "first 20", "has 23", "--max-length"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert_eq!(error.exit_code(), 2);
}

#[test]
fn a_template_that_refuses_names_the_row() {
    let template = "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}\
                    {{ m['content'] }}{% endfor %}";
    let setting = Setting { template: ChatTemplate::new(template, "", "").unwrap(), ..Setting::new() };
    let data = [
        r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#,
        "",
        r#"{"messages":[{"role":"tool","content":"a"},{"role":"assistant","content":"b"}]}"#,
        r#"{"messages":[{"role":"tool","content":"c"},{"role":"assistant","content":"d"}]}"#,
    ];
    let text = encode(&data, &setting.encoder(LossOn::Completion, 512)).unwrap_err().to_string();
    assert!(text.contains("rows.jsonl:3, chat template") && text.contains("no tools"), "{text}");
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let setting = Setting::new();
    let data = source(std::path::Path::new("builtin:reasoning"));
    let encoder = setting.encoder(LossOn::Completion, 600);
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| load(&data, &encoder, &FieldNames::default(), None).unwrap())
    };
    let (one, two) = (with(1), with(2));
    assert!(one.audit.truncated > 0);
    assert_eq!(one.audit, two.audit);
    assert_eq!(one.examples.len(), two.examples.len());
    assert!((0..one.examples.len()).all(|i| one.examples.get(i) == two.examples.get(i)));
    // Row by row on its own gives the same: the order is the file's.
    let first = setting.parts(&one.examples.get(0)).0;
    assert!(first.contains("rainwater tank"), "{first}");
}
