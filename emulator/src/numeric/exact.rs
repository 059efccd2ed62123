//! Values of any format without rounding, and their one rounding at the end.

use super::Round;
use std::cmp::Ordering;

/// A binary floating-point format of at most 64 bits, stored in the low bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Bits of the exponent.
    pub exponent_bits: u32,
    /// Bits of the fraction.
    pub fraction_bits: u32,
    /// Bits of the largest finite magnitude.
    pub max: u64,
    /// Bits of the result for an overflowing magnitude: infinity, or a NaN where there is none.
    pub overflow: u64,
    /// Canonical NaN.
    pub nan: u64,
}

pub const F16: Format =
    Format { exponent_bits: 5, fraction_bits: 10, max: 0x7bff, overflow: 0x7c00, nan: super::NAN_16 as u64 };
pub const BF16: Format =
    Format { exponent_bits: 8, fraction_bits: 7, max: 0x7f7f, overflow: 0x7f80, nan: super::NAN_16 as u64 };
pub const F32: Format = Format {
    exponent_bits: 8,
    fraction_bits: 23,
    max: 0x7f7f_ffff,
    overflow: 0x7f80_0000,
    nan: super::NAN_F32 as u64,
};
pub const F64: Format = Format {
    exponent_bits: 11,
    fraction_bits: 52,
    max: 0x7fef_ffff_ffff_ffff,
    overflow: 0x7ff0_0000_0000_0000,
    nan: super::NAN_F64,
};
/// In 19 bits: an f32 without its low 13.
pub const TF32: Format =
    Format { exponent_bits: 8, fraction_bits: 10, max: 0x3_fbff, overflow: 0x3_fc00, nan: 0x3_ffff };
/// No infinity; the exponent's highest value holds numbers too.
pub const E4M3: Format = Format { exponent_bits: 4, fraction_bits: 3, max: 0x7e, overflow: 0x7f, nan: 0x7f };
pub const E5M2: Format = Format { exponent_bits: 5, fraction_bits: 2, max: 0x7b, overflow: 0x7c, nan: 0x7f };

impl Format {
    /// Exponent of the smallest normal number.
    fn min_exponent(self) -> i32 {
        2 - (1 << (self.exponent_bits - 1))
    }

    /// The sign bit.
    pub fn sign(self) -> u64 {
        1 << (self.exponent_bits + self.fraction_bits)
    }
}

/// `(-1)^negative * significand * 2^exponent`.
///
/// A value with more than about 120 significant bits stands for itself with its lowest bit set ("rounded to odd"):
/// enough for every rounding to 64 significant bits or less.
#[derive(Clone, Copy, Debug)]
pub struct Finite {
    pub negative: bool,
    pub significand: u128,
    pub exponent: i32,
}

/// Any value.
#[derive(Clone, Copy, Debug)]
pub enum Value {
    Nan,
    Infinity { negative: bool },
    Finite(Finite),
}

/// Takes bits apart; `ftz` makes subnormals zero.
pub fn unpack(bits: u64, format: Format, ftz: bool) -> Value {
    let negative = bits & format.sign() != 0;
    let magnitude = bits & (format.sign() - 1);
    if magnitude > format.overflow || magnitude == format.nan {
        return Value::Nan;
    }
    if magnitude == format.overflow {
        return Value::Infinity { negative };
    }
    let field = (magnitude >> format.fraction_bits) as i32;
    let fraction = magnitude & ((1 << format.fraction_bits) - 1);
    let lowest = format.min_exponent() - format.fraction_bits as i32;
    let (significand, exponent) = match field {
        0 if ftz => (0, lowest),
        0 => (fraction, lowest),
        _ => (fraction | 1 << format.fraction_bits, lowest + field - 1),
    };
    Value::Finite(Finite { negative, significand: u128::from(significand), exponent })
}

impl Finite {
    /// Shifts the significand left until its highest bit is bit `top`; it is not zero and no higher bit is set.
    fn normalised(self, top: u32) -> Self {
        let shift = self.significand.leading_zeros() - (127 - top);
        Finite { significand: self.significand << shift, exponent: self.exponent - shift as i32, ..self }
    }

    /// Rounds, once.
    pub fn round(self, format: Format, round: Round) -> u64 {
        let sign = if self.negative { format.sign() } else { 0 };
        if self.significand == 0 {
            return sign;
        }
        let fraction_bits = format.fraction_bits as i32;
        let leading = self.exponent + 127 - self.significand.leading_zeros() as i32;
        let binade = leading.max(format.min_exponent());
        let quotient = shifted(self, binade - fraction_bits, round);
        // The quotient of a normal number holds the implicit bit, which counts one more in the exponent field.
        let field = (binade - format.min_exponent()) as u64;
        let limit = format.max >> format.fraction_bits;
        let bits = if field > limit { u64::MAX >> 1 } else { (field << fraction_bits) + quotient as u64 };
        if bits <= format.max {
            return sign | bits;
        }
        let to_infinity = match round {
            Round::Nearest | Round::NearestAway => true,
            Round::Zero => false,
            Round::Down => self.negative,
            Round::Up => !self.negative,
        };
        sign | if to_infinity { format.overflow } else { format.max }
    }

    /// Rounds to an integer; `None` if its magnitude has more than 127 bits.
    pub fn to_integer(self, round: Round) -> Option<i128> {
        if self.significand == 0 {
            return Some(0);
        }
        if self.exponent + 128 - self.significand.leading_zeros() as i32 > 126 {
            return None;
        }
        let magnitude = shifted(self, 0, round) as i128;
        Some(if self.negative { -magnitude } else { magnitude })
    }

    /// The whole units of `2^unit` in it, toward zero; `None` if there are none. They fit in 127 bits.
    pub fn to_units(self, unit: i32) -> Option<i128> {
        let magnitude = (self.significand != 0).then(|| shifted(self, unit, Round::Zero) as i128)?;
        Some(if self.negative { -magnitude } else { magnitude })
    }

    /// The product: both significands are below 2^64.
    pub fn times(self, other: Self) -> Self {
        Finite {
            negative: self.negative != other.negative,
            significand: self.significand * other.significand,
            exponent: self.exponent + other.exponent,
        }
    }

    /// The sum of significands below 2^110, to odd. A zero from unlike signs is negative if rounding down.
    pub fn plus(self, other: Self, round: Round) -> Self {
        if self.significand == 0 || other.significand == 0 {
            let negative = match (self.significand, other.significand) {
                (0, 0) if self.negative != other.negative => round == Round::Down,
                (0, _) => other.negative,
                _ => self.negative,
            };
            let sum = if self.significand == 0 { other } else { self };
            return Finite { negative, ..sum };
        }
        let (a, b) = (self.normalised(124), other.normalised(124));
        let (a, b) = if a.exponent >= b.exponent { (a, b) } else { (b, a) };
        // A bit of b that is lost leaves a sticky one. b is then below a / 2^14, so no cancellation reaches it.
        let shift = (a.exponent - b.exponent).min(127);
        let lost = b.significand & ((1 << shift) - 1) != 0;
        let b_significand = (b.significand >> shift) | u128::from(lost);
        if a.negative == b.negative {
            return Finite { significand: a.significand + b_significand, ..a };
        }
        let negative = match a.significand.cmp(&b_significand) {
            Ordering::Greater => a.negative,
            Ordering::Less => b.negative,
            Ordering::Equal => round == Round::Down,
        };
        Finite { negative, significand: a.significand.abs_diff(b_significand), exponent: a.exponent }
    }

    /// The quotient, to odd; both significands are below 2^54 and not zero.
    pub fn over(self, other: Self) -> Self {
        let (a, b) = (self.normalised(126), other);
        let (quotient, rest) = (a.significand / b.significand, a.significand % b.significand);
        Finite {
            negative: a.negative != b.negative,
            significand: quotient | u128::from(rest != 0),
            exponent: a.exponent - b.exponent,
        }
    }

    /// The square root, to odd; the significand is below 2^54 and not zero.
    pub fn root(self) -> Self {
        let mut a = self.normalised(125);
        if a.exponent % 2 != 0 {
            a = Finite { significand: a.significand << 1, exponent: a.exponent - 1, ..a };
        }
        let root = a.significand.isqrt();
        let inexact = root * root != a.significand;
        Finite { negative: false, significand: root << 1 | u128::from(inexact), exponent: a.exponent / 2 - 1 }
    }
}

/// The significand in units of `2^unit`, rounded. It fits.
fn shifted(value: Finite, unit: i32, round: Round) -> u128 {
    let right = unit - value.exponent;
    if right <= 0 {
        return value.significand << -right;
    }
    let (quotient, rest, half) = match right {
        128.. => (0, 1, 2), // the significand is below 2^127: less than half a unit
        _ => {
            let quotient = value.significand >> right;
            (quotient, value.significand - (quotient << right), 1 << (right - 1))
        }
    };
    let up = round.goes_up(value.negative, quotient & 1 == 1, rest != 0, rest.cmp(&half));
    quotient + u128::from(up)
}
