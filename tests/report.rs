//! `report.html`: what a run's page holds, when it is written, and that it changes nothing of the run; and runs laid
//! over one another. Pages stay in the build's folder, where `tests/external/check_report.py` opens them in Chromium.

#[allow(dead_code, reason = "shared between tests")]
#[path = "common/runs.rs"]
mod runs;

use runs::{program, said, sums, tiny_model, train, weights};
use serde_json::{Value, json};
use smolten::metrics::{EvalRecord, SampleRecord, StepRecord};
use smolten::recipe::{Recipe, RecipeOverrides};
use smolten::report::{History, Progress, REPORT, Record, run_page};
use smolten::trainer::{Observer, Outcome, Run, RunFolder, Sources};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What nobody may get into a page but as text.
const HOSTILE: &str =
    "</script><script>alert(1)</script> <img src=x onerror=alert(2)> \" ' & <!-- {{ 7 * 7 }} {% raw %}";

fn step(step: usize, loss: f64, norm: f64) -> Value {
    json!({
        "step": step, "epoch": step as f64 / 50.0, "loss": loss, "grad_norm": norm,
        "learning_rate": 2e-4 * (1.0 - step as f64 / 1e6), "tokens": 500, "supervised_tokens": 200,
        "padded_tokens": 0, "mean_token_accuracy": 0.5, "entropy": 1.0, "tokens_per_second": 1000.0 + (step % 90) as f64,
        "step_seconds": 0.5, "peak_memory_bytes": 900 << 20
    })
}

fn evaluation(step: usize, loss: f64) -> Value {
    json!({
        "step": step, "epoch": 0.0, "eval_loss": loss, "eval_mean_token_accuracy": 0.4,
        "eval_supervised_tokens": 100, "eval_seconds": 0.2
    })
}

fn sample(step: usize, prompt: &str, text: &str) -> Value {
    json!({ "step": step, "sample_prompt": prompt, "sample": text })
}

/// `run.json` of a run of so many steps on rows of a few lengths.
fn record(total_steps: usize, model: &str) -> Value {
    let recipe =
        Recipe { model: model.to_owned(), data: "data/rows.jsonl".into(), lr: 1e-4, ..Recipe::default() };
    let bins = [(Some(16), 0), (Some(32), 40), (Some(64), 90), (Some(128), 0), (Some(256), 20), (None, 3)];
    let lengths: Vec<Value> =
        bins.iter().map(|(up_to, rows)| json!({ "up_to": up_to, "rows": rows })).collect();
    json!({
        "smolten": "0.1.0", "recipe": recipe, "precision": "bf16", "threads": 2, "machine": "A processor (AMX)",
        "device": "CPU", "total_steps": total_steps, "steps_per_epoch": 50, "resumed_from_steps": [],
        "data": {
            "sha256": "ab".repeat(32), "held_out_rows": 8,
            "audit": {
                "rows": 153, "examples": 150, "max_length": 256, "tokens": 9000, "supervised_tokens": 5400,
                "supervised_share": 0.6, "longest": 411, "truncated": 3, "lost_turn_ends": 2, "turn_ends": 148,
                "dropped": 3, "boundary_mismatches": 0, "duplicates": 1, "round_trips": 150, "round_trip_failures": 0,
                "lengths": lengths, "places": { "duplicates": [format!("rows.jsonl:7 {HOSTILE}")] }
            }
        },
        "eval_data": null,
        "model": { "sha256": { "model.safetensors": "cd".repeat(32) }, "parameters": 134_515_008 },
        "planned_memory_bytes": {
            "weights": 600 << 20, "gradients": 300 << 20, "optimizer_state": 150 << 20, "activations": 80 << 20,
            "scratch": 60 << 20, "batch": 100_000, "kv_cache": 4 << 20
        }
    })
}

/// The page of made-up lines, also left for Chromium with the texts that must stand in it.
fn page(
    name: &str,
    total: usize,
    model: &str,
    lines: &[Value],
    progress: &Progress,
    texts: &[&str],
) -> String {
    let mut history = History::new(total);
    lines.iter().for_each(|line| assert!(history.take(line).is_ok(), "{line}"));
    let record: Record = serde_json::from_value(record(total, model)).unwrap();
    let page = run_page("runs/one of mine", &history, &record, progress).unwrap();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("report");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(name).with_extension("html"), &page).unwrap();
    std::fs::write(folder.join(name).with_extension("json"), json!(texts).to_string()).unwrap();
    assert_self_contained(&page);
    page
}

/// No address, and no number that is none.
fn assert_self_contained(page: &str) {
    for address in
        ["http://", "https://", "src=\"", "url(", "@import", "<iframe", "<object", "fetch(", "XMLHttp"]
    {
        assert!(!page.contains(address), "{address}");
    }
    assert_eq!(page.matches("href=").count(), 1, "the empty icon alone");
    assert!(page.contains("default-src 'none'"), "and the browser is told so");
    let drawn = page.split("<script").next().unwrap();
    for odd in ["NaN", "inf%", "infinity", "undefined"] {
        assert!(!drawn.contains(odd), "{odd}");
    }
    assert_eq!((page.matches("<script").count(), page.matches("</script").count()), (2, 2));
    for tag in ["main", "section", "figure", "details", "table", "svg", "div", "dl"] {
        let open = page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
        assert_eq!(open, page.matches(&format!("</{tag}>")).count(), "{tag}");
    }
}

/// The part of a page from `from` to `to`.
fn part<'a>(page: &'a str, from: &str, to: &str) -> &'a str {
    let start = page.find(from).unwrap_or_else(|| panic!("`{from}` is not in the page"));
    &page[start..start + page[start..].find(to).unwrap()]
}

#[test]
fn a_finished_run_says_everything() {
    let mut lines = vec![evaluation(0, 2.5), sample(0, "Explain AGI?", "It is,\nit is.")];
    for i in 1..=40 {
        lines.push(step(i, 2.4 - 0.02 * i as f64, 1.5));
        if i % 10 == 0 {
            lines.push(evaluation(i, 2.5 - 0.01 * (i as f64).min(35.0)));
            lines.push(sample(i, "Explain AGI?", &format!("Answer {i}.")));
        }
    }
    let texts = ["Explain AGI?", "It is,\nit is.", "Answer 40.", "Answer 20."];
    let page = page("finished", 40, "org/SmolLM2-135M-Instruct", &lines, &Progress::Finished, &texts);
    for said in [
        "SmolLM2-135M-Instruct on rows: finished",
        "40 of 40 steps",
        "134.5 M parameters",
        "CPU, bf16, 2 threads",
        "A processor (AMX)",
        "2.5000 before, 2.1500 now, lower",
        "lowest 2.1500 after step 40",
        "After 40 steps",
        "3 texts from between",
        "60.0 %",
        "3 rows cut to 256 tokens, 2 of which lost the end of their turn; 3 dropped",
        "Findings: none",
        "planned in all",
        "1,195",
        "<dt>lr</dt><dd>0.0001</dd>",
        "smolten compare --base org&#x2f;SmolLM2-135M-Instruct --tuned &#x27;runs&#x2f;one of mine&#x27;",
        "smolten export --model",
        "clipped to 1",
    ] {
        assert!(page.contains(said), "`{said}` is not in the page");
    }
    assert!(page.contains(&"ab".repeat(32)) && page.contains(&"cd".repeat(32)));
    assert!(!page.contains("data-running"), "nothing more will come");
    assert_eq!(part(&page, "class=\"bar cut\"", "</div>").matches("above 256").count(), 1);
}

#[test]
fn every_text_is_escaped() {
    let lines = [
        sample(0, HOSTILE, HOSTILE),
        step(1, 2.0, 1.0),
        sample(1, HOSTILE, &format!("{HOSTILE}\u{202e}\0 \u{1F600}")),
    ];
    let stopped = Progress::Stopped(format!("the run stopped: {HOSTILE}"));
    let page = page("hostile", 3, &format!("m/{HOSTILE}"), &lines, &stopped, &[HOSTILE]);
    assert!(!page.contains("<img") && !page.contains("alert(1)</script>") && !page.contains("<!--"));
    assert!(page.contains("&lt;img src&#x3d;x") || page.contains("&lt;img src=x"), "it is shown");
    assert!(page.contains("{{ 7 * 7 }}"), "and is no template");
    assert!(page.contains("smolten train --resume"), "what stopped can go on");
}

#[test]
fn few_or_no_steps_make_a_page() {
    let none = page("no_step", 20, "m", &[], &Progress::Running, &[]);
    assert!(
        none.contains("0 of 20 steps") && none.contains("data-running") && none.contains("no values yet")
    );
    let one = page("one_step", 1, "m", &[step(1, 2.25, 1.0)], &Progress::Interrupted, &[]);
    assert!(one.contains("1 of 1 steps") && one.contains("no rows are held out"));
    let loss = part(&one, "id=\"loss\"", "</svg>");
    assert_eq!(loss.matches("class=\"dots c0\"").count(), 2, "a value alone is a dot");
    assert!(one.contains("<code>sample_every</code> is 50"), "no text was taken");
    let before = [evaluation(0, 3.0)];
    assert!(page("evaluated", 5, "m", &before, &Progress::Running, &[]).contains("3.0000"));
}

#[test]
fn losses_that_are_no_numbers_leave_gaps() {
    let lines: Vec<Value> = (1..=30)
        .map(|i| if i % 10 == 0 { step(i, f64::NAN, f64::NAN) } else { step(i, 2.0 - 0.01 * i as f64, 2.0) })
        .chain([evaluation(30, f64::NAN)])
        .collect();
    let page = page("gaps", 30, "m", &lines, &Progress::Finished, &[]);
    let thin = part(&page, "class=\"thin c0\"", "/>");
    assert_eq!(thin.matches('M').count(), 3, "{thin}");
    assert!(page.contains("3 steps were skipped"));
    assert_eq!(part(&page, "class=\"missing\"", "/>").matches('M').count(), 3);
    let all: Vec<Value> = (1..=5).map(|i| step(i, f64::NAN, f64::NAN)).collect();
    assert!(self::page("all_gaps", 5, "m", &all, &Progress::Running, &[]).contains("5 steps were skipped"));
}

#[test]
fn a_long_run_keeps_its_spikes_and_stays_small() {
    const STEPS: usize = 100_000;
    let mut lines = vec![evaluation(0, 4.0), sample(0, "Why?", "Because.")];
    for i in 1..=STEPS {
        let noise = ((i * 7919) % 1000) as f64 / 1000.0 - 0.5;
        let loss = if i == 61_803 { 250.0 } else { 1.2 + 2.5 / (1.0 + i as f64 / 4000.0) + 0.4 * noise };
        lines.push(step(i, loss, if i == 20_000 { 4000.0 } else { 1.0 + noise }));
        if i % 500 == 0 {
            lines.push(evaluation(i, 1.4 + 2.5 / (1.0 + i as f64 / 4000.0) + i as f64 / 4e5));
            lines.push(sample(i, "Why?", &format!("Because {i}.")));
        }
    }
    let page =
        page("long", STEPS, "m", &lines, &Progress::Finished, &["Why?", "Because.", "Because 100000."]);
    assert!(page.len() < 400_000, "{} bytes", page.len());
    assert!(page.contains("beyond the picture: up to 250.0 at step 61,803"));
    let norm = part(&page, "id=\"norm\"", "</svg>");
    assert!(norm.contains("L200.0 "), "the spike at a fifth of the way is drawn");
    let rows = part(&page, "training loss by step", "</table>").matches("<tr>").count();
    assert!((21..=41).contains(&rows), "{rows}");
    assert!(page.contains("100,000 of 100,000 steps"));
}

/// One sitting of a run, seen by an observer.
fn sitting(
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
    let sets =
        [&model, "eval_share=0.2", "eval_every=2", "sample_every=3", "save_every=2"].map(str::to_owned);
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
        // Longer than it waits after steps alone.
        if step == 1 {
            std::thread::sleep(Duration::from_millis(3100));
        }
    });
    sitting(folder.path(), &out, &mut look, &never).unwrap();
    assert!(seen[0].contains("0 of 9 steps"), "at the first step nothing but the evaluation had happened");
    assert!(seen[1].contains("1 of 9 steps"), "after some seconds a step shows");
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

/// Two runs that differ in their rate.
fn two_runs(folder: &Path) -> [PathBuf; 2] {
    ["1e-2", "3e-3"].map(|lr| {
        let out = folder.join(format!("lr-{lr}"));
        let more = ["--steps", "6", "--lr", lr, "--set", "eval_share=0.2", "--set", "eval_every=2"];
        let mut command = program(folder);
        command.args(["train", "--device", "cpu", "--model"]).arg(tiny_model());
        let ran = command.arg("--data").arg(sums(folder)).arg("--out").arg(&out).args(more).output().unwrap();
        assert!(ran.status.success(), "{}", said(&ran));
        let screen = String::from_utf8(ran.stdout).unwrap();
        assert_eq!(screen.matches(&format!("report: {}", out.join(REPORT).display())).count(), 2, "{screen}");
        out
    })
}

#[test]
fn runs_are_laid_over_one_another() {
    let folder = tempfile::tempdir().unwrap();
    let runs = two_runs(folder.path());
    let compare = |more: &[&str]| {
        program(folder.path())
            .current_dir(folder.path())
            .arg("compare")
            .args(&runs)
            .args(more)
            .output()
            .unwrap()
    };
    let ran = compare(&[]);
    assert!(ran.status.success(), "{}", said(&ran));
    let screen = String::from_utf8(ran.stdout).unwrap();
    let line = |what: &str| {
        let line = screen.lines().find(|l| l.starts_with(what)).unwrap_or_else(|| panic!("{what}: {screen}"));
        line[what.len()..].split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(line("run "), ["lr-1e-2", "lr-3e-3"]);
    assert_eq!(line("steps "), ["6", "6"]);
    assert_eq!(line("lr "), ["0.01", "0.003"]);
    assert!(
        !screen.contains("\nout ") && !screen.contains("\nseed "),
        "what is the same is not said: {screen}"
    );
    for (i, run) in runs.iter().enumerate() {
        let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        let losses: Vec<f64> = text
            .lines()
            .filter_map(|l| serde_json::from_str::<Value>(l).unwrap()["eval_loss"].as_f64())
            .collect();
        assert_eq!(line("held-out loss before ")[i], format!("{:.4}", losses[0]));
        assert_eq!(line("last held-out loss ")[i], format!("{:.4}", losses[losses.len() - 1]));
        let best = losses[1..].iter().copied().fold(f64::INFINITY, f64::min);
        assert_eq!(line("lowest held-out loss ")[3 * i], format!("{best:.4}"));
    }
    let path = folder.path().join("compare.html");
    let page = std::fs::read_to_string(&path).unwrap();
    assert_self_contained(&page);
    assert!(page.contains("<th scope=\"row\">lr</th><td>0.01</td><td>0.003</td>"), "the key that differs");
    let held_out = part(&page, "id=\"held_out\"", "</svg>");
    assert!(held_out.contains("strong c0") && held_out.contains("strong c1"));

    assert!(compare(&[]).status.success(), "what smolten wrote it may write again");
    let other = folder.path().join("mine.html");
    std::fs::write(&other, "<p>mine</p>").unwrap();
    let ran = compare(&["--out", other.to_str().unwrap()]);
    assert_eq!(ran.status.code(), Some(2));
    assert!(said(&ran).contains("mine.html") && std::fs::read_to_string(&other).unwrap() == "<p>mine</p>");
    assert_eq!(compare(&["--out", "other.html"]).status.code(), Some(0));
    assert!(folder.path().join("other.html").is_file());
}

#[test]
fn what_is_no_run_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    assert!(train(folder.path(), &out, &["--steps", "2"]).output().unwrap().status.success());
    let broken = folder.path().join("broken");
    std::fs::create_dir(&broken).unwrap();
    let out = out.to_str().unwrap();
    let refused = |arguments: &[&str], parts: &[&str]| {
        let ran = program(folder.path())
            .current_dir(folder.path())
            .arg("compare")
            .args(arguments)
            .output()
            .unwrap();
        let said = said(&ran);
        assert_eq!(ran.status.code(), Some(2), "{said}");
        assert!(parts.iter().all(|part| said.contains(part)), "{parts:?} in {said}");
        assert!(!folder.path().join("compare.html").exists());
    };
    refused(&[], &["--base", "--tuned"]);
    refused(&[out], &["2"]);
    refused(&[out, out, "--base", "m"], &["--base"]);
    refused(&[out, "none"], &["none/run.json", "no such file"]);
    std::fs::copy(Path::new(out).join("run.json"), broken.join("run.json")).unwrap();
    let name = broken.to_str().unwrap();
    refused(&[out, name], &["broken/metrics.jsonl", "no such file"]);
    for (text, found) in [
        ("{\"step\": 0, \"eval_loss\": 1.0}\n{\"step\"\n", "metrics.jsonl:2: not JSON"),
        ("{\"step\": 1, \"loss\": \"low\"}\n", "metrics.jsonl:1: loss is \"low\""),
        ("{\"loss\": 2.0}\n", "metrics.jsonl:1: step is null"),
    ] {
        std::fs::write(broken.join("metrics.jsonl"), text).unwrap();
        refused(&[out, name], &[found]);
    }
    // The last line of a run that was killed in it.
    std::fs::write(broken.join("metrics.jsonl"), "{\"step\": 1, \"loss\": 2.0}\n{\"step\": 2, \"lo").unwrap();
    let ran =
        program(folder.path()).current_dir(folder.path()).args(["compare", out, name]).output().unwrap();
    assert!(ran.status.success(), "{}", said(&ran));
}
