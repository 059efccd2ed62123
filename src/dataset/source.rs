//! Where rows come from: files by the ending of their name, or what is bundled with the program.

use std::fmt::Write;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::batch::Origin;
use crate::error::{Error, Result};

/// The bundled rows, `builtin:reasoning`.
const REASONING: &str = include_str!("../../data/reasoning.jsonl");

/// What [`DataSource::local`] accepts, for messages.
const SOURCES: &str = "a .jsonl, .json, .csv or .parquet file, or builtin:reasoning";

/// A data set that is there to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataSource {
    /// The data set as it was asked for.
    pub name: String,
    /// What holds its rows.
    pub kind: DataKind,
}

/// What holds the rows of a data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataKind {
    /// JSON lines in the program itself.
    Builtin(&'static str),
    /// Files that are read one after the other as one data set; each name's ending tells its format.
    Files(Vec<PathBuf>),
}

/// How the rows of a file are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Jsonl,
    Json,
    Csv,
    Parquet,
}

impl Format {
    /// By the ending of the file's name.
    pub fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "jsonl" => Some(Self::Jsonl),
            "json" => Some(Self::Json),
            "csv" => Some(Self::Csv),
            "parquet" => Some(Self::Parquet),
            _ => None,
        }
    }

    /// `rows.jsonl:3` or `rows.parquet, row 3`.
    pub fn place(self, file: &str, number: u64) -> String {
        match self {
            Self::Jsonl | Self::Csv => format!("{file}:{number}"),
            Self::Json | Self::Parquet => format!("{file}, row {number}"),
        }
    }
}

impl DataSource {
    /// A file whose ending names its format, or `builtin:reasoning`.
    ///
    /// # Errors
    /// [`Error::Input`] for anything else.
    pub fn local(data: &str) -> Result<Self> {
        let kind = match data.strip_prefix("builtin:") {
            Some("reasoning") => DataKind::Builtin(REASONING),
            Some(name) => {
                let found = format!("there is no bundled data set `{name}`");
                return Err(Error::input(
                    format!("data {data}"),
                    found,
                    "the bundled one is builtin:reasoning",
                ));
            }
            None => {
                let path = PathBuf::from(data);
                if Format::of(&path).is_none() {
                    return Err(no_data(data, &path));
                }
                DataKind::Files(vec![path])
            }
        };
        Ok(Self { name: data.to_owned(), kind })
    }

    /// How many files there are; what is bundled counts as one.
    pub(super) fn num_files(&self) -> usize {
        match &self.kind {
            DataKind::Builtin(_) => 1,
            DataKind::Files(files) => files.len(),
        }
    }

    /// The format of a file, and its name for messages.
    pub(super) fn file(&self, index: usize) -> Result<(Format, String)> {
        match &self.kind {
            DataKind::Builtin(_) => Ok((Format::Jsonl, self.name.clone())),
            DataKind::Files(files) => {
                let path = &files[index];
                let format = Format::of(path).ok_or_else(|| no_data(&path.display().to_string(), path))?;
                let only = files.len() == 1 && path.as_os_str() == self.name.as_str();
                let file = path.file_name().unwrap_or_default().display();
                Ok((format, if only { self.name.clone() } else { format!("{}/{file}", self.name) }))
            }
        }
    }

    /// Where a row stands, for messages: `rows.jsonl:3` or `rows.parquet, row 3`.
    pub fn place(&self, origin: Origin) -> String {
        let file = usize::try_from(origin.file).ok().filter(|&file| file < self.num_files());
        match file.map(|file| self.file(file)) {
            Some(Ok((format, name))) => format.place(&name, origin.number),
            _ => format!("{}, row {}", self.name, origin.number),
        }
    }
}

fn no_data(data: &str, path: &Path) -> Error {
    let found = match path.metadata() {
        Ok(m) if m.is_dir() => "it is a folder",
        Ok(_) => "the ending of its name is none of those read",
        Err(_) => "there is no such file, and it is no id of the hub (org/name)",
    };
    Error::input(format!("data {data}"), found, format!("give {SOURCES}"))
}

/// SHA-256 of each file's bytes, in hexadecimal.
///
/// # Errors
/// [`Error::Io`] if a file cannot be read.
pub fn content_hash(source: &DataSource) -> Result<Vec<String>> {
    match &source.kind {
        DataKind::Builtin(text) => Ok(vec![hex(&Sha256::digest(text))]),
        DataKind::Files(files) => files.iter().map(|path| hash_file(path)).collect(),
    }
}

/// SHA-256 of a file's bytes, in hexadecimal.
///
/// # Errors
/// [`Error::Io`] if it cannot be read.
pub fn hash_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io("read", path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(Error::io("read", path))? {
            0 => return Ok(hex(&hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

/// Two digits a byte.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String");
        text
    })
}
