//! A run that is cut off and taken up again ends in the bytes of one that was not.

#[allow(dead_code, reason = "shared between tests")]
#[path = "common/runs.rs"]
mod runs;

use runs::{program, said, sums, tiny_model, train, weights};
use serde_json::Value;
use smolten::checkpoint::save_pretrained;
use smolten::dtype::DType;
use smolten::error::Error;
use smolten::metrics::{EvalRecord, SampleRecord, StepRecord};
use smolten::pretrained::Pretrained;
use smolten::recipe::{Recipe, RecipeOverrides};
use smolten::trainer::{Observer, Outcome, Run, RunFolder, Sources};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};

const STEPS: u64 = 9;

/// Interrupts a run after step `at`.
struct Interrupter<'a> {
    at: usize,
    flag: &'a AtomicBool,
}

impl Observer for Interrupter<'_> {
    fn step(&mut self, record: &StepRecord, _total: usize, _rows: &[String]) {
        self.flag.store(record.step == self.at, Ordering::Relaxed);
    }
    fn evaluation(&mut self, _record: &EvalRecord) {}
    fn sample(&mut self, _record: &SampleRecord) {}
    fn checkpoint(&mut self, _step: usize, _path: &Path) {}
}

/// One sitting of a run in `out`, new or taken up, on `threads` threads.
fn sitting(folder: &Path, out: &Path, sets: &[&str], threads: usize, interrupt_at: usize) -> Outcome {
    let flags = RecipeOverrides {
        data: Some(sums(folder).display().to_string()),
        steps: Some(STEPS),
        lr: Some(1e-2),
        device: Some("cpu".into()),
        ..RecipeOverrides::default()
    };
    let model = format!("model={}", tiny_model().display());
    let sets: Vec<String> = [model.as_str()].iter().chain(sets).map(|s| s.to_string()).collect();
    let (recipe, run_folder) = if out.join("run.json").exists() {
        (
            RunFolder::recipe(out, None, &[], &RecipeOverrides::default()).unwrap(),
            RunFolder::resume(out.to_owned()).unwrap(),
        )
    } else {
        (Recipe::resolve(None, &sets, &flags).unwrap(), RunFolder::create(out.to_owned()).unwrap())
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let flag = AtomicBool::new(false);
    pool.install(|| {
        let sources = Sources::local(&recipe).unwrap();
        let run = Run::prepare(recipe, sources).unwrap();
        run.execute(run_folder, &flag, &mut Interrupter { at: interrupt_at, flag: &flag }).unwrap()
    })
}

/// The lines of the log without what time and memory say.
fn log(out: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let strip = |line: &str| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        for key in ["tokens_per_second", "step_seconds", "peak_memory_bytes", "eval_seconds"] {
            line.as_object_mut().unwrap().remove(key);
        }
        line
    };
    text.lines().map(strip).collect()
}

#[test]
fn interrupted_anywhere_it_ends_in_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for (name, sets) in [
        ("8bit", &["eval_every=2", "eval_share=0.2"][..]),
        ("torch", &["optimizer=adamw", "eval_share=0"]),
        ("packed", &["packing=true", "max_length=96", "grad_accum=1", "scheduler=cosine"]),
        ("bf16", &["precision=bf16", "shuffle=false"]),
        ("fp16", &["precision=fp16", "clip=0", "save_dtype=bf16"]),
        ("adapters", &["lora_rank=4", "lora_dropout=0.1", "neftune_alpha=5", "eval_share=0.2"]),
        ("noise", &["neftune_alpha=5", "precision=bf16"]),
    ] {
        let whole = folder.join(name);
        assert_eq!(sitting(folder, &whole, sets, 2, 0).interrupted, None);
        for at in [1, 4, 8] {
            let cut = folder.join(format!("{name}-{at}"));
            let outcome = sitting(folder, &cut, sets, 1, at);
            assert_eq!(outcome.interrupted, Some(Some(cut.join(format!("checkpoints/step-{at}")))));
            assert!(!RunFolder::is_finished(&cut));
            if at == 4 {
                sitting(folder, &cut, sets, 2, 6);
            }
            assert_eq!(sitting(folder, &cut, sets, 3, 0).interrupted, None);
            assert!(weights(&whole) == weights(&cut), "{name}, interrupted after step {at}");
            assert_eq!(log(&whole), log(&cut), "{name}, interrupted after step {at}");
        }
    }
}

/// One that was killed before its first checkpoint begins again, and its log with it.
#[test]
fn without_a_checkpoint_it_begins_again() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, cut) = (folder.path().join("whole"), folder.path().join("cut"));
    let sets = ["eval_share=0.2", "sample_every=2"];
    sitting(folder.path(), &whole, &sets, 2, 0);
    sitting(folder.path(), &cut, &sets, 2, 4);
    std::fs::remove_dir_all(cut.join("checkpoints")).unwrap();
    sitting(folder.path(), &cut, &sets, 2, 0);
    assert!(weights(&whole) == weights(&cut));
    assert_eq!(log(&whole), log(&cut));
}

/// What is computed again has the bits that would have been kept; a resumed run may change its mind.
#[test]
fn recomputing_changes_no_bit() {
    let folder = tempfile::tempdir().unwrap();
    for (precision, other) in [("precision=fp32", "precision=fp32"), ("precision=bf16", "cuda_graph=false")] {
        let run = |name: &str, sets: &[&str]| {
            let out = folder.path().join(format!("{precision}-{name}"));
            sitting(folder.path(), &out, &[&[precision, other], sets].concat(), 2, 0);
            out
        };
        let (again, kept) = (run("again", &[]), run("kept", &["recompute=none"]));
        assert!(weights(&again) == weights(&kept), "{precision}");
        assert_eq!(log(&again), log(&kept));
    }
    let planned = |recompute: &str| {
        let sets = [format!("model={}", tiny_model().display()), format!("recompute={recompute}")];
        let data = Some(sums(folder.path()).display().to_string());
        let flags = RecipeOverrides { data, device: Some("cpu".into()), ..RecipeOverrides::default() };
        let recipe = Recipe::resolve(None, &sets, &flags).unwrap();
        let run = Run::prepare(recipe.clone(), Sources::local(&recipe).unwrap()).unwrap();
        run.memory.into_iter().map(|(_, bytes)| bytes).sum::<usize>()
    };
    assert!(planned("none") > planned("norm_swiglu"));
}

/// A model whose fp16 gradients overflow until the loss scale has come down: that scale goes on too.
#[test]
fn the_loss_scale_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = Pretrained::open(&tiny_model()).unwrap();
    let loud = folder.path().join("loud");
    save_pretrained(&loud, &tiny, DType::F32, |p| {
        let mut values = vec![0.0; p.shape[0] * p.shape[1]];
        tiny.weights.read(p, &mut values)?;
        let factor = if p.name == "model.embed_tokens.weight" { 40.0 } else { 1.0 };
        Ok(values.into_iter().map(|x| factor * x).collect())
    })
    .unwrap();
    let model = format!("model={}", loud.display());
    let sets = [model.as_str(), "precision=fp16"];
    let (whole, cut) = (folder.path().join("whole"), folder.path().join("cut"));
    let state = sitting(folder.path(), &whole, &sets, 2, 0).state;
    assert!(state.skipped > 0 && state.loss_scale.value < 65_536.0, "{state:?}");
    let before = sitting(folder.path(), &cut, &sets, 2, 5).state;
    assert!(before.loss_scale.value < 65_536.0, "{before:?}");
    assert_eq!(sitting(folder.path(), &cut, &sets, 1, 0).state.loss_scale, state.loss_scale);
    assert!(weights(&whole) == weights(&cut));
    assert_eq!(log(&whole), log(&cut));
}

/// Looking at the model, or saving it, changes nothing.
#[test]
fn evaluations_samples_and_checkpoints_leave_no_trace() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, sets: &[&str]| {
        let out = folder.path().join(name);
        sitting(folder.path(), &out, sets, 2, 0);
        weights(&out)
    };
    let base = ["eval_share=0.2"];
    let quiet = run("quiet", &[&base[..], &["sample_every=0", "eval_every=0", "save_every=0"]].concat());
    let busy = ["sample_every=1", "eval_every=1", "save_every=1", "sample_prompt=\"What is 3 + 3?\""];
    assert!(quiet == run("busy", &[&base[..], &busy].concat()));
    let samples = log(&folder.path().join("busy")).iter().filter(|l| l["sample"].is_string()).count();
    assert_eq!(samples as u64, STEPS + 1);
}

#[test]
fn the_latest_checkpoints_and_the_best_stay() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let sets =
        ["save_every=2", "eval_every=3", "eval_share=0.2", "keep_checkpoints=2", "lr=0.1", "precision=fp32"];
    let ran = program(folder.path())
        .args(["train", "--steps", "30", "--device", "cpu", "--model"])
        .args([&tiny_model(), Path::new("--data"), &sums(folder.path()), Path::new("--out"), &out])
        .args(sets.iter().flat_map(|s| ["--set", s]))
        .output()
        .unwrap();
    assert!(ran.status.success(), "{}", said(&ran));
    let evaluations: Vec<(u64, f64)> =
        log(&out).iter().filter_map(|l| Some((l["step"].as_u64()?, l.get("eval_loss")?.as_f64()?))).collect();
    // Due every second step, and whenever the held-out loss is the lowest yet; step 30 is the model itself.
    let (mut best, mut saved) = ((0, f64::INFINITY), Vec::new());
    for step in 1..=30 {
        let loss = evaluations[1..].iter().find(|(at, _)| *at == step).map(|(_, loss)| *loss);
        let improved = loss.is_some_and(|loss| loss < best.1);
        if improved {
            best = (step, loss.unwrap());
        }
        if step < 30 && (improved || step % 2 == 0) {
            saved.push(step);
        }
    }
    let mut want = saved.split_off(saved.len() - 2);
    want.extend([best.0].iter().filter(|&&step| step < 30 && !want.contains(&step)).collect::<Vec<_>>());
    want.sort_unstable();
    let mut kept: Vec<u64> = std::fs::read_dir(out.join("checkpoints"))
        .unwrap()
        .map(|e| e.unwrap().file_name().to_str().unwrap().strip_prefix("step-").unwrap().parse().unwrap())
        .collect();
    kept.sort_unstable();
    assert_eq!(kept, want);
    assert!(best.0 < 26, "the best is not one of the latest, or this test shows less than it should");
}

#[test]
fn a_checkpoint_is_a_model_that_generates() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let ran = train(folder.path(), &out, &["--steps", "5", "--save-every", "3"]).output().unwrap();
    assert!(ran.status.success(), "{}", said(&ran));
    let ran = program(folder.path())
        .args(["generate", "--device", "cpu", "--prompt", "hi", "--max-new-tokens", "2", "--model"])
        .arg(out.join("checkpoints/step-3"))
        .output()
        .unwrap();
    assert!(ran.status.success(), "{}", said(&ran));
}

/// What cannot be taken up is refused with the reason; what may change is taken.
#[test]
fn only_the_same_run_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (folder, out) = (folder.path(), folder.path().join("run"));
    sitting(folder, &out, &[], 2, 3);
    let resume = |more: &[&str]| {
        let ran = program(folder).args(["train", "--resume", "--out"]).arg(&out).args(more).output().unwrap();
        (ran.status.code(), said(&ran))
    };
    let refused = |more: &[&str], parts: &[&str]| {
        let (code, said) = resume(more);
        assert_eq!(code, Some(2), "{said}");
        assert!(parts.iter().all(|part| said.contains(part)), "{parts:?} in {said}");
    };
    refused(&["--lr", "0.5"], &["--resume with lr = 0.5", "0.01"]);
    refused(&["--set", "loss_on=all"], &["loss_on", "completion"]);
    let rows = folder.join("rows.jsonl");
    let text = std::fs::read_to_string(&rows).unwrap();
    std::fs::write(&rows, text.replace("It is 0.", "It is 1.")).unwrap();
    refused(&[], &["data, sha256"]);
    std::fs::write(&rows, &text).unwrap();

    let state = out.join("checkpoints/step-3/trainer_state.json");
    let good = std::fs::read(&state).unwrap();
    std::fs::write(&state, &good[..good.len() / 2]).unwrap();
    refused(&[], &["trainer_state.json", "damaged"]);
    std::fs::write(&state, &good).unwrap();
    for file in ["optimizer.safetensors", "model.safetensors"] {
        let path = out.join("checkpoints/step-3").join(file);
        let good = std::fs::read(&path).unwrap();
        std::fs::write(&path, &good[..good.len() - 1]).unwrap();
        refused(&[], &[file, "not a whole safetensors file"]);
        std::fs::write(&path, &good).unwrap();
    }
    let ran = program(folder).args(["train", "--resume"]).output().unwrap();
    assert_eq!(ran.status.code(), Some(2), "--resume needs --out");
    let ran = program(folder).args(["train", "--resume", "--out"]).arg(folder.join("none")).output().unwrap();
    assert_eq!(ran.status.code(), Some(2));
    assert!(said(&ran).contains("run.json") && said(&ran).contains("no such file"), "{}", said(&ran));

    let (code, said) = resume(&["--threads", "1", "--save-every", "2", "--set", "keep_checkpoints=1"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(resume(&[]).0, Some(0), "a finished run is no error");
    let record: Value = serde_json::from_slice(&std::fs::read(out.join("run.json")).unwrap()).unwrap();
    assert_eq!(record["resumed_from_steps"], serde_json::json!([3]));
}

#[test]
fn two_processes_do_not_train_in_one_folder() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let mut first = train(folder.path(), &out, &["--steps", "1000000", "--save-every", "20"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !out.join("checkpoints/step-20").exists() {
        assert!(std::time::Instant::now() < deadline, "the first run does not get going");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let second = train(folder.path(), &out, &["--steps", "1000000"]).output().unwrap();
    let resumed = program(folder.path()).args(["train", "--resume", "--out"]).arg(&out).output().unwrap();
    first.kill().unwrap();
    first.wait().unwrap();
    assert_eq!(second.status.code(), Some(2));
    assert!(said(&second).contains("holds a run already"), "{}", said(&second));
    assert_eq!(resumed.status.code(), Some(2));
    assert!(said(&resumed).contains("another process is training"), "{}", said(&resumed));
}

/// A dry run says what a run would do, and writes nothing.
#[test]
fn a_dry_run_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out: PathBuf = folder.path().join("run");
    let ran = train(folder.path(), &out, &["--dry-run"]).output().unwrap();
    assert!(ran.status.success(), "{}", said(&ran));
    let screen = String::from_utf8(ran.stdout).unwrap();
    for part in [
        "engine: CPU",
        "data: ",
        "audit of",
        "lengths in tokens",
        "memory planned",
        "\"lr\": 0.01",
        "dry run",
    ] {
        assert!(screen.contains(part), "`{part}` is not in:\n{screen}");
    }
    assert!(!out.exists());
}

#[test]
fn a_failed_start_leaves_no_folder() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let ran = train(folder.path(), &out, &["--set", "prompt_field=nothing"]).output().unwrap();
    assert_eq!(ran.status.code(), Some(2));
    assert!(!out.exists());
}

/// The library says the same of a damaged record.
#[test]
fn a_damaged_record_is_named() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("run.json"), "{\"recipe\": {\"lr\": \"x\"}}").unwrap();
    let error = RunFolder::recipe(folder.path(), None, &[], &RecipeOverrides::default()).unwrap_err();
    assert!(matches!(error, Error::Input { .. }) && error.to_string().contains("run.json, key \"lr\""));
}
