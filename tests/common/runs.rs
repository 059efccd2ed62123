//! Runs of the program on the tiny model, as a user starts them.

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::Value;
use smolten::checkpoint::save_pretrained;
use smolten::dtype::DType;
use smolten::pretrained::Pretrained;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A Llama of a few thousand weights with a tokenizer.
pub fn tiny_model() -> PathBuf {
    // Set where scripts/gpu-check packed the tests.
    let root = std::env::var_os("SMOLTEN_TEST_ROOT")
        .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    root.join("tests/fixtures/tiny-smollm.gguf")
}

/// The tiny model as `folder/model`, with four tokens more that no text has: the kernels take a vocabulary in eights.
pub fn gpu_model(folder: &Path) -> PathBuf {
    let tiny = Pretrained::open(&tiny_model()).unwrap();
    let model = folder.join("model");
    save_pretrained(&model, &tiny, DType::F32, |p| {
        let mut values = vec![0.0; p.shape[0] * p.shape[1]];
        tiny.weights.read(p, &mut values)?;
        Ok(values)
    })
    .unwrap();
    let bytes = std::fs::read(model.join("model.safetensors")).unwrap();
    let wider = |name: String, t: TensorView<'_>| {
        let (mut shape, mut data) = (t.shape().to_vec(), t.data().to_vec());
        if shape[0] == tiny.config.vocab_size {
            shape[0] += 4;
            data.resize(data.len() / tiny.config.vocab_size * shape[0], 0);
        }
        (name, t.dtype(), shape, data)
    };
    let tensors: Vec<_> =
        SafeTensors::deserialize(&bytes).unwrap().iter().map(|(name, t)| wider(name.into(), t)).collect();
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, data)| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    safetensors::serialize_to_file(views, None, &model.join("model.safetensors")).unwrap();
    let config = std::fs::read_to_string(model.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["vocab_size"] = (tiny.config.vocab_size + 4).into();
    std::fs::write(model.join("config.json"), config.to_string()).unwrap();
    model
}

/// Twenty rows of prompt and response, as a file in `folder`.
pub fn sums(folder: &Path) -> PathBuf {
    let path = folder.join("rows.jsonl");
    let line =
        |i: usize| format!("{{\"prompt\": \"What is {i} + {i}?\", \"response\": \"It is {}.\"}}\n", 2 * i);
    std::fs::write(&path, (0..20).map(line).collect::<String>()).unwrap();
    path
}

/// As cargo built it, or where it was packed beside the tests.
pub fn executable() -> PathBuf {
    let built = Path::new(env!("CARGO_BIN_EXE_smolten"));
    if built.exists() { built.to_owned() } else { std::env::current_exe().unwrap().with_file_name("smolten") }
}

/// The program; its caches lie in `folder`.
pub fn program(folder: &Path) -> Command {
    let mut command = Command::new(executable());
    command.env("SMOLTEN_CACHE", folder.join("cache")).env("HF_HOME", folder.join("hub"));
    command
}

/// `train` on the sums of `folder`, with more flags.
pub fn train(folder: &Path, out: &Path, more: &[&str]) -> Command {
    let mut command = program(folder);
    command.args(["train", "--device", "cpu", "--lr", "1e-2", "--model"]).arg(tiny_model());
    command.arg("--data").arg(sums(folder)).arg("--out").arg(out).args(more);
    command
}

/// What the program says on standard error.
pub fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The weights a run ended with, or its adapters.
pub fn weights(out: &Path) -> Vec<u8> {
    let adapters = out.join("adapter_model.safetensors");
    std::fs::read(if adapters.exists() { adapters } else { out.join("model.safetensors") }).unwrap()
}
