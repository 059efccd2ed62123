//! The tokenizer as the metadata of a GGUF file, so that llama.cpp splits a text into the same tokens.

use super::Tokenizer;
use super::gguf::{CONTROL, PRE_TOKENIZERS, USER_DEFINED, pre_tokenizer};
use crate::error::{Error, Result};
use crate::gguf::{Entry, MetaValue};
use serde_json::{Value, json};

/// Values of `tokenizer.ggml.token_type` beside those of `gguf.rs`.
const NORMAL: i64 = 1;
const UNUSED: i64 = 5;

impl Tokenizer {
    /// The keys `tokenizer.ggml.*` but those of single tokens; `rows` is the embedding's number of rows, for each of
    /// which there must be a token (those without one are named `[PAD7]`, as by llama.cpp's converter).
    ///
    /// `bos` is the first token of every text, if the tokenizer adds one.
    ///
    /// # Errors
    /// [`Error::Input`] for a tokenizer that llama.cpp has no name for, or whose tokens it would match otherwise.
    pub fn to_gguf(&self, rows: usize, bos: Option<u32>) -> Result<Vec<Entry>> {
        let json: Value = serde_json::from_str(&self.to_json()?).expect("the library writes JSON");
        let pre = llama_cpp_name(&json)?;
        let (tokens, types) = tokens(&json, rows)?;
        let string = |text: &str| MetaValue::String(text.to_owned());
        let entries = [
            ("model", string("gpt2")),
            ("pre", string(pre)),
            ("tokens", MetaValue::Strings(tokens)),
            ("token_type", MetaValue::Integers(types)),
            ("merges", MetaValue::Strings(merges(&json)?)),
            ("add_bos_token", MetaValue::Bool(self.adds_first_token(bos)?)),
            ("add_space_prefix", MetaValue::Bool(false)),
        ];
        Ok(entries.map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).into())
    }

    /// Whether every text gets `bos` in front, seen by what becomes of one.
    fn adds_first_token(&self, bos: Option<u32>) -> Result<bool> {
        let (plain, whole) = (self.encode("a", false)?, self.encode("a", true)?);
        if whole == plain {
            return Ok(false);
        }
        match whole.split_first() {
            Some((first, rest)) if rest == plain && Some(*first) == bos => Ok(true),
            _ => Err(no_name("post_processor", "it puts more around a text than the model's first token")),
        }
    }
}

fn no_name(part: &str, found: impl ToString) -> Error {
    Error::input(
        format!("GGUF of this model, tokenizer.json, \"{part}\""),
        found,
        "llama.cpp has nothing that does the same: use --format hf, which keeps the tokenizer as it is",
    )
}

/// What llama.cpp calls this way of splitting a text.
fn llama_cpp_name(json: &Value) -> Result<&'static str> {
    let model = &json["model"];
    let empty = |v: &Value| v.is_null() || *v == "" || *v == false;
    let plain = ["dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"];
    if model["type"] != "BPE" {
        return Err(no_name("model", format!("{}, not byte-level BPE", model["type"])));
    }
    if let Some(key) = plain.iter().find(|key| !empty(&model[**key])) {
        return Err(no_name("model", format!("{key} = {}", model[*key])));
    }
    if !json["normalizer"].is_null() {
        return Err(no_name("normalizer", &json["normalizer"]));
    }
    if json["decoder"]["type"] != "ByteLevel" {
        return Err(no_name("decoder", &json["decoder"]));
    }
    let found = (without_offsets(json["pre_tokenizer"].clone()), model["ignore_merges"] == true);
    let known = PRE_TOKENIZERS.iter().find(|name| {
        let (value, ignore_merges) = pre_tokenizer(name).expect("the list holds names that are known");
        (without_offsets(value), ignore_merges) == found
    });
    known
        .copied()
        .ok_or_else(|| no_name("pre_tokenizer", format!("{}, ignore_merges = {}", found.0, found.1)))
}

/// Without what changes only where in the text a token is said to stand.
fn without_offsets(mut value: Value) -> Value {
    let parts = value.get_mut("pretokenizers").and_then(Value::as_array_mut);
    for part in parts.into_iter().flatten() {
        part.as_object_mut().map(|o| o.remove("trim_offsets"));
    }
    value.as_object_mut().map(|o| o.remove("trim_offsets"));
    value
}

/// The token of each row, and its type.
fn tokens(json: &Value, rows: usize) -> Result<(Vec<String>, Vec<i32>)> {
    let mut tokens: Vec<Option<String>> = vec![None; rows];
    let mut types = vec![UNUSED; rows];
    let row = |id: &Value| {
        let row = id.as_u64().and_then(|id| usize::try_from(id).ok());
        row.filter(|&row| row < rows).expect("opening the model saw that every id has a row")
    };
    for (token, id) in json["model"]["vocab"].as_object().into_iter().flatten() {
        tokens[row(id)] = Some(token.clone());
        types[row(id)] = NORMAL;
    }
    for added in json["added_tokens"].as_array().into_iter().flatten() {
        let content = added["content"].as_str().unwrap_or_default();
        if let Some(key) = ["single_word", "lstrip", "rstrip"].iter().find(|key| added[**key] == json!(true))
        {
            return Err(no_name("added_tokens", format!("{content:?} has {key} = true")));
        }
        tokens[row(&added["id"])] = Some(content.to_owned());
        types[row(&added["id"])] = if added["special"] == json!(true) { CONTROL } else { USER_DEFINED };
    }
    let named =
        tokens.into_iter().enumerate().map(|(id, token)| token.unwrap_or_else(|| format!("[PAD{id}]")));
    let types = types.into_iter().map(|kind| i32::try_from(kind).expect("the types are small numbers"));
    Ok((named.collect(), types.collect()))
}

/// Merges as `left right`; the library writes them as pairs.
fn merges(json: &Value) -> Result<Vec<String>> {
    let merge = |merge: &Value| {
        let text = merge.as_str().map(str::to_owned);
        let pair = || Some(format!("{} {}", merge[0].as_str()?, merge[1].as_str()?));
        let text = text.or_else(pair).filter(|text| text.matches(' ').count() == 1);
        text.ok_or_else(|| no_name("merges", merge))
    };
    json["model"]["merges"].as_array().into_iter().flatten().map(merge).collect()
}
