//! An adapter written as the folder that PEFT loads.

use super::{sync_folder, write_json, write_parameters, write_words};
use crate::config::{LoraConfig, Parameter};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::hub;
use crate::pretrained::Pretrained;
use serde_json::{Value, json};
use std::path::Path;

/// What PEFT 0.21.2's `LoraConfig.save_pretrained` writes, every key in its order, of a LoRA for generation.
const DEFAULTS: &str = r#"{
    "alora_invocation_tokens": null,
    "alpha_pattern": {},
    "arrow_config": null,
    "auto_mapping": null,
    "base_model_name_or_path": null,
    "bias": "none",
    "corda_config": null,
    "ensure_weight_tying": false,
    "eva_config": null,
    "exclude_modules": null,
    "fan_in_fan_out": false,
    "inference_mode": true,
    "init_lora_weights": true,
    "kasa_config": null,
    "layer_replication": null,
    "layers_pattern": null,
    "layers_to_transform": null,
    "loftq_config": {},
    "lora_alpha": 8,
    "lora_bias": false,
    "lora_dropout": 0.0,
    "lora_ga_config": null,
    "megatron_config": null,
    "megatron_core": "megatron.core",
    "modules_to_save": null,
    "monteclora_config": null,
    "peft_type": "LORA",
    "peft_version": "0.21.2",
    "qalora_group_size": 16,
    "r": 8,
    "rank_pattern": {},
    "revision": null,
    "target_modules": null,
    "target_parameters": null,
    "task_type": "CAUSAL_LM",
    "trainable_token_indices": null,
    "use_bdlora": null,
    "use_dora": false,
    "use_qalora": false,
    "use_rslora": false,
    "velora_config": null
}"#;

/// Writes `adapter_config.json`, `generation_config.json`, `tokenizer.json`, `tokenizer_config.json`,
/// `chat_template.jinja` and last `adapter_model.safetensors` (F32) into `folder`, which is created.
///
/// `base` is what the adapter was trained on, a path or an id of the hub with or without a revision; a path that
/// exists is written absolute, so that the adapter finds it from anywhere on this machine. `read` gives the values of one
/// A or B at a time, of those that [`ModelConfig::adapters`](crate::config::ModelConfig::adapters) lists.
///
/// # Errors
/// [`Error::Io`] when a file cannot be written; those of `read`.
///
/// # Panics
/// If `read` gives another number of values than the parameter has.
pub fn save_adapter(
    folder: &Path,
    model: &Pretrained,
    lora: &LoraConfig,
    base: &str,
    mut read: impl FnMut(&Parameter) -> Result<Vec<f32>>,
) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    write_json(folder, "adapter_config.json", &adapter_config(lora, base)?)?;
    write_words(folder, model)?;
    let mut parameters: Vec<_> = model.config.adapters(lora).into_iter().flat_map(|p| [p.a, p.b]).collect();
    parameters.sort_by(|a, b| a.name.cmp(&b.name));
    write_parameters(&folder.join("adapter_model.safetensors"), &parameters, DType::F32, &mut read)?;
    sync_folder(folder)
}

/// What PEFT reads of the adapter.
fn adapter_config(lora: &LoraConfig, base: &str) -> Result<Value> {
    let (base, revision) = match base.split_once('@') {
        Some((name, revision)) if hub::is_id(base) => (name, Some(revision)),
        _ => (base, None),
    };
    let path = Path::new(base);
    let absolute =
        path.exists().then(|| std::path::absolute(path).map_err(Error::io("find", path))).transpose()?;
    let targets: Vec<_> = lora.targets.iter().map(|t| t.name()).collect();
    let mut config: Value = serde_json::from_str(DEFAULTS).expect("it is JSON");
    config["base_model_name_or_path"] =
        absolute.map_or(json!(base), |path| json!(path.to_string_lossy().into_owned()));
    config["revision"] = json!(revision);
    config["r"] = json!(lora.rank);
    // PEFT writes an alpha that is a whole number as one.
    let whole = lora.alpha.to_string().parse::<u64>();
    config["lora_alpha"] = whole.map_or(json!(lora.alpha), |n| json!(n));
    config["lora_dropout"] = json!(lora.dropout);
    config["use_rslora"] = json!(lora.rslora);
    config["target_modules"] = json!(targets);
    Ok(config)
}
