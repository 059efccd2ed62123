//! Whole runs of the program on a GPU: interrupted and taken up, recorded or not, and what they say of it.

use super::runs::{gpu_model, program, said, sums, tiny_model, weights};
use serde_json::Value;
use std::path::Path;

/// Six steps of two micro-batches in `out`; `more` comes last.
fn train(folder: &Path, out: &Path, more: &[&str]) -> String {
    let mut command = program(folder);
    command.args(["train", "--device", "cuda", "--precision", "fp16", "--lr", "1e-2", "--steps", "6"]);
    command.args(["--grad-accum", "2", "--warmup", "1", "--set", "eval_share=0.2", "--set", "eval_every=3"]);
    command.args(["--save-every", "3", "--model"]).arg(folder.join("model"));
    command.arg("--data").arg(sums(folder)).arg("--out").arg(out).args(more);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn steps(out: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_run_taken_up_ends_in_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    gpu_model(folder.path());
    let (whole, cut) = (folder.path().join("whole"), folder.path().join("cut"));
    let screen = train(folder.path(), &whole, &[]);
    assert!(screen.contains("engine: ") && screen.contains("fp16"), "{screen}");
    train(folder.path(), &cut, &["--set", "recompute=none", "--set", "cuda_graph=false"]);
    assert!(weights(&whole) == weights(&cut), "recomputed or not, recorded or not");

    // As if it had been cut off after step 3: later files are not there.
    std::fs::remove_file(cut.join("model.safetensors")).unwrap();
    assert!(cut.join("checkpoints/step-3").is_dir());
    let resumed = program(folder.path()).args(["train", "--resume", "--out"]).arg(&cut).output().unwrap();
    assert!(resumed.status.success(), "{}", said(&resumed));
    assert!(weights(&whole) == weights(&cut));
    let (whole, cut) = (steps(&whole), steps(&cut));
    assert_eq!(whole.len(), cut.len());
    for (a, b) in whole.iter().zip(&cut) {
        for key in ["step", "loss", "grad_norm", "entropy", "mean_token_accuracy", "eval_loss", "sample"] {
            assert_eq!(a[key], b[key], "{key} of {a}");
        }
    }
    let last = whole.iter().rfind(|line| line["loss"].is_f64()).unwrap();
    assert!(
        last["entropy"].as_f64().unwrap() > 0.0 && last["peak_memory_bytes"].as_u64().unwrap() > 0,
        "{last}"
    );
}

/// Said before anything is loaded or written.
#[test]
fn a_model_that_does_not_fit_the_kernels_is_refused_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let mut command = program(folder.path());
    command.args(["train", "--device", "cuda", "--steps", "1", "--model"]).arg(tiny_model());
    let output = command.arg("--data").arg(sums(folder.path())).arg("--out").arg(&out).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("vocab_size is 300"), "{}", said(&output));
    assert!(said(&output).contains("--device cpu"), "{}", said(&output));
    assert!(!out.exists());
}
