//! Masks, cuts and counts, with a tokenizer of single bytes: every token can be read off the text.

mod common;

use common::bytes::{EOS, Setting, encode, source};
use smolten::batch::Example;
use smolten::dataset::{Dataset, Encoder, FieldNames, Label, load, read_row};
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

const TALK: &str = r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"user","content":"c"},{"role":"assistant","content":"d"},{"role":"user","content":"e"}]}"#;

#[test]
fn every_assistant_turn_is_learnt_up_to_its_end() {
    let setting = Setting::new();
    let encoder = setting.encoder(LossOn::Assistant, 512);
    let (context, learnt) = setting.one(TALK, &encoder);
    assert_eq!(learnt, "b<|im_end|>\nd<|im_end|>\n");
    assert!(context.ends_with("<|im_start|>user\ne<|im_end|>\n"));
    let system = Encoder { system: Some("S"), ..encoder };
    assert_eq!(setting.one(TALK, &system).1, learnt);
    // Of a pair the completion's turns only; the prompt's are context.
    let pair = r#"{"prompt":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"user","content":"c"}],"completion":[{"role":"assistant","content":"d"},{"role":"user","content":"e"},{"role":"assistant","content":"f"}]}"#;
    assert_eq!(setting.one(pair, &encoder).1, "d<|im_end|>\nf<|im_end|>\n");
    assert_eq!(setting.one(pair, &system).1, "d<|im_end|>\nf<|im_end|>\n");
    // An assistant that begins.
    let first = r#"{"messages":[{"role":"assistant","content":"x"},{"role":"user","content":"y"}]}"#;
    assert_eq!(setting.one(first, &encoder).1, "x<|im_end|>\n");
    // The cut comes after the labels: `b` and its end lie before it, `d` behind.
    let cut = Encoder { max_length: 32, ..encoder };
    assert_eq!(setting.one(TALK, &cut).1, "b<|im_end|>\n");

    for (row, found) in [
        (r#"{"messages":[{"role":"user","content":"a"}]}"#, "no message has the role"),
        (r#"{"text":"running"}"#, "running text, without turns"),
        (
            r#"{"prompt":[{"role":"assistant","content":"a"}],"completion":[{"role":"user","content":"b"}]}"#,
            "no message has",
        ),
    ] {
        let error = encode(&[row], &encoder).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("rows.jsonl:1, an assistant turn to learn") && text.contains(found), "{text}");
        assert_eq!(error.exit_code(), 2);
    }
}

#[test]
fn generation_tags_say_what_is_learnt() {
    let tagged = Setting::with_template(
        "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}!\
         {% endgeneration %}{% else %}{{ m.content }}{% endif %}|{% endfor %}\
         {% if add_generation_prompt %}<assistant>{% endif %}",
    );
    let encoder = tagged.encoder(LossOn::Assistant, 512);
    assert_eq!(tagged.one(TALK, &encoder).1, "b!d!");
    // Only the tag counts, whatever the role's turn holds besides; the completion alone is learnt otherwise.
    assert_eq!(tagged.one(TALK, &tagged.encoder(LossOn::Completion, 512)).1, "d!|");
    let pair = r#"{"prompt":[{"role":"assistant","content":"b"},{"role":"user","content":"c"}],"completion":[{"role":"assistant","content":"d"}]}"#;
    assert_eq!(tagged.one(pair, &encoder).1, "d!");
    // A template that marks nothing leaves nothing to learn.
    let nothing = Setting::with_template(
        "{% for m in messages %}{{ m.content }}{% if false %}{% generation %}{% endgeneration %}{% endif %}{% endfor %}",
    );
    let text = encode(&[TALK], &nothing.encoder(LossOn::Assistant, 512)).unwrap_err().to_string();
    assert!(text.contains("none of the 1 rows"), "{text}");
}

/// A template that takes back what it wrote when turns follow: the masks stay within their turns, and it is counted.
#[test]
fn turns_that_are_rendered_otherwise_later_are_mismatches() {
    let setting = Setting::with_template(
        "{% for m in messages %}{% if m.role == 'user' %}?{{ m.content }}{% else %}:{% if loop.last %}(thought){% endif %}\
         {{ m.content }};{% endif %}{% endfor %}{% if add_generation_prompt %}:{% endif %}",
    );
    let encoder = setting.encoder(LossOn::Assistant, 512);
    let row = r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"user","content":"c"},{"role":"assistant","content":"d"}]}"#;
    let loaded = encode(&[row], &encoder).unwrap();
    assert_eq!(loaded.audit.boundary_mismatches, 1);
    assert_eq!(setting.parts(&loaded.examples.get(0)).1, "(thought)d;");
}

#[test]
fn compat_strips_and_fills() {
    let setting = Setting::new();
    let encoder = Encoder { strip: true, pad_with: Some(EOS), ..setting.encoder(LossOn::All, 30) };
    let rows = [
        r#"{"prompt":"\u001f p \n","response":"\u00a0r\u2003"}"#,
        r#"{"prompt":"p","response":"much longer than thirty tokens"}"#,
    ];
    let loaded = encode(&rows, &encoder).unwrap();
    let short = loaded.examples.get(0);
    let ids =
        [setting.tokenizer.encode(&format!("{PROMPT}r<|im_end|>\n"), false).unwrap(), vec![EOS; 7]].concat();
    assert_eq!(short.ids, ids);
    assert!(!short.supervised[0] && short.supervised[1..].iter().all(|&s| s));
    assert_eq!(loaded.examples.tokens_of(1), 30);
    let a = &loaded.audit;
    assert_eq!((a.tokens, a.supervised_tokens, a.truncated, a.turn_ends), (60, 58, 1, 2));
    // Contents that fill what the cut leaves have their end filled in too, but never learn that it is one.
    assert_eq!(a.lost_turn_ends, 1);
}

/// What `inspect` shows is what is trained on, and what was cut off.
#[test]
fn labels_are_those_of_the_examples() {
    let setting = Setting::new();
    let rows = [TALK, r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#];
    for (loss_on, max_length, pad_with) in [
        (LossOn::Assistant, 512, None),
        (LossOn::Completion, 45, None),
        (LossOn::All, 40, Some(7)),
        (LossOn::Assistant, 40, Some(7)),
    ] {
        let encoder = Encoder { pad_with, ..setting.encoder(loss_on, max_length) };
        let loaded = encode(&rows, &encoder).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        std::fs::write(&path, rows.join("\n")).unwrap();
        for i in 0..loaded.examples.len() {
            let placed = read_row(&source(&path), &FieldNames::default(), Some(i as u64 + 1)).unwrap();
            let tokens = encoder.label(&placed.row).unwrap();
            let kept = tokens.iter().filter(|t| t.label != Label::Truncated);
            let example = loaded.examples.get(i);
            assert_eq!(kept.clone().map(|t| t.id).collect::<Vec<_>>(), example.ids);
            assert_eq!(kept.map(|t| t.label == Label::Supervised).collect::<Vec<_>>(), example.supervised);
            let cut = tokens.len() - example.ids.len();
            assert_eq!(cut > 0, i == 0 && max_length < 46, "row {i} at {max_length}");
        }
    }
}
