//! Rows of a data set: read from files, held to one shape, tokenised into examples, audited, and kept in a cache.

mod audit;
mod cache;
mod cell;
mod counts;
mod encode;
mod files;
mod findings;
mod labels;
mod load;
mod question;
mod read;
mod shape;
mod source;
mod utf8;

pub use audit::{Audit, LengthBin};
pub use counts::{Count, Lengths};
pub use encode::{Encoder, Label, LabelledToken};
pub use load::{Dataset, cache_folder, load};
pub use question::{Question, questions};
pub use read::{PlacedRow, Rows, read_batches, read_row, read_rows};
pub use source::{DataKind, DataSource, content_hash, hash_file};

use crate::recipe::Recipe;
use crate::template::Message;

/// Names of fields that differ from the usual ones.
#[derive(Clone, Debug, Default)]
pub struct FieldNames {
    /// Field that holds the prompt.
    pub prompt: Option<String>,
    /// Field that holds the response.
    pub response: Option<String>,
}

impl FieldNames {
    /// As the recipe names them.
    pub fn new(recipe: &Recipe) -> Self {
        Self { prompt: recipe.prompt_field.clone(), response: recipe.response_field.clone() }
    }
}

/// One row as text.
#[derive(Clone, Debug, PartialEq)]
pub enum Row {
    /// Turns to answer, and the turns that answer them.
    Completion {
        /// The conversation so far.
        prompt: Vec<Message>,
        /// What is to be learnt.
        completion: Vec<Message>,
    },
    /// A whole conversation.
    Messages(Vec<Message>),
    /// Running text, without turns.
    Text(String),
}
