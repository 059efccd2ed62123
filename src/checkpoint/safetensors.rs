//! safetensors files, written piece by piece.
//!
//! The `safetensors` crate writes whole tensors to a file of its own making that only the owner may read; the format
//! is a length, a JSON header and the bytes, so it is written here.

use crate::dtype::{DType, Element, with_element};
use serde_json::{Map, Value, json};
use std::io::{Result, Write};

/// Elements converted at a time.
const PIECE: usize = 1 << 16;

/// One tensor of a file.
pub struct Entry {
    pub name: String,
    pub dtype: DType,
    /// Axes, slowest first.
    pub shape: Vec<usize>,
}

impl Entry {
    /// Bytes of its data.
    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size()
    }

    /// The element type as the format spells it.
    fn dtype_name(&self) -> &'static str {
        match self.dtype {
            DType::F32 => "F32",
            DType::BF16 => "BF16",
            DType::F16 => "F16",
            DType::U8 => "U8",
            DType::U32 => "U32",
            DType::Q8_0 => unreachable!("blocks are read only"),
        }
    }
}

/// Writes the header, and then the entries in the order given; `data` writes the bytes of the i-th.
pub fn write(
    file: &mut dyn Write,
    entries: &[Entry],
    mut data: impl FnMut(usize, &mut dyn Write) -> Result<()>,
) -> Result<()> {
    let mut header = Map::new();
    // Some readers want to know which framework's tensors these are.
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut end = 0;
    for entry in entries {
        let start = end;
        end += entry.bytes();
        let info = json!({"dtype": entry.dtype_name(), "shape": entry.shape, "data_offsets": [start, end]});
        header.insert(entry.name.clone(), info);
    }
    let mut header = Value::Object(header).to_string();
    // Spaces up to a multiple of eight, so that the data are aligned.
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    (0..entries.len()).try_for_each(|i| data(i, file))
}

/// The values in the element type `dtype`, rounded to nearest even, little endian as every supported machine is.
///
/// # Panics
/// If `dtype` is no floating-point type.
pub fn write_floats(file: &mut dyn Write, values: &[f32], dtype: DType) -> Result<()> {
    with_element!(dtype, E => values.chunks(PIECE).try_for_each(|piece| {
        let converted: Vec<E> = piece.iter().map(|&x| E::from_f32(x)).collect();
        file.write_all(bytemuck::cast_slice(&converted))
    }))
}

#[cfg(target_endian = "big")]
compile_error!("weights are written in the machine's byte order, which must be little endian");
