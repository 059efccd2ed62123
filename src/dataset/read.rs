//! Rows one batch after the other, so that a data set need not fit into memory.

use std::fs::File;

use super::cell::Object;
use super::shape::Shaper;
use super::source::{DataKind, DataSource, Format};
use super::{FieldNames, Row, files};
use crate::batch::Origin;
use crate::error::{Error, Result};

/// Rows of a batch at most.
const BATCH_ROWS: usize = 4096;

/// Bytes of text after which a batch is full.
const BATCH_BYTES: usize = 1 << 20;

/// A row, and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct PlacedRow {
    /// File, and line or row of it.
    pub origin: Origin,
    /// The row.
    pub row: Row,
}

/// All rows of one data set, in its order.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows {
    /// Where they come from.
    pub source: DataSource,
    /// The rows; never empty.
    pub rows: Vec<Row>,
    origins: Vec<Origin>,
}

impl Rows {
    /// Where row `index` stands, for messages: `rows.jsonl:3` or `rows.parquet, row 3`.
    pub fn place(&self, index: usize) -> String {
        self.source.place(self.origins[index])
    }
}

/// Reads the rows of a data set into `take`, a batch of at most 4,096 rows or about a MiB of text at a time; only a
/// `.json` file is held in memory whole.
///
/// Fields by shape, of which the first row's holds for all: prompt + response, prompt + completion,
/// instruction (+ input) + output, question + answer, messages, text. Prompt and response are text, or lists of
/// messages; a message has a role and a content.
///
/// # Errors
/// [`Error::Input`] naming the file, line or row, and field; [`Error::Io`] if a file cannot be read; those of `take`.
pub fn read_batches(
    source: &DataSource,
    fields: &FieldNames,
    take: &mut dyn FnMut(&[PlacedRow]) -> Result<()>,
) -> Result<()> {
    let mut shaper = Shaper::new(fields);
    let (mut batch, mut bytes, mut empty) = (Vec::new(), 0, true);
    for index in 0..source.num_files() {
        let (format, name) = source.file(index)?;
        let mut collect = |number: u64, object: Object| {
            let row = shaper.row(&format.place(&name, number), object)?;
            bytes += bytes_of(&row);
            batch.push(PlacedRow { origin: Origin { file: index as u64, number }, row });
            if batch.len() == BATCH_ROWS || bytes >= BATCH_BYTES {
                take(&batch)?;
                (bytes, empty) = (0, false);
                batch.clear();
            }
            Ok(())
        };
        match &source.kind {
            DataKind::Builtin(text) => files::read_jsonl(&name, text.as_bytes(), &mut collect)?,
            DataKind::Files(paths) => {
                let path = &paths[index];
                let open = || File::open(path).map_err(Error::io("read", path));
                match format {
                    Format::Jsonl => files::read_jsonl(&name, open()?, &mut collect)?,
                    Format::Json => files::read_json(&name, open()?, &mut collect)?,
                    Format::Csv => files::read_csv(&name, open()?, &mut collect)?,
                    Format::Parquet => files::read_parquet(&name, path, &mut collect)?,
                }
            }
        }
    }
    if empty && batch.is_empty() {
        let found = "the file holds no rows";
        return Err(Error::input(&source.name, found, "give a file with at least one row"));
    }
    if batch.is_empty() { Ok(()) } else { take(&batch) }
}

fn bytes_of(row: &Row) -> usize {
    let of = |messages: &[crate::template::Message]| messages.iter().map(|m| m.content.len()).sum::<usize>();
    match row {
        Row::Completion { prompt, completion } => of(prompt) + of(completion),
        Row::Messages(messages) => of(messages),
        Row::Text(text) => text.len(),
    }
}

/// Reads every row of `data`, a file or `builtin:reasoning`, into memory: for data sets that are known to be small.
///
/// # Errors
/// Those of [`DataSource::local`] and [`read_batches`].
pub fn read_rows(data: &str, fields: &FieldNames) -> Result<Rows> {
    let source = DataSource::local(data)?;
    let (mut rows, mut origins) = (Vec::new(), Vec::new());
    read_batches(&source, fields, &mut |batch| {
        rows.extend(batch.iter().map(|placed| placed.row.clone()));
        origins.extend(batch.iter().map(|placed| placed.origin));
        Ok(())
    })?;
    Ok(Rows { source, rows, origins })
}

/// The row of this number: the line or row that messages name, or, of several files, how many-th it is in all; the
/// first row for `None`.
///
/// # Errors
/// Those of [`read_batches`] up to that row, and [`Error::Input`] where there is none of that number.
pub fn read_row(source: &DataSource, fields: &FieldNames, number: Option<u64>) -> Result<PlacedRow> {
    let (mut found, mut seen, mut last) = (None, 0, 0);
    let several = source.num_files() > 1;
    let read = read_batches(source, fields, &mut |batch| {
        for placed in batch {
            seen += 1;
            last = if several { seen } else { placed.origin.number };
            if number.is_none_or(|wanted| wanted == last) {
                found = Some(placed.clone());
                // Any error ends the reading, and this one is never seen.
                return Err(Error::input("row", "found", ""));
            }
        }
        Ok(())
    });
    if let Some(placed) = found {
        return Ok(placed);
    }
    read?;
    let number = number.unwrap_or_default();
    let found = format!("no row has that number; {seen} rows were read, the last is {last}");
    Err(Error::input(
        format!("{}, row {number}", source.name),
        found,
        "give the line (of a .jsonl or .csv file) or the row that messages name",
    ))
}
