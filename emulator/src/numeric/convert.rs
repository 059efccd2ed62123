//! Conversions of `cvt`.

use super::exact::{self, Format, Value, unpack};
use super::{NAN_16, NAN_F32, Round};

/// A type that `cvt` converts from or to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are PTX's")]
pub enum Scalar {
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    Bf16,
    Tf32,
    F32,
    F64,
    E4m3,
    E5m2,
}

enum Kind {
    Integer { bits: u32, signed: bool },
    Float(Format),
}

impl Scalar {
    /// By its word.
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "u8" => Scalar::U8,
            "u16" => Scalar::U16,
            "u32" => Scalar::U32,
            "u64" => Scalar::U64,
            "s8" => Scalar::S8,
            "s16" => Scalar::S16,
            "s32" => Scalar::S32,
            "s64" => Scalar::S64,
            "f16" => Scalar::F16,
            "bf16" => Scalar::Bf16,
            "tf32" => Scalar::Tf32,
            "f32" => Scalar::F32,
            "f64" => Scalar::F64,
            "e4m3" => Scalar::E4m3,
            "e5m2" => Scalar::E5m2,
            _ => return None,
        })
    }

    fn kind(self) -> Kind {
        match self {
            Scalar::U8 => Kind::Integer { bits: 8, signed: false },
            Scalar::U16 => Kind::Integer { bits: 16, signed: false },
            Scalar::U32 => Kind::Integer { bits: 32, signed: false },
            Scalar::U64 => Kind::Integer { bits: 64, signed: false },
            Scalar::S8 => Kind::Integer { bits: 8, signed: true },
            Scalar::S16 => Kind::Integer { bits: 16, signed: true },
            Scalar::S32 => Kind::Integer { bits: 32, signed: true },
            Scalar::S64 => Kind::Integer { bits: 64, signed: true },
            Scalar::F16 => Kind::Float(exact::F16),
            Scalar::Bf16 => Kind::Float(exact::BF16),
            Scalar::Tf32 => Kind::Float(exact::TF32),
            Scalar::F32 => Kind::Float(exact::F32),
            Scalar::F64 => Kind::Float(exact::F64),
            Scalar::E4m3 => Kind::Float(exact::E4M3),
            Scalar::E5m2 => Kind::Float(exact::E5M2),
        }
    }

    /// Size of a value; tf32 is held in 32 bits.
    pub fn bits(self) -> u32 {
        match self.kind() {
            Kind::Integer { bits, .. } => bits,
            Kind::Float(exact::TF32) => 32,
            Kind::Float(format) => 1 + format.exponent_bits + format.fraction_bits,
        }
    }
}

/// A form of `cvt`. The packed forms are two of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conversion {
    /// Type of the result.
    pub to: Scalar,
    /// Type of the operand.
    pub from: Scalar,
    /// Rounding, to the format or to an integer; nearest where the form has none.
    pub round: Round,
    /// `.rni` and the like from a float to a float: round to an integer of the same type.
    pub to_integral: bool,
    /// `.ftz`: subnormal f32 operands and results become zeros.
    pub ftz: bool,
    /// `.sat`: integers are clamped to the range, floats to [0, 1] with NaN as +0.
    pub saturate: bool,
    /// `.relu`: negative results become +0.
    pub relu: bool,
    /// `.satfinite`: beyond the range gives the largest number.
    pub satfinite: bool,
}

impl Conversion {
    /// Without modifiers.
    pub const fn new(to: Scalar, from: Scalar) -> Self {
        Conversion {
            to,
            from,
            round: Round::Nearest,
            to_integral: false,
            ftz: false,
            saturate: false,
            relu: false,
            satfinite: false,
        }
    }

    /// Converts. The result's upper bits are zero, but for integers, which are extended to 64 bits by their
    /// own sign.
    pub fn convert(&self, bits: u64) -> u64 {
        match (self.from.kind(), self.to.kind()) {
            (Kind::Integer { bits: width, signed }, Kind::Integer { bits: to, signed: to_signed }) => {
                let value = integer(bits, width, signed);
                let value = if self.saturate { clamp(value, to, to_signed) } else { value };
                integer(value as u64, to, to_signed) as u64
            }
            (Kind::Integer { bits: width, signed }, Kind::Float(format)) => {
                let value = integer(bits, width, signed);
                let finite =
                    exact::Finite { negative: value < 0, significand: value.unsigned_abs(), exponent: 0 };
                self.finish(finite.round(format, self.round), format)
            }
            (Kind::Float(format), Kind::Integer { bits: to, signed }) => {
                self.float_to_integer(self.unpacked(bits, format), format, to, signed)
            }
            (Kind::Float(from), Kind::Float(to)) => self.float_to_float(bits, from, to),
        }
    }

    fn unpacked(&self, bits: u64, format: Format) -> Value {
        let bits = if format == exact::TF32 { bits >> 13 } else { bits };
        unpack(bits & (format.sign() | (format.sign() - 1)), format, self.ftz && format == exact::F32)
    }

    fn float_to_integer(&self, value: Value, from: Format, bits: u32, signed: bool) -> u64 {
        let low = if signed { -(1i128 << (bits - 1)) } else { 0 };
        let high = if signed { (1i128 << (bits - 1)) - 1 } else { (1i128 << bits) - 1 };
        let value = match value {
            // The ISA: 0, but 2^(bits - 1) if either type has 64 bits.
            Value::Nan if from == exact::F64 || bits == 64 => {
                return integer(1 << (bits - 1), bits, signed) as u64;
            }
            Value::Nan => 0,
            Value::Infinity { negative } => {
                if negative {
                    low
                } else {
                    high
                }
            }
            Value::Finite(x) => {
                let beyond = if x.negative { low } else { high };
                x.to_integer(self.round).unwrap_or(beyond).clamp(low, high)
            }
        };
        value as u64
    }

    fn float_to_float(&self, bits: u64, from: Format, to: Format) -> u64 {
        let converted = match self.unpacked(bits, from) {
            // A double keeps its payload.
            Value::Nan if from == exact::F64 && to == exact::F64 => bits | 1 << 51,
            Value::Nan => to.nan & (to.sign() - 1) | if to == exact::F64 { 1 << 63 } else { 0 },
            Value::Infinity { negative } => {
                sign(negative, to) | if self.satfinite { to.max } else { to.overflow }
            }
            Value::Finite(x) if self.to_integral => {
                let whole = x.to_integer(self.round).map(|whole| exact::Finite {
                    significand: whole.unsigned_abs(),
                    exponent: 0,
                    ..x
                });
                whole.unwrap_or(x).round(to, Round::Nearest)
            }
            Value::Finite(x) => {
                let rounded = x.round(to, self.round);
                let beyond = rounded & (to.sign() - 1) > to.max;
                if beyond && self.satfinite { sign(x.negative, to) | to.max } else { rounded }
            }
        };
        self.finish(converted, to)
    }

    /// Flushes, clamps, and puts tf32 in its place.
    fn finish(&self, bits: u64, format: Format) -> u64 {
        let magnitude = bits & (format.sign() - 1);
        let nan = magnitude > format.overflow || magnitude == format.nan & (format.sign() - 1);
        let mut bits = bits;
        if self.ftz && format == exact::F32 && magnitude < 1 << format.fraction_bits {
            bits &= format.sign();
        }
        let one = ((1 << (format.exponent_bits - 1)) - 1) << format.fraction_bits;
        if self.saturate {
            bits = if nan || bits & format.sign() != 0 { 0 } else { bits.min(one) };
        }
        if self.relu && !nan && bits & format.sign() != 0 {
            bits = 0;
        }
        if format == exact::TF32 { bits << 13 } else { bits }
    }
}

fn sign(negative: bool, format: Format) -> u64 {
    if negative { format.sign() } else { 0 }
}

/// The low `width` bits as a number.
fn integer(bits: u64, width: u32, signed: bool) -> i128 {
    let up = 64 - width;
    if signed { i128::from((bits << up) as i64 >> up) } else { i128::from(bits << up >> up) }
}

fn clamp(value: i128, bits: u32, signed: bool) -> i128 {
    let half = 1i128 << (bits - 1);
    if signed { value.clamp(-half, half - 1) } else { value.clamp(0, 2 * half - 1) }
}

/// f16 to f32, exact. No branch.
#[inline(always)]
pub fn f16_to_f32(a: u16) -> u32 {
    let magnitude = u32::from(a & 0x7fff) << 13;
    // The fields in place have the exponent of the f32 format: 112 too small. Subnormals come right, too.
    let scaled = (f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23)).to_bits();
    let finite = if magnitude >= 0x7c00 << 13 { 0x7f80_0000 } else { scaled };
    let value = finite | u32::from(a & 0x8000) << 16;
    if magnitude > 0x7c00 << 13 { NAN_F32 } else { value }
}

/// bf16 to f32, exact. No branch.
#[inline(always)]
pub fn bf16_to_f32(a: u16) -> u32 {
    if a & 0x7fff > 0x7f80 { NAN_F32 } else { u32::from(a) << 16 }
}

/// f32 to f16, to nearest. No branch.
#[inline(always)]
pub fn f32_to_f16(a: u32) -> u16 {
    let magnitude = a & 0x7fff_ffff;
    // Adding 1/2 puts the unit of f16's subnormals, 2^-24, in the lowest bit; the processor rounds.
    let small = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let normal = magnitude.wrapping_add(0xfff + (magnitude >> 13 & 1)).wrapping_sub(112 << 23) >> 13;
    let finite = if magnitude < 113 << 23 { small } else { normal.min(0x7c00) };
    let rounded = if magnitude >= 143 << 23 { 0x7c00 } else { finite };
    let value = rounded as u16 | (a >> 16) as u16 & 0x8000;
    if magnitude > 0x7f80_0000 { NAN_16 } else { value }
}

/// f32 to bf16, to nearest. No branch.
#[inline(always)]
pub fn f32_to_bf16(a: u32) -> u16 {
    let rounded = (a.wrapping_add(0x7fff + (a >> 16 & 1)) >> 16) as u16;
    if a & 0x7fff_ffff > 0x7f80_0000 { NAN_16 } else { rounded }
}

/// `cvt.rn.f32.s32`.
#[inline(always)]
pub fn s32_to_f32(a: u32) -> u32 {
    (a as i32 as f32).to_bits()
}

/// `cvt.rn.f32.u32`.
#[inline(always)]
pub fn u32_to_f32(a: u32) -> u32 {
    (a as f32).to_bits()
}

/// `cvt.rzi.s32.f32`.
#[inline(always)]
pub fn f32_to_s32(a: u32) -> u32 {
    f32::from_bits(a) as i32 as u32
}

/// `cvt.rzi.u32.f32`.
#[inline(always)]
pub fn f32_to_u32(a: u32) -> u32 {
    f32::from_bits(a) as u32
}
