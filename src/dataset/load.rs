//! From a data set to its examples, through the cache where there is one.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::audit::{Auditor, ROUND_TRIPS};
use super::cache::{self, Key, Limits, Opened, Writer};
use super::source::{DataKind, content_hash, hex};
use super::{Audit, DataSource, Encoder, FieldNames, PlacedRow, read_batches};
use crate::batch::{Examples, Origin};
use crate::error::{Error, Result};

/// The examples of a data set, in the order of its rows.
#[derive(Debug)]
pub struct Dataset {
    /// Each with at least one supervised token; mapped from a file.
    pub examples: Examples,
    /// What became of the rows.
    pub audit: Audit,
    /// SHA-256 of each of the data set's files, in hexadecimal.
    pub sha256: Vec<String>,
    /// The examples were there already, and nothing was tokenised.
    pub cached: bool,
    /// The cache file; none where the examples lie in a file that goes with the program.
    pub path: Option<PathBuf>,
    /// What to tell the user about the cache, one line each.
    pub notes: Vec<String>,
    source: DataSource,
}

impl Dataset {
    /// Where the row of an example stands, for messages: `rows.jsonl:3` or `rows.parquet, row 3`.
    pub fn place(&self, example: usize) -> String {
        self.source.place(self.examples.origin(example))
    }
}

/// The folder of the token cache: `SMOLTEN_CACHE`, else `smolten` in `XDG_CACHE_HOME` or in `~/.cache`; none where
/// none of these is set. Its `*.tokens` files may be removed at any time.
pub fn cache_folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let in_home = || set("HOME").map(|home| home.join(".cache"));
    set("SMOLTEN_CACHE").or_else(|| Some(set("XDG_CACHE_HOME").or_else(in_home)?.join("smolten")))
}

/// The examples of a data set: from the cache file that the folder `cache` holds for it, else tokenised on the
/// current rayon pool, a batch of rows at a time, and written there. Data, tokens and file may be larger than memory.
/// The result does not depend on the number of threads.
///
/// A cache file is checked as a whole before it is used, and made anew where it is damaged. Without a folder, or with
/// one that cannot be written, the examples lie in a file without a name in the system's folder for temporary ones.
///
/// # Errors
/// [`Error::Input`] naming the first row that cannot be read, that the template refuses or that has no assistant turn
/// to learn, or the data set if no row is left; [`Error::Io`] if a file cannot be read, or none can be written.
pub fn load(
    source: &DataSource,
    encoder: &Encoder<'_>,
    fields: &FieldNames,
    cache: Option<&Path>,
) -> Result<Dataset> {
    let before = stamps(source);
    let sha256 = content_hash(source)?;
    let key = key(source, &sha256, encoder, fields)?;
    let name = format!("{}.tokens", hex(&key));
    let path = cache.map(|folder| folder.join(&name));
    let limits = Limits {
        vocab_size: encoder.tokenizer.vocab_size(),
        max_length: encoder.max_length,
        num_files: source.num_files(),
    };
    let mut notes = Vec::new();
    let found = path.as_deref().and_then(|path| {
        let file = File::open(path).ok()?; // no such file is the usual case, and any other shows when writing
        let damaged = |why| {
            notes.push(format!("token cache {}: {why}, so it is made anew", path.display()));
        };
        cache::open(&file, &key, limits).map_err(damaged).ok()
    });
    let cached = found.is_some();
    let (opened, path) = match found {
        Some(opened) => (opened, path),
        None => {
            let build = |folder: Option<&Path>| {
                let writer = folder.map_or_else(Writer::unnamed, Writer::in_folder)?;
                let (writer, audit) = encode(source, encoder, fields, writer)?;
                if before != stamps(source) {
                    let remedy = "start again when nothing writes to it any more";
                    return Err(Error::input(&source.name, "the data changed while it was read", remedy));
                }
                reopen(&writer.finish(&name, &key, &audit)?, &key, limits)
            };
            match build(cache) {
                Err(e @ Error::Io { action: "create" | "write", .. }) if cache.is_some() => {
                    notes.push(format!("token cache: {e}, so the tokens are not kept"));
                    (build(None)?, None)
                }
                opened => (opened?, path),
            }
        }
    };
    let Opened { examples, audit } = opened;
    let audit = audit.placed(|origin| source.place(origin));
    Ok(Dataset { examples, audit, sha256, cached, path, notes, source: source.clone() })
}

/// What was just written, checked as any other file: a disk may have kept something else.
fn reopen(file: &File, key: &Key, limits: Limits) -> Result<Opened> {
    cache::open(file, key, limits).map_err(|why| {
        let remedy = "check the disk, or name a folder on another one with SMOLTEN_CACHE";
        Error::run(format!("the tokens were written, but their file is damaged: {why}"), remedy)
    })
}

/// Length and time of each file.
fn stamps(source: &DataSource) -> Vec<Option<(u64, SystemTime)>> {
    let DataKind::Files(files) = &source.kind else { return Vec::new() };
    let stamp = |path: &PathBuf| path.metadata().ok().and_then(|m| Some((m.len(), m.modified().ok()?)));
    files.iter().map(stamp).collect()
}

/// SHA-256 of everything that the examples and their audit depend on.
fn key(source: &DataSource, sha256: &[String], encoder: &Encoder<'_>, fields: &FieldNames) -> Result<Key> {
    let Encoder { tokenizer, template, eos, loss_on, max_length, system, strip, pad_with } = encoder;
    let number = |n: Option<u32>| n.map(|n| n.to_string());
    let mut parts: Vec<(&str, Option<String>)> = vec![
        ("version", Some(format!("{} {}", cache::VERSION, env!("CARGO_PKG_VERSION")))),
        ("prompt field", fields.prompt.clone()),
        ("response field", fields.response.clone()),
        ("tokenizer", Some(tokenizer.to_json()?)),
        ("template", Some(template.source().to_owned())),
        ("bos", Some(template.special_tokens()[0].to_owned())),
        ("eos", Some(template.special_tokens()[1].to_owned())),
        ("eos id", number(*eos)),
        ("loss on", Some(format!("{loss_on:?}"))),
        ("max length", Some(max_length.to_string())),
        ("system", system.map(str::to_owned)),
        ("strip", Some(strip.to_string())),
        ("pad", number(*pad_with)),
    ];
    for (index, hash) in sha256.iter().enumerate() {
        parts.push(("file", Some(format!("{:?} {hash}", source.file(index)?.0))));
    }
    if template.tells_the_time() {
        let now = time::OffsetDateTime::now_local().unwrap_or_else(|_| time::OffsetDateTime::now_utc());
        parts.push(("day", Some(now.date().to_string())));
    }
    let mut hasher = Sha256::new();
    for (name, value) in parts {
        // Lengths keep parts apart; a part that is absent is none that is empty.
        let length = value.as_ref().map_or(u64::MAX, |value| value.len() as u64);
        hasher.update(name);
        hasher.update(length.to_le_bytes());
        hasher.update(value.unwrap_or_default());
    }
    Ok(hasher.finalize().into())
}

/// Tokenises every row into the writer.
fn encode(
    source: &DataSource,
    encoder: &Encoder<'_>,
    fields: &FieldNames,
    mut writer: Writer,
) -> Result<(Writer, Audit<Origin>)> {
    let mut auditor = Auditor::new(encoder.max_length);
    let mut rows = 0;
    read_batches(source, fields, &mut |batch| {
        let one = |(i, placed): (usize, &PlacedRow)| {
            let row = encoder.encode(&placed.row, rows + i < ROUND_TRIPS);
            row.map_err(|e| e.at(&source.place(placed.origin)))
        };
        // Collected row by row first, so that the error reported is the first in the file, whichever came first in
        // time.
        let encoded: Vec<Result<_>> = batch.par_iter().enumerate().map(one).collect();
        rows += batch.len();
        for (row, placed) in encoded.into_iter().zip(batch) {
            let row = row?;
            if auditor.count(&row, placed.origin) {
                writer.push(&row, placed.origin)?;
            }
        }
        Ok(())
    })?;
    let audit = auditor.finish();
    if audit.examples == 0 {
        return Err(Error::input(
            format!("data {}", source.name),
            format!(
                "none of the {} rows has a token to learn within the first {} (the longest row has {})",
                audit.rows, encoder.max_length, audit.longest
            ),
            "raise max_length (--max-length), or learn the whole text with --loss-on all",
        ));
    }
    Ok((writer, audit))
}
