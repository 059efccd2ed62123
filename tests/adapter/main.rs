//! Adapters in PEFT's format: merged where a model is opened, refused where that cannot be, written.
//!
//! The fixture tiny-smollm-lora and what PEFT computes with it: fixtures/make_tiny_lora.py. The folder of
//! `what_is_written_is_read` stays in the build tree, where `external/check_peft.py` loads it.

#[path = "../common/mod.rs"]
mod common;
mod refused;

use common::engine::{Engine, FORWARD, Fixture, bound};
use common::{U_F32, assert_close, max_abs, uniform};
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize_to_file};
use serde_json::{Value, json};
use smolten::backend::UpdateRule;
use smolten::batch::{MicroBatch, NO_TARGET};
use smolten::checkpoint::save_adapter;
use smolten::config::{LoraConfig, LoraTarget, Parameter};
use smolten::dtype::DType;
use smolten::export;
use smolten::gguf::GgmlType;
use smolten::model::Capacity;
use smolten::pretrained::Pretrained;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const BASE: &str = "tiny-smollm.gguf";

fn fixture(name: &str) -> PathBuf {
    common::root().join("tests/fixtures").join(name)
}

fn open(path: &Path) -> Pretrained {
    Pretrained::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn read(model: &Pretrained, parameter: &Parameter) -> Vec<f32> {
    let mut out = vec![f32::NAN; parameter.shape[0] * parameter.shape[1]];
    model.weights.read(parameter, &mut out).unwrap();
    out
}

/// The bits of every weight.
fn bits(model: &Pretrained) -> Vec<u32> {
    model.config.parameters().iter().flat_map(|p| read(model, p)).map(f32::to_bits).collect()
}

fn wide(values: Vec<f32>) -> Vec<f64> {
    values.into_iter().map(f64::from).collect()
}

/// Shape, type and bytes of tensors by name: what a test changes before writing.
type Tensors = BTreeMap<String, (Vec<usize>, Dtype, Vec<u8>)>;

/// An adapter's folder in pieces.
struct Folder {
    config: Value,
    tensors: Tensors,
}

impl Folder {
    /// The fixture, with a base that is found from anywhere.
    fn fixture() -> Self {
        let folder = fixture("tiny-smollm-lora");
        let text = std::fs::read(folder.join("adapter_config.json")).unwrap();
        let mut config: Value = serde_json::from_slice(&text).unwrap();
        config["base_model_name_or_path"] = json!(fixture(BASE));
        let bytes = std::fs::read(folder.join("adapter_model.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let tensor = |(name, t): (&str, TensorView<'_>)| {
            (name.to_owned(), (t.shape().to_vec(), t.dtype(), t.data().to_vec()))
        };
        Self { config, tensors: tensors.iter().map(tensor).collect() }
    }

    fn write(&self, out: &Path) {
        std::fs::write(out.join("adapter_config.json"), self.config.to_string()).unwrap();
        let views = self.tensors.iter().map(|(name, (shape, dtype, data))| {
            (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        serialize_to_file(views, None, &out.join("adapter_model.safetensors")).unwrap();
    }

    fn written(&self) -> tempfile::TempDir {
        let out = tempfile::tempdir().unwrap();
        self.write(out.path());
        out
    }

    fn a_of_q(&self) -> String {
        self.tensors.keys().find(|n| n.contains("q_proj.lora_A")).unwrap().clone()
    }
}

/// Beside the roundings of a forward pass that `FORWARD` counts for a model of two layers, each weight has five more
/// here, of its product with three terms; this model has one layer.
#[test]
fn merged_logits_are_those_of_peft() {
    let model = open(&fixture("tiny-smollm-lora"));
    let reference = Fixture::open(&fixture("tiny-smollm-lora/reference.safetensors"));
    let ids = reference.u32("ids");
    let n = u32::try_from(ids.len()).unwrap();
    let capacity = Capacity { tokens: ids.len(), sequences: 1, positions: ids.len() };
    let parameters = model.config.parameters();
    let weights = |name: &str| read(&model, parameters.iter().find(|p| p.name == name).unwrap());
    let mut engine = Engine::new(&model.config, DType::F32, UpdateRule::Torch, capacity, weights);
    let mut targets = ids[1..].to_vec();
    targets.push(NO_TARGET);
    let batch = MicroBatch { ids, positions: (0..n).collect(), cu_seqlens: vec![0, n], targets };
    let (logits, _) = engine.evaluate(&batch);
    let want = reference.f32("logits");
    assert_close("logits", &logits, &want, 0.0, bound(FORWARD) * max_abs(&want));
}

/// `W + scale·B·A` in f64, and the bound of what f32 makes of it: a product and a sum per rank, the scale, its product and
/// the last sum.
fn naive(w: &[f64], [a, b]: [&[f64]; 2], rank: usize, scale: f64) -> (Vec<f64>, Vec<f64>) {
    let columns = a.len() / rank;
    let element = |i: usize| {
        let terms = (0..rank).map(|k| b[i / columns * rank + k] * a[k * columns + i % columns]);
        let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()));
        let error = (rank + 4) as f64 * f64::from(U_F32) * (w[i].abs() + scale.abs() * size);
        (w[i] + scale * sum, error)
    };
    (0..w.len()).map(element).unzip()
}

/// Every weight against the naive product; `values` has A and B by their names in the file.
fn check_merged(
    merged: &Pretrained,
    base: &Pretrained,
    lora: &LoraConfig,
    values: impl Fn(&Parameter) -> Vec<f32>,
) {
    let adapters = merged.config.adapters(lora);
    let mut changed = 0;
    for parameter in merged.config.parameters() {
        let (got, w) = (read(merged, &parameter), read(base, &parameter));
        let prefix = format!("base_model.model.{}.lora_A.weight", parameter.name.trim_end_matches(".weight"));
        let Some(pair) = adapters.iter().find(|p| p.a.name == prefix) else {
            assert_eq!(got, w, "{}", parameter.name);
            continue;
        };
        let (a, b) = (wide(values(&pair.a)), wide(values(&pair.b)));
        let (want, bounds) = naive(&wide(w.clone()), [&a, &b], lora.rank, lora.scale());
        for (i, &x) in got.iter().enumerate() {
            let apart = (f64::from(x) - want[i]).abs();
            let fits = apart.is_finite() && apart <= bounds[i];
            assert!(fits, "{} [{i}]: {x}, want {} within {}", parameter.name, want[i], bounds[i]);
        }
        assert!(got != w, "{} is unchanged", parameter.name);
        changed += 1;
    }
    assert_eq!(changed, adapters.len());
}

fn of_fixture() -> LoraConfig {
    use LoraTarget::{Down, O, Q, Up, V};
    LoraConfig { rank: 3, alpha: 7.0, dropout: 0.0, rslora: true, targets: vec![Q, V, O, Up, Down] }
}

#[test]
fn weights_are_merged_whatever_holds_them() {
    let folder = Folder::fixture();
    let values = |folder: &Folder, p: &Parameter| -> Vec<f32> {
        let (_, dtype, data) = &folder.tensors[&p.name];
        match dtype {
            Dtype::F32 => bytemuck::allocation::pod_collect_to_vec(data),
            Dtype::BF16 => bytemuck::allocation::pod_collect_to_vec::<u8, half::bf16>(data)
                .iter()
                .map(|x| x.to_f32())
                .collect(),
            _ => bytemuck::allocation::pod_collect_to_vec::<u8, half::f16>(data)
                .iter()
                .map(|x| x.to_f32())
                .collect(),
        }
    };
    let base = open(&fixture(BASE));
    let merged = open(&fixture("tiny-smollm-lora"));
    check_merged(&merged, &base, &of_fixture(), |p| values(&folder, p));
    let text = merged.description.join("\n");
    for words in
        ["adapter: LoRA of rank 3, scale 4.0415 (alpha 7 / √3), on 5 matrices (q_proj, v_proj,", BASE]
    {
        assert!(text.contains(words), "{text}");
    }

    // Any number of threads, the base as a folder beside the adapter, the adapter's name in those of the tensors.
    let want = bits(&merged);
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert_eq!(pool.install(|| bits(&merged)), want);
    }
    let mut named = Folder::fixture();
    named.config["base_model_name_or_path"] = json!("base");
    named.config["target_modules"] = json!(".*proj");
    named.tensors =
        named.tensors.into_iter().map(|(n, t)| (n.replace(".weight", ".default.weight"), t)).collect();
    let out = named.written();
    export::folder(&base, &out.path().join("base"), DType::F32).unwrap();
    assert_eq!(bits(&open(out.path())), want);

    // Narrow types; the other scale; no task.
    let mut narrow = Folder::fixture();
    for (i, (_, dtype, data)) in narrow.tensors.values_mut().enumerate() {
        let values: Vec<f32> = bytemuck::allocation::pod_collect_to_vec(&data[..]);
        if i % 2 == 0 {
            let halves: Vec<_> = values.iter().map(|&x| half::bf16::from_f32(x)).collect();
            (*dtype, *data) = (Dtype::BF16, bytemuck::cast_slice(&halves).to_vec());
        } else {
            let halves: Vec<_> = values.iter().map(|&x| half::f16::from_f32(x)).collect();
            (*dtype, *data) = (Dtype::F16, bytemuck::cast_slice(&halves).to_vec());
        }
    }
    narrow.config["use_rslora"] = json!(false);
    narrow.config["task_type"] = Value::Null;
    let out = narrow.written();
    let lora = LoraConfig { rslora: false, ..of_fixture() };
    check_merged(&open(out.path()), &base, &lora, |p| values(&narrow, p));
}

#[test]
fn blocks_of_the_base_are_not_taken_for_the_weights() {
    let out = tempfile::tempdir().unwrap();
    let base = out.path().join("base.gguf");
    // Rows of 96 are whole blocks of 32 too.
    export::gguf(&open(&fixture(BASE)), &base, GgmlType::Q8_0, "base").unwrap();
    let mut folder = Folder::fixture();
    folder.config["base_model_name_or_path"] = json!("base.gguf");
    folder.write(out.path());
    let (base, merged) = (open(&base), open(out.path()));
    assert!(base.weights.are_q8_0(&base.config) && !merged.weights.are_q8_0(&merged.config));
}

#[test]
fn what_lies_beside_the_adapter_counts() {
    let mut folder = Folder::fixture();
    folder.config["base_model_name_or_path"] = json!("base");
    let out = folder.written();
    let base = open(&fixture(BASE));
    export::folder(&base, &out.path().join("base"), DType::F32).unwrap();
    let plain = open(out.path());
    assert_eq!(plain.template.source(), open(&out.path().join("base")).template.source());
    assert_eq!((plain.bos_token.as_deref(), &plain.stop_ids[..]), (Some("<|im_start|>"), &[2][..]));

    let template = "{% for m in messages %}{{ m.content }}{% endfor %}";
    std::fs::write(out.path().join("chat_template.jinja"), template).unwrap();
    std::fs::write(out.path().join("generation_config.json"), r#"{"eos_token_id": 7}"#).unwrap();
    let own = open(out.path());
    assert_eq!((own.template.source(), &own.stop_ids[..]), (template, &[7, 2][..]));

    std::fs::write(out.path().join("tokenizer.json"), base.tokenizer.to_json().unwrap()).unwrap();
    let tokens = json!({ "eos_token": "<|endoftext|>", "bos_token": "<|im_end|>", "mine": 1 });
    std::fs::write(out.path().join("tokenizer_config.json"), tokens.to_string()).unwrap();
    let own = open(out.path());
    assert_eq!(
        (&own.stop_ids[..], own.config.bos_token_id, &own.config.eos_token_ids[..]),
        (&[7, 0][..], Some(2), &[0][..])
    );
    assert_eq!((own.tokenizer_config["mine"].as_u64(), own.template.source()), (Some(1), template));
    // A model in the folder is the model, whatever lies beside it.
    export::folder(&base, out.path(), DType::F32).unwrap();
    assert_eq!(bits(&open(out.path())), bits(&base));
}

#[test]
fn what_is_written_is_read() {
    let base = open(&fixture(BASE));
    let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("adapter");
    // It may be there from an earlier run.
    let _ = std::fs::remove_dir_all(&out);
    export::folder(&base, &out.join("base"), DType::F32).unwrap();
    let values = |p: &Parameter| uniform(p.shape[0] * p.shape[1], p.name.len() as u64 + p.shape[0] as u64);
    let folder = out.join("adapter");
    for (rslora, targets) in
        [(false, LoraTarget::ALL.to_vec()), (true, vec![LoraTarget::Q, LoraTarget::Down])]
    {
        let lora = LoraConfig { rank: 5, alpha: 2.5, dropout: 0.05, rslora, targets };
        let name = out.join("base");
        save_adapter(&folder, &base, &lora, name.to_str().unwrap(), |p| Ok(values(p))).unwrap();
        let config: Value =
            serde_json::from_slice(&std::fs::read(folder.join("adapter_config.json")).unwrap()).unwrap();
        assert_eq!((config["lora_alpha"].as_f64(), config["lora_dropout"].as_f64()), (Some(2.5), Some(0.05)));
        let merged = open(&folder);
        check_merged(&merged, &base, &lora, values);
        assert_eq!(merged.stop_ids, base.stop_ids);
    }
    // The same keys as PEFT's own; nothing is left beside.
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let written =
        serde_json::from_slice(&std::fs::read(folder.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!(keys(&written), keys(&Folder::fixture().config));
    let mut names: Vec<_> =
        std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(
        names,
        [
            "adapter_config.json",
            "adapter_model.safetensors",
            "chat_template.jinja",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
    let hub = tempfile::tempdir().unwrap();
    save_adapter(hub.path(), &base, &of_fixture(), "org/name@v1", |p| Ok(values(p))).unwrap();
    let config = std::fs::read(hub.path().join("adapter_config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!((&config["base_model_name_or_path"], &config["revision"]), (&json!("org/name"), &json!("v1")));
    assert_eq!(config["lora_alpha"].as_u64(), Some(7));
    assert_eq!(smolten::pretrained::base_on_hub(hub.path()).unwrap().as_deref(), Some("org/name@v1"));
}

fn smolten(arguments: &[&str]) -> (Output, String) {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("adapter-cache");
    let mut command = Command::new(env!("CARGO_BIN_EXE_smolten"));
    let output = command.args(arguments).env("SMOLTEN_CACHE", cache).output().unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output, text)
}

#[test]
fn every_command_takes_it() {
    let out = tempfile::tempdir().unwrap();
    let path = |name: &str| out.path().join(name).to_str().unwrap().to_owned();
    let (adapter, base) = (fixture("tiny-smollm-lora"), fixture(BASE));
    let (adapter, base) = (adapter.to_str().unwrap(), base.to_str().unwrap());
    let done = |arguments: &[&str]| {
        let (output, text) = smolten(arguments);
        assert!(output.status.success(), "{arguments:?}: {text}");
        text
    };
    let text = done(&["export", "--model", adapter, "--out", &path("hf"), "--format", "hf", "--type", "f32"]);
    assert!(text.contains("adapter: LoRA of rank 3") && text.contains("merged into"), "{text}");
    let want = bits(&open(&fixture("tiny-smollm-lora")));
    assert_eq!(bits(&open(Path::new(&path("hf")))), want);
    let text = done(&["export", "--model", adapter, "--out", &path("m.gguf"), "--type", "f32"]);
    assert!(text.contains("merged into"), "{text}");
    assert_eq!(bits(&open(Path::new(&path("m.gguf")))), want);

    let generate = ["--prompt", "hi", "--max-new-tokens", "8", "--temperature", "0", "--json"];
    let answer = |model: &str| {
        let (output, _) = smolten(&[&["generate", "--model", model][..], &generate].concat());
        let json: Value = serde_json::from_slice(&output.stdout).expect("one JSON document");
        json["text"].as_str().expect("a text").to_owned()
    };
    assert_eq!(answer(adapter), answer(&path("hf")));
    done(&["inspect", "--model", adapter, "--text", "hello"]);
    let rows = path("rows.jsonl");
    std::fs::write(&rows, "{\"prompt\": \"a\", \"response\": \"b c d\"}\n".repeat(4)).unwrap();
    let loss = |model: &str| {
        let text = done(&["eval", "--model", model, "--data", &rows, "--device", "cpu"]);
        text.lines().find(|l| l.starts_with("loss:")).map(str::to_owned).expect("a loss")
    };
    assert_eq!(loss(adapter), loss(&path("hf")));
    assert_ne!(loss(adapter), loss(base));
    done(&["compare", "--base", base, "--tuned", adapter, "--data", &rows, "--max-new-tokens", "4"]);
}
