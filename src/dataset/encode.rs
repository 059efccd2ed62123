//! Rows to token ids and loss masks, over rayon; the result does not depend on the number of threads.

use rayon::prelude::*;
use serde::Serialize;

use super::{Row, Rows};
use crate::batch::{Example, Examples};
use crate::error::{Error, Result};
use crate::recipe::LossOn;
use crate::template::{ChatTemplate, Message};
use crate::tokenizer::Tokenizer;

/// How rows become tokens.
#[derive(Clone, Copy)]
pub struct Encoder<'a> {
    /// Text to ids.
    pub tokenizer: &'a Tokenizer,
    /// Conversations to text.
    pub template: &'a ChatTemplate,
    /// Token that ends a turn, and a text; a text is left without one where the model has none.
    pub eos: Option<u32>,
    /// Which tokens are supervised.
    pub loss_on: LossOn,
    /// Tokens kept of a row, from its start.
    pub max_length: usize,
    /// System turn for conversations without one.
    pub system: Option<&'a str>,
}

/// The examples of a data set, in the order of its rows.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// Each with at least one supervised token.
    pub examples: Examples,
    /// What became of the rows.
    pub stats: EncodingStats,
}

/// Counts over one data set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EncodingStats {
    /// Rows read.
    pub rows: usize,
    /// Tokens of all examples.
    pub tokens: usize,
    /// Tokens in the loss.
    pub supervised_tokens: usize,
    /// Examples cut to `max_length`.
    pub truncated: usize,
    /// Rows left out, as no supervised token lay within `max_length`.
    pub dropped: usize,
    /// Examples that lost the end of their last turn to the cut: they do not teach the model to stop.
    pub lost_turn_ends: usize,
    /// Rows whose prompt, tokenised alone, is not how the whole row begins. The part that differs is supervised.
    pub boundary_mismatches: usize,
    /// Tokens of the longest row before any cut.
    pub longest: usize,
}

/// A row as tokens, before it is cut.
struct Tokenised {
    ids: Vec<u32>,
    /// Index of the first supervised token; all after it are supervised too.
    learnt_from: usize,
    boundary_mismatch: bool,
}

/// Tokenises every row on the current rayon pool.
///
/// A completion begins where the ids of the prompt, rendered with a generation prompt, and those of the whole
/// conversation part (as in TRL's SFTTrainer); of a conversation with `LossOn::Completion` the last assistant turn
/// is the completion, and turns after it are left out. Text is all supervised and ends in `eos`. Rows are cut to
/// `max_length` after the mask is built, and dropped where the cut leaves nothing supervised.
///
/// # Errors
/// [`Error::Input`] naming the first row that the template refuses or that has no assistant turn to learn, or the
/// file if no row is left.
pub fn encode(rows: &Rows, encoder: &Encoder<'_>) -> Result<Encoded> {
    // Collected row by row first, so that the error reported is the first in the file, whichever came first in time.
    let tokenised: Vec<Result<Tokenised>> = rows.rows.par_iter().map(|row| encoder.tokenise(row)).collect();
    let mut stats = EncodingStats { rows: rows.rows.len(), ..EncodingStats::default() };
    let mut examples = Vec::with_capacity(tokenised.len());
    for (index, row) in tokenised.into_iter().enumerate() {
        let row = row.map_err(|e| at_row(rows, index, e))?;
        stats.longest = stats.longest.max(row.ids.len());
        stats.boundary_mismatches += usize::from(row.boundary_mismatch);
        match encoder.cut(row, &mut stats) {
            Some(example) => examples.push(example),
            None => stats.dropped += 1,
        }
    }
    if examples.is_empty() {
        return Err(Error::input(
            format!("data {}", rows.source),
            format!(
                "none of the {} rows has a token to learn within the first {} (the longest row has {})",
                stats.rows, encoder.max_length, stats.longest
            ),
            "raise max_length (--max-length), or learn the whole text with --loss-on all",
        ));
    }
    Ok(Encoded { examples: Examples::from_examples(examples), stats })
}

/// Puts the place of the row before what was asked of it.
fn at_row(rows: &Rows, index: usize, error: Error) -> Error {
    let place = rows.place(index);
    match error {
        Error::Input { asked, found, remedy } => Error::input(format!("{place}, {asked}"), found, remedy),
        other => Error::input(place, other, "correct this row or take it out"),
    }
}

impl Encoder<'_> {
    fn tokenise(&self, row: &Row) -> Result<Tokenised> {
        match row {
            Row::Text(text) => {
                let mut ids = self.tokenizer.encode(text, true)?;
                if ids.last().copied() != self.eos {
                    ids.extend(self.eos);
                }
                Ok(Tokenised { ids, learnt_from: 0, boundary_mismatch: false })
            }
            Row::Completion { prompt, completion } => self.conversation(prompt, completion),
            Row::Messages(messages) if self.loss_on == LossOn::All => self.conversation(&[], messages),
            Row::Messages(messages) => match messages.iter().rposition(|m| m.role == "assistant") {
                Some(last) => self.conversation(&messages[..last], &messages[last..=last]),
                None => Err(Error::input(
                    "an assistant turn to learn",
                    "no message has the role \"assistant\"",
                    "add one, or learn every token with --loss-on all",
                )),
            },
        }
    }

    fn conversation(&self, prompt: &[Message], completion: &[Message]) -> Result<Tokenised> {
        let mut turns: Vec<Message> = Vec::with_capacity(prompt.len() + completion.len() + 1);
        let first = prompt.first().or(completion.first());
        if let Some(system) = self.system
            && first.is_none_or(|m| m.role != "system")
        {
            turns.push(Message::new("system", system));
        }
        turns.extend_from_slice(prompt);
        let prompt_turns = turns.len();
        turns.extend_from_slice(completion);

        let ids = self.render(&turns, false)?;
        if self.loss_on == LossOn::All {
            return Ok(Tokenised { ids, learnt_from: 0, boundary_mismatch: false });
        }
        let alone = self.render(&turns[..prompt_turns], true)?;
        let learnt_from = alone.iter().zip(&ids).take_while(|(a, b)| a == b).count();
        Ok(Tokenised { ids, learnt_from, boundary_mismatch: learnt_from < alone.len() })
    }

    /// The template writes every special token itself, so the tokenizer adds none.
    fn render(&self, turns: &[Message], add_generation_prompt: bool) -> Result<Vec<u32>> {
        self.tokenizer.encode(&self.template.render(turns, add_generation_prompt)?, false)
    }

    /// The first `max_length` tokens, counted, or `None` if none of them is supervised.
    fn cut(&self, row: Tokenised, stats: &mut EncodingStats) -> Option<Example> {
        let Tokenised { mut ids, learnt_from, .. } = row;
        let learnt_from = learnt_from.max(1); // nothing precedes the first token
        let kept = ids.len().min(self.max_length);
        if learnt_from >= kept {
            return None;
        }
        let turn_end = ids.iter().rposition(|&id| Some(id) == self.eos);
        stats.lost_turn_ends += usize::from(turn_end.is_some_and(|at| at >= kept));
        stats.truncated += usize::from(kept < ids.len());
        stats.tokens += kept;
        stats.supervised_tokens += kept - learnt_from;
        ids.truncate(kept);
        let supervised = (0..kept).map(|i| i >= learnt_from).collect();
        Some(Example { ids, supervised })
    }
}
