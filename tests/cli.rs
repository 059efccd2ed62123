//! The program as a user runs it: what it writes, what it prints, and what it says when something is wrong.

use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-smollm.gguf")
}

fn smolten(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_smolten"))
        .env("SMOLTEN_CACHE", cache())
        .args(arguments)
        .output()
        .unwrap()
}

/// A token cache for tests, within the build's folder.
fn cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("token-cache")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Rows of prompt and response, as a file.
fn rows(folder: &Path) -> PathBuf {
    let path = folder.join("rows.jsonl");
    let line =
        |i: usize| format!("{{\"prompt\": \"What is {i} + {i}?\", \"response\": \"It is {}.\"}}\n", 2 * i);
    std::fs::write(&path, (0..20).map(line).collect::<String>()).unwrap();
    path
}

/// `train` on the tiny model, with more flags.
fn train(folder: &Path, out: &Path, more: &[&str]) -> Output {
    let (model, rows) = (model(), rows(folder));
    let mut arguments = vec!["train", "--model", model.to_str().unwrap(), "--data", rows.to_str().unwrap()];
    arguments.extend(["--out", out.to_str().unwrap(), "--steps", "4", "--device", "cpu"]);
    arguments.extend(more);
    smolten(&arguments)
}

fn json_lines(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn a_run_leaves_a_model_and_its_records() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let flags = ["--set", "eval_every=2", "--set", "eval_share=0.2", "--lr", "1e-2", "--precision", "fp32"];
    let ran = train(folder.path(), &out, &flags);
    assert!(ran.status.success(), "{}", text(&ran.stderr));
    let screen = text(&ran.stdout);
    for part in ["machine: ", "engine: CPU, fp32", "weights: ", "[[", "step 4/4", "held-out loss", "try it: "]
    {
        assert!(screen.contains(part), "`{part}` is not in:\n{screen}");
    }
    for file in ["model.safetensors", "config.json", "generation_config.json", "tokenizer.json"] {
        assert!(out.join(file).is_file(), "{file}");
    }
    let lines = json_lines(&out.join("metrics.jsonl"));
    let steps: Vec<&Value> = lines.iter().filter(|l| l.get("loss").is_some()).collect();
    let evaluations: Vec<&Value> = lines.iter().filter(|l| l.get("eval_loss").is_some()).collect();
    assert_eq!((steps.len(), evaluations.len()), (4, 3));
    assert!(evaluations.iter().all(|e| e.get("loss").is_none()));
    assert_eq!(steps[0]["learning_rate"], 0.0);
    assert!(evaluations[2]["eval_loss"].as_f64().unwrap() < evaluations[0]["eval_loss"].as_f64().unwrap());
    let record: Value = serde_json::from_slice(&std::fs::read(out.join("run.json")).unwrap()).unwrap();
    assert_eq!(record["recipe"]["lr"], 1e-2);
    assert_eq!(record["data"]["held_out_rows"], 4);
    assert_eq!(record["data"]["sha256"][0].as_str().unwrap().len(), 64);
    let left: Vec<_> = std::fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|f| !f.to_string_lossy().starts_with('.')), "temporary files remain: {left:?}");

    let again = train(folder.path(), &out, &[]);
    assert_eq!(again.status.code(), Some(2));
    assert!(text(&again.stderr).contains("holds a run already"), "{}", text(&again.stderr));

    let out = out.to_str().unwrap();
    let answer = smolten(&[
        "generate",
        "--model",
        out,
        "--prompt",
        "What is 3 + 3?",
        "--max-new-tokens",
        "8",
        "--json",
    ]);
    let answer: Value = serde_json::from_slice(&answer.stdout).expect("one JSON document");
    let keys: Vec<&String> = answer.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["prompt_ids", "new_ids", "text", "stop_reason"]);
    assert!(["stop", "length"].contains(&answer["stop_reason"].as_str().unwrap()));
}

#[test]
fn any_number_of_threads_writes_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    for optimizer in ["adamw", "adamw_8bit"] {
        let run = |threads: &str| {
            let out = folder.path().join(format!("{optimizer}-{threads}"));
            let ran = train(folder.path(), &out, &["--optimizer", optimizer, "--threads", threads]);
            assert!(ran.status.success(), "{}", text(&ran.stderr));
            std::fs::read(out.join("model.safetensors")).unwrap()
        };
        let one = run("1");
        assert!(run("2") == one && run("3") == one, "{optimizer}");
    }
}

#[test]
fn every_precision_trains() {
    let folder = tempfile::tempdir().unwrap();
    for precision in ["bf16", "fp16"] {
        let out = folder.path().join(precision);
        let ran = train(folder.path(), &out, &["--precision", precision, "--packing", "--max-length", "64"]);
        assert!(ran.status.success(), "{}", text(&ran.stderr));
        assert!(text(&ran.stdout).contains(&format!("engine: CPU, {precision}")));
        let steps = json_lines(&out.join("metrics.jsonl"));
        assert!(steps.iter().filter_map(|l| l.get("loss")).all(Value::is_number));
    }
}

#[test]
fn generation_streams_samples_and_chats() {
    let model = model();
    let model = model.to_str().unwrap();
    let generate = |more: &[&str]| {
        let mut arguments = vec!["generate", "--model", model, "--max-new-tokens", "6"];
        arguments.extend(more);
        let ran = smolten(&arguments);
        assert!(ran.status.success(), "{}", text(&ran.stderr));
        ran.stdout
    };
    let greedy = generate(&["--prompt", "1 + 1", "--raw"]);
    assert_eq!(greedy, generate(&["--prompt", "1 + 1", "--raw"]));
    let sampled = |seed: &str| generate(&["--prompt", "1 + 1", "--temperature", "2", "--seed", seed]);
    assert_eq!(sampled("5"), sampled("5"));
    assert!(["1", "2", "3"].iter().any(|seed| sampled(seed) != sampled("5")));
    let json: Value =
        serde_json::from_slice(&generate(&["--prompt", "hi", "--system", "Be brief.", "--json"])).unwrap();
    assert!(json["prompt_ids"].as_array().unwrap().len() > 4);

    let mut chat = Command::new(env!("CARGO_BIN_EXE_smolten"))
        .args(["generate", "--model", model, "--chat", "--max-new-tokens", "3"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    chat.stdin.take().unwrap().write_all(b"hi\n\nand then?\n").unwrap();
    let out = chat.wait_with_output().unwrap();
    assert!(out.status.success() && out.stdout.iter().filter(|&&b| b == b'\n').count() >= 2);
}

/// A reader that leaves must not end a training run.
#[test]
fn a_closed_pipe_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (model, rows, out) = (model(), rows(folder.path()), folder.path().join("run"));
    let mut child = Command::new(env!("CARGO_BIN_EXE_smolten"))
        .env("SMOLTEN_CACHE", cache())
        .args(["train", "--steps", "3", "--device", "cpu", "--model"])
        .args([&model, Path::new("--data"), &rows, Path::new("--out"), &out])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
    assert!(out.join("model.safetensors").is_file());
}

/// What is asked wrongly ends with code 2, and the message names what was asked, what was found and what to do.
#[test]
fn wrong_use_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    let (model, rows) = (model(), rows(folder.path()));
    let (model, rows) = (model.to_str().unwrap(), rows.to_str().unwrap());
    let broken = folder.path().join("broken.jsonl");
    std::fs::write(
        &broken,
        "{\"prompt\": \"a\", \"response\": \"b\"}\n{\"prompt\": null, \"response\": \"b\"}\n",
    )
    .unwrap();
    let broken = broken.to_str().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let under_a_file = file.join("out");
    let cases: [(&[&str], &[&str]); 11] = [
        (&["train", "--model", "nowhere", "--data", rows], &["model nowhere", "no such file"]),
        (&["train", "--model", model, "--data", "nothing.jsonl"], &["nothing.jsonl"]),
        (&["train", "--model", model, "--data", broken], &["broken.jsonl:2", "prompt", "null"]),
        (&["train", "--model", model, "--data", rows, "--lr", "nan"], &["--lr", "nan"]),
        (&["train", "--model", model, "--data", rows, "--batch-size", "0"], &["--batch-size", "0"]),
        (&["train", "--model", model, "--data", rows, "--set", "warmpu=3"], &["warmpu", "warmup"]),
        (&["train", "--model", model, "--data", rows, "--device", "tpu"], &["--device", "tpu"]),
        (
            &["train", "--model", model, "--data", rows, "--out", under_a_file.to_str().unwrap()],
            &["--out", "cannot write there"],
        ),
        (&["train", "none.toml"], &["none.toml", "no such file"]),
        (&["generate", "--model", model, "--prompt", "x", "--temperature", "-1"], &["--temperature"]),
        (&["generate", "--model", model], &["--prompt"]),
    ];
    for (arguments, parts) in cases {
        let ran = smolten(arguments);
        let said = text(&ran.stderr);
        assert_eq!(ran.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(parts.iter().all(|part| said.contains(part)), "{arguments:?}: {said}");
        assert!(!said.contains("panicked"), "{said}");
    }
}

/// Without an NVIDIA driver; with one, the kernels do not make a whole step yet. Either way no silent fallback.
#[test]
fn a_gpu_that_cannot_train_is_refused() {
    let model = model();
    let ran = smolten(&["generate", "--model", model.to_str().unwrap(), "--prompt", "x", "--device", "cuda"]);
    assert_eq!(ran.status.code(), Some(2));
    let said = text(&ran.stderr);
    assert!(said.contains("--device cuda:0") && said.contains("--device cpu"), "{said}");
}

#[test]
fn the_version_says_what_it_was_built_from_and_what_it_would_use() {
    let short = text(&smolten(&["-V"]).stdout);
    assert_eq!(short.lines().count(), 1, "{short}");
    let begins = format!("smolten {} (commit ", env!("CARGO_PKG_VERSION"));
    assert!(short.starts_with(&begins) && short.trim_end().ends_with(')'), "{short}");
    let long = text(&smolten(&["--version"]).stdout);
    let lines: Vec<&str> = long.lines().collect();
    assert_eq!((lines.len(), lines[0]), (3, short.trim_end()), "{long}");
    let level = smolten::ops::tile::Level::best().name();
    assert!(
        lines[1].starts_with("processor: ") && lines[1].ends_with(&format!("computes with {level}")),
        "{long}"
    );
    let wanted = match smolten::cuda::Images::of_this_binary() {
        Some(_) => "PTX for compute capability 7.5 and newer",
        None => "kernels: none",
    };
    assert!(lines[2].starts_with("kernels: ") && lines[2].contains(wanted), "{long}");
}

/// In a bash of its own: what a user gets for the words typed so far and a press of Tab.
#[test]
fn bash_completes_commands_and_flags() {
    let script = "PATH=$1:$PATH; source <(smolten completions bash) || exit 9; shift; COMP_WORDS=(\"$@\"); \
                  COMP_CWORD=$(($# - 1)); $(complete -p smolten | sed 's/.* -F \\([^ ]*\\).*/\\1/') smolten \
                  \"${COMP_WORDS[COMP_CWORD]}\" \"${COMP_WORDS[COMP_CWORD-1]}\"; echo \"${COMPREPLY[@]}\"";
    let folder = Path::new(env!("CARGO_BIN_EXE_smolten")).parent().unwrap();
    let complete = |words: &[&str]| {
        let ran = Command::new("bash")
            .args(["--norc", "-c", script, "bash", folder.to_str().unwrap()])
            .args(words)
            .output()
            .unwrap();
        assert!(ran.status.success() && ran.stderr.is_empty(), "{}", text(&ran.stderr));
        text(&ran.stdout).trim().to_owned()
    };
    assert_eq!(complete(&["smolten", "tr"]), "train");
    assert_eq!(complete(&["smolten", "train", "--grad"]), "--grad-accum");
    assert_eq!(complete(&["smolten", "train", "--eval"]), "--eval-data");
    assert_eq!(complete(&["smolten", "bench", "k"]), "kernels");
    for (shell, part) in
        [("zsh", "#compdef smolten"), ("fish", "complete -c smolten"), ("elvish", "smolten;train")]
    {
        assert!(text(&smolten(&["completions", shell]).stdout).contains(part), "{shell}");
    }
    assert_eq!(smolten(&["completions", "tcsh"]).status.code(), Some(2));
}

/// `--isa` comes before anything asks what the processor has.
#[test]
fn a_process_is_kept_to_an_instruction_set() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tiny-smollm.gguf");
    let line = ["generate", "--model", model, "--prompt", "a", "--max-new-tokens", "1", "--device", "cpu"];
    let done = smolten(&[&line[..], &["--isa", "portable"]].concat());
    assert_eq!(done.status.code(), Some(0), "{}", String::from_utf8_lossy(&done.stderr));
    let done = smolten(&[&line[..], &["--isa", "mmx"]].concat());
    assert_eq!(done.status.code(), Some(2));
}
