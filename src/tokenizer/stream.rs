//! Decoding while tokens arrive.

use super::Tokenizer;
use crate::error::Result;

/// Gives text as soon as it is certain: a character whose bytes are spread over several tokens appears when the
/// last of them has come. The pieces together are [`Tokenizer::decode`] of all ids.
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special_tokens: bool,
    ids: Vec<u32>,
    /// `ids[context..given]` was given out; it is decoded again with what follows, because what a token reads as
    /// can depend on the one before.
    context: usize,
    given: usize,
}

impl<'a> DecodeStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, skip_special_tokens: bool) -> Self {
        Self { tokenizer, skip_special_tokens, ids: Vec::new(), context: 0, given: 0 }
    }

    /// Takes one token; gives the text that is now certain, which may be empty.
    ///
    /// # Errors
    /// Those of [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let text = self.pending()?;
        if text.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        self.context = self.given;
        self.given = self.ids.len();
        Ok(text)
    }

    /// The rest: a character that was never completed, as U+FFFD.
    ///
    /// # Errors
    /// Those of [`Tokenizer::decode`].
    pub fn finish(self) -> Result<String> {
        self.pending()
    }

    /// Text of the tokens not yet given out.
    fn pending(&self) -> Result<String> {
        let before = self.tokenizer.decode(&self.ids[self.context..self.given], self.skip_special_tokens)?;
        let text = self.tokenizer.decode(&self.ids[self.context..], self.skip_special_tokens)?;
        // What was given out never ended within a character, so it stays the beginning.
        Ok(text.get(before.len()..).unwrap_or_default().to_owned())
    }
}
