//! `model.safetensors`, written piece by piece.
//!
//! The `safetensors` crate writes whole tensors to a file of its own making that only the owner may read; the format
//! is a length, a JSON header and the bytes, so it is written here.

use crate::config::Parameter;
use crate::dtype::{DType, Element, with_element};
use serde_json::{Map, Value, json};
use std::io::{Result, Write};

/// Elements converted at a time.
const PIECE: usize = 1 << 16;

/// Writes the header and the parameters in the order given, each as `read` gives it.
pub fn write(
    file: &mut dyn Write,
    parameters: &[Parameter],
    dtype: DType,
    mut read: impl FnMut(&Parameter) -> Result<Vec<f32>>,
) -> Result<()> {
    let name = match dtype {
        DType::F32 => "F32",
        DType::BF16 => "BF16",
        DType::F16 => "F16",
        other => panic!("weights are not stored as {other:?}"),
    };
    let mut header = Map::new();
    // Some readers want to know which framework's tensors these are.
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut end = 0;
    for parameter in parameters {
        let start = end;
        end += parameter.shape[0] * parameter.shape[1] * dtype.size();
        let info = json!({"dtype": name, "shape": parameter.stored_shape(), "data_offsets": [start, end]});
        header.insert(parameter.name.clone(), info);
    }
    let mut header = Value::Object(header).to_string();
    // Spaces up to a multiple of eight, so that the data are aligned.
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    for parameter in parameters {
        let data = read(parameter)?;
        assert_eq!(data.len(), parameter.shape[0] * parameter.shape[1], "values of {}", parameter.name);
        with_element!(dtype, E => data.chunks(PIECE).try_for_each(|piece| write_as::<E>(file, piece)))?;
    }
    Ok(())
}

/// One piece in the element type `E`, little endian as every supported machine is.
fn write_as<E: Element>(file: &mut dyn Write, piece: &[f32]) -> Result<()> {
    let converted: Vec<E> = piece.iter().map(|&x| E::from_f32(x)).collect();
    file.write_all(bytemuck::cast_slice(&converted))
}

#[cfg(target_endian = "big")]
compile_error!("weights are written in the machine's byte order, which must be little endian");
