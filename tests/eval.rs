//! `smolten eval` against PyTorch, and against the held-out loss that a run reports.
//!
//! Fixture and what it holds: tests/fixtures/make_eval.py.

mod common;

use common::engine::{FORWARD, bound};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn smolten<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_smolten")).args(arguments).output().unwrap()
}

/// `eval` on the CPU.
fn eval(model: &Path, data: &Path, more: &[&str]) -> Output {
    let mut arguments = vec!["eval", "--device", "cpu", "--model", model.to_str().unwrap()];
    arguments.extend(["--data", data.to_str().unwrap()]);
    arguments.extend(more);
    smolten(&arguments)
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one JSON document and nothing else")
}

fn float(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("{key} in {value}"))
}

#[test]
fn loss_and_counts_are_those_of_pytorch() {
    let reference: Value = serde_json::from_slice(&std::fs::read(fixture("eval.json")).unwrap()).unwrap();
    let cases = reference["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 3);
    for case in cases {
        let max_length = case["max_length"].to_string();
        let loss_on = case["loss_on"].as_str().unwrap();
        let more = ["--loss-on", loss_on, "--max-length", &max_length, "--json"];
        let got = json(&eval(&fixture("tiny-smollm.gguf"), &fixture("eval.jsonl"), &more));
        let keys: Vec<&String> = got.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["loss", "perplexity", "tokens", "supervised_tokens", "mean_token_accuracy"]);
        let (loss, want) = (float(&got, "loss"), float(case, "loss"));
        // Both are rounded in fp32, by one forward pass each.
        let allowed = 2.0 * f64::from(bound(FORWARD)) * want;
        assert!((loss - want).abs() <= allowed, "{loss_on} {max_length}: {loss}, want {want} ± {allowed}");
        assert_eq!(float(&got, "perplexity"), loss.exp());
        for count in ["tokens", "supervised_tokens"] {
            assert_eq!(got[count], case[count], "{loss_on} {max_length}: {count}");
        }
        let accuracy = float(case, "correct") / float(case, "supervised_tokens");
        assert_eq!(float(&got, "mean_token_accuracy"), accuracy, "{loss_on} {max_length}");
    }
}

#[test]
fn people_get_lines() {
    let ran = eval(&fixture("tiny-smollm.gguf"), &fixture("eval.jsonl"), &["--max-length", "60"]);
    let screen = String::from_utf8(ran.stdout).unwrap();
    let parts = [
        "6 rows, 195 tokens",
        "1 rows left out",
        "loss: 5.7216 nats",
        "perplexity: 305",
        "token accuracy: 1.4 %",
    ];
    for part in parts {
        assert!(screen.contains(part), "`{part}` is not in:\n{screen}");
    }
}

/// Rows in a file of their own: the loss before the first step is the base model's, the one after the last step that
/// of the saved model.
#[test]
fn equals_the_held_out_loss_of_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let (model, rows, out) = (fixture("tiny-smollm.gguf"), fixture("eval.jsonl"), folder.path().join("run"));
    let train = smolten(&[
        Path::new("train"),
        Path::new("--model"),
        &model,
        Path::new("--data"),
        &rows,
        Path::new("--eval-data"),
        &rows,
        Path::new("--out"),
        &out,
        Path::new("--steps"),
        Path::new("3"),
        Path::new("--max-length"),
        Path::new("60"),
        Path::new("--device"),
        Path::new("cpu"),
        Path::new("--lr"),
        Path::new("1e-2"),
    ]);
    assert!(train.status.success(), "{}", String::from_utf8_lossy(&train.stderr));
    let metrics = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let lines: Vec<Value> = metrics.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let held_out: Vec<&Value> = lines.iter().filter(|l| l.get("eval_loss").is_some()).collect();
    assert_eq!(held_out.len(), 2);
    for (model, said) in [(&model, held_out[0]), (&out, held_out[1])] {
        let got = json(&eval(model, &rows, &["--max-length", "60", "--json"]));
        assert_eq!(got["supervised_tokens"], said["eval_supervised_tokens"]);
        assert_eq!(got["mean_token_accuracy"], said["eval_mean_token_accuracy"]);
        // A row's arithmetic does not depend on its neighbours up to the choice of products' blocking: one pass's
        // rounding either side.
        let (loss, want) = (float(&got, "loss"), float(said, "eval_loss"));
        assert!((loss - want).abs() <= 2.0 * f64::from(bound(FORWARD)) * want, "{loss}, want {want}");
    }
    assert!(float(held_out[1], "eval_loss") < float(held_out[0], "eval_loss"), "nothing moved");
}

#[test]
fn wrong_use_is_explained() {
    let (model, rows) = (fixture("tiny-smollm.gguf"), fixture("eval.jsonl"));
    let cases: [(&Path, &Path, &[&str], &[&str]); 4] = [
        (&model, &rows, &["--loss-on", "prompt"], &["--loss-on", "prompt", "completion, all"]),
        (&model, &rows, &["--max-length", "1"], &["--max-length", "1"]),
        (&model, &rows, &["--max-length", "3"], &["eval.jsonl", "none of the 6 rows"]),
        (Path::new("nowhere"), &rows, &[], &["model nowhere", "no such file"]),
    ];
    for (model, data, more, parts) in cases {
        let ran = eval(model, data, more);
        let said = String::from_utf8(ran.stderr).unwrap();
        assert_eq!(ran.status.code(), Some(2), "{more:?}: {said}");
        assert!(ran.stdout.is_empty());
        assert!(parts.iter().all(|part| said.contains(part)), "{more:?}: {said}");
    }
}
