//! `smolten compare`: what both models are given is the same, and what it says of them is so.

mod common;

use common::engine::{FORWARD, bound};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn smolten(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_smolten")).args(arguments).args(["--device", "cpu"]).output().unwrap()
}

fn said(ran: &Output) -> String {
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout.clone()).unwrap()
}

fn json(ran: &Output) -> Value {
    serde_json::from_str(&said(ran)).expect("one JSON document and nothing else")
}

fn base() -> String {
    fixture("tiny-smollm.gguf").to_str().unwrap().to_owned()
}

/// A folder with a run on rows of its own, of which it holds a fifth out.
struct Tuned {
    folder: tempfile::TempDir,
}

impl Tuned {
    fn train(more: &[&str]) -> Self {
        let tuned = Self { folder: tempfile::tempdir().unwrap() };
        let row = |i: usize| {
            format!("{{\"prompt\": \"What is {i} + {i}?\", \"response\": \"{} it is.\"}}\n", 2 * i)
        };
        std::fs::write(tuned.path("rows.jsonl"), (0..20).map(row).collect::<String>()).unwrap();
        let (data, out, model) = (tuned.path("rows.jsonl"), tuned.path("run"), base());
        let mut arguments = vec!["train", "--model", &model, "--data", &data, "--out", &out, "--steps", "3"];
        arguments.extend(["--lr", "1e-2", "--max-length", "64", "--set", "eval_share=0.2"]);
        arguments.extend(more);
        said(&smolten(&arguments));
        tuned
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// `compare` with this run as the tuned model.
    fn compare(&self, more: &[&str]) -> Output {
        let (base, run) = (base(), self.path("run"));
        let mut arguments = vec!["compare", "--base", &base, "--tuned", &run, "--max-new-tokens", "6"];
        arguments.extend(more);
        smolten(&arguments)
    }

    /// Held-out losses of the run: before its first step and after its last.
    fn held_out(&self) -> (f64, f64) {
        let metrics = std::fs::read_to_string(self.path("run/metrics.jsonl")).unwrap();
        let lines = metrics.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
        let losses: Vec<f64> = lines.filter_map(|l| l["eval_loss"].as_f64()).collect();
        (losses[0], losses[losses.len() - 1])
    }
}

fn assert_near(got: &Value, want: f64, what: &str) {
    let got = got.as_f64().unwrap_or_else(|| panic!("{what}: {got}"));
    // One fp32 forward pass either side, as in tests/eval.rs.
    assert!((got - want).abs() <= 2.0 * f64::from(bound(FORWARD)) * want, "{what}: {got}, want {want}");
}

#[test]
fn held_out_losses_are_those_that_the_run_reported() {
    let other = fixture("eval.jsonl");
    for more in [&[][..], &["--eval-data", other.to_str().unwrap()]] {
        let tuned = Tuned::train(more);
        let got = json(&tuned.compare(&["--json"]));
        let (before, after) = tuned.held_out();
        assert_near(&got["base"]["held_out"]["loss"], before, "base");
        assert_near(&got["tuned"]["held_out"]["loss"], after, "tuned");
        assert!((after - before).abs() > 1e-3, "too near for this test to tell the sides apart");
        let source = got["held_out_rows"].as_str().unwrap();
        assert!(
            source.contains(if more.is_empty() { "the 4 rows of" } else { "evaluation set" }),
            "{source}"
        );
    }
}

#[test]
fn answers_are_those_of_generate_with_the_same_flags() {
    let tuned = Tuned::train(&["--set", "system=Be brief."]);
    let prompts = tuned.path("prompts.jsonl");
    std::fs::write(&prompts, "{\"prompt\": \"the thing\"}\n\n{\"prompt\": \"ten things?\", \"id\": 2}\n")
        .unwrap();
    let flags =
        ["--temperature", "1.5", "--top-k", "200", "--seed", "11", "--repetition-penalty", "1.2", "--json"];
    let got = json(&tuned.compare(&[&["--prompts", &prompts][..], &flags].concat()));
    assert_eq!(got["prompts"], serde_json::json!(["the thing", "ten things?"]));
    assert_eq!((got["decoding"]["seed"].as_u64(), &got["system"]), (Some(11), &"Be brief.".into()));
    for (side, model) in [("base", base()), ("tuned", tuned.path("run"))] {
        for (i, prompt) in ["the thing", "ten things?"].iter().enumerate() {
            let mut arguments =
                vec!["generate", "--model", &model, "--system", "Be brief.", "--prompt", prompt];
            arguments.extend(["--max-new-tokens", "6"]);
            arguments.extend(flags);
            let alone = json(&smolten(&arguments));
            let answer = &got[side]["answers"][i];
            for key in ["new_ids", "text", "stop_reason"] {
                assert_eq!(answer[key], alone[key], "{side}, {prompt}: {key}");
            }
        }
    }
    assert!(got["base"]["answers"] != got["tuned"]["answers"], "the run must show");
}

/// The tuned model's template holds for both, and this is said where the base model has another.
#[test]
fn both_get_the_template_of_the_tuned_model() {
    let tuned = Tuned::train(&[]);
    let (ends, cut) = (tuned.path("run"), tuned.compare(&["--temperature", "2", "--json"]));
    let before = json(&cut);
    assert_eq!(before["same_template"], true);
    let template = "{% for m in messages %}{{ m['content'] }}{% endfor %} theory";
    std::fs::write(Path::new(&ends).join("chat_template.jinja"), template).unwrap();
    let after = json(&tuned.compare(&["--temperature", "2", "--json"]));
    assert_eq!((&after["same_template"], &after["same_tokens"]), (&false.into(), &true.into()));
    assert!(before["base"]["answers"] != after["base"]["answers"]);
    let model = base();
    let raw = format!("{} theory", before["prompts"][0].as_str().unwrap());
    let mut arguments = vec!["generate", "--model", &model, "--raw", "--prompt", &raw, "--temperature", "2"];
    arguments.extend(["--max-new-tokens", "6", "--json"]);
    assert_eq!(json(&smolten(&arguments))["new_ids"], after["base"]["answers"][0]["new_ids"]);
    assert!(said(&tuned.compare(&[])).contains("the base model's own is another"));
}

#[test]
fn figures_are_marked_and_a_rise_is_said() {
    let tuned = Tuned::train(&[]);
    let screen = said(&tuned.compare(&[]));
    let line = |screen: &str, what: &str| {
        screen
            .lines()
            .find(|l| l.starts_with(what))
            .unwrap_or_else(|| panic!("no {what} in\n{screen}"))
            .to_owned()
    };
    assert!(
        screen.contains("1 of 8: Explain AGI in simple terms?")
            && screen.contains("greedy, up to 6 new tokens")
    );
    assert!(line(&screen, "held-out loss").ends_with(" *"), "{screen}");
    assert!(screen.contains("Held-out loss fell by"));
    assert!(
        screen.lines().all(|l| l.chars().count() <= 80 || l.contains('/')),
        "wider than a page:\n{screen}"
    );

    // The other way round it rises, and the mark changes sides.
    let (model, run, rows) = (base(), tuned.path("run"), tuned.path("rows.jsonl"));
    let back = ["compare", "--base", &run, "--tuned", &model, "--data", &rows, "--max-new-tokens", "2"];
    let screen = said(&smolten(&back));
    assert!(screen.contains("Held-out loss ROSE by") && screen.contains("all rows of"), "{screen}");
    let loss = line(&screen, "held-out loss");
    assert!(loss.contains(" * ") && !loss.ends_with('*'), "{loss}");

    // One model against itself: nothing is better.
    let same = ["compare", "--base", &model, "--tuned", &model, "--data", &rows, "--max-new-tokens", "2"];
    let screen = said(&smolten(&same));
    let table: Vec<&str> = screen.lines().skip_while(|l| !l.starts_with("ended the turn")).take(6).collect();
    assert!(
        table.iter().all(|l| !l.contains('*')) && screen.contains("Held-out loss is the same"),
        "{screen}"
    );
}

/// Both answer the same rows; what differs is paired, and what may be chance is called so.
#[test]
fn differences_come_with_an_interval_and_a_sentence() {
    let tuned = Tuned::train(&[]);
    let rows = tuned.path("rows.jsonl");
    let more = ["--data", &rows, "--answers", "15"];
    let got = json(&tuned.compare(&[&more[..], &["--json"]].concat()));
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{value}"));
    let loss = &got["difference"]["loss"];
    let [before, after] = ["base", "tuned"].map(|side| number(&got[side]["held_out"]["loss"]));
    assert_eq!(number(&loss["value"]), after - before);
    let [low, high] = ["low", "high"].map(|end| number(&loss["interval"][end]));
    assert!(low < after - before && after - before < high && high < 0.0, "{loss}");
    // Paired, it is narrower than either loss's own.
    let own = &got["base"]["held_out"]["loss_interval"];
    assert!(high - low < number(&own["high"]) - number(&own["low"]), "{loss} and {own}");
    assert!(loss["says"].as_str().unwrap().starts_with("Held-out loss fell by"), "{loss}");

    let questions = got["questions"].as_array().unwrap();
    assert_eq!((questions.len(), &questions[4]["reference"]["answer"]), (15, &"8".into()));
    let right = |side: &str| questions.iter().filter(|q| q[side]["right"] == true).count();
    for side in ["base", "tuned"] {
        assert_eq!(got[side]["accuracy"]["right"], right(side));
        assert_eq!(got[side]["accuracy"]["reference_rules"], serde_json::json!({ "last number": 15 }));
    }
    let accuracy = &got["difference"]["accuracy"];
    assert_eq!(number(&accuracy["value"]), (right("tuned") as f64 - right("base") as f64) / 15.0);
    let screen = said(&tuned.compare(&more));
    for part in ["Held-out loss fell by", "right answers", "paired bootstrap over rows", "so few rows"] {
        assert!(screen.contains(part), "`{part}` is not in\n{screen}");
    }

    // One model against itself: no difference, and none is claimed.
    let model = base();
    let mut same = vec!["compare", "--base", &model, "--tuned", &model, "--max-new-tokens", "2"];
    same.extend(more);
    let screen = said(&smolten(&same));
    assert!(screen.contains("No difference in right answers seen"), "{screen}");
    same.push("--json");
    let got = json(&smolten(&same));
    for what in ["loss", "accuracy"] {
        let interval = &got["difference"][what]["interval"];
        assert_eq!((number(&interval["low"]), number(&interval["high"])), (0.0, 0.0));
    }
}

#[test]
fn where_no_row_is_known_to_be_held_out_there_is_no_loss() {
    let tuned = Tuned::train(&[]);
    let mut rows = std::fs::read_to_string(tuned.path("rows.jsonl")).unwrap();
    rows += "{\"prompt\": \"one\", \"response\": \"more\"}\n";
    std::fs::write(tuned.path("rows.jsonl"), rows).unwrap();
    let screen = said(&tuned.compare(&[]));
    assert!(screen.contains("has changed since the run") && !screen.contains("held-out loss"), "{screen}");
    std::fs::remove_file(tuned.path("rows.jsonl")).unwrap();
    assert!(said(&tuned.compare(&[])).contains("are not there"));
    std::fs::remove_file(tuned.path("run/run.json")).unwrap();
    assert!(said(&tuned.compare(&[])).contains("there is no run.json"));
    let none = Tuned::train(&["--set", "eval_share=0"]);
    let got = json(&none.compare(&["--json"]));
    assert!(got["held_out_rows"].is_null() && got["base"]["held_out"].is_null());
    assert!(said(&none.compare(&[])).contains("the run held no rows out"));
}

/// Losses over different tokens are shown but not compared.
#[test]
fn other_tokens_are_not_compared() {
    let (base, tuned, rows) = (fixture("tiny-llama3.gguf"), base(), fixture("eval.jsonl"));
    let mut arguments = vec!["compare", "--base", base.to_str().unwrap(), "--tuned", &tuned];
    arguments.extend(["--data", rows.to_str().unwrap(), "--max-new-tokens", "2"]);
    let screen = said(&smolten(&arguments));
    let loss = screen.lines().find(|l| l.starts_with("held-out loss")).unwrap();
    assert!(!loss.contains('*') && screen.contains("cannot be compared"), "{screen}");
}

#[test]
fn bad_prompts_and_models_are_explained() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let long = write("long.txt", format!("short\n{}\n", "1 ".repeat(400)).as_bytes());
    let cases: [(String, &[&str]); 9] = [
        (write("json.jsonl", b"{\"prompt\": \"a\"}\n{\"prompt\": \n"), &["json.jsonl:2", "not JSON"]),
        (write("list.jsonl", b"[1]\n"), &["list.jsonl:1", "not a JSON object"]),
        (write("null.jsonl", b"{\"prompt\": null}\n"), &["null.jsonl:1", "\"prompt\"", "null"]),
        (write("empty.jsonl", b"{\"prompt\": \" \"}\n"), &["empty.jsonl:1", "it is empty"]),
        (write("other.jsonl", b"{\"text\": \"a\"}\n"), &["other.jsonl:1", "fields are text"]),
        (write("bytes.txt", b"fine\nna\xffme\n"), &["bytes.txt:2", "UTF-8"]),
        (write("blank.txt", b"\n \n"), &["blank.txt", "no prompt"]),
        (long, &["long.txt:2", "context holds"]),
        (folder.path().join("nothing.txt").to_str().unwrap().to_owned(), &["nothing.txt"]),
    ];
    let model = base();
    let refused = |arguments: &[&str], parts: &[&str]| {
        let ran = smolten(arguments);
        let said = String::from_utf8(ran.stderr).unwrap();
        assert_eq!(ran.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(
            ran.stdout.is_empty() && parts.iter().all(|part| said.contains(part)),
            "{arguments:?}: {said}"
        );
    };
    for (file, parts) in &cases {
        refused(&["compare", "--base", &model, "--tuned", &model, "--prompts", file], parts);
    }
    refused(&["compare", "--base", "nowhere", "--tuned", &model], &["model nowhere"]);
    let ask = ["compare", "--base", &model, "--tuned", &model, "--answers", "3"];
    refused(&ask, &["--answers", "no run.json", "--data"]);
    let tuned = Tuned::train(&[]);
    std::fs::write(tuned.path("run/run.json"), "{\"recipe\": 3}").unwrap();
    refused(&["compare", "--base", &model, "--tuned", &tuned.path("run")], &["run.json", "no recipe"]);
}
