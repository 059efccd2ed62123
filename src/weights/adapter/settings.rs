//! `adapter_config.json`: what PEFT's `LoraConfig` says of an adapter, as far as merging depends on it.

use super::{CONFIG, is_adapter};
use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::fmt::Display;
use std::path::{Path, PathBuf};

/// Keys that are read, and those that change nothing in what the stored tensors mean.
const PLAIN: [&str; 19] = [
    "auto_mapping",
    "base_model_name_or_path",
    "eva_config", // an initial value of A
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "revision",
    "target_modules",
    "task_type",
    "use_rslora",
];

/// Keys that must be off, and what they would mean. A key in neither list must be off too.
const OFF: [(&str, &str); 11] = [
    ("alpha_pattern", "projections with an alpha of their own"),
    ("bias", "biases that were trained beside it"),
    ("fan_in_fan_out", "weights stored transposed"),
    ("layer_replication", "layers that stand in the model more than once"),
    ("loftq_config", "LoftQ, which changes the base"),
    ("lora_bias", "a bias beside B"),
    ("megatron_config", "layers of Megatron"),
    ("modules_to_save", "whole modules that were trained beside it"),
    ("rank_pattern", "projections with a rank of their own"),
    ("trainable_token_indices", "rows of the embedding that were trained beside it"),
    ("use_dora", "DoRA, which scales the merged rows"),
];

/// Initial values that leave the base as it was; the others of PEFT (PiSSA, OLoRA, CorDA, LoftQ, …) change it.
const INITS: [&str; 3] = ["eva", "gaussian", "orthogonal"];

/// With what another program made of an adapter, this one can go on.
const MERGE: &str =
    "merge it with PEFT (model.merge_and_unload()) and give the folder that save_pretrained writes of it";

/// What is read of the file.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterSettings {
    /// `r`.
    pub rank: usize,
    /// `lora_alpha`.
    pub alpha: f64,
    /// `use_rslora`.
    pub rslora: bool,
    /// `base_model_name_or_path`: a folder, a file, or the id of a model of the hub.
    pub base: String,
    /// `revision` of the base on the hub.
    pub revision: Option<String>,
    /// The file.
    pub path: PathBuf,
}

impl AdapterSettings {
    /// Of the folder of an adapter; `None` when it is none.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Input`] when the file is damaged, or says of the adapter what is not supported.
    pub fn of_folder(folder: &Path) -> Result<Option<Self>> {
        is_adapter(folder).then(|| Self::read(folder.join(CONFIG))).transpose()
    }

    fn read(path: PathBuf) -> Result<Self> {
        let text = std::fs::read(&path).map_err(Error::io("read", &path))?;
        let json: Value = serde_json::from_slice(&text)
            .map_err(|e| Error::input(path.display(), format!("not JSON: {e}"), "fetch the file again"))?;
        let Value::Object(keys) = json else {
            return Err(Error::input(path.display(), "no JSON object", "fetch the file again"));
        };
        let wrong = |key: &str, found: &dyn Display, remedy: &str| {
            Error::input(format!("{}, \"{key}\"", path.display()), found, remedy)
        };
        let get = |key: &str| keys.get(key).unwrap_or(&Value::Null);
        if get("peft_type") != "LORA" {
            let found = format!("{}, and adapters of type LORA are read", get("peft_type"));
            return Err(wrong("peft_type", &found, MERGE));
        }
        if !get("task_type").is_null() && get("task_type") != "CAUSAL_LM" {
            let found = format!("{}, and smolten runs models of type CAUSAL_LM", get("task_type"));
            return Err(wrong("task_type", &found, "use an adapter of a language model"));
        }
        if let Some((key, found)) = not_supported(&keys) {
            return Err(wrong(key, &found, MERGE));
        }
        let rank = get("r").as_u64().and_then(|r| usize::try_from(r).ok()).filter(|&r| r > 0);
        let remedy = "fetch the file again, or save the adapter again with PEFT";
        let number = |key| wrong(key, &format!("{} where a number is meant", get(key)), remedy);
        let rslora = match get("use_rslora") {
            Value::Null => false,
            Value::Bool(flag) => *flag,
            other => return Err(wrong("use_rslora", &format!("{other}, not true or false"), remedy)),
        };
        let base = get("base_model_name_or_path").as_str().filter(|text| !text.is_empty());
        let remedy = "write there where the base model lies, or its id on the hub";
        let base = base.ok_or_else(|| wrong("base_model_name_or_path", &"it names no model", remedy))?;
        Ok(Self {
            rank: rank.ok_or_else(|| number("r"))?,
            alpha: get("lora_alpha").as_f64().ok_or_else(|| number("lora_alpha"))?,
            rslora,
            base: base.to_owned(),
            revision: get("revision").as_str().map(str::to_owned),
            path,
        })
    }
}

/// The first key that says what is not supported, and what that is.
fn not_supported(keys: &Map<String, Value>) -> Option<(&str, String)> {
    for (key, value) in keys {
        if !PLAIN.contains(&key.as_str()) && !is_off(value) {
            let meaning =
                OFF.iter().find(|(k, _)| k == key).map_or("not known here", |&(_, meaning)| meaning);
            return Some((key, format!("{value}: {meaning}; this is not supported")));
        }
    }
    match keys.get("init_lora_weights")? {
        Value::Null | Value::Bool(_) => None,
        Value::String(name) if INITS.contains(&name.as_str()) => None,
        other => Some(("init_lora_weights", format!("{other}, which may change the base's own weights"))),
    }
}

/// Whether a value says that nothing is meant.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::String(text) => text.is_empty() || text == "none",
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Number(_) => false,
    }
}
