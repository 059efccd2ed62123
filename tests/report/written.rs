//! When the page of a run is written, and what it costs the run: nothing.

use crate::runs::{sums, tiny_model, weights};
use crate::{assert_self_contained, part};
use serde_json::Value;
use smolten::metrics::{EvalRecord, SampleRecord, StepRecord};
use smolten::recipe::{Recipe, RecipeOverrides};
use smolten::report::REPORT;
use smolten::trainer::{Observer, Outcome, Run, RunFolder, Sources};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// One sitting of a run, seen by an observer.
fn sitting(
    folder: &Path,
    out: &Path,
    observer: &mut dyn Observer,
    flag: &AtomicBool,
) -> smolten::error::Result<Outcome> {
    sitting_with(&["eval_every=2", "sample_every=3", "save_every=2"], folder, out, observer, flag)
}

/// The same with other keys.
fn sitting_with(
    sets: &[&str],
    folder: &Path,
    out: &Path,
    observer: &mut dyn Observer,
    flag: &AtomicBool,
) -> smolten::error::Result<Outcome> {
    let flags = RecipeOverrides {
        data: Some(sums(folder).display().to_string()),
        steps: Some(9),
        lr: Some(1e-2),
        device: Some("cpu".into()),
        ..RecipeOverrides::default()
    };
    let model = format!("model={}", tiny_model().display());
    let sets: Vec<String> =
        [&[model.as_str(), "eval_share=0.2"], sets].concat().iter().map(|s| s.to_string()).collect();
    let (recipe, run_folder) = if out.join("run.json").exists() {
        let recipe = RunFolder::recipe(out, None, &[], &RecipeOverrides::default()).unwrap();
        (recipe, RunFolder::resume(out.to_owned()).unwrap())
    } else {
        (Recipe::resolve(None, &sets, &flags).unwrap(), RunFolder::create(out.to_owned()).unwrap())
    };
    let sources = Sources::local(&recipe).unwrap();
    Run::prepare(recipe, sources).unwrap().execute(run_folder, flag, observer)
}

/// Does something after each step.
struct After<F: FnMut(usize)>(F);

impl<F: FnMut(usize)> Observer for After<F> {
    fn step(&mut self, record: &StepRecord, _total: usize, _rows: &[String]) {
        (self.0)(record.step);
    }
    fn evaluation(&mut self, _record: &EvalRecord) {}
    fn sample(&mut self, _record: &SampleRecord) {}
    fn checkpoint(&mut self, _step: usize, _path: &Path) {}
}

fn report(out: &Path) -> String {
    std::fs::read_to_string(out.join(REPORT)).unwrap()
}

/// What does not depend on the clock: the losses' picture and the texts.
fn timeless(page: &str) -> (String, String) {
    let loss = part(page, "id=\"loss\"", "</figure>").to_owned();
    (loss, part(page, "id=\"h-texts\"", "</section>").to_owned())
}

#[test]
fn it_is_written_while_the_run_goes_on_and_at_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let never = AtomicBool::new(false);
    let mut seen = Vec::new();
    let mut look = After(|step| {
        let page = report(&out);
        assert!(page.contains("<title>tiny-smollm on rows: running"));
        seen.push(page);
        // First what came before the steps is shown; then steps alone, which wait longer.
        let pause = [1000, 0, 3100].get(step - 1).copied().unwrap_or(0);
        std::thread::sleep(Duration::from_millis(pause));
    });
    let sets = ["eval_every=0", "sample_every=100", "save_every=0"];
    sitting_with(&sets, folder.path(), &out, &mut look, &never).unwrap();
    assert!(seen[0].contains("0 of 9 steps"), "at the first step nothing but the evaluation had happened");
    assert!(seen[1].contains("1 of 9 steps") && seen[1].contains("Before the first step"));
    assert!(seen[2].contains("1 of 9 steps"), "not after every step");
    assert!(seen[3].contains("3 of 9 steps"), "after some seconds a step shows");
    let page = report(&out);
    assert_self_contained(&page);
    assert!(page.contains(": finished</title>") && page.contains("9 of 9 steps"));
    assert!(
        std::fs::read_dir(&out).unwrap().all(|e| !e
            .unwrap()
            .file_name()
            .to_string_lossy()
            .ends_with(".part"))
    );
    let metrics = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let samples: Vec<Value> = metrics.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let last = samples.iter().rev().find_map(|l: &Value| l["sample"].as_str()).unwrap().trim().to_owned();
    let shown = part(&page, "After 9 steps", "</figure>");
    let words = last.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty());
    assert!(words.into_iter().all(|word| shown.contains(word)), "{last} in {shown}");
}

#[test]
fn a_run_that_goes_on_goes_on_with_its_report() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, cut) = (folder.path().join("whole"), folder.path().join("cut"));
    let flag = AtomicBool::new(false);
    sitting(folder.path(), &whole, &mut After(|_| ()), &flag).unwrap();
    sitting(folder.path(), &cut, &mut After(|step| flag.store(step == 5, Ordering::Relaxed)), &flag).unwrap();
    let page = report(&cut);
    assert!(page.contains(": interrupted</title>") && page.contains("5 of 9 steps"));
    assert!(page.contains("smolten train --resume --out"));
    flag.store(false, Ordering::Relaxed);
    sitting(folder.path(), &cut, &mut After(|_| ()), &flag).unwrap();
    assert!(report(&cut).contains("taken up again after step 5"));
    assert_eq!(timeless(&report(&cut)), timeless(&report(&whole)));
}

/// A report that cannot be written costs the run nothing, and the run says so.
#[test]
fn no_report_is_worth_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, without) = (folder.path().join("whole"), folder.path().join("without"));
    let never = AtomicBool::new(false);
    assert_eq!(sitting(folder.path(), &whole, &mut After(|_| ()), &never).unwrap().unreported, None);
    let mut in_the_way = After(|step| {
        if step == 1 {
            std::fs::remove_file(without.join(REPORT)).unwrap();
            std::fs::create_dir(without.join(REPORT)).unwrap();
        }
    });
    let outcome = sitting(folder.path(), &without, &mut in_the_way, &never).unwrap();
    assert!(outcome.unreported.unwrap().contains(REPORT));
    assert!(weights(&whole) == weights(&without));
    let log = |out: &Path| {
        let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        let strip = |line: &str| {
            let mut line: Value = serde_json::from_str(line).unwrap();
            for key in ["tokens_per_second", "step_seconds", "peak_memory_bytes", "eval_seconds"] {
                line.as_object_mut().unwrap().remove(key);
            }
            line
        };
        text.lines().map(strip).collect::<Vec<_>>()
    };
    assert_eq!(log(&whole), log(&without));
}

#[test]
fn a_run_that_fails_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let never = AtomicBool::new(false);
    let mut in_the_way = After(|_| {
        let _ = std::fs::write(out.join("checkpoints"), "");
    });
    let error = sitting(folder.path(), &out, &mut in_the_way, &never).unwrap_err();
    let page = report(&out);
    assert!(page.contains(": stopped</title>") && page.contains("the run stopped: cannot create"), "{error}");
}

#[test]
fn a_folder_with_a_report_holds_a_run() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(REPORT), "somebody's own").unwrap();
    let error = RunFolder::create(folder.path().to_owned()).unwrap_err().to_string();
    assert!(error.contains(REPORT), "{error}");
}
