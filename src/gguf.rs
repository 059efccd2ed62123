//! GGUF, the model file of llama.cpp: metadata, tensor table, weights as `f32`; read, and written ([`write()`]).
//!
//! Versions 2 and 3, little endian. Nothing in a file is trusted: every count, length and offset is compared with
//! the file's length before it is used, and nothing is allocated by a number the file names.

mod ggml;
mod llama;
mod map;
mod parse;
mod write;

pub use ggml::{GgmlType, dequantise, quantise};
pub use llama::{ROPE_FACTORS, gguf_name, hf_name, is_rotary};
pub use map::Mapped;
pub use write::{Entry, MetaValue, OutTensor, write};

use crate::dtype::Q8_0;
use crate::error::{Error, Result};
use parse::{Cursor, Value};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

/// One tensor of the file.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// Rows and columns; a vector has one row. (The file lists the axes the other way round.)
    pub shape: [usize; 2],
    /// Stored element type.
    pub kind: GgmlType,
    range: Range<usize>,
}

/// An open file.
pub struct Gguf {
    file: Mapped,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, TensorInfo>,
}

impl Gguf {
    /// Maps the file and reads its tables.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Input`] when it is not such a file, is damaged, or holds a tensor of a type that is
    /// not read here.
    pub fn open(path: &Path) -> Result<Self> {
        let file = Mapped::open(path)?;
        let mut cursor = Cursor::new(file.bytes(), path);
        let (tensor_count, entry_count) = cursor.header()?;
        let mut metadata = BTreeMap::new();
        for _ in 0..entry_count {
            let (key, value) = cursor.entry()?;
            if metadata.insert(key.to_owned(), value).is_some() {
                return Err(cursor.damaged(format!("metadata key \"{key}\" twice")));
            }
        }
        let alignment = match metadata.get("general.alignment") {
            None => 32,
            Some(Value::Unsigned(n)) if n.is_power_of_two() && *n <= 1 << 20 => {
                usize::try_from(*n).expect("at most 2^20")
            }
            Some(_) => return Err(cursor.damaged("general.alignment is no power of two up to 2^20")),
        };
        let mut raw = Vec::new();
        for _ in 0..tensor_count {
            raw.push(cursor.tensor()?);
        }
        let data = cursor.position().next_multiple_of(alignment);
        let mut tensors = BTreeMap::new();
        for tensor in raw {
            let info = tensor.place(data, alignment, &cursor)?;
            if tensors.insert(tensor.name.to_owned(), info).is_some() {
                return Err(cursor.damaged(format!("tensor \"{}\" twice", tensor.name)));
            }
        }
        Ok(Self { file, metadata, tensors })
    }

    /// Where the file lies.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &TensorInfo)> {
        self.tensors.iter().map(|(name, info)| (name.as_str(), info))
    }

    /// One tensor's shape and type.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// Reads a tensor as `f32`, row `i` of `out` from row `source(i)` of the file; in parallel over rows.
    ///
    /// The pages it came from are released.
    ///
    /// # Panics
    /// If `out` has not `rows × cols` elements, or `source` goes past the last row.
    pub fn read(&self, info: &TensorInfo, source: impl Fn(usize) -> usize + Sync, out: &mut [f32]) {
        let [rows, cols] = info.shape;
        assert_eq!(out.len(), rows * cols, "elements of the tensor");
        let bytes = &self.file.bytes()[info.range.clone()];
        let row_bytes = bytes.len() / rows;
        // One row of a vector would be one task: it is small, so that is right.
        out.par_chunks_mut(cols).enumerate().for_each(|(i, out)| {
            ggml::dequantise(info.kind, &bytes[source(i) * row_bytes..][..row_bytes], out);
        });
        self.file.release(info.range.clone());
    }

    /// Reads a tensor of Q8_0 as it is, row `i` of `out` from row `source(i)` of the file. The pages it came from are
    /// released.
    ///
    /// # Panics
    /// If it is of another type or size, or `source` goes past the last row.
    pub fn read_q8_0(&self, info: &TensorInfo, source: impl Fn(usize) -> usize, out: &mut [Q8_0]) {
        assert_eq!(info.kind, GgmlType::Q8_0, "type of the tensor");
        let bytes = &self.file.bytes()[info.range.clone()];
        let (out, row_bytes) = (bytemuck::cast_slice_mut::<_, u8>(out), bytes.len() / info.shape[0]);
        assert_eq!(out.len(), bytes.len(), "bytes of the tensor");
        for (i, out) in out.chunks_exact_mut(row_bytes).enumerate() {
            out.copy_from_slice(&bytes[source(i) * row_bytes..][..row_bytes]);
        }
        self.file.release(info.range.clone());
    }

    /// A text of the metadata; `None` when the key is absent.
    ///
    /// # Errors
    /// [`Error::Input`] when it holds something else.
    pub fn string(&self, key: &str) -> Result<Option<&str>> {
        self.metadata
            .get(key)
            .map(|value| match value {
                Value::String(range) => Ok(parse::utf8(&self.file.bytes()[range.clone()])),
                other => Err(self.wrong_type(key, "a string", other)),
            })
            .transpose()
    }

    /// A non-negative integer of the metadata.
    ///
    /// # Errors
    /// [`Error::Input`] when it holds something else, also a list (one value per layer, for instance).
    pub fn integer(&self, key: &str) -> Result<Option<u64>> {
        self.metadata
            .get(key)
            .map(|value| match value {
                Value::Unsigned(n) => Ok(*n),
                other => Err(self.wrong_type(key, "a non-negative integer", other)),
            })
            .transpose()
    }

    /// A floating-point number of the metadata.
    ///
    /// # Errors
    /// [`Error::Input`] when it holds something else.
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        self.metadata
            .get(key)
            .map(|value| match value {
                Value::Float(x) => Ok(*x),
                other => Err(self.wrong_type(key, "a floating-point number", other)),
            })
            .transpose()
    }

    /// A yes or no of the metadata.
    ///
    /// # Errors
    /// [`Error::Input`] when it holds something else.
    pub fn boolean(&self, key: &str) -> Result<Option<bool>> {
        self.metadata
            .get(key)
            .map(|value| match value {
                Value::Bool(x) => Ok(*x),
                other => Err(self.wrong_type(key, "true or false", other)),
            })
            .transpose()
    }

    /// A list of texts.
    ///
    /// # Errors
    /// [`Error::Input`] when it holds something else.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<&str>>> {
        self.metadata
            .get(key)
            .map(|value| match value {
                Value::Array { element: parse::STRING, count, at } => {
                    Cursor::at(self.file.bytes(), self.path(), *at).strings(*count)
                }
                other => Err(self.wrong_type(key, "a list of strings", other)),
            })
            .transpose()
    }

    /// A list of 32-bit integers.
    ///
    /// # Errors
    /// [`Error::Input`] when it holds something else.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>> {
        self.metadata
            .get(key)
            .map(|value| match value {
                Value::Array { element: element @ (parse::INT32 | parse::UINT32), count, at } => {
                    let signed = *element == parse::INT32;
                    Cursor::at(self.file.bytes(), self.path(), *at).integers(*count, signed)
                }
                other => Err(self.wrong_type(key, "a list of 32-bit integers", other)),
            })
            .transpose()
    }

    /// For a value that must be there.
    ///
    /// # Errors
    /// [`Error::Input`] when it is not.
    pub fn require<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| {
            Error::input(
                format!("{}, metadata \"{key}\"", self.path().display()),
                "it is missing",
                "convert the model again with a current llama.cpp, or use its Hugging Face folder",
            )
        })
    }

    fn wrong_type(&self, key: &str, want: &str, found: &Value) -> Error {
        Error::input(
            format!("{}, metadata \"{key}\"", self.path().display()),
            format!("{} where {want} is expected", found.describe()),
            "convert the model again with a current llama.cpp, or use its Hugging Face folder",
        )
    }
}
