//! Masks, cuts and counts, with a tokenizer of single bytes: every token can be read off the text.

use std::path::Path;

use smolten::batch::Example;
use smolten::dataset::{Encoded, Encoder, EncodingStats, FieldNames, Rows, encode, read_rows};
use smolten::recipe::LossOn;
use smolten::template::ChatTemplate;
use smolten::tokenizer::Tokenizer;

/// Ends a turn; the one merge is 256, `<|im_start|>` 257.
const EOS: u32 = 258;

/// Byte-level BPE with no merge but that of two newlines.
fn tokenizer() -> Tokenizer {
    // GPT-2's alphabet: printable bytes stand for themselves, the others for characters from 256 on.
    let printable = |b: &u8| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let mut shifted = 256u32..;
    let alphabet: Vec<char> = (0..=255u8)
        .map(|b| if printable(&b) { char::from(b) } else { char::from_u32(shifted.next().unwrap()).unwrap() })
        .collect();
    let newline = alphabet[usize::from(b'\n')];
    let double = format!("{newline}{newline}");
    let mut vocab: serde_json::Map<_, _> =
        alphabet.iter().enumerate().map(|(id, c)| (c.to_string(), id.into())).collect();
    vocab.insert(double, 256.into());
    let special = |id: u32, content: &str| {
        serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let json = serde_json::json!({
        "version": "1.0",
        "added_tokens": [special(257, "<|im_start|>"), special(EOS, "<|im_end|>")],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "model": {"type": "BPE", "vocab": vocab, "merges": [[newline, newline]]},
    });
    Tokenizer::from_json(json.to_string().as_bytes(), Path::new("test")).unwrap()
}

fn rows(lines: &[&str]) -> Rows {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, lines.join("\n")).unwrap();
    read_rows(path.to_str().unwrap(), &FieldNames::default()).unwrap()
}

struct Setting {
    tokenizer: Tokenizer,
    template: ChatTemplate,
}

impl Setting {
    fn new() -> Self {
        Self { tokenizer: tokenizer(), template: ChatTemplate::chatml() }
    }

    fn encoder(&self, loss_on: LossOn, max_length: usize) -> Encoder<'_> {
        let Self { tokenizer, template } = self;
        Encoder { tokenizer, template, eos: Some(EOS), loss_on, max_length, system: None }
    }

    /// Text of the tokens that are not supervised, and of those that are.
    fn parts(&self, example: &Example) -> (String, String) {
        let text = |supervised: bool| {
            let of_kind = |(id, s): (&u32, &bool)| (*s == supervised).then_some(*id);
            let ids: Vec<u32> = example.ids.iter().zip(&example.supervised).filter_map(of_kind).collect();
            self.tokenizer.decode(&ids, false).unwrap()
        };
        (text(false), text(true))
    }

    fn one(&self, row: &str, encoder: &Encoder<'_>) -> (String, String) {
        let Encoded { examples, .. } = encode(&rows(&[row]), encoder).unwrap();
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

    let talk = rows(&[&row, r#"{"messages":[{"role":"user","content":"alone"}]}"#]);
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
    let data = rows(&[r#"{"prompt":"p","response":"\nr"}"#, r#"{"prompt":"p","response":"r"}"#]);
    let encoded = encode(&data, &setting.encoder(LossOn::Completion, 512)).unwrap();
    let (context, learnt) = setting.parts(&encoded.examples.get(0));
    assert_eq!((context.as_str(), learnt.as_str()), (PROMPT.trim_end(), "\n\nr<|im_end|>\n"));
    assert_eq!(encoded.stats.boundary_mismatches, 1);
    assert_eq!(encode(&data, &setting.encoder(LossOn::All, 512)).unwrap().stats.boundary_mismatches, 0);
}

#[test]
fn cuts_and_drops_are_counted() {
    let setting = Setting::new();
    // PROMPT is 20 tokens, and the end of the answer, `<|im_end|>\n`, 2.
    let data = rows(&[
        r#"{"prompt":"p","response":"12345"}"#,      // 27, fits
        r#"{"prompt":"p","response":"1234567"}"#,    // 29, loses the newline only
        r#"{"prompt":"p","response":"12345678"}"#,   // 30, loses its end too
        r#"{"prompt":"p234567890","response":"1"}"#, // 32, the prompt alone has 29: dropped
        r#"{"prompt":"p23456789","response":"1"}"#,  // 31, the prompt alone has 28: dropped
        r#"{"prompt":"p2345678","response":"1"}"#,   // 30, one token left to learn
    ]);
    let encoded = encode(&data, &setting.encoder(LossOn::Completion, 28)).unwrap();
    let want = EncodingStats {
        rows: 6,
        tokens: 27 + 28 + 28 + 28,
        supervised_tokens: 7 + 8 + 8 + 1,
        truncated: 3,
        dropped: 2,
        lost_turn_ends: 2,
        boundary_mismatches: 0,
        longest: 32,
    };
    assert_eq!(encoded.stats, want);
    assert_eq!(setting.parts(&encoded.examples.get(1)).1, "1234567<|im_end|>");
    assert_eq!(setting.parts(&encoded.examples.get(3)).1, "1");
    let tokens: usize = encoded.examples.tokens();
    assert_eq!(tokens, want.tokens);
}

#[test]
fn rows_that_teach_nothing_are_refused() {
    let setting = Setting::new();
    let data = rows(&[r#"{"prompt":"p","response":"r"}"#; 3]);
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
    let data = rows(&[
        r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#,
        "",
        r#"{"messages":[{"role":"tool","content":"a"},{"role":"assistant","content":"b"}]}"#,
        r#"{"messages":[{"role":"tool","content":"c"},{"role":"assistant","content":"d"}]}"#,
    ]);
    let text = encode(&data, &setting.encoder(LossOn::Completion, 512)).unwrap_err().to_string();
    assert!(text.contains("rows.jsonl:3, chat template") && text.contains("no tools"), "{text}");
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let setting = Setting::new();
    let data = read_rows("builtin:reasoning", &FieldNames::default()).unwrap();
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| encode(&data, &setting.encoder(LossOn::Completion, 600)).unwrap())
    };
    let (one, two) = (with(1), with(2));
    assert!(one.stats.truncated > 0);
    assert_eq!(one.stats, two.stats);
    assert_eq!(one.examples.len(), two.examples.len());
    assert!((0..one.examples.len()).all(|i| one.examples.get(i) == two.examples.get(i)));
    // Row by row on its own gives the same: the order is the file's.
    let first = setting.parts(&one.examples.get(0)).0;
    assert!(first.contains("rainwater tank"), "{first}");
}
