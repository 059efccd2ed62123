//! Rows to token ids and labels.

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::Row;
use crate::error::Result;
use crate::pretrained::Pretrained;
use crate::recipe::{Compat, LossOn, Recipe};
use crate::template::ChatTemplate;
use crate::tokenizer::Tokenizer;

/// How rows become tokens.
///
/// A completion begins where the ids of the prompt, rendered with a generation prompt, and those of the whole
/// conversation part (as in TRL's SFTTrainer); of a conversation with [`LossOn::Completion`] the last assistant turn
/// is the completion, and turns after it are left out. [`LossOn::Assistant`] learns what the template puts into
/// `{% generation %}` tags; where it has none, each assistant turn from its generation prompt to its end. Text is all
/// supervised and ends in `eos`. Rows are cut to `max_length` after the labels are made.
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
    /// Takes the white space around each message's content off.
    pub strip: bool,
    /// Fills every row up to `max_length` with this token, which is learnt there.
    pub pad_with: Option<u32>,
}

/// What becomes of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Label {
    /// Read, and not learnt.
    Masked,
    /// In the loss.
    Supervised,
    /// Cut off, as the row is longer than `max_length`.
    Truncated,
}

/// A token of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LabelledToken {
    /// Its id.
    pub id: u32,
    /// What becomes of it.
    pub label: Label,
}

/// A row as the store and the audit take it.
pub(super) struct EncodedRow {
    /// Cut, and filled up where that is asked for.
    pub ids: Vec<u32>,
    pub supervised: Vec<bool>,
    /// Tokens before cut and filling.
    pub length: usize,
    /// The end of its last turn was cut off.
    pub lost_turn_end: bool,
    /// An end of turn is supervised.
    pub learns_turn_end: bool,
    pub boundary_mismatch: bool,
    pub round_trip: Option<bool>,
    /// Tells rows apart by their uncut ids: the first 64 bits of the ids' SHA-256.
    pub fingerprint: u64,
}

impl EncodedRow {
    /// Tokens in the loss.
    pub fn num_supervised(&self) -> usize {
        self.supervised.iter().filter(|&&s| s).count()
    }
}

impl<'a> Encoder<'a> {
    /// As the recipe asks for, with the model's tokenizer and template; `max_length` is at most the model's positions.
    pub fn new(recipe: &'a Recipe, model: &'a Pretrained) -> Self {
        let id = |token: &Option<String>| token.as_deref().and_then(|token| model.tokenizer.id(token));
        let compat = recipe.compat == Compat::Trl017;
        Self {
            tokenizer: &model.tokenizer,
            template: &model.template,
            eos: id(&model.eos_token),
            loss_on: recipe.loss_on,
            max_length: recipe.max_length.min(model.config.max_position_embeddings),
            system: recipe.system.as_deref(),
            strip: compat,
            pad_with: id(&model.pad_token).or(id(&model.eos_token)).filter(|_| compat),
        }
    }

    /// Every token of a row and its label, also those that are cut off.
    ///
    /// # Errors
    /// [`Error::Input`](crate::error::Error::Input) when the template refuses the row, or it has no assistant turn to
    /// learn.
    pub fn label(&self, row: &Row) -> Result<Vec<LabelledToken>> {
        let row = self.tokenise(row, false)?;
        let mut labels = vec![Label::Masked; row.ids.len()];
        row.learnt.into_iter().for_each(|range| labels[range].fill(Label::Supervised));
        if let Some(first) = labels.first_mut() {
            *first = Label::Masked; // nothing precedes it
        }
        labels.iter_mut().skip(self.max_length).for_each(|label| *label = Label::Truncated);
        let mut tokens: Vec<_> =
            row.ids.into_iter().zip(labels).map(|(id, label)| LabelledToken { id, label }).collect();
        if let Some(id) = self.pad_with {
            let filled = tokens.len().max(self.max_length);
            tokens.resize(filled, LabelledToken { id, label: Label::Supervised });
        }
        Ok(tokens)
    }

    /// The row as it is trained on; `check` also decodes it again.
    pub(super) fn encode(&self, row: &Row, check: bool) -> Result<EncodedRow> {
        let row = self.tokenise(row, check)?;
        let (length, kept) = (row.ids.len(), row.ids.len().min(self.max_length));
        let fingerprint = fingerprint(&row.ids);
        let last_end = row.ids.iter().rposition(|&id| Some(id) == self.eos);
        let mut ids = row.ids;
        ids.truncate(kept);
        let mut supervised = vec![false; kept];
        for range in row.learnt {
            supervised[range.start.min(kept)..range.end.min(kept)].fill(true);
        }
        if let Some(first) = supervised.first_mut() {
            *first = false; // nothing precedes it
        }
        let learns_turn_end = ids.iter().zip(&supervised).any(|(&id, &s)| s && Some(id) == self.eos);
        if let Some(pad) = self.pad_with {
            ids.resize(self.max_length, pad);
            supervised.resize(self.max_length, true);
        }
        Ok(EncodedRow {
            ids,
            supervised,
            length,
            lost_turn_end: last_end.is_some_and(|at| at >= kept),
            learns_turn_end,
            boundary_mismatch: row.boundary_mismatch,
            round_trip: row.round_trip,
            fingerprint,
        })
    }
}

fn fingerprint(ids: &[u32]) -> u64 {
    let digest = Sha256::digest(bytemuck::cast_slice::<u32, u8>(ids));
    u64::from_le_bytes(digest[..8].try_into().expect("eight bytes"))
}
