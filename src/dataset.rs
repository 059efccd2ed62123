//! Rows of a data set: read from a file, held to one shape, and tokenised into examples.

mod cell;
mod encode;
mod files;
mod shape;

use std::path::Path;

pub use encode::{Encoded, Encoder, EncodingStats, encode};

use crate::error::{Error, Result};
use crate::template::Message;

/// The bundled rows, `builtin:reasoning`.
const REASONING: &str = include_str!("../data/reasoning.jsonl");

/// What [`read_rows`] accepts, for messages.
const SOURCES: &str = "a .jsonl, .json, .csv or .parquet file, or builtin:reasoning";

/// Names of fields that differ from the usual ones.
#[derive(Clone, Debug, Default)]
pub struct FieldNames {
    /// Field that holds the prompt.
    pub prompt: Option<String>,
    /// Field that holds the response.
    pub response: Option<String>,
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

/// All rows of one file, in its order.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows {
    /// The file as it was asked for.
    pub source: String,
    /// The rows; never empty.
    pub rows: Vec<Row>,
    /// Line or row of the file each comes from, from 1.
    numbers: Vec<usize>,
    unit: Unit,
}

/// What a place in a file is counted in.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Unit {
    Line,
    Row,
}

impl Unit {
    /// `rows.jsonl:3` or `rows.parquet, row 3`.
    fn place(self, source: &str, number: usize) -> String {
        match self {
            Self::Line => format!("{source}:{number}"),
            Self::Row => format!("{source}, row {number}"),
        }
    }
}

impl Rows {
    /// Where row `index` stands, for messages: `rows.jsonl:3` or `rows.parquet, row 3`.
    pub fn place(&self, index: usize) -> String {
        self.unit.place(&self.source, self.numbers[index])
    }
}

/// The bundled data set that `data` names, as JSON lines; `None` for a file.
pub fn bundled(data: &str) -> Option<&'static str> {
    (data == "builtin:reasoning").then_some(REASONING)
}

/// Reads every row of `data`: a file whose ending names its format, or `builtin:reasoning`.
///
/// Fields by shape, of which the first row's holds for all: prompt + response, prompt + completion,
/// instruction (+ input) + output, question + answer, messages, text. Prompt and response are text, or lists of
/// messages; a message has a role and a content.
///
/// # Errors
/// [`Error::Input`] naming the file, line or row, and field; [`Error::Io`] if the file cannot be read.
pub fn read_rows(data: &str, fields: &FieldNames) -> Result<Rows> {
    let mut shaped = shape::ShapedRows::new(fields);
    let mut collect = |place: &str, object| shaped.push(place, object);
    let (unit, numbers) = match data.strip_prefix("builtin:") {
        Some("reasoning") => files::read_jsonl(data, REASONING.as_bytes(), &mut collect)?,
        Some(name) => {
            let found = format!("there is no bundled data set `{name}`");
            return Err(Error::input(format!("data {data}"), found, "the bundled one is builtin:reasoning"));
        }
        None => read_file(data, &mut collect)?,
    };
    let rows = shaped.rows;
    if rows.is_empty() {
        return Err(Error::input(data, "the file holds no rows", "give a file with at least one row"));
    }
    Ok(Rows { source: data.to_owned(), rows, numbers, unit })
}

fn read_file(data: &str, collect: files::Collect<'_>) -> Result<(Unit, Vec<usize>)> {
    let path = Path::new(data);
    let ending = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    let read = || std::fs::read(path).map_err(Error::io("read", path));
    match ending.as_deref() {
        Some("jsonl") => files::read_jsonl(data, &read()?, collect),
        Some("json") => files::read_json(data, &read()?, collect),
        Some("csv") => files::read_csv(data, &read()?, collect),
        Some("parquet") => files::read_parquet(data, path, collect),
        _ => {
            let found = match path.metadata() {
                Ok(m) if m.is_dir() => "it is a folder",
                Ok(_) => "the ending of its name is none of those read",
                Err(_) => "there is no such file, and data sets are not fetched from a hub yet",
            };
            Err(Error::input(format!("data {data}"), found, format!("give {SOURCES}")))
        }
    }
}
