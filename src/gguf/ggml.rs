//! Element types of ggml, and how their blocks become `f32`.
//!
//! Formats: `ggml-common.h` of llama.cpp. A quantised row is a string of blocks of 32 elements; a block starts with
//! its scale (and minimum) in fp16.

use half::{bf16, f16};

/// The element types this program reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GgmlType {
    /// IEEE-754 single.
    F32,
    /// IEEE-754 half.
    F16,
    /// bfloat16.
    BF16,
    /// `scale · q`, q in -128..=127.
    Q8_0,
    /// `scale · (q − 8)`, q in 0..=15.
    Q4_0,
    /// `scale · q + minimum`, q in 0..=15.
    Q4_1,
}

/// Elements of a quantised block.
const BLOCK: usize = 32;

impl GgmlType {
    /// From the number in a file.
    pub fn from_id(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            8 => Self::Q8_0,
            30 => Self::BF16,
            _ => return None,
        })
    }

    /// Its number in a file.
    pub fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q8_0 => 8,
            Self::BF16 => 30,
        }
    }

    /// What llama.cpp calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
        }
    }

    /// Bits of one stored element, scales not counted.
    pub fn bits(self) -> u32 {
        match self {
            Self::F32 => 32,
            Self::F16 | Self::BF16 => 16,
            Self::Q8_0 => 8,
            Self::Q4_0 | Self::Q4_1 => 4,
        }
    }

    /// Elements and bytes of one block.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q8_0 => (BLOCK, 2 + BLOCK),
            Self::Q4_0 => (BLOCK, 2 + BLOCK / 2),
            Self::Q4_1 => (BLOCK, 4 + BLOCK / 2),
        }
    }
}

/// The name of a type this program does not read, for the error message.
pub fn unsupported_name(id: u32) -> String {
    let name = match id {
        6 => "Q5_0",
        7 => "Q5_1",
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        12 => "Q4_K",
        13 => "Q5_K",
        14 => "Q6_K",
        15 => "Q8_K",
        16..=23 | 29 => return format!("IQ type {id}"),
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return format!("unknown type {id}"),
    };
    name.to_owned()
}

/// Elements of `kind` in `bytes` as `f32`: the arithmetic of llama.cpp, rounded after each operation.
///
/// # Panics
/// If the lengths do not belong together.
pub fn dequantise(kind: GgmlType, bytes: &[u8], out: &mut [f32]) {
    let (elements, size) = kind.block();
    assert_eq!(bytes.len() / size * elements, out.len(), "{} elements", kind.name());
    let half_at = |block: &[u8], at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
    match kind {
        GgmlType::F32 => each(bytes, out, f32::from_le_bytes),
        GgmlType::F16 => each(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
        GgmlType::BF16 => each(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
        GgmlType::Q8_0 => blocks(bytes, out, size, |block, out| {
            let scale = half_at(block, 0);
            for (x, &q) in out.iter_mut().zip(&block[2..]) {
                *x = scale * f32::from(q.cast_signed());
            }
        }),
        GgmlType::Q4_0 => blocks(bytes, out, size, |block, out| {
            let scale = half_at(block, 0);
            nibbles(&block[2..], out, |q| scale * (q - 8.0));
        }),
        GgmlType::Q4_1 => blocks(bytes, out, size, |block, out| {
            let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
            nibbles(&block[4..], out, |q| scale * q + minimum);
        }),
    }
}

/// Appends `data` to `out` in the type `kind`, bit for bit as ggml's reference quantiser does: F16 and BF16 to nearest
/// even; Q8_0 in blocks of 32 with the scale `d = max|x| / 127` and `q = x · (1/d)` rounded half away from zero,
/// where `q` comes of the scale in `f32` and the file holds it in fp16.
///
/// # Panics
/// If `data` is no whole number of blocks, or for a type that is only read (Q4_0, Q4_1).
pub fn quantise(kind: GgmlType, data: &[f32], out: &mut Vec<u8>) {
    let (elements, _) = kind.block();
    assert!(data.len().is_multiple_of(elements), "{} elements in {}", data.len(), kind.name());
    match kind {
        GgmlType::F32 => out.extend(data.iter().flat_map(|x| x.to_le_bytes())),
        GgmlType::F16 => out.extend(data.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes())),
        GgmlType::BF16 => out.extend(data.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes())),
        GgmlType::Q8_0 => data.chunks_exact(BLOCK).for_each(|block| {
            let scale = block.iter().fold(0.0, |most: f32, x| most.max(x.abs())) / 127.0;
            let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
            out.extend(f16::from_f32(scale).to_le_bytes());
            out.extend(block.iter().map(|x| whole(x * inverse).cast_unsigned()));
        }),
        GgmlType::Q4_0 | GgmlType::Q4_1 => panic!("{} is read only", kind.name()),
    }
}

/// Rounded half away from zero.
#[allow(
    clippy::cast_possible_truncation,
    reason = "at most 127 and a rounding in size, whose integer is 127"
)]
fn whole(x: f32) -> i8 {
    x.round() as i8
}

/// Plain elements of `N` bytes.
fn each<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    for (&bytes, x) in bytes.as_chunks::<N>().0.iter().zip(out) {
        *x = value(bytes);
    }
}

/// Quantised blocks of `size` bytes.
fn blocks(bytes: &[u8], out: &mut [f32], size: usize, block: impl Fn(&[u8], &mut [f32])) {
    bytes.chunks_exact(size).zip(out.chunks_exact_mut(BLOCK)).for_each(|(bytes, out)| block(bytes, out));
}

/// The low halves of the bytes are the first 16 elements, the high halves the last 16.
fn nibbles(bytes: &[u8], out: &mut [f32], value: impl Fn(f32) -> f32) {
    let (low, high) = out.split_at_mut(BLOCK / 2);
    for ((&byte, low), high) in bytes.iter().zip(low).zip(high) {
        *low = value(f32::from(byte & 15));
        *high = value(f32::from(byte >> 4));
    }
}
