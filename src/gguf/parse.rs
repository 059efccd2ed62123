//! The tables at the head of a GGUF file.

use super::TensorInfo;
use super::ggml::{GgmlType, unsupported_name};
use crate::error::{Error, Result};
use std::ops::Range;
use std::path::Path;

/// Numbers of the value types in a file.
const UINT8: u32 = 0;
const INT8: u32 = 1;
const UINT16: u32 = 2;
const INT16: u32 = 3;
pub const UINT32: u32 = 4;
pub const INT32: u32 = 5;
pub const FLOAT32: u32 = 6;
pub const BOOL: u32 = 7;
pub const STRING: u32 = 8;
pub const ARRAY: u32 = 9;
const UINT64: u32 = 10;
const INT64: u32 = 11;
const FLOAT64: u32 = 12;

/// Lists of lists go no deeper than this.
const DEPTH: usize = 4;

/// A metadata value. Texts and lists stay in the file and are read where they are used.
pub enum Value {
    /// Any integer that is not negative.
    Unsigned(u64),
    /// A negative integer.
    Negative,
    /// Either floating-point type.
    Float(f64),
    Bool(bool),
    /// Bytes of valid UTF-8.
    String(Range<usize>),
    /// `count` values of the type `element`, from byte `at`; it was seen to lie within the file.
    Array {
        element: u32,
        count: usize,
        at: usize,
    },
}

impl Value {
    pub fn describe(&self) -> String {
        match self {
            Self::Unsigned(n) => n.to_string(),
            Self::Negative => "a negative integer".to_owned(),
            Self::Float(x) => format!("the floating-point number {x}"),
            Self::Bool(x) => x.to_string(),
            Self::String(_) => "a string".to_owned(),
            Self::Array { element, count, .. } => format!("a list of {count} values of type {element}"),
        }
    }
}

/// Bytes that were seen to be UTF-8 when the tables were read.
pub fn utf8(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("checked when the file was opened")
}

/// A tensor as listed, before its place in the file is checked.
pub struct RawTensor<'a> {
    pub name: &'a str,
    axes: Vec<u64>,
    kind: u32,
    offset: u64,
}

impl RawTensor<'_> {
    /// Checks type, shape and place against the file.
    pub fn place(&self, data: usize, alignment: usize, cursor: &Cursor) -> Result<TensorInfo> {
        let name = self.name;
        let Some(kind) = GgmlType::from_id(self.kind) else {
            return Err(Error::input(
                format!("{}, tensor \"{name}\"", cursor.path.display()),
                format!("type {}, which is not read here", unsupported_name(self.kind)),
                "use a file of type F32, F16, BF16, Q8_0, Q4_0 or Q4_1, or the model's Hugging Face folder",
            ));
        };
        let damaged = |what: &str| cursor.damaged(format!("tensor \"{name}\" {what}"));
        let size = |n: &u64| usize::try_from(*n).ok().filter(|&n| n > 0);
        let axes: Option<Vec<usize>> = self.axes.iter().map(size).collect();
        let axes = axes.ok_or_else(|| damaged("has an empty or absurd axis"))?;
        let (elements, bytes) = kind.block();
        let cols = axes[0];
        if !cols.is_multiple_of(elements) {
            return Err(damaged(&format!("has {cols} columns, not whole blocks of {elements}")));
        }
        let rows = axes[1..].iter().try_fold(1usize, |n, &axis| n.checked_mul(axis));
        let range = rows.and_then(|rows| {
            let length = rows.checked_mul(cols / elements)?.checked_mul(bytes)?;
            let start = data.checked_add(usize::try_from(self.offset).ok()?)?;
            Some(start..start.checked_add(length)?)
        });
        match (rows, range) {
            (Some(rows), Some(range))
                if range.end <= cursor.bytes.len() && range.start.is_multiple_of(alignment) =>
            {
                Ok(TensorInfo { shape: [rows, cols], kind, range })
            }
            _ => Err(damaged("does not lie inside the file, or not at an aligned place")),
        }
    }
}

/// Reads forward and never past the end.
pub struct Cursor<'a> {
    bytes: &'a [u8],
    path: &'a Path,
    at: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8], path: &'a Path) -> Self {
        Self::at(bytes, path, 0)
    }

    pub fn at(bytes: &'a [u8], path: &'a Path, at: usize) -> Self {
        Self { bytes, path, at }
    }

    pub fn position(&self) -> usize {
        self.at
    }

    /// The error for a file that contradicts itself.
    pub fn damaged(&self, what: impl std::fmt::Display) -> Error {
        Error::input(
            format!("{}, near byte {}", self.path.display(), self.at),
            format!("{what}: the file is damaged or incomplete"),
            "fetch it again and compare its checksum with the published one",
        )
    }

    fn take(&mut self, n: u64) -> Result<&'a [u8]> {
        let end = usize::try_from(n).ok().and_then(|n| self.at.checked_add(n));
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or_else(|| {
            self.damaged(format!("{n} bytes are announced, {} are left", self.bytes.len() - self.at))
        })?;
        self.at += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.take(N as u64)?.try_into().expect("take gives that many"))
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn string(&mut self) -> Result<&'a str> {
        let length = self.u64()?;
        let bytes = self.take(length)?;
        std::str::from_utf8(bytes).map_err(|_| self.damaged("a text is not UTF-8"))
    }

    /// Magic and version; gives the number of tensors and of metadata entries.
    pub fn header(&mut self) -> Result<(u64, u64)> {
        if self.bytes.get(..4) != Some(b"GGUF") {
            return Err(Error::input(
                self.path.display(),
                "this is not a GGUF file (its first four bytes are not \"GGUF\")",
                "give a .gguf file or a Hugging Face model folder",
            ));
        }
        self.at = 4;
        match self.u32()? {
            2 | 3 => Ok((self.u64()?, self.u64()?)),
            version => Err(Error::input(
                self.path.display(),
                format!("GGUF version {version} (or a big-endian file)"),
                "versions 2 and 3, little endian, are read: convert the model with a current llama.cpp",
            )),
        }
    }

    /// One metadata entry.
    pub fn entry(&mut self) -> Result<(&'a str, Value)> {
        let key = self.string()?;
        let kind = self.u32()?;
        Ok((key, self.value(kind, 0)?))
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<Value> {
        let signed = |n: i64| u64::try_from(n).map_or(Value::Negative, Value::Unsigned);
        Ok(match kind {
            UINT8 => Value::Unsigned(u8::from_le_bytes(self.array()?).into()),
            INT8 => signed(i8::from_le_bytes(self.array()?).into()),
            UINT16 => Value::Unsigned(u16::from_le_bytes(self.array()?).into()),
            INT16 => signed(i16::from_le_bytes(self.array()?).into()),
            UINT32 => Value::Unsigned(self.u32()?.into()),
            INT32 => signed(i32::from_le_bytes(self.array()?).into()),
            UINT64 => Value::Unsigned(self.u64()?),
            INT64 => signed(i64::from_le_bytes(self.array()?)),
            FLOAT32 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            FLOAT64 => Value::Float(f64::from_le_bytes(self.array()?)),
            BOOL => Value::Bool(self.array::<1>()? != [0]),
            STRING => {
                let end = self.string()?.len();
                Value::String(self.at - end..self.at)
            }
            ARRAY => self.list(depth)?,
            other => return Err(self.damaged(format!("a metadata value of unknown type {other}"))),
        })
    }

    fn list(&mut self, depth: usize) -> Result<Value> {
        if depth == DEPTH {
            return Err(self.damaged("metadata lists are nested too deep"));
        }
        let element = self.u32()?;
        let count = self.u64()?;
        let at = self.at;
        match element {
            // Each value takes at least one byte, so a false count ends at the end of the file.
            STRING | ARRAY => {
                for _ in 0..count {
                    self.value(element, depth + 1)?;
                }
            }
            _ => {
                let width = match element {
                    UINT8 | INT8 | BOOL => 1,
                    UINT16 | INT16 => 2,
                    UINT32 | INT32 | FLOAT32 => 4,
                    UINT64 | INT64 | FLOAT64 => 8,
                    other => return Err(self.damaged(format!("a metadata list of unknown type {other}"))),
                };
                self.take(count.saturating_mul(width))?;
            }
        }
        let count = usize::try_from(count).map_err(|_| self.damaged("a list is too long"))?;
        Ok(Value::Array { element, count, at })
    }

    /// `count` texts from here.
    pub fn strings(&mut self, count: usize) -> Result<Vec<&'a str>> {
        (0..count).map(|_| self.string()).collect()
    }

    /// `count` 32-bit integers from here.
    pub fn integers(&mut self, count: usize, signed: bool) -> Result<Vec<i64>> {
        let bytes = self.take(4 * count as u64)?;
        let value = |b: &[u8]| {
            let n = u32::from_le_bytes(b.try_into().expect("chunks of four"));
            if signed { i64::from(n.cast_signed()) } else { i64::from(n) }
        };
        Ok(bytes.chunks_exact(4).map(value).collect())
    }

    /// One row of the tensor table.
    pub fn tensor(&mut self) -> Result<RawTensor<'a>> {
        let name = self.string()?;
        let axes = self.u32()?;
        if !(1..=4).contains(&axes) {
            return Err(self.damaged(format!("tensor \"{name}\" has {axes} axes")));
        }
        let axes = (0..axes).map(|_| self.u64()).collect::<Result<_>>()?;
        Ok(RawTensor { name, axes, kind: self.u32()?, offset: self.u64()? })
    }
}
