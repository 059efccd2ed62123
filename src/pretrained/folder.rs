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
    let words = Words::read(folder, &config)?;
    Ok(Parts {
        generation_config: read_json(&folder.join("generation_config.json"))?,
        template: template_source(folder, &words.config)?,
        weights: Weights::open(folder)?,
        adapter: None,
        license: license::of_folder(folder),
        config,
        config_json,
        tokenizer_config: words.config,
        tokenizer: words.tokenizer,
        tokens: words.tokens,
    })
}

/// The tokenizer's files.
struct Words {
    tokenizer: Tokenizer,
    /// `tokenizer_config.json`.
    config: Value,
    tokens: SpecialTokens,
}

impl Words {
    fn read(folder: &Path, model: &ModelConfig) -> Result<Self> {
        let tokenizer = Tokenizer::from_folder(folder)?;
        let config = read_json(&folder.join("tokenizer_config.json"))?.unwrap_or_else(|| json!({}));
        let map = read_json(&folder.join("special_tokens_map.json"))?.unwrap_or_else(|| json!({}));
        // Where the tokenizer's files name no token, the configuration's id stands for it.
        let token = |key: &str, id: Option<u32>| {
            let named = token_text(&config[key]).or_else(|| token_text(&map[key]));
            let absent = config.get(key).is_none() && map.get(key).is_none();
            named.or_else(|| id.filter(|_| absent).and_then(|id| tokenizer.token(id)))
        };
        let tokens = SpecialTokens {
            bos: token("bos_token", model.bos_token_id),
            eos: token("eos_token", model.eos_token_ids.first().copied()),
            pad: token("pad_token", model.pad_token_id),
            unk: token("unk_token", None),
        };
        Ok(Self { tokenizer, config, tokens })
    }
}

/// Replaces what lies in the folder of an adapter beside it: tokenizer, template, generation configuration.
pub fn read_beside(folder: &Path, parts: &mut Parts) -> Result<()> {
    if let Some(found) = read_json(&folder.join("generation_config.json"))? {
        parts.generation_config = Some(found);
    }
    if folder.join("tokenizer.json").is_file() {
        let Words { tokenizer, config, tokens } = Words::read(folder, &parts.config)?;
        // Training may have set other tokens than the base's configuration has, which follows then, as it does in TRL.
        let id = |token: &Option<String>| token.as_deref().and_then(|t| tokenizer.id(t));
        parts.config.bos_token_id = id(&tokens.bos).or(parts.config.bos_token_id);
        parts.config.pad_token_id = id(&tokens.pad).or(parts.config.pad_token_id);
        if let Some(end) = id(&tokens.eos).filter(|end| !parts.config.eos_token_ids.contains(end)) {
            parts.config.eos_token_ids = vec![end];
        }
        (parts.tokenizer, parts.tokenizer_config, parts.tokens) = (tokenizer, config, tokens);
    }
    let config = read_json(&folder.join("tokenizer_config.json"))?.unwrap_or_else(|| json!({}));
    if let Some(template) = template_source(folder, &config)? {
        parts.template = Some(template);
    }
    Ok(())
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
