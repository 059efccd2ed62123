//! Gradients that are not finite: the step leaves no trace, is counted and shown with its rows, and three end the run.

#[allow(dead_code, reason = "shared between tests")]
#[path = "common/runs.rs"]
mod runs;

use runs::{program, said, tiny_model};
use safetensors::SafeTensors;
use serde_json::Value;
use smolten::checkpoint::save_pretrained;
use smolten::dtype::DType;
use smolten::pretrained::Pretrained;
use std::path::{Path, PathBuf};
use std::process::Output;

/// The tiny model with one embedding that is `poison`: rows with this token have no finite gradient.
fn poisoned(folder: &Path, token: &str, poison: f32) -> PathBuf {
    let model = Pretrained::open(&tiny_model()).unwrap();
    let id = model.tokenizer.id(token).unwrap() as usize;
    let out = folder.join("poisoned");
    save_pretrained(&out, &model, DType::F32, |p| {
        let mut values = vec![0.0; p.shape[0] * p.shape[1]];
        model.weights.read(p, &mut values)?;
        if p.name == "model.embed_tokens.weight" {
            values[id * p.shape[1] + 3] = poison;
        }
        Ok(values)
    })
    .unwrap();
    out
}

/// One row a step, in the order given; `7` is in those rows that are listed.
fn train(folder: &Path, model: &Path, bad: &[usize], rows: usize, more: &[&str]) -> Output {
    let data = folder.join("rows.jsonl");
    let line = |i: usize| {
        let digit = if bad.contains(&i) { 7 } else { 3 };
        format!("{{\"prompt\": \"What is {digit}?\", \"response\": \"It is so.\"}}\n")
    };
    std::fs::write(&data, (1..=rows).map(line).collect::<String>()).unwrap();
    let steps = rows.to_string();
    program(folder)
        .args([
            "train",
            "--device",
            "cpu",
            "--set",
            "lr=1e-2",
            "--warmup",
            "0",
            "--no-shuffle",
            "--batch-size",
            "1",
        ])
        .args(["--grad-accum", "1", "--steps", &steps, "--save-every", "1", "--set", "eval_share=0"])
        .args(["--set", "allow=[\"duplicates\"]", "--set", "sample_every=0", "--set", "keep_checkpoints=99"])
        .args([Path::new("--model"), model, Path::new("--data"), &data])
        .arg("--out")
        .arg(folder.join("run"))
        .args(more)
        .output()
        .unwrap()
}

fn file(folder: &Path, step: usize, name: &str) -> Vec<u8> {
    std::fs::read(folder.join(format!("run/checkpoints/step-{step}/{name}"))).unwrap()
}

/// In fp32 the head of the loss reads the poisoned embedding of every row, so it lies in a model whose head is its own.
#[test]
fn a_skipped_step_touches_nothing_and_names_its_rows() {
    for poison in [f32::NAN, f32::INFINITY] {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let model = untied(folder, poison);
        let ran = train(folder, &model, &[3], 6, &[]);
        assert!(ran.status.success(), "{}", said(&ran));
        let screen = String::from_utf8(ran.stdout).unwrap();
        let line = screen.lines().find(|l| l.starts_with("step 3/6")).unwrap();
        assert!(line.contains("SKIPPED") && line.ends_with("rows.jsonl:3"), "{line}");
        assert_eq!(screen.matches("SKIPPED").count(), 1);
        assert!(screen.contains("skipped: 1 steps"), "{screen}");
        for name in ["model.safetensors", "optimizer.safetensors"] {
            assert!(file(folder, 2, name) == file(folder, 3, name), "{name} changed in the skipped step");
            assert!(file(folder, 3, name) != file(folder, 4, name), "{name} changed in no step");
        }
        let state: Value = serde_json::from_slice(&file(folder, 3, "trainer_state.json")).unwrap();
        assert_eq!((&state["skipped"], &state["skipped_in_a_row"]), (&1.into(), &1.into()));
        let log = std::fs::read_to_string(folder.join("run/metrics.jsonl")).unwrap();
        let lines: Vec<Value> = log.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert!(lines[2]["grad_norm"].is_null() && lines[3]["grad_norm"].is_number());
    }
}

/// The same, with an output head of its own.
fn untied(folder: &Path, poison: f32) -> PathBuf {
    let out = poisoned(folder, "7", poison);
    let config = out.join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let mut json: Value = serde_json::from_str(&text).unwrap();
    if json["tie_word_embeddings"] == false {
        return out;
    }
    json["tie_word_embeddings"] = false.into();
    std::fs::write(&config, json.to_string()).unwrap();
    let path = out.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let clean = Pretrained::open(&tiny_model()).unwrap();
    let embedding = &clean.config.parameters()[0];
    let mut head = vec![0.0f32; embedding.shape[0] * embedding.shape[1]];
    clean.weights.read(embedding, &mut head).unwrap();
    let head_bytes: Vec<u8> = head.iter().flat_map(|x| x.to_le_bytes()).collect();
    let head =
        safetensors::tensor::TensorView::new(safetensors::Dtype::F32, embedding.shape.to_vec(), &head_bytes);
    let mut all: Vec<(String, safetensors::tensor::TensorView<'_>)> = tensors.tensors();
    all.push(("lm_head.weight".to_owned(), head.unwrap()));
    let whole = safetensors::serialize(all, None).unwrap();
    std::fs::write(&path, whole).unwrap();
    out
}

#[test]
fn three_in_a_row_stop_the_run_with_the_last_good_weights_saved() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let model = untied(folder, f32::NAN);
    let ran = train(folder, &model, &[2, 4, 5, 6], 9, &[]);
    assert_eq!(ran.status.code(), Some(1));
    let said = said(&ran);
    for part in ["steps 4 to 6 had no finite gradient", "checkpoints/step-6", "smaller --lr"] {
        assert!(said.contains(part), "`{part}` is not in: {said}");
    }
    assert!(!folder.join("run/model.safetensors").exists());
    assert!(file(folder, 3, "model.safetensors") == file(folder, 6, "model.safetensors"));
}

/// A learning rate that blows the weights up ends in the same way, not in a model of NaN.
#[test]
fn a_run_that_diverges_stops() {
    let folder = tempfile::tempdir().unwrap();
    let ran = train(folder.path(), &tiny_model(), &[], 40, &["--lr", "1e30"]);
    assert_eq!(ran.status.code(), Some(1), "{}", said(&ran));
    assert!(said(&ran).contains("no finite gradient"), "{}", said(&ran));
}
