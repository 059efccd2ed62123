//! A GGUF file, version 3, written tensor by tensor.

use super::ggml::{GgmlType, quantise};
use super::parse;
use std::io::{Result, Write};

/// Where tensors begin: multiples of this many bytes.
const ALIGNMENT: usize = 32;
/// Elements converted at a time; a multiple of every block.
const PIECE: usize = 1 << 16;

/// A metadata value to write.
#[derive(Clone, Debug, PartialEq)]
pub enum MetaValue {
    /// 32 bits, without sign.
    U32(u32),
    /// IEEE-754 single.
    F32(f32),
    /// Yes or no.
    Bool(bool),
    /// A text.
    String(String),
    /// A list of texts.
    Strings(Vec<String>),
    /// A list of 32-bit integers.
    Integers(Vec<i32>),
}

/// A metadata key with its value.
pub type Entry = (String, MetaValue);

/// A tensor to write.
#[derive(Clone, Debug, PartialEq)]
pub struct OutTensor {
    /// Name in the file.
    pub name: String,
    /// One axis or two, slowest first.
    pub shape: Vec<usize>,
    /// Element type it is stored in.
    pub kind: GgmlType,
}

impl OutTensor {
    /// Bytes it takes, without what aligns the next one.
    pub fn bytes(&self) -> usize {
        let (elements, size) = self.kind.block();
        self.shape.iter().product::<usize>() / elements * size
    }
}

/// Writes the tables, then each tensor with the values `data` gives for it, row-major; one tensor at a time is in
/// memory.
///
/// # Errors
/// Those of the file and of `data`.
///
/// # Panics
/// If `data` gives another number of values than the tensor has, or a row is no whole number of blocks.
pub fn write(
    file: &mut dyn Write,
    metadata: &[Entry],
    tensors: &[OutTensor],
    mut data: impl FnMut(usize, &OutTensor) -> Result<Vec<f32>>,
) -> Result<()> {
    let head = head(metadata, tensors);
    file.write_all(&head)?;
    file.write_all(&vec![0; head.len().next_multiple_of(ALIGNMENT) - head.len()])?;
    let mut encoded = Vec::new();
    for (i, tensor) in tensors.iter().enumerate() {
        let values = data(i, tensor)?;
        assert_eq!(values.len(), tensor.shape.iter().product::<usize>(), "values of {}", tensor.name);
        for piece in values.chunks(PIECE) {
            encoded.clear();
            quantise(tensor.kind, piece, &mut encoded);
            file.write_all(&encoded)?;
        }
        let bytes = tensor.bytes();
        file.write_all(&vec![0; bytes.next_multiple_of(ALIGNMENT) - bytes])?;
    }
    Ok(())
}

/// Everything before the tensors' data.
fn head(metadata: &[Entry], tensors: &[OutTensor]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    put_u32(&mut out, 3);
    put_length(&mut out, tensors.len());
    put_length(&mut out, metadata.len());
    for (key, value) in metadata {
        put_string(&mut out, key);
        put_value(&mut out, value);
    }
    let mut offset = 0;
    for tensor in tensors {
        let (elements, _) = tensor.kind.block();
        let columns = *tensor.shape.last().expect("a tensor has an axis");
        assert!(columns.is_multiple_of(elements), "{} has rows of {columns}", tensor.name);
        put_string(&mut out, &tensor.name);
        put_u32(&mut out, u32::try_from(tensor.shape.len()).expect("few axes"));
        // The file lists the fastest axis first.
        tensor.shape.iter().rev().for_each(|&axis| put_length(&mut out, axis));
        put_u32(&mut out, tensor.kind.id());
        put_length(&mut out, offset);
        offset = (offset + tensor.bytes()).next_multiple_of(ALIGNMENT);
    }
    out
}

fn put_value(out: &mut Vec<u8>, value: &MetaValue) {
    let list = |out: &mut Vec<u8>, element, length| {
        put_u32(out, parse::ARRAY);
        put_u32(out, element);
        put_length(out, length);
    };
    match value {
        MetaValue::U32(n) => {
            put_u32(out, parse::UINT32);
            put_u32(out, *n);
        }
        MetaValue::F32(x) => {
            put_u32(out, parse::FLOAT32);
            out.extend(x.to_le_bytes());
        }
        MetaValue::Bool(yes) => {
            put_u32(out, parse::BOOL);
            out.push(u8::from(*yes));
        }
        MetaValue::String(text) => {
            put_u32(out, parse::STRING);
            put_string(out, text);
        }
        MetaValue::Strings(texts) => {
            list(out, parse::STRING, texts.len());
            texts.iter().for_each(|text| put_string(out, text));
        }
        MetaValue::Integers(numbers) => {
            list(out, parse::INT32, numbers.len());
            out.extend(numbers.iter().flat_map(|n| n.to_le_bytes()));
        }
    }
}

fn put_u32(out: &mut Vec<u8>, n: u32) {
    out.extend(n.to_le_bytes());
}

fn put_length(out: &mut Vec<u8>, n: usize) {
    out.extend((n as u64).to_le_bytes());
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    put_length(out, text.len());
    out.extend(text.as_bytes());
}
