//! `cvt`, by the ISA's text.

use crate::float::format;
use crate::grammar::Form;
use crate::integer::{int_type, limits, number};
use crate::lanewise::Spec;
use crate::soft::{E4M3, E5M2, Exact, F32, F64, Format, Number, Rounding, TF32};
use crate::values::Kind;

#[derive(Clone, Copy, Debug)]
enum Type {
    Integer(u32, bool),
    Float(Format),
}

impl Type {
    fn parse(word: &str) -> Self {
        let word = word.strip_suffix("x2").unwrap_or(word);
        match (word, int_type(word)) {
            (_, Some((bits, signed))) => Self::Integer(bits, signed),
            ("tf32", _) => Self::Float(TF32),
            ("e4m3", _) => Self::Float(E4M3),
            ("e5m2", _) => Self::Float(E5M2),
            _ => Self::Float(format(word).expect("a float")),
        }
    }

    fn kind(self) -> Kind {
        match self {
            Self::Integer(bits, _) => Kind::Integer(bits),
            Self::Float(f) => Kind::Float(f),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Conversion {
    to: Type,
    from: Type,
    rounding: Rounding,
    /// From a float to a whole number in the same format.
    whole: bool,
    ftz: bool,
    sat: bool,
    relu: bool,
    satfinite: bool,
}

pub fn spec(form: &Form, words: &[&str]) -> Option<Spec> {
    let ["cvt", rest @ .., to, from] = words else { return None };
    let has = |word: &str| rest.contains(&word);
    let conversion = Conversion {
        to: Type::parse(to),
        from: Type::parse(from),
        rounding: rest.iter().find_map(|word| Rounding::parse(word)).unwrap_or(Rounding::Nearest),
        whole: rest.iter().any(|word| matches!(*word, "rni" | "rzi" | "rmi" | "rpi")),
        ftz: has("ftz"),
        sat: has("sat"),
        relu: has("relu"),
        satfinite: has("satfinite"),
    };
    if to.ends_with("x2") {
        return Some(packed(conversion, from.ends_with("x2")));
    }
    let register = match form.operands[0].as_str() {
        "h" => 16,
        "r" => 32,
        _ => 64,
    };
    let source = match form.operands[1].as_str() {
        "h" => 16,
        "r" => 32,
        _ => 64,
    };
    // What a larger register holds above the source's bits does not count.
    let kind = match conversion.from {
        Type::Integer(8, _) => Kind::Byte(source),
        Type::Integer(..) => Kind::Integer(source),
        other => other.kind(),
    };
    Some(Spec::bits(vec![kind], move |[a, ..]| conversion.of(a) & u64::MAX >> (64 - register)))
}

/// Two floats to a pair, the first to the upper half; or a pair to a pair.
fn packed(conversion: Conversion, from_pair: bool) -> Spec {
    let (Type::Float(to), Type::Float(from)) = (conversion.to, conversion.from) else {
        unreachable!("floats")
    };
    let (up, down) = (to.bits(), from.bits());
    if from_pair {
        return Spec::bits(vec![Kind::Packed(from)], move |[a, ..]| {
            conversion.of(a & ((1 << down) - 1)) | conversion.of(a >> down) << up
        });
    }
    Spec::bits(vec![Kind::Float(from); 2], move |[a, b, ..]| conversion.of(a) << up | conversion.of(b))
}

impl Conversion {
    /// Integers come extended to 64 bits.
    fn of(self, a: u64) -> u64 {
        match (self.from, self.to) {
            (Type::Integer(from, from_signed), Type::Integer(to, signed)) => {
                let (value, (low, high)) = (number(a, from, from_signed), limits(to, signed));
                let value = if self.sat { value.clamp(low, high) } else { value };
                number(value as u64, to, signed) as u64
            }
            (Type::Integer(from, signed), Type::Float(f)) => {
                let value = number(a, from, signed);
                let exact = Exact { negative: value < 0, significand: value.unsigned_abs(), exponent: 0 };
                self.finish(f.round(exact, self.rounding), f)
            }
            (Type::Float(from), Type::Integer(to, signed)) => self.to_integer(a, from, to, signed),
            (Type::Float(from), Type::Float(to)) => self.to_float(a, from, to),
        }
    }

    fn operand(self, a: u64, from: Format) -> Number {
        from.decode(if self.ftz && from == F32 { F32.flush(a) } else { a })
    }

    fn to_integer(self, a: u64, from: Format, to: u32, signed: bool) -> u64 {
        let (low, high) = limits(to, signed);
        let value = match self.operand(a, from) {
            Number::Nan if from == F64 || to == 64 => number(1 << (to - 1), to, signed),
            Number::Nan => 0,
            Number::Infinite(negative) => {
                if negative {
                    low
                } else {
                    high
                }
            }
            Number::Finite(x) => whole(x, self.rounding).clamp(low, high),
        };
        value as u64
    }

    fn to_float(self, a: u64, from: Format, to: Format) -> u64 {
        let bits = match self.operand(a, from) {
            // A double keeps the payload.
            Number::Nan if from == F64 && to == F64 => a | 1 << 51,
            Number::Nan => to.nan,
            Number::Infinite(negative) => to.signed(negative, to.max + u64::from(!self.satfinite)),
            Number::Finite(x) if self.whole && x.exponent < 0 => {
                let significand = whole(x, self.rounding).unsigned_abs();
                to.round(Exact { significand, exponent: 0, ..x }, Rounding::Nearest)
            }
            Number::Finite(x) => {
                let bits = to.round(x, self.rounding);
                let beyond = bits & (to.sign() - 1) > to.max;
                if self.satfinite && beyond { to.signed(x.negative, to.max) } else { bits }
            }
        };
        self.finish(bits, to)
    }

    fn finish(self, bits: u64, f: Format) -> u64 {
        let bits = if self.ftz && f == F32 { F32.flush(bits) } else { bits };
        let (nan, negative) = (f.is_nan(bits), bits & f.sign() != 0);
        let bits = match (self.sat, self.relu) {
            (true, _) if nan || negative => 0,
            (true, _) => bits.min(f.one()),
            (_, true) if negative && !nan => 0,
            _ => bits,
        };
        // The 19 bits of a tf32 are the upper ones of its register.
        if f == TF32 { bits << 13 } else { bits }
    }
}

/// The integer a number rounds to; the largest ones stand for all beyond.
fn whole(x: Exact, rounding: Rounding) -> i128 {
    let magnitude = if x.exponent >= 0 {
        x.significand << x.exponent.min(70)
    } else {
        let shift = (-x.exponent).min(120);
        let (floor, rest) = (x.significand >> shift, x.significand & ((1 << shift) - 1));
        floor + u128::from(rounding.up(x.negative, floor & 1 == 1, rest != 0, rest.cmp(&(1 << (shift - 1)))))
    };
    if x.negative { -(magnitude as i128) } else { magnitude as i128 }
}
