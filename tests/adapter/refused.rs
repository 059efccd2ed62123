//! What is no adapter of this model, or means what is not supported: refused, with what was found and what to do.

use super::{Folder, Tensors, fixture, open};
use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use smolten::pretrained::Pretrained;
use std::path::Path;

#[track_caller]
fn refused(path: &Path, words: &[&str]) {
    let error = Pretrained::open(path).err().unwrap_or_else(|| panic!("it should be refused for {words:?}"));
    assert_eq!(error.exit_code(), 2, "{error}");
    let text = error.to_string();
    assert!(words.iter().all(|w| text.contains(w)), "{words:?} are not all in: {text}");
}

#[test]
fn settings_that_mean_something_else_are_refused() {
    let cases = [
        ("peft_type", json!("IA3"), "LORA"),
        ("peft_type", Value::Null, "LORA"),
        ("task_type", json!("SEQ_CLS"), "CAUSAL_LM"),
        ("use_dora", json!(true), "DoRA"),
        ("fan_in_fan_out", json!(true), "transposed"),
        ("bias", json!("all"), "biases"),
        ("bias", json!("lora_only"), "biases"),
        ("lora_bias", json!(true), "bias beside B"),
        ("modules_to_save", json!(["lm_head"]), "modules"),
        ("layer_replication", json!([[0, 1], [0, 1]]), "more than once"),
        ("megatron_config", json!({ "a": 1 }), "Megatron"),
        ("loftq_config", json!({ "loftq_bits": 4 }), "LoftQ"),
        ("trainable_token_indices", json!([1]), "embedding"),
        ("rank_pattern", json!({ "q_proj": 8 }), "rank of their own"),
        ("alpha_pattern", json!({ "q_proj": 8 }), "alpha of their own"),
        ("init_lora_weights", json!("pissa"), "base's own weights"),
        ("init_lora_weights", json!("pissa_niter_4"), "base's own weights"),
        ("init_lora_weights", json!("olora"), "base's own weights"),
        ("init_lora_weights", json!("corda"), "base's own weights"),
        ("init_lora_weights", json!("loftq"), "base's own weights"),
        ("corda_config", json!({ "a": 1 }), "not known"),
        ("alora_invocation_tokens", json!([1, 2]), "not known"),
        ("use_qalora", json!(true), "not known"),
        ("made_up_tomorrow", json!(3), "not known"),
        ("r", json!(0), "number"),
        ("r", json!(-3), "number"),
        ("r", json!("3"), "number"),
        ("r", json!(1u64 << 63), "shape [3, 96]"),
        ("lora_alpha", Value::Null, "number"),
        ("use_rslora", json!("yes"), "true or false"),
        ("base_model_name_or_path", Value::Null, "names no model"),
        ("base_model_name_or_path", json!("gone"), "the base gone is not there"),
        ("base_model_name_or_path", json!("/gone/model"), "is not there"),
    ];
    for (key, value, word) in cases {
        let mut folder = Folder::fixture();
        folder.config[key] = value.clone();
        let place = if word.starts_with("shape") { "lora_A" } else { key };
        refused(folder.written().path(), &["adapter_", place, word]);
    }
    for harmless in ["gaussian", "eva", "orthogonal"] {
        let mut folder = Folder::fixture();
        folder.config["init_lora_weights"] = json!(harmless);
        open(folder.written().path());
    }
    let out = Folder::fixture().written();
    for text in ["", "[]", "3", "{\"r\": "] {
        std::fs::write(out.path().join("adapter_config.json"), text).unwrap();
        refused(out.path(), &["adapter_config.json"]);
    }
    // The base of an adapter is an adapter.
    let mut second = Folder::fixture();
    second.config["base_model_name_or_path"] = json!(fixture("tiny-smollm-lora"));
    refused(second.written().path(), &["base_model_name_or_path", "itself an adapter", "smolten export"]);
    // A base that is no whole model.
    let mut other = Folder::fixture();
    other.config["base_model_name_or_path"] = json!(fixture("tiny-llama-tied"));
    refused(other.written().path(), &["tokenizer"]);
}

#[test]
fn tensors_that_are_no_pair_of_this_model_are_refused() {
    let q = |what: &str| format!("base_model.model.model.layers.0.self_attn.q_proj.lora_{what}");
    type Change<'a> = &'a dyn Fn(&mut Tensors, String);
    let cases: [(Change<'_>, &[&str]); 14] = [
        (&|t, a| drop(t.remove(&a)), &["q_proj.lora_B", "missing"]),
        (&|t, a| drop(t.remove(&a.replace("lora_A", "lora_B"))), &["q_proj.lora_A", "missing"]),
        (&|t, a| drop(t.insert(q("B.bias"), t[&a].clone())), &["lora_B.bias", "no adapter of a projection"]),
        (&|t, a| drop(t.insert(q("magnitude_vector"), t[&a].clone())), &["magnitude_vector", "no adapter"]),
        (&|t, a| drop(t.insert(q("A.a.b.weight"), t[&a].clone())), &["lora_A.a.b.weight", "no adapter"]),
        (&|t, a| drop(t.insert(q("A.x.weight"), t[&a].clone())), &["second adapter"]),
        (
            &|t, a| {
                for name in [a.replace("lora_A", "lora_B"), a] {
                    let tensor = t.remove(&name).unwrap();
                    t.insert(name.replace(".weight", ".x.weight"), tensor);
                }
            },
            &["second adapter"],
        ),
        (
            &|t, a| drop(t.insert(a.replace("layers.0", "layers.1"), t[&a].clone())),
            &["layers.1", "no adapter"],
        ),
        (
            &|t, a| {
                drop(t.insert("base_model.model.model.embed_tokens.lora_embedding_A".into(), t[&a].clone()))
            },
            &["lora_embedding_A", "embedding and head"],
        ),
        (&|t, a| drop(t.insert("lm_head.weight".into(), t[&a].clone())), &["lm_head.weight", "no adapter"]),
        (&|t, a| t.get_mut(&a).unwrap().0 = vec![64, 3], &["[64, 3]", "r = 3", "[3, 64]"]),
        (&|t, a| t.get_mut(&a).unwrap().0 = vec![3, 8, 8], &["[3, 8, 8]", "[3, 64]"]),
        (&|t, a| t.get_mut(&a).unwrap().1 = Dtype::I32, &["I32", "F32, F16 and BF16"]),
        (&|t, _| t.clear(), &["no tensors"]),
    ];
    for (change, words) in cases {
        let mut folder = Folder::fixture();
        let a = folder.a_of_q();
        change(&mut folder.tensors, a);
        refused(folder.written().path(), words);
    }
    let out = Folder::fixture().written();
    std::fs::remove_file(out.path().join("adapter_model.safetensors")).unwrap();
    refused(out.path(), &["no adapter_model.safetensors"]);
    std::fs::write(out.path().join("adapter_model.bin"), b"old").unwrap();
    refused(out.path(), &["adapter_model.bin", "not read"]);
}

#[test]
fn damaged_files_are_refused() {
    let out = Folder::fixture().written();
    let path = out.path().join("adapter_model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let ends = (0..9).chain([100, 1000, whole.len() / 2, whole.len() - 1]);
    let mut damaged: Vec<Vec<u8>> = ends.map(|end| whole[..end].to_vec()).collect();
    damaged.extend([[&whole[..], b"x"].concat(), vec![0xff; 64]]);
    for bytes in damaged {
        // A file of no bytes cannot be mapped on some systems.
        std::fs::write(&path, &bytes).unwrap();
        refused(out.path(), &["adapter_model.safetensors"]);
    }
}
