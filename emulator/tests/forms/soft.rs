//! Floating-point formats: numbers as integers times powers of two, operations on them exact or with a sticky lowest
//! bit, and one rounding at the end.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    pub exponent: u32,
    pub fraction: u32,
    /// Bits of the largest finite number.
    pub max: u64,
    /// Bits of the NaN that operations give.
    pub nan: u64,
}

pub const F16: Format = Format { exponent: 5, fraction: 10, max: 0x7bff, nan: 0x7fff };
pub const BF16: Format = Format { exponent: 8, fraction: 7, max: 0x7f7f, nan: 0x7fff };
pub const TF32: Format = Format { exponent: 8, fraction: 10, max: 0x3fbff, nan: 0x3ffff };
pub const F32: Format = Format { exponent: 8, fraction: 23, max: 0x7f7f_ffff, nan: 0x7fff_ffff };
pub const F64: Format =
    Format { exponent: 11, fraction: 52, max: 0x7fef_ffff_ffff_ffff, nan: 0xfff8_0000_0000_0000 };
pub const E4M3: Format = Format { exponent: 4, fraction: 3, max: 0x7e, nan: 0x7f };
pub const E5M2: Format = Format { exponent: 5, fraction: 2, max: 0x7b, nan: 0x7f };

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    Nearest,
    Away,
    Zero,
    Down,
    Up,
}

impl Rounding {
    /// By its word, with or without the `i` of roundings to integers.
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "rn" | "rni" => Self::Nearest,
            "rna" => Self::Away,
            "rz" | "rzi" => Self::Zero,
            "rm" | "rmi" => Self::Down,
            "rp" | "rpi" => Self::Up,
            _ => return None,
        })
    }

    /// Whether a magnitude with this remainder goes up; `half`: the remainder compared with half a unit.
    pub fn up(self, negative: bool, odd: bool, inexact: bool, half: std::cmp::Ordering) -> bool {
        match self {
            Self::Nearest => half.is_gt() || half.is_eq() && odd,
            Self::Away => half.is_ge(),
            Self::Zero => false,
            Self::Down => negative && inexact,
            Self::Up => !negative && inexact,
        }
    }
}

/// `(-1)^negative * significand * 2^exponent`.
#[derive(Clone, Copy, Debug)]
pub struct Exact {
    pub negative: bool,
    pub significand: u128,
    pub exponent: i32,
}

#[derive(Clone, Copy, Debug)]
pub enum Number {
    Nan,
    Infinite(bool),
    Finite(Exact),
}

impl Format {
    pub fn bits(self) -> u32 {
        1 + self.exponent + self.fraction
    }

    pub fn sign(self) -> u64 {
        1 << (self.exponent + self.fraction)
    }

    pub fn one(self) -> u64 {
        ((1 << (self.exponent - 1)) - 1) << self.fraction
    }

    fn bias(self) -> i32 {
        (1 << (self.exponent - 1)) - 1
    }

    pub fn signed(self, negative: bool, magnitude: u64) -> u64 {
        if negative { magnitude | self.sign() } else { magnitude }
    }

    pub fn is_nan(self, bits: u64) -> bool {
        matches!(self.decode(bits), Number::Nan)
    }

    /// A zero of the same sign for a subnormal.
    pub fn flush(self, bits: u64) -> u64 {
        let subnormal = bits & (self.sign() - 1) < 1 << self.fraction;
        if subnormal { bits & self.sign() } else { bits }
    }

    pub fn decode(self, bits: u64) -> Number {
        let (negative, magnitude) = (bits & self.sign() != 0, bits & (self.sign() - 1));
        if magnitude > self.max {
            // e4m3 has no infinity: what follows the largest number is NaN.
            let infinite = magnitude == self.max + 1 && self != E4M3;
            return if infinite { Number::Infinite(negative) } else { Number::Nan };
        }
        let field = (magnitude >> self.fraction) as i32;
        let fraction = u128::from(magnitude) & ((1 << self.fraction) - 1);
        let hidden = if field > 0 { 1 << self.fraction } else { 0 };
        let exponent = field.max(1) - self.bias() - self.fraction as i32;
        Number::Finite(Exact { negative, significand: fraction + hidden, exponent })
    }

    /// The bits nearest in the rounding's sense; beyond the largest number as IEEE 754 says.
    pub fn round(self, x: Exact, rounding: Rounding) -> u64 {
        if x.significand == 0 {
            return self.signed(x.negative, 0);
        }
        let top = 127 - x.significand.leading_zeros() as i32;
        let unit = (x.exponent + top).max(1 - self.bias()) - self.fraction as i32;
        let shift = unit - x.exponent;
        let quotient = match shift {
            ..=0 => x.significand << -shift,
            1..=127 => {
                let (quotient, rest) = (x.significand >> shift, x.significand & ((1 << shift) - 1));
                let half = rest.cmp(&(1 << (shift - 1)));
                quotient + u128::from(rounding.up(x.negative, quotient & 1 == 1, rest != 0, half))
            }
            _ => u128::from(rounding.up(x.negative, false, true, std::cmp::Ordering::Less)),
        };
        // The hidden bit, and a carry out of the fraction, add to the exponent's field.
        let field = (unit + self.fraction as i32 + self.bias() - 1) as u64;
        let magnitude = (field << self.fraction) + quotient as u64;
        let magnitude = if magnitude > self.max {
            let infinite = match rounding {
                Rounding::Nearest | Rounding::Away => true,
                Rounding::Zero => false,
                Rounding::Down => x.negative,
                Rounding::Up => !x.negative,
            };
            self.max + u64::from(infinite)
        } else {
            magnitude
        };
        self.signed(x.negative, magnitude)
    }

    /// Value of a number of at most 64 bits, exactly.
    pub fn value(self, bits: u64) -> f64 {
        match self.decode(bits) {
            Number::Nan => f64::NAN,
            Number::Infinite(negative) => [f64::INFINITY, f64::NEG_INFINITY][usize::from(negative)],
            Number::Finite(x) => f64::from_bits(F64.round(x, Rounding::Nearest)),
        }
    }
}

/// Shifts, keeping a one that is lost in the lowest bit.
fn sticky(x: u128, right: i32) -> u128 {
    match right {
        ..=0 => x << -right,
        1..=127 => x >> right | u128::from(x & ((1 << right) - 1) != 0),
        _ => u128::from(x != 0),
    }
}

pub fn sum(a: Exact, b: Exact, rounding: Rounding) -> Exact {
    if a.significand == 0 && b.significand == 0 {
        let negative = if a.negative == b.negative { a.negative } else { rounding == Rounding::Down };
        return Exact { negative, ..a };
    }
    let top = |x: Exact| {
        if x.significand == 0 { i32::MIN } else { x.exponent - x.significand.leading_zeros() as i32 }
    };
    // The larger one's highest bit comes to bit 124.
    let exponent = top(a).max(top(b)) + 127 - 124;
    let [x, y] = [a, b]
        .map(|x| sticky(x.significand, if x.significand == 0 { 0 } else { exponent - x.exponent }) as i128);
    let total = if a.negative { -x } else { x } + if b.negative { -y } else { y };
    let negative = total < 0 || total == 0 && rounding == Rounding::Down;
    Exact { negative, significand: total.unsigned_abs(), exponent }
}

pub fn product(a: Exact, b: Exact) -> Exact {
    Exact {
        negative: a.negative != b.negative,
        significand: a.significand * b.significand,
        exponent: a.exponent + b.exponent,
    }
}

/// Of numbers that are not 0.
pub fn quotient(a: Exact, b: Exact) -> Exact {
    let up = a.significand.leading_zeros() as i32 - 2;
    let dividend = a.significand << up;
    let inexact = u128::from(!dividend.is_multiple_of(b.significand));
    Exact {
        negative: a.negative != b.negative,
        significand: (dividend / b.significand) | inexact,
        exponent: a.exponent - up - b.exponent,
    }
}

/// Of a number above 0.
pub fn root(a: Exact) -> Exact {
    let mut up = a.significand.leading_zeros() as i32 - 2;
    up -= (a.exponent - up) & 1;
    let radicand = a.significand << up;
    let root = radicand.isqrt();
    let inexact = u128::from(root * root != radicand);
    Exact { negative: false, significand: root << 1 | inexact, exponent: (a.exponent - up) / 2 - 1 }
}

#[test]
fn agrees_with_the_processor() {
    let mut random = crate::values::Random::new(1);
    for _ in 0..200_000 {
        let [a, b, c] = [0; 3].map(|_| crate::values::Kind::Float(F64).random(&mut random));
        let [x, y, z] = [a, b, c].map(f64::from_bits);
        let (Number::Finite(a), Number::Finite(b), Number::Finite(c)) =
            (F64.decode(a), F64.decode(b), F64.decode(c))
        else {
            continue;
        };
        let near = |x| F64.round(x, Rounding::Nearest);
        assert_eq!(near(sum(a, b, Rounding::Nearest)), (x + y).to_bits(), "{x:e} + {y:e}");
        assert_eq!(near(product(a, b)), (x * y).to_bits(), "{x:e} * {y:e}");
        assert_eq!(
            near(sum(product(a, b), c, Rounding::Nearest)),
            x.mul_add(y, z).to_bits(),
            "{x:e} * {y:e} + {z:e}"
        );
        if a.significand != 0 && b.significand != 0 {
            assert_eq!(near(quotient(a, b)), (x / y).to_bits(), "{x:e} / {y:e}");
            let positive = Exact { negative: false, ..a };
            assert_eq!(near(root(positive)), x.abs().sqrt().to_bits(), "sqrt {x:e}");
        }
        assert_eq!(F32.round(a, Rounding::Nearest), u64::from((x as f32).to_bits()), "{x:e}");
    }
}
