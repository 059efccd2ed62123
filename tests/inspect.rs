//! `smolten inspect` as a user runs it.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A folder with rows and a token cache.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let line = |i: usize| {
            format!("{{\"prompt\": \"What is {i} + {i}?\", \"response\": \"It is {}. 🙂÷\"}}\n", 2 * i)
        };
        std::fs::write(folder.path().join("rows.jsonl"), (0..20).map(line).collect::<String>()).unwrap();
        Self(folder)
    }

    fn rows(&self) -> PathBuf {
        self.0.path().join("rows.jsonl")
    }

    fn cache(&self) -> PathBuf {
        self.0.path().join("cache")
    }

    fn command(&self, more: &[&str]) -> Command {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-smollm.gguf");
        let mut command = Command::new(env!("CARGO_BIN_EXE_smolten"));
        command.arg("inspect").arg("--model").arg(model).args(more).env("SMOLTEN_CACHE", self.cache());
        command
    }

    fn run(&self, more: &[&str]) -> Output {
        self.command(more).output().unwrap()
    }

    fn data(&self, more: &[&str]) -> Output {
        let rows = self.rows();
        self.run(&[&["--data", rows.to_str().unwrap()], more].concat())
    }
}

fn screen(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_str(&screen(output)).expect("one JSON document")
}

/// Texts of the tokens with this label, together.
fn labelled(json: &Value, label: &str) -> String {
    let tokens = json["rows"][0]["tokens"].as_array().unwrap();
    let of_kind = tokens.iter().filter(|t| t["label"] == label);
    of_kind.map(|t| t["text"].as_str().unwrap()).collect()
}

#[test]
fn a_row_and_the_audit_are_shown() {
    let place = Place::new();
    let first = screen(&place.data(&[]));
    for part in [
        "rows.jsonl:1 ([[…]]: learnt",
        "What is 0 + 0?<|im_end|>⏎",
        "[[It is 0. 🙂÷<|im_end|>⏎\n    ]]",
        "audit of ",
        "rows                                20\n",
        "examples                            20  100.0 %",
        "of 20 checked",
        "lengths in tokens, before any cut\n",
        "████████████████████████████████████████\n",
        "findings: none",
    ] {
        assert!(first.contains(part), "`{part}` is not in:\n{first}");
    }
    assert!(!first.contains("from the cache") && !first.contains('\x1b'));
    let second = screen(&place.data(&[]));
    assert_eq!(second.replace(" (tokens from the cache)", ""), first);
    assert_ne!(second, first);
}

#[test]
fn json_is_one_document() {
    let place = Place::new();
    let whole = json(&place.data(&["--row", "3", "--json"]));
    assert_eq!(whole.as_object().unwrap().keys().collect::<Vec<_>>(), ["audit", "rows"]);
    assert_eq!(whole["rows"][0]["row"], 3);
    assert_eq!(labelled(&whole, "supervised"), "It is 4. 🙂÷<|im_end|>\n");
    assert!(labelled(&whole, "masked").ends_with("What is 2 + 2?<|im_end|>\n<|im_start|>assistant\n"));
    let audit = &whole["audit"];
    assert_eq!((&audit["rows"], &audit["truncated"]), (&20.into(), &0.into()));
    let tokens = whole["rows"][0]["tokens"].as_array().unwrap();
    let token = tokens[0].as_object().unwrap();
    assert_eq!(token.keys().collect::<Vec<_>>(), ["id", "text", "label"]);
    assert!(tokens.iter().all(|t| t["id"].is_u64()));

    // Three tokens fewer than the row has: its end is cut off, and shown.
    let cut = (tokens.len() - 3).to_string();
    let short = json(&place.data(&["--row", "3", "--json", "--max-length", &cut]));
    let truncated = labelled(&short, "truncated");
    assert!(truncated.ends_with("<|im_end|>\n"), "{truncated}");
    let together = ["masked", "supervised", "truncated"].map(|label| labelled(&short, label)).concat();
    assert_eq!(together, ["masked", "supervised"].map(|label| labelled(&whole, label)).concat());
    let text = screen(&place.data(&["--row", "3", "--max-length", &cut]));
    assert!(text.contains("<<") && text.contains("lost_turn_ends: 20 of 20 rows"), "{text}");
    assert!(text.contains("rows.jsonl:1, "), "{text}");

    let all = json(&place.data(&["--json", "--loss-on", "all"]));
    assert_eq!(all["rows"][0]["row"], 1);
    assert_eq!(labelled(&all, "masked"), "<|im_start|>");
    let swapped = ["--set", "prompt_field=\"response\"", "--set", "response_field=\"prompt\"", "--json"];
    assert_eq!(labelled(&json(&place.data(&swapped)), "supervised"), "What is 0 + 0?<|im_end|>\n");
}

#[test]
fn a_text_is_tokenised() {
    let place = Place::new();
    let plain = json(&place.run(&["--text", "Hi 🙂", "--json"]));
    assert_eq!(plain.as_object().unwrap().keys().collect::<Vec<_>>(), ["ids", "tokens"]);
    let count = plain["ids"].as_array().unwrap().len();
    assert_eq!(plain["tokens"].as_array().unwrap().len(), count);
    let chat = json(&place.run(&["--text", "Hi 🙂", "--chat", "--json"]));
    assert!(chat["ids"].as_array().unwrap().len() > count);
    assert_eq!(chat["tokens"][0], "<|im_start|>");
    let listed = screen(&place.run(&["--text", "Hi 🙂"]));
    assert!(listed.ends_with(&format!("\n{count} tokens\n")) && listed.lines().count() == count + 1);
}

#[test]
fn a_damaged_cache_is_said_and_mended() {
    let place = Place::new();
    screen(&place.data(&[]));
    let file = std::fs::read_dir(place.cache()).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[200] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let said = screen(&place.data(&[]));
    assert!(said.contains("note: token cache ") && said.contains("its checksum differs, so it is made anew"));
    assert!(screen(&place.data(&[])).contains("from the cache"));
}

/// A disk that takes only so much: the run says so, and leaves no half file.
#[cfg(unix)]
#[test]
fn a_full_disk_is_an_error_and_leaves_nothing() {
    let place = Place::new();
    let row = format!("{{\"prompt\": \"p\", \"response\": \"{}\"}}\n", "many words ".repeat(400));
    std::fs::write(place.rows(), row.repeat(200)).unwrap();
    let program = place.command(&["--data", place.rows().to_str().unwrap(), "--max-length", "8000"]);
    let mut shell = Command::new("sh");
    // No file may grow beyond 64 blocks of 512 bytes; the signal that would end the program is ignored.
    shell.args(["-c", "trap '' XFSZ; ulimit -f 64; exec \"$@\"", "sh"]);
    let ran = shell
        .arg(program.get_program())
        .args(program.get_args())
        .env("SMOLTEN_CACHE", place.cache())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    assert_eq!(ran.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot write"), "{said}");
    assert_eq!(std::fs::read_dir(place.cache()).unwrap().count(), 0);
}

#[test]
fn wrong_use_is_explained() {
    let place = Place::new();
    let rows = place.rows();
    let rows = rows.to_str().unwrap();
    let cases: [(&[&str], &[&str]); 8] = [
        (&[], &["--data"]),
        (&["--data", rows, "--text", "x"], &["--text"]),
        (&["--data", rows, "--chat"], &["--chat"]),
        (&["--data", "nothing.jsonl"], &["nothing.jsonl"]),
        (&["--data", rows, "--row", "21"], &["row 21", "20 rows were read, the last is 20"]),
        (&["--data", rows, "--loss-on", "everything"], &["--loss-on", "assistant"]),
        (&["--data", rows, "--max-length", "3"], &["none of the 20 rows", "--max-length"]),
        (&["--text", "x", "--threads", "0"], &["--threads", "0"]),
    ];
    for (arguments, parts) in cases {
        let ran = place.run(arguments);
        let said = String::from_utf8_lossy(&ran.stderr);
        assert_eq!(ran.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(parts.iter().all(|part| said.contains(part)), "{arguments:?}: {said}");
    }
}
