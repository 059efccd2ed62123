//! The published arithmetic, plainly, for all values; the faster versions leave to it the tiles they cannot do.

use super::tile::{Output, Tile};
use super::{Element, FRACTION_BITS, Float, M, N};
use crate::numeric::exact::{BF16, F16, F32, Finite, Format, TF32, Value, unpack};
use crate::numeric::{NAN_16, NAN_F32, Round};

/// Exponent of a zero term.
const ZERO: i32 = -126;

/// The exact value of a term whose exponent is `exponent`: within 4 times 2^exponent.
#[derive(Clone, Copy)]
struct Term {
    value: Finite,
    exponent: i32,
}

fn term(value: Finite, format: Format) -> Term {
    let lowest = value.exponent;
    Term { value, exponent: lowest + format.fraction_bits as i32 }
}

/// What infinities and NaN among the terms sum to; nothing if there are none.
#[derive(Default)]
struct Special {
    nan: bool,
    infinities: [bool; 2],
}

/// All outputs.
pub fn run(mma: &Float, tile: &Tile) -> Output {
    let mut output = tile.c;
    for (n, column) in output.iter_mut().enumerate().take(N) {
        for (row, d) in column.iter_mut().enumerate().take(M) {
            for step in 0..mma.steps {
                let range = step * mma.step_k()..(step + 1) * mma.step_k();
                let pairs = range.map(|k| (tile.a[k][row], tile.b[n][k]));
                *d = fused_dot_add(mma, pairs, *d);
            }
        }
    }
    Output(output)
}

fn operand(element: Element, bits: u32) -> (Value, Format) {
    let (bits, format) = match element {
        Element::F16 => (bits, F16),
        Element::Bf16 => (bits, BF16),
        Element::Tf32 => (bits >> 13, TF32),
    };
    (unpack_number(bits, format), format)
}

/// A NaN is whatever lies above infinity.
fn unpack_number(bits: u32, format: Format) -> Value {
    unpack(u64::from(bits), format, false)
}

/// One step of one output.
fn fused_dot_add(mma: &Float, pairs: impl Iterator<Item = (u32, u32)>, c: u32) -> u32 {
    let mut special = Special::default();
    let mut terms =
        [Term { value: Finite { negative: false, significand: 0, exponent: 0 }, exponent: ZERO }; 9];
    for (slot, (a, b)) in terms.iter_mut().zip(pairs) {
        let ((a, format), (b, _)) = (operand(mma.element, a), operand(mma.element, b));
        match (a, b) {
            (Value::Finite(a), Value::Finite(b)) => {
                let exponent = term(a, format).exponent + term(b, format).exponent;
                *slot = Term { value: a.times(b), exponent };
            }
            (a, b) => special.product(a, b),
        }
    }
    let c_format = if mma.half { F16 } else { F32 };
    match unpack_number(c, c_format) {
        Value::Finite(c) => terms[8] = term(c, c_format),
        other => special.term(other),
    }
    match special {
        Special { nan: false, infinities: [false, false] } => rounded(mma.half, &terms),
        Special { nan: false, infinities: [positive, negative] } if positive != negative => {
            let (infinity, sign) = if mma.half { (0x7c00, 0x8000) } else { (0x7f80_0000, 1 << 31) };
            if negative { sign | infinity } else { infinity }
        }
        _ if mma.half => u32::from(NAN_16),
        _ => NAN_F32,
    }
}

impl Special {
    fn term(&mut self, value: Value) {
        match value {
            Value::Nan => self.nan = true,
            Value::Infinity { negative } => self.infinities[usize::from(negative)] = true,
            Value::Finite(_) => {}
        }
    }

    fn product(&mut self, a: Value, b: Value) {
        match (a, b) {
            (Value::Infinity { negative: x }, Value::Infinity { negative: y }) => {
                self.term(Value::Infinity { negative: x != y });
            }
            (Value::Infinity { negative }, Value::Finite(x))
            | (Value::Finite(x), Value::Infinity { negative }) => {
                self.nan |= x.significand == 0;
                self.term(Value::Infinity { negative: negative != x.negative });
            }
            _ => self.nan = true,
        }
    }
}

/// Aligns, cuts, sums and rounds.
fn rounded(half: bool, terms: &[Term]) -> u32 {
    let largest = terms.iter().map(|x| if x.value.significand == 0 { ZERO } else { x.exponent }).max();
    let unit = largest.unwrap_or(ZERO) - FRACTION_BITS;
    let sum: i128 = terms.iter().filter_map(|x| x.value.to_units(unit)).sum();
    let sum = Finite { negative: sum < 0, significand: sum.unsigned_abs(), exponent: unit };
    if half {
        return sum.round(F16, Round::Nearest) as u32;
    }
    let beyond = unit + 128 - sum.significand.leading_zeros() as i32 > 128;
    sum.round(F32, if beyond { Round::Nearest } else { Round::Zero }) as u32
}
