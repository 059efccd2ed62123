//! Element types of buffers, and the conversions between them.

use half::{bf16, f16};

/// The type of a buffer's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// IEEE-754 single.
    F32,
    /// bfloat16: 8 bits of exponent, 7 of fraction.
    BF16,
    /// IEEE-754 half.
    F16,
    /// Codes of 8-bit optimizer state.
    U8,
    /// Token ids, positions, offsets.
    U32,
    /// Weights in blocks of 32 codes and a scale: [`Q8_0`].
    Q8_0,
}

impl DType {
    /// Bytes of one element, where it has some of its own.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 | Self::U32 => 4,
            Self::BF16 | Self::F16 => 2,
            Self::U8 => 1,
            Self::Q8_0 => panic!("elements of a block share its scale"),
        }
    }

    /// Bytes of `n` elements, of whole blocks.
    pub const fn bytes(self, n: usize) -> usize {
        match self {
            Self::Q8_0 => n / Q8_0::LEN * size_of::<Q8_0>(),
            other => n * other.size(),
        }
    }

    /// What an offset must be a multiple of.
    pub const fn align(self) -> usize {
        match self {
            Self::Q8_0 => align_of::<Q8_0>(),
            other => other.size(),
        }
    }
}

/// A block of ggml's type of that name as it lies in a file: elements `scale · code`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[allow(non_camel_case_types, reason = "what it is called everywhere else")]
pub struct Q8_0 {
    /// Of all its elements.
    pub scale: f16,
    /// One for each.
    pub codes: [i8; Q8_0::LEN],
}

impl Q8_0 {
    /// Elements.
    pub const LEN: usize = 32;
}

/// A Rust type that can live in an arena buffer.
pub trait Plain: bytemuck::Pod + Send + Sync {
    /// The tag of this type.
    const DTYPE: DType;
}

/// A floating-point type of weights and activations. Arithmetic is done in `f32`; `from_f32` rounds to nearest
/// even, so a store is the one rounding.
pub trait Element: Plain {
    /// Exact.
    fn to_f32(self) -> f32;
    /// Rounds to nearest, ties to even.
    fn from_f32(x: f32) -> Self;
}

impl Plain for u8 {
    const DTYPE: DType = DType::U8;
}
impl Plain for u32 {
    const DTYPE: DType = DType::U32;
}
impl Plain for f32 {
    const DTYPE: DType = DType::F32;
}
impl Plain for bf16 {
    const DTYPE: DType = DType::BF16;
}
impl Plain for f16 {
    const DTYPE: DType = DType::F16;
}
impl Plain for Q8_0 {
    const DTYPE: DType = DType::Q8_0;
}

impl Element for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }
}
/// The same bits as the conversions of `half`, without their branches on NaN, so that loops over them vectorise.
impl Element for bf16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, reason = "the upper half, shifted down")]
    fn from_f32(x: f32) -> Self {
        const QUIET: u32 = 0x40;
        let bits = x.to_bits();
        let half_less_tie = 0x7fff + (bits >> 16 & 1);
        let rounded = bits.wrapping_add(half_less_tie) >> 16;
        Self::from_bits(if x.is_nan() { bits >> 16 | QUIET } else { rounded } as u16)
    }
}
/// Likewise.
impl Element for f16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        const INFINITY: u32 = 0x7c00;
        const REBIAS: f32 = f32::from_bits(0x7780_0000); // 2^112: the exponents' biases are 15 and 127
        let (sign, magnitude) =
            (u32::from(self.to_bits() & 0x8000) << 16, u32::from(self.to_bits() & 0x7fff));
        let finite = (f32::from_bits(magnitude << 13) * REBIAS).to_bits();
        let other = 0x7f80_0000 | magnitude << 13;
        f32::from_bits(sign | if magnitude < INFINITY { finite } else { other })
    }
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        Self::from_f32(x)
    }
}

/// Runs `$body` with `$E` bound to the Rust type of a floating-point [`DType`].
///
/// Panics for integer types: which buffers hold floats is fixed when the arena is planned.
macro_rules! with_element {
    ($dtype:expr, $E:ident => $body:expr) => {
        match $dtype {
            $crate::dtype::DType::F32 => {
                type $E = f32;
                $body
            }
            $crate::dtype::DType::BF16 => {
                type $E = half::bf16;
                $body
            }
            $crate::dtype::DType::F16 => {
                type $E = half::f16;
                $body
            }
            other => panic!("{other:?} is not a floating-point buffer"),
        }
    };
}
pub(crate) use with_element;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f16_is_widened_as_by_half() {
        for bits in 0..=u16::MAX {
            let x = f16::from_bits(bits);
            let (got, want) = (Element::to_f32(x), x.to_f32());
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{bits:x}");
        }
    }

    /// Every value of the upper half, with the lower halves around which rounding changes.
    #[test]
    fn bf16_is_converted_as_by_half() {
        for upper in 0..=u16::MAX {
            for lower in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let x = f32::from_bits(u32::from(upper) << 16 | lower);
                assert_eq!(<bf16 as Element>::from_f32(x).to_bits(), bf16::from_f32(x).to_bits(), "{x:e}");
            }
            let x = bf16::from_bits(upper);
            let (got, want) = (Element::to_f32(x), x.to_f32());
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{upper:x}");
        }
    }
}
