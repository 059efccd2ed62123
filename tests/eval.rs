//! `smolten eval` against PyTorch, and against the held-out loss that a run reports.
//!
//! Fixture and what it holds: tests/fixtures/make_eval.py.

mod common;

use common::engine::{FORWARD, bound};
use serde_json::{Value, json};
use smolten::eval::{FinalAnswer, Interval, RESAMPLES, RowLoss, mean_loss_interval};
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
        assert_eq!(keys[..5], ["loss", "perplexity", "tokens", "supervised_tokens", "mean_token_accuracy"]);
        assert_eq!(keys[5..], ["rows", "loss_interval", "perplexity_interval"]);
        assert_eq!(got["rows"], case["rows"]);
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
        "(95 % interval 5.7",
        "bootstrap over the 5 rows, 10000 samples; of so few rows",
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

/// A folder with some rows of `eval.jsonl` in a file.
fn some_rows(rows: &[usize]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let (all, path) =
        (std::fs::read_to_string(fixture("eval.jsonl")).unwrap(), folder.path().join("rows.jsonl"));
    let lines: Vec<&str> = all.lines().collect();
    std::fs::write(&path, rows.iter().map(|&row| format!("{}\n", lines[row])).collect::<String>()).unwrap();
    (folder, path)
}

/// The rows one by one are what the mean and its interval are made of.
#[test]
fn the_interval_is_that_of_the_rows_losses() {
    let model = fixture("tiny-smollm.gguf");
    let alone: Vec<RowLoss> = (0..6)
        .map(|row| {
            let (_folder, path) = some_rows(&[row]);
            let got = json(&eval(&model, &path, &["--json"]));
            assert!(
                got["rows"] == 1 && got["loss_interval"].is_null() && got["perplexity_interval"].is_null()
            );
            let tokens = usize::try_from(got["supervised_tokens"].as_u64().unwrap()).unwrap();
            RowLoss { loss: float(&got, "loss") * tokens as f64, tokens }
        })
        .collect();
    let got = json(&eval(&model, &fixture("eval.jsonl"), &["--json"]));
    let want = mean_loss_interval(&alone).unwrap();
    let interval = &got["loss_interval"];
    // A row alone goes through other products than among others: one pass's rounding either side.
    let near = |got: f64, want: f64| (got - want).abs() <= 2.0 * f64::from(bound(FORWARD)) * want;
    assert!(near(float(interval, "low"), want.low) && near(float(interval, "high"), want.high), "{interval}");
    assert!(want.low < float(&got, "loss") && float(&got, "loss") < want.high && want.high - want.low > 0.01);
    let (low, high) = (float(interval, "low").exp(), float(interval, "high").exp());
    assert_eq!(
        got["perplexity_interval"],
        json!({ "low": low, "high": high, "level": 0.95,
        "method": "percentile bootstrap over rows", "resamples": RESAMPLES })
    );
    let (_folder, path) = some_rows(&[1]);
    let screen = String::from_utf8(eval(&model, &path, &[]).stdout).unwrap();
    assert!(screen.contains("none, as a single row") && !screen.contains("95 %"), "{screen}");
}

/// A model that answers with numbers, saved in `out`.
fn learn_numbers(asked: &[String], folder: &Path, out: &Path) {
    let row = |(i, prompt): (usize, &String)| {
        json!({ "prompt": prompt, "response": format!("it is {}{}", i % 3 + 1, i % 4 + 4) }).to_string()
            + "\n"
    };
    let rows = folder.join("learnt.jsonl");
    std::fs::write(&rows, asked.iter().enumerate().map(row).collect::<String>()).unwrap();
    let (model, rows, out) = (fixture("tiny-smollm.gguf"), rows.to_str().unwrap(), out.to_str().unwrap());
    let mut arguments = vec!["train", "--model", model.to_str().unwrap(), "--data", rows, "--out", out];
    arguments.extend(["--steps", "60", "--lr", "2e-2", "--max-length", "64", "--set", "eval_share=0"]);
    let ran = smolten(&[&arguments[..], &["--device", "cpu"]].concat());
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
}

/// Questions are asked as `generate` asks them, and their answers graded by what it says.
#[test]
fn answers_are_graded_against_the_responses() {
    let folder = tempfile::tempdir().unwrap();
    let asked: Vec<String> = (0..14).map(|i| format!("the thing {i}?")).collect();
    let model = folder.path().join("run");
    learn_numbers(&asked, folder.path(), &model);
    let texts: Vec<String> = asked
        .iter()
        .map(|prompt| {
            let model = model.to_str().unwrap();
            let flags = ["--prompt", prompt, "--max-new-tokens", "40", "--json", "--device", "cpu"];
            let said = json(&smolten(&[&["generate", "--model", model], &flags[..]].concat()));
            said["text"].as_str().unwrap().to_owned()
        })
        .collect();
    let found: Vec<Option<FinalAnswer>> = texts.iter().map(|text| FinalAnswer::find(text)).collect();
    let wanted = |i: usize| i % 3 != 1 && found[i].is_some();
    let response = |i: usize| match &found[i] {
        Some(answer) if wanted(i) => format!("so it is\n#### {}", answer.text),
        _ => "#### 123456.789".to_owned(),
    };
    let mut rows: String =
        (0..12).map(|i| json!({ "prompt": asked[i], "response": response(i) }).to_string() + "\n").collect();
    rows += "{\"prompt\": \"who?\", \"response\": \"nobody\"}\n"; // no answer to compare with
    rows += &(json!({ "prompt": asked[13], "response": "1" }).to_string() + "\n"); // beyond --answers
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, rows).unwrap();

    let more = ["--answers", "13", "--max-new-tokens", "40"];
    let got = json(&eval(&model, &path, &[&more[..], &["--json"]].concat()));
    let answers = &got["answers"];
    let right = (0..12).filter(|&i| wanted(i)).count();
    assert!((1..12).contains(&right), "{right} right, which shows little");
    let count = |key: &str| answers[key].as_u64().and_then(|n| usize::try_from(n).ok());
    assert_eq!((count("rows"), count("right"), count("without_reference")), (Some(12), Some(right), Some(1)));
    assert_eq!(float(answers, "accuracy"), right as f64 / 12.0);
    assert_eq!(answers["interval"], json!(Interval::wilson(right, 12)));
    assert_eq!(answers["reference_rules"], json!({ "####": 12 }));
    let questions = answers["questions"].as_array().unwrap();
    assert_eq!(questions.len(), 12);
    for (i, question) in questions.iter().enumerate() {
        assert_eq!(question["text"], texts[i], "{i}");
        assert_eq!(question["right"], wanted(i), "{question}");
        assert_eq!(question["answer"], json!(found[i].as_ref().map(|answer| &answer.text)));
        assert!(
            question["place"].as_str().unwrap().ends_with(&format!("rows.jsonl:{}", i + 1)),
            "{question}"
        );
    }
    let without = json(&eval(&model, &path, &["--json"]));
    assert_eq!(
        (&without["loss"], &without["answers"]),
        (&got["loss"], &Value::Null),
        "answering changed the loss"
    );
    let screen = String::from_utf8(eval(&model, &path, &more).stdout).unwrap();
    for part in
        [&format!("right answers: {right} of 12, "), "references found by: #### 12", "left out: 1 rows"]
    {
        assert!(screen.contains(part), "`{part}` is not in:\n{screen}");
    }
}

#[test]
fn wrong_use_is_explained() {
    let (model, rows) = (fixture("tiny-smollm.gguf"), fixture("eval.jsonl"));
    let (_folder, no_answer) = some_rows(&[0]);
    let cases: [(&Path, &Path, &[&str], &[&str]); 7] = [
        (&model, &rows, &["--loss-on", "prompt"], &["--loss-on", "prompt", "completion, all"]),
        (&model, &rows, &["--max-length", "1"], &["--max-length", "1"]),
        (&model, &rows, &["--max-length", "3"], &["eval.jsonl", "none of the 6 rows"]),
        (Path::new("nowhere"), &rows, &[], &["model nowhere", "no such file"]),
        (&model, &rows, &["--answers", "0"], &["--answers"]),
        (&model, &rows, &["--max-new-tokens", "9"], &["--answers"]),
        (&model, &no_answer, &["--answers", "5"], &["--answers", "none of the 1 rows", "#### 72"]),
    ];
    for (model, data, more, parts) in cases {
        let ran = eval(model, data, more);
        let said = String::from_utf8(ran.stderr).unwrap();
        assert_eq!(ran.status.code(), Some(2), "{more:?}: {said}");
        assert!(ran.stdout.is_empty());
        assert!(parts.iter().all(|part| said.contains(part)), "{more:?}: {said}");
    }
}
