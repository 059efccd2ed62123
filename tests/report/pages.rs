//! Pages of made-up runs.

use crate::{assert_self_contained, part};
use serde_json::{Value, json};
use smolten::recipe::Recipe;
use smolten::report::{History, Progress, Record, run_page};
use std::path::Path;

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
            "sha256": ["ab".repeat(32)], "held_out_rows": 8,
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

#[test]
fn a_finished_run_says_everything() {
    let mut lines = vec![evaluation(0, 2.5), sample(0, "Explain AGI?", "It is,\nit is.")];
    for i in 1..=40 {
        lines.push(step(i, 2.4 - 0.02 * i as f64, 1.5 - 0.02 * i as f64));
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
fn a_loss_that_rose_is_not_passed_over() {
    let mut lines = vec![evaluation(0, 2.0)];
    lines.extend((1..=9).map(|i| step(i, 1.0, 1.0)));
    lines.extend([evaluation(5, 2.25), evaluation(9, 2.5)]);
    let page = page("risen", 9, "m", &lines, &Progress::Finished, &[]);
    assert!(page.contains("2.0000 before, 2.5000 now, not lower: the rows were memorised"));
    assert!(page.contains("It was lowest after step 5, 2.2500, and has risen since."));
}

/// How sure the losses are, where the log says so, and what a difference that may be chance is called.
#[test]
fn losses_come_with_their_intervals() {
    let sure = |i, loss, interval: [f64; 2], change: Option<[f64; 2]>| {
        let mut line = evaluation(i, loss);
        line["eval_loss_interval"] = serde_json::json!(interval);
        if let Some(change) = change {
            line["eval_loss_change_interval"] = serde_json::json!(change);
        }
        line
    };
    let page_of = |change| {
        let lines =
            [sure(0, 2.0, [1.75, 2.25], None), step(1, 1.0, 1.0), sure(1, 1.5, [1.25, 1.625], Some(change))];
        page("sure", 1, "m", &lines, &Progress::Finished, &[])
    };
    let fell = page_of([-0.625, -0.375]);
    assert!(
        fell.contains("2.0000 (1.7500 to 2.2500) before, 1.5000 (1.2500 to 1.6250) now, lower"),
        "{fell}"
    );
    assert!(fell.contains("changed by -0.6250 to -0.3750; intervals are at 95 %"), "{fell}");
    let chance = page_of([-0.75, 0.125]);
    assert!(chance.contains("no difference was seen") && !chance.contains("now, lower"), "{chance}");
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
    let gaps = page("gaps", 30, "m", &lines, &Progress::Finished, &[]);
    let thin = part(&gaps, "class=\"thin c0\"", "/>");
    assert_eq!(thin.matches('M').count(), 3, "{thin}");
    assert!(gaps.contains("3 steps were skipped"));
    assert_eq!(part(&gaps, "class=\"missing\"", "/>").matches('M').count(), 3);
    let strong = part(&gaps, "class=\"strong c0\"", "/>");
    assert!(strong.matches('M').count() == 1 && strong.contains("L1000.0 "), "{strong}");
    let all: Vec<Value> = (1..=5).map(|i| step(i, f64::NAN, f64::NAN)).collect();
    assert!(page("all_gaps", 5, "m", &all, &Progress::Running, &[]).contains("5 steps were skipped"));
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
    let texts = part(&page, "id=\"h-texts\"", "</section>");
    assert!(texts.contains("Before the first step") && texts.contains("After 100,000 steps"));
    assert!((9..=16).contains(&texts.matches("<blockquote").count()), "a few of those between");
}
