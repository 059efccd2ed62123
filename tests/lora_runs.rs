//! Runs that train adapters, as a user starts them: what they say, write and refuse.

#[allow(dead_code, reason = "shared between tests")]
#[path = "common/runs.rs"]
mod runs;

use runs::{program, said, train};
use serde_json::Value;
use smolten::arena::Category;
use smolten::config::LoraTarget;
use smolten::recipe::{Recipe, RecipeOverrides};
use smolten::trainer::{Run, Sources};
use std::path::Path;
use std::process::Output;

const LORA: [&str; 8] = [
    "--set",
    "lora_rank=4",
    "--set",
    "lora_alpha=16",
    "--set",
    "lora_dropout=0.1",
    "--set",
    "eval_share=0.2",
];

fn ran(output: &Output) -> String {
    assert!(output.status.success(), "{}", said(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn metrics(out: &Path, key: &str) -> Vec<f64> {
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    text.lines().filter_map(|line| serde_json::from_str::<Value>(line).unwrap()[key].as_f64()).collect()
}

/// The held-out loss of the adapters beside the weights is that of the merged model, within what 16 bits round: every logit is
/// off by at most a few units of 2^-9 of the largest in both. In fp32 it is the same but for the rounding of sums.
#[test]
fn the_run_s_folder_is_the_model_that_was_trained() {
    let folder = tempfile::tempdir().unwrap();
    let held_out = folder.path().join("held-out.jsonl");
    let line =
        |i: usize| format!("{{\"prompt\": \"What is {i} + 1?\", \"response\": \"It is {}.\"}}\n", i + 1);
    std::fs::write(&held_out, (0..8).map(line).collect::<String>()).unwrap();
    for (precision, within) in [("fp32", 1e-4), ("bf16", 0.02)] {
        let out = folder.path().join(precision);
        let more = ["--steps", "20", "--precision", precision, "--eval-data", held_out.to_str().unwrap()];
        let shown = ran(&train(folder.path(), &out, &[&LORA[..], &more].concat()).output().unwrap());
        for part in [
            "adapters: rank 4, scale 4, dropout 0.1, on q_proj k_proj",
            "PEFT loads this folder",
            "--format hf",
        ] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        let losses = metrics(&out, "eval_loss");
        let (before, after) = (losses[0], losses[losses.len() - 1]);
        assert!(after < before - 0.1, "it learns: {before} to {after}");
        let eval = |model: &Path| {
            let mut command = program(folder.path());
            command
                .args(["eval", "--device", "cpu", "--json", "--precision", precision, "--data"])
                .arg(&held_out);
            let text = ran(&command.arg("--model").arg(model).output().unwrap());
            serde_json::from_str::<Value>(&text).unwrap()["loss"].as_f64().unwrap()
        };
        let opened = eval(&out);
        assert!(
            (opened - after).abs() <= within * after,
            "{precision}: {opened} opened, {after} at the end of the run"
        );
        let merged = folder.path().join(format!("{precision}-merged"));
        let mut export = program(folder.path());
        export
            .args(["export", "--format", "hf", "--type", "f32", "--model"])
            .arg(&out)
            .arg("--out")
            .arg(&merged);
        ran(&export.output().unwrap());
        let exported = eval(&merged);
        assert_eq!(exported, opened, "{precision}: merged while read, and merged by export");
        let card = std::fs::read_to_string(out.join("README.md")).unwrap();
        assert!(card.contains("library_name: peft") && card.contains("AutoPeftModelForCausalLM"), "{card}");
    }
}

#[test]
fn what_does_not_go_with_adapters_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    ran(&train(folder.path(), &out, &[&LORA[..], &["--steps", "2"]].concat()).output().unwrap());
    let refused = |command: &mut std::process::Command, parts: &[&str]| {
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        parts.iter().for_each(|part| assert!(said(&output).contains(part), "{part}: {}", said(&output)));
    };
    // The folder holds a run, finished.
    refused(&mut train(folder.path(), &out, &LORA), &["holds a run already"]);
    let mut again = program(folder.path());
    again.args(["train", "--resume", "--out"]).arg(&out);
    assert!(ran(&again.output().unwrap()).contains("nothing to do"));
    // Adapters on adapters.
    let mut twice = program(folder.path());
    twice.args(["train", "--data"]).arg(folder.path().join("rows.jsonl")).arg("--model").arg(&out).args(LORA);
    refused(twice.arg("--out").arg(folder.path().join("twice")), &["itself an adapter", "smolten export"]);
    let other = folder.path().join("other");
    for (set, parts) in [
        ("save_dtype=bf16", &["save_dtype", "adapters are saved"][..]),
        ("lora_targets=[\"lm_head\"]", &["lora_targets", "q_proj"]),
    ] {
        refused(&mut train(folder.path(), &other, &[&LORA[..], &["--set", set]].concat()), parts);
    }
}

/// Adapters have neither gradients nor moments of the weights beside them.
#[test]
fn the_plan_has_gradients_and_moments_of_adapters_only() {
    let folder = tempfile::tempdir().unwrap();
    let planned = |more: &[&str]| {
        let data = Some(runs::sums(folder.path()).display().to_string());
        let flags = RecipeOverrides { data, device: Some("cpu".into()), ..RecipeOverrides::default() };
        let model = format!("model={}", runs::tiny_model().display());
        let sets: Vec<String> = [model.as_str()].iter().chain(more).map(|s| (*s).to_owned()).collect();
        let recipe = Recipe::resolve(None, &sets, &flags).unwrap();
        let run = Run::prepare(recipe.clone(), Sources::local(&recipe).unwrap()).unwrap();
        let of = |category| run.memory.iter().filter(|(c, _)| *c == category).map(|(_, bytes)| bytes).sum();
        let bytes: [usize; 2] = [of(Category::Gradients), of(Category::OptimizerState)];
        (bytes, run.trained_parameters(), run.pretrained.config)
    };
    let (whole, all, config) = planned(&["optimizer=adamw"]);
    assert_eq!(all, config.num_parameters());
    let sets = ["optimizer=adamw", "lora_rank=8", "lora_targets=[\"q_proj\"]"];
    let (few, trained, _) = planned(&sets);
    let [outputs, inputs] = config.projection_shape(LoraTarget::Q);
    let layers = config.num_hidden_layers;
    assert_eq!(trained, layers * 8 * (outputs + inputs));
    // A gradient and two moments in fp32 of what is trained; the gradient of B also among k's and v's outputs.
    let wide = layers * 8 * config.qkv_width();
    assert_eq!(few, [4 * (trained + wide), 8 * trained]);
    assert!(whole[0] >= 4 * all && whole[1] >= 8 * all, "{whole:?}");
}
