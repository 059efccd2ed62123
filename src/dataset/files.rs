//! One reader per file format; each hands over its rows one by one, with their numbers.

use std::cell::Cell;
use std::io::{BufRead, BufReader, Read};
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::Once;

use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::Value;

use super::cell::{self, Object, from_json_object, from_parquet_row};
use super::source::Format;
use super::utf8::{Utf8, error_of};
use crate::error::{Error, Result};

/// Takes the number of a row, from 1 (its line, or how many-th it is), and its fields.
pub(super) type Collect<'a> = &'a mut dyn FnMut(u64, Object) -> Result<()>;

/// serde_json's message without the position, which is only right for a whole file.
fn json_error(source: &str, line: usize, e: &serde_json::Error, remedy: &str) -> Error {
    let text = e.to_string();
    let message = text.split(" at line ").next().unwrap_or(&text);
    let found = format!("this is not JSON: {message}");
    Error::input(format!("{source}:{line}:{}", e.column()), found, remedy)
}

/// One JSON object per line; blank lines are skipped. Memory holds one line.
pub(super) fn read_jsonl(source: &str, file: impl Read, collect: Collect<'_>) -> Result<()> {
    const REMEDY: &str = "a .jsonl file holds one JSON object per line; one that is an array is a .json file";
    let mut reader = BufReader::new(Utf8::new(source, file));
    let mut line = String::new();
    for number in 1.. {
        line.clear();
        if reader.read_line(&mut line).map_err(|e| error_of(source, e))? == 0 {
            break;
        }
        let text = line.strip_suffix('\n').unwrap_or(&line);
        let text = text.strip_suffix('\r').unwrap_or(text);
        if text.trim().is_empty() {
            continue;
        }
        let at = usize::try_from(number).unwrap_or(usize::MAX);
        let value = serde_json::from_str(text).map_err(|e| json_error(source, at, &e, REMEDY))?;
        collect(number, object(&Format::Jsonl.place(source, number), value, REMEDY)?)?;
    }
    Ok(())
}

/// An array of objects, or an object whose field `data` is one. Memory holds the whole file.
pub(super) fn read_json(source: &str, file: impl Read, collect: Collect<'_>) -> Result<()> {
    const REMEDY: &str = "a .json file holds an array of objects, or an object with such an array in \"data\"; \
                          one with an object per line is a .jsonl file";
    let mut text = String::new();
    Utf8::new(source, file).read_to_string(&mut text).map_err(|e| error_of(source, e))?;
    let value = serde_json::from_str(&text).map_err(|e| json_error(source, e.line(), &e, REMEDY))?;
    let list = match value {
        Value::Array(list) => list,
        Value::Object(mut map) => match map.remove("data") {
            Some(Value::Array(list)) => list,
            Some(other) => {
                let found = cell::Cell::from(other).describe();
                return Err(Error::input(format!("{source}, field \"data\""), found, REMEDY));
            }
            None => {
                let names = map.keys().cloned().collect::<Vec<_>>().join(", ");
                return Err(Error::input(source, format!("one object, with fields {names}"), REMEDY));
            }
        },
        other => return Err(Error::input(source, cell::Cell::from(other).describe(), REMEDY)),
    };
    drop(text);
    for (number, value) in (1..).zip(list) {
        collect(number, object(&Format::Json.place(source, number), value, REMEDY)?)?;
    }
    Ok(())
}

fn object(place: &str, value: Value, remedy: &str) -> Result<Object> {
    match value {
        Value::Object(map) => Ok(from_json_object(map)),
        other => {
            Err(Error::input(place, format!("{}, not an object", cell::Cell::from(other).describe()), remedy))
        }
    }
}

/// Comma-separated, quoted as in RFC 4180; the first record names the fields. Memory holds one record.
pub(super) fn read_csv(source: &str, file: impl Read, collect: Collect<'_>) -> Result<()> {
    let csv_error = |e: csv::Error| {
        let line = e.position().map_or(1, csv::Position::line);
        let text = e.to_string();
        let found = match e.into_kind() {
            csv::ErrorKind::Io(e) => return error_of(source, e),
            csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
                format!("{len} fields, where the first line names {expected_len}")
            }
            _ => text,
        };
        let remedy =
            "give every record the fields of the first line; quote a field that holds commas or newlines";
        Error::input(format!("{source}:{line}"), found, remedy)
    };
    let mut reader = csv::Reader::from_reader(Utf8::new(source, file));
    let headers = reader.headers().map_err(csv_error)?.clone();
    for (i, name) in headers.iter().enumerate() {
        if headers.iter().take(i).any(|earlier| earlier == name) {
            let asked = format!("{source}:1, field \"{name}\"");
            return Err(Error::input(asked, "the first line names it twice", "rename or remove one of them"));
        }
    }
    for record in reader.records() {
        let record = record.map_err(csv_error)?;
        let line = record.position().map_or(1, csv::Position::line);
        let cells = headers
            .iter()
            .zip(&record)
            .map(|(name, text)| (name.to_owned(), cell::Cell::Text(text.to_owned())));
        collect(line, cells.collect())?;
    }
    Ok(())
}

/// Parquet, with snappy, gzip, zstd or lz4 pages. Memory holds one page of each column.
pub(super) fn read_parquet(source: &str, path: &Path, collect: Collect<'_>) -> Result<()> {
    let file = std::fs::File::open(path).map_err(Error::io("read", path))?;
    let unreadable = |what: String| {
        let remedy =
            "write it again, uncompressed or with snappy, gzip, zstd or lz4, or convert it to .jsonl";
        Error::input(source, format!("the file cannot be read as parquet: {what}"), remedy)
    };
    let reader = catch(|| SerializedFileReader::new(file)).map_err(&unreadable)?;
    let mut rows = catch(|| reader.get_row_iter(None)).map_err(&unreadable)?;
    let mut count = 0;
    while let Some(row) =
        catch(|| rows.next().transpose()).map_err(|e| unreadable(format!("row {}: {e}", count + 1)))?
    {
        count += 1;
        collect(count, from_parquet_row(row))?;
    }
    Ok(())
}

thread_local! {
    /// Whether a panic of this thread is caught by [`catch`], and so not worth a message of its own.
    static CATCHING: Cell<bool> = const { Cell::new(false) };
}

/// Runs a step of the parquet reader; where it panics, as it does on some damaged files, that too is an error.
///
/// A reader is not used again after an error, so a state left half-changed is never seen.
fn catch<T>(step: impl FnOnce() -> parquet::errors::Result<T>) -> std::result::Result<T, String> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !CATCHING.get() {
                report(info);
            }
        }));
    });
    CATCHING.set(true);
    let result = panic::catch_unwind(AssertUnwindSafe(step));
    CATCHING.set(false);
    match result {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(_) => Err("its contents contradict themselves".to_owned()),
    }
}
