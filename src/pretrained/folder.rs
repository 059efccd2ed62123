//! The small files of a Hugging Face model folder.

use super::{Parts, license};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;
use crate::weights::Weights;
use serde_json::{Value, json};
use std::path::Path;

/// Special tokens as the vocabulary spells them.
#[derive(Default)]
pub struct SpecialTokens {
    pub bos: Option<String>,
    pub eos: Option<String>,
    pub pad: Option<String>,
    pub unk: Option<String>,
}

/// Opens all of a folder.
pub fn parts(folder: &Path) -> Result<Parts> {
    let origin = folder.join("config.json");
    let config_json = read_json(&origin)?.ok_or_else(|| {
        Error::input(
            folder.display(),
            "there is no config.json",
            "give a Hugging Face model folder or a .gguf file",
        )
    })?;
    let config = ModelConfig::from_json(&config_json, &origin)?;
    let tokenizer = Tokenizer::from_folder(folder)?;
    let tokenizer_config = read_json(&folder.join("tokenizer_config.json"))?.unwrap_or_else(|| json!({}));
    let map = read_json(&folder.join("special_tokens_map.json"))?.unwrap_or_else(|| json!({}));
    // Where the tokenizer's files name no token, the configuration's id stands for it.
    let token = |key: &str, id: Option<u32>| {
        let named = token_text(&tokenizer_config[key]).or_else(|| token_text(&map[key]));
        let absent = tokenizer_config.get(key).is_none() && map.get(key).is_none();
        named.or_else(|| id.filter(|_| absent).and_then(|id| tokenizer.token(id)))
    };
    let tokens = SpecialTokens {
        bos: token("bos_token", config.bos_token_id),
        eos: token("eos_token", config.eos_token_ids.first().copied()),
        pad: token("pad_token", config.pad_token_id),
        unk: token("unk_token", None),
    };
    Ok(Parts {
        generation_config: read_json(&folder.join("generation_config.json"))?,
        template: template_source(folder, &tokenizer_config)?,
        weights: Weights::open(folder)?,
        license: license::of_folder(folder),
        config,
        config_json,
        tokenizer_config,
        tokenizer,
        tokens,
    })
}

/// A file's JSON; `None` when there is no such file.
fn read_json(path: &Path) -> Result<Option<Value>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("read", path)(e)),
    };
    let json = serde_json::from_str(&text);
    json.map(Some).map_err(|e| Error::input(path.display(), format!("not JSON: {e}"), "fetch the file again"))
}

/// A token is written as its text or as an object with its text.
fn token_text(value: &Value) -> Option<String> {
    let text = value.as_str().or_else(|| value["content"].as_str());
    text.map(str::to_owned)
}

/// The template: `chat_template.jinja` wins over `tokenizer_config.json`, whose list of named templates has one
/// named `default`.
fn template_source(folder: &Path, tokenizer_config: &Value) -> Result<Option<String>> {
    let path = folder.join("chat_template.jinja");
    if path.is_file() {
        return std::fs::read_to_string(&path).map(Some).map_err(Error::io("read", &path));
    }
    Ok(match &tokenizer_config["chat_template"] {
        Value::String(source) => Some(source.clone()),
        Value::Array(named) => named
            .iter()
            .find(|t| t["name"] == "default")
            .and_then(|t| t["template"].as_str())
            .map(str::to_owned),
        _ => None,
    })
}

/// The end tokens of the generation configuration, else of the configuration.
pub fn stop_ids(generation_config: Option<&Value>, config: &ModelConfig) -> Vec<u32> {
    let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
    match generation_config.map(|g| &g["eos_token_id"]) {
        Some(Value::Array(list)) => list.iter().filter_map(id).collect(),
        Some(one) if id(one).is_some() => id(one).into_iter().collect(),
        _ => config.eos_token_ids.clone(),
    }
}
