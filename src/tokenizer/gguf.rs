//! The tokenizer that a GGUF file carries.

use super::Tokenizer;
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use serde_json::{Map, Value, json};

/// The pattern of GPT-2's successors by which Llama 3 splits a text.
const LLAMA3_PATTERN: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// Values of `tokenizer.ggml.token_type`.
const UNKNOWN: i64 = 2;
pub(super) const CONTROL: i64 = 3;
pub(super) const USER_DEFINED: i64 = 4;

impl Tokenizer {
    /// Byte-level BPE from the metadata, the same as the `tokenizer.json` the file was made from.
    ///
    /// # Errors
    /// [`Error::Input`] for another kind of tokenizer, another way of splitting, or lists that do not fit.
    pub fn from_gguf(file: &Gguf) -> Result<Self> {
        let json = tokenizer_json(file)?;
        Self::from_json(json.to_string().as_bytes(), file.path())
    }
}

fn tokenizer_json(file: &Gguf) -> Result<Value> {
    let text = |key: &str| file.require(key, file.string(key)?);
    let model = text("tokenizer.ggml.model")?;
    if model != "gpt2" {
        return Err(unsupported(
            file,
            "tokenizer.ggml.model",
            model,
            "only \"gpt2\" (byte-level BPE) is supported",
        ));
    }
    let pre = text("tokenizer.ggml.pre")?;
    let (pre_tokenizer, ignore_merges) = pre_tokenizer(pre).ok_or_else(|| {
        let rule = "\"smollm\", \"gpt-2\" and \"llama-bpe\" are supported";
        unsupported(file, "tokenizer.ggml.pre", pre, rule)
    })?;
    let tokens = file.require("tokenizer.ggml.tokens", file.strings("tokenizer.ggml.tokens")?)?;
    let merges = file.require("tokenizer.ggml.merges", file.strings("tokenizer.ggml.merges")?)?;
    let types = file.require("tokenizer.ggml.token_type", file.integers("tokenizer.ggml.token_type")?)?;
    if types.len() != tokens.len() {
        let found = format!("{} types for {} tokens", types.len(), tokens.len());
        return Err(unsupported(
            file,
            "tokenizer.ggml.token_type",
            found,
            "there must be one for each token",
        ));
    }
    let mut vocab = Map::new();
    let mut added = Vec::new();
    for (id, (&token, &kind)) in tokens.iter().zip(&types).enumerate() {
        if vocab.insert(token.to_owned(), json!(id)).is_some() {
            let rule = "a token must not be listed twice";
            return Err(unsupported(file, "tokenizer.ggml.tokens", format!("{token:?} twice"), rule));
        }
        if matches!(kind, UNKNOWN | CONTROL | USER_DEFINED) {
            added.push(json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": kind != USER_DEFINED,
            }));
        }
    }
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor(file, &tokens)?,
        "decoder": byte_level(true, true),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": ignore_merges, "vocab": vocab, "merges": merges,
        },
    }))
}

/// What llama.cpp calls the ways of splitting that are known here.
pub(super) const PRE_TOKENIZERS: [&str; 3] = ["smollm", "gpt-2", "llama-bpe"];

/// How the text is split before merging, and whether a whole word of the vocabulary is taken without merging.
pub(super) fn pre_tokenizer(pre: &str) -> Option<(Value, bool)> {
    let then_bytes = |first: Value, use_regex| {
        let both = [first, byte_level(false, use_regex)];
        json!({"type": "Sequence", "pretokenizers": both})
    };
    match pre {
        "smollm" => Some((then_bytes(json!({"type": "Digits", "individual_digits": true}), true), false)),
        "gpt-2" => Some((byte_level(false, true), false)),
        "llama-bpe" => {
            let split = json!({
                "type": "Split", "pattern": {"Regex": LLAMA3_PATTERN}, "behavior": "Isolated", "invert": false,
            });
            Some((then_bytes(split, false), true))
        }
        _ => None,
    }
}

fn byte_level(add_prefix_space: bool, use_regex: bool) -> Value {
    json!({
        "type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true, "use_regex": use_regex,
    })
}

/// The first token of every text, where the file asks for one.
fn post_processor(file: &Gguf, tokens: &[&str]) -> Result<Value> {
    let add_bos = match file.boolean("tokenizer.ggml.add_bos_token")? {
        Some(add) => add,
        // llama.cpp's default for this way of splitting.
        None => file.string("tokenizer.ggml.pre")? == Some("llama-bpe"),
    };
    if file.boolean("tokenizer.ggml.add_eos_token")? == Some(true) {
        return Err(unsupported(
            file,
            "tokenizer.ggml.add_eos_token",
            true,
            "an added last token is not supported",
        ));
    }
    if !add_bos {
        return Ok(Value::Null);
    }
    let key = "tokenizer.ggml.bos_token_id";
    let id = file.require(key, file.integer(key)?)?;
    let token = usize::try_from(id).ok().and_then(|id| tokens.get(id));
    let token = token.ok_or_else(|| unsupported(file, key, id, "it must be the id of a token"))?;
    let sequence = |name: &str, type_id| json!({"Sequence": {"id": name, "type_id": type_id}});
    let first = |type_id| json!({"SpecialToken": {"id": token, "type_id": type_id}});
    Ok(json!({
        "type": "TemplateProcessing",
        "single": [first(0), sequence("A", 0)],
        "pair": [first(0), sequence("A", 0), first(1), sequence("B", 1)],
        "special_tokens": {*token: {"id": token, "ids": [id], "tokens": [token]}},
    }))
}

fn unsupported(file: &Gguf, key: &str, found: impl ToString, rule: &str) -> Error {
    Error::input(
        format!("{}, metadata \"{key}\"", file.path().display()),
        found,
        format!("{rule}; use the model's Hugging Face folder, whose tokenizer.json is read as it is"),
    )
}
