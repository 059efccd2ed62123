//! What the audit counts, and what of it stops a run.

mod common;

use common::bytes::{EOS, Setting, encode};
use smolten::dataset::{Audit, Encoder};
use smolten::recipe::{Finding, LossOn};
use smolten::template::ChatTemplate;

fn row(prompt: &str, response: &str) -> String {
    serde_json::json!({"prompt": prompt, "response": response}).to_string()
}

fn audit(rows: &[String], encoder: &Encoder<'_>) -> Audit {
    let rows: Vec<&str> = rows.iter().map(String::as_str).collect();
    let loaded = encode(&rows, encoder).unwrap();
    assert_eq!(loaded.audit.examples, loaded.examples.len());
    loaded.audit
}

/// The places of a kind, without the folder.
fn places(audit: &Audit, kind: &str) -> Vec<String> {
    let lines = audit.places.get(kind).map_or(&[][..], Vec::as_slice);
    lines.iter().map(|place| place.rsplit('/').next().unwrap().to_owned()).collect()
}

#[test]
fn lengths_fall_into_their_bins() {
    let setting = Setting::new();
    // Text of n bytes has n + 1 tokens, its end counted; at most 100 are kept.
    let lengths = [1, 15, 16, 31, 32, 63, 127, 128, 8191, 8192];
    let rows: Vec<String> = lengths.map(|n| serde_json::json!({"text": "x".repeat(n)}).to_string()).to_vec();
    let a = audit(&rows, &setting.encoder(LossOn::All, 100));
    let bins: Vec<_> = a.lengths.iter().map(|bin| (bin.up_to, bin.rows)).collect();
    let want = [
        (Some(16), 2),
        (Some(32), 2),
        (Some(64), 2),
        (Some(128), 1),
        (Some(256), 1),
        (Some(512), 0),
        (Some(1024), 0),
        (Some(2048), 0),
        (Some(4096), 0),
        (Some(8192), 1),
        (None, 1),
    ];
    assert_eq!(bins, want);
    assert_eq!((a.longest, a.truncated, a.rows, a.examples), (8193, 4, 10, 10));
    assert_eq!(a.tokens, 2 + 16 + 17 + 32 + 33 + 64 + 4 * 100);
    assert_eq!(a.supervised_tokens, a.tokens - 10);
    assert_eq!(a.supervised_share, a.supervised_tokens as f64 / a.tokens as f64);
}

#[test]
fn duplicates_are_rows_of_the_same_ids() {
    let setting = Setting::new();
    let encoder = setting.encoder(LossOn::Completion, 64);
    let long = "x".repeat(60);
    // Rows 3 and 7 repeat row 1; rows 4 and 5 differ only behind the cut, and so are two.
    let rows = [
        row("a", "b"),
        row("a", "c"),
        row("a", "b"),
        row("a", &format!("{long}1")),
        row("a", &format!("{long}2")),
        row("b", "a"),
        row("a", "b"),
    ];
    let a = audit(&rows, &encoder);
    assert_eq!(
        (a.duplicates, places(&a, "duplicates")),
        (2, vec!["rows.jsonl:3".into(), "rows.jsonl:7".into()])
    );
    // The ids count, not the text: a stripped copy is a copy.
    let rows = [row("a", "b"), row("a ", "b")];
    assert_eq!(audit(&rows, &encoder).duplicates, 0);
    assert_eq!(audit(&rows, &Encoder { strip: true, ..encoder }).duplicates, 1);
}

/// A few places of each kind are named, the first ones.
#[test]
fn places_are_few() {
    let setting = Setting::new();
    let a = audit(&vec![row("a", "b"); 100], &setting.encoder(LossOn::Completion, 64));
    assert_eq!(a.duplicates, 99);
    assert_eq!(places(&a, "duplicates"), (2..7).map(|n| format!("rows.jsonl:{n}")).collect::<Vec<_>>());
}

/// A tokenizer that loses text: of a normaliser that writes everything small.
#[test]
fn the_round_trip_is_checked() {
    let setting = Setting::new();
    let json = setting.tokenizer.to_json().unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&json).unwrap();
    json["normalizer"] = serde_json::json!({"type": "Lowercase"});
    let lossy = smolten::tokenizer::Tokenizer::from_json(json.to_string().as_bytes(), "t".as_ref()).unwrap();
    let encoder = setting.encoder(LossOn::Completion, 64);
    let rows = [row("a", "b"), row("a", "B"), row("x", "y")];
    let exact = audit(&rows, &encoder);
    assert_eq!((exact.round_trips, exact.round_trip_failures), (3, 0));
    let a = audit(&rows, &Encoder { tokenizer: &lossy, ..encoder });
    assert_eq!((a.round_trips, a.round_trip_failures), (3, 1));
    assert_eq!(places(&a, "round_trip_failures"), ["rows.jsonl:2"]);
    // Also of generation tags; not of running text, and only of the first rows.
    let tagged = ChatTemplate::new(
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
        "",
        "",
    );
    let tagged = tagged.unwrap();
    let assistant = Encoder { tokenizer: &lossy, template: &tagged, loss_on: LossOn::Assistant, ..encoder };
    assert_eq!(audit(&rows, &assistant).round_trip_failures, 1);
    assert_eq!(audit(&[r#"{"text":"AB"}"#.into()], &Encoder { tokenizer: &lossy, ..encoder }).round_trips, 0);
    let many: Vec<String> = (0..1100).map(|i| row(&i.to_string(), "b")).collect();
    assert_eq!(audit(&many, &encoder).round_trips, 1000);
}

/// For each finding data that has it, and data just short of it.
#[test]
fn every_finding_is_refused_and_can_be_allowed() {
    let setting = Setting::new();
    let endless = Setting::with_template(
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}{% endif %}",
    );
    let encoder = |max_length| setting.encoder(LossOn::Completion, max_length);
    let short = row("p", "r"); // 23 tokens, of which the prompt's are 20
    let other = |n: usize| row("q", &"s".repeat(n));
    let long_prompt = |c: char| row(&c.to_string().repeat(30), "r");
    let cases: [(Finding, Vec<String>, Vec<String>, Encoder<'_>); 4] = [
        (
            Finding::LostTurnEnds,
            vec![short.clone(), other(30), other(31)],
            vec![short.clone(), other(3), other(30), other(31)],
            encoder(40),
        ),
        (
            Finding::DroppedRows,
            vec![short.clone(), long_prompt('a'), long_prompt('b')],
            vec![short.clone(), other(3), long_prompt('a'), long_prompt('b')],
            encoder(40),
        ),
        (
            Finding::Duplicates,
            vec![short.clone(); 3],
            vec![short.clone(), short.clone(), short.clone(), other(1)],
            encoder(40),
        ),
        (
            Finding::BoundaryMismatches,
            vec![row("p", "\nr"), row("q", "\nr"), other(1)],
            vec![row("p", "\nr"), other(1)],
            encoder(40),
        ),
    ];
    for (finding, with, without, encoder) in cases {
        check(finding, &audit(&with, &encoder));
        let clean = audit(&without, &encoder);
        assert!(clean.findings().is_empty() && clean.refuse(&[]).is_ok(), "{:?}", clean.findings());
    }
    let a = audit(
        std::slice::from_ref(&short),
        &Encoder { eos: Some(EOS), ..endless.encoder(LossOn::Completion, 40) },
    );
    check(Finding::NoTurnEnd, &a);
    let lossy = Audit { round_trip_failures: 3, round_trips: 5, ..audit(&[short], &encoder(40)) };
    check(Finding::TemplateRoundTrip, &lossy);
}

fn check(finding: Finding, audit: &Audit) {
    let found = audit.findings();
    assert_eq!(found.iter().map(|(f, _)| *f).collect::<Vec<_>>(), [finding], "{audit:?}");
    let error = audit.refuse(&[]).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    let word = serde_json::to_value(finding).unwrap();
    let (word, text) = (word.as_str().unwrap(), error.to_string());
    assert!(text.starts_with(&format!("data audit, {word}: ")), "{text}");
    assert!(text.contains(&format!("--set allow='[\"{word}\"]'")), "{text}");
    assert!(audit.refuse(&[finding]).is_ok());
    let others = [Finding::NoTurnEnd, Finding::LostTurnEnds, Finding::DroppedRows, Finding::Duplicates];
    let others: Vec<Finding> = others.into_iter().filter(|f| *f != finding).collect();
    // What was allowed before is in the list that the message gives.
    let text = audit.refuse(&others).unwrap_err().to_string();
    let first = serde_json::to_value(others[0]).unwrap();
    assert!(text.contains(&format!("allow='[{first}")) && text.contains(&format!("\"{word}\"]'")), "{text}");
}

#[test]
fn several_findings_are_named_at_once() {
    let setting = Setting::new();
    let rows = vec![row("p", &"r".repeat(40)); 3];
    let a = audit(&rows, &setting.encoder(LossOn::Completion, 30));
    let text = a.refuse(&[]).unwrap_err().to_string();
    assert!(text.starts_with("data audit, no_turn_end, lost_turn_ends, duplicates: "), "{text}");
    for part in ["none of the 3 examples", "3 of 3 rows lost", "rows.jsonl:1", "2 of 3 rows are copies"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert!(text.ends_with("allow='[\"no_turn_end\", \"lost_turn_ends\", \"duplicates\"]'"), "{text}");
}
