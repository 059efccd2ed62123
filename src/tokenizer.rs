//! Text to token ids and back: the `tokenizers` crate, from a `tokenizer.json` or from a GGUF file.

mod gguf;
mod stream;
mod to_gguf;

pub use stream::DecodeStream;

use crate::error::{Error, Result};
use std::ops::Range;
use std::path::Path;

/// A tokenizer; shared freely between threads.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
}

impl Tokenizer {
    /// From the `tokenizer.json` of a model folder.
    ///
    /// # Errors
    /// [`Error::Input`] when there is none or it is not understood.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        if !path.is_file() {
            return Err(Error::input(
                folder.display(),
                "there is no tokenizer.json",
                "save the tokenizer with transformers' save_pretrained, which writes it",
            ));
        }
        let text = std::fs::read(&path).map_err(Error::io("read", &path))?;
        Self::from_json(&text, &path)
    }

    /// From the content of a `tokenizer.json`; `origin` is the file it came from, for messages.
    ///
    /// # Errors
    /// [`Error::Input`] when it is not understood.
    pub fn from_json(json: &[u8], origin: &Path) -> Result<Self> {
        let wrong = |found: String| {
            let remedy = "fetch the model again, or save its tokenizer with a current transformers";
            Error::input(origin.display(), format!("the tokenizer is not understood: {found}"), remedy)
        };
        // The library panics on some files: on what is not JSON within "decoder", and on broken tables of a
        // normaliser. The first is seen here, the others are caught.
        serde_json::from_slice::<serde_json::Value>(json).map_err(|e| wrong(format!("not JSON: {e}")))?;
        let parsed = std::panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(json));
        let parsed = parsed.map_err(|_| wrong("the library gave up on it (see above)".to_owned()))?;
        let mut inner = parsed.map_err(|e| wrong(e.to_string()))?;
        // A file may carry the truncation and padding of whoever saved it; transformers switches both off.
        inner.with_padding(None);
        inner.with_truncation(None).expect("no truncation is always possible");
        Ok(Self { inner })
    }

    /// Token ids of a text. Special tokens in the text count as such; `add_special_tokens` adds what the
    /// tokenizer puts around every text (nothing for SmolLM2, a first token for Llama).
    ///
    /// # Errors
    /// [`Error::Run`] when the tokenizer has no token for a character.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, add_special_tokens);
        encoding.map(|e| e.get_ids().to_vec()).map_err(|e| failed(text, &e))
    }

    /// Token ids of a text without added special tokens, and the bytes of the text that each stands for. A token for
    /// a part of a character stands for the whole of it.
    ///
    /// # Errors
    /// Those of [`Tokenizer::encode`].
    pub fn encode_with_offsets(&self, text: &str) -> Result<(Vec<u32>, Vec<Range<usize>>)> {
        let encoding = self.inner.encode(text, false).map_err(|e| failed(text, &e))?;
        let offsets = encoding.get_offsets().iter().map(|&(start, end)| start..end);
        Ok((encoding.get_ids().to_vec(), offsets.collect()))
    }

    /// The text of one token for the eye: its own spelling in the vocabulary where it is but a part of a character.
    pub fn piece(&self, id: u32) -> String {
        let text = self.decode(&[id], false).unwrap_or_default();
        if text.contains('\u{fffd}') { self.token(id).unwrap_or(text) } else { text }
    }

    /// The text of token ids; bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`Error::Run`] when the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        self.inner.decode(ids, skip_special_tokens).map_err(|e| {
            Error::run(
                format!("the tokenizer failed to decode {} tokens: {e}", ids.len()),
                "check its decoder",
            )
        })
    }

    /// The text of each token of a sequence; a character of several tokens is that of the last of them. Together they
    /// are [`Tokenizer::decode`] of all.
    ///
    /// # Errors
    /// Those of [`Tokenizer::decode`].
    pub fn pieces(&self, ids: &[u32]) -> Result<Vec<String>> {
        let mut stream = self.decode_stream(false);
        let mut pieces = ids.iter().map(|&id| stream.push(id)).collect::<Result<Vec<_>>>()?;
        if let Some(last) = pieces.last_mut() {
            *last += &stream.finish()?;
        }
        Ok(pieces)
    }

    /// A decoder for tokens that come one at a time.
    pub fn decode_stream(&self, skip_special_tokens: bool) -> DecodeStream<'_> {
        DecodeStream::new(self, skip_special_tokens)
    }

    /// The token of an id, as the vocabulary spells it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token, as the vocabulary spells it.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// One more than the largest id: rows that the embedding needs at least.
    pub fn vocab_size(&self) -> usize {
        let largest = self.inner.get_vocab(true).into_values().max();
        largest.map_or(0, |id| id as usize + 1)
    }

    /// The content of `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Run`] when it cannot be written.
    pub fn to_json(&self) -> Result<String> {
        self.inner
            .to_string(true)
            .map_err(|e| Error::run(format!("the tokenizer cannot be written: {e}"), "report this as a bug"))
    }
}

fn failed(text: &str, e: &dyn std::fmt::Display) -> Error {
    Error::run(format!("the tokenizer failed on a text of {} bytes: {e}", text.len()), "check the text")
}
