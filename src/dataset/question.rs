//! Rows as questions: what a model is asked, and the answer that it should give.

use std::collections::HashMap;

use super::{DataSource, Encoder, FieldNames, Row, read_batches};
use crate::batch::Origin;
use crate::error::Result;
use crate::template::Message;

/// What a row asks.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// Where the row stands, for messages.
    pub place: String,
    /// The turns before the answer, up to where it begins, as tokens.
    pub prompt: Vec<u32>,
    /// The answer that the row gives.
    pub response: String,
}

impl Encoder<'_> {
    /// The row's last answer and the tokens before it, as they are trained on; none for running text, which asks
    /// nothing.
    ///
    /// # Errors
    /// [`Error::Input`](crate::error::Error::Input) when the template refuses the row.
    fn question(&self, row: &Row) -> Result<Option<(Vec<u32>, String)>> {
        let (prompt, rest) = match row {
            Row::Text(_) => return Ok(None),
            Row::Completion { prompt, completion } => (prompt.as_slice(), completion.as_slice()),
            Row::Messages(messages) => ([].as_slice(), messages.as_slice()),
        };
        let Some(last) = rest.iter().rposition(|m| m.role == "assistant") else { return Ok(None) };
        let turns: Vec<Message> = prompt.iter().chain(&rest[..last]).cloned().collect();
        let turns = self.turns(&turns);
        let text = self.template.render(&turns, true)?;
        Ok(Some((self.tokenizer.encode(&text, false)?, rest[last].content.clone())))
    }
}

/// The rows at `origins`, in that order, as questions; those that ask nothing are left out.
///
/// # Errors
/// Those of [`read_batches`], and [`Error::Input`](crate::error::Error::Input) naming a row that the template refuses.
pub fn questions(
    source: &DataSource,
    encoder: &Encoder<'_>,
    fields: &FieldNames,
    origins: &[Origin],
) -> Result<Vec<Question>> {
    let key = |origin: Origin| (origin.file, origin.number);
    let wanted: HashMap<_, usize> = origins.iter().enumerate().map(|(i, &o)| (key(o), i)).collect();
    let mut found: Vec<Option<Question>> = vec![None; origins.len()];
    read_batches(source, fields, &mut |batch| {
        for placed in batch {
            let Some(&i) = wanted.get(&key(placed.origin)) else { continue };
            let place = source.place(placed.origin);
            let asked = encoder.question(&placed.row).map_err(|e| e.at(&place))?;
            found[i] = asked.map(|(prompt, response)| Question { place, prompt, response });
        }
        Ok(())
    })?;
    Ok(found.into_iter().flatten().collect())
}
