//! f32.

use super::exact::{F32, Finite, Value, unpack};
use super::{Class, MinMax, Mode, NAN_F32, Round};

const SIGN: u32 = 1 << 31;
const INFINITY: u32 = 0x7f80_0000;
const MIN_NORMAL: u32 = 0x0080_0000;
const ONE: u32 = 0x3f80_0000;

/// Bits of a result; the canonical NaN for a NaN.
#[inline(always)]
pub(super) fn canonical(x: f32) -> u32 {
    if x.is_nan() { NAN_F32 } else { x.to_bits() }
}

/// A zero of the same sign for a subnormal.
#[inline(always)]
pub fn flush(a: u32) -> u32 {
    if a & INFINITY == 0 { a & SIGN } else { a }
}

#[inline(always)]
fn operand<const FTZ: bool>(a: u32) -> f32 {
    f32::from_bits(if FTZ { flush(a) } else { a })
}

#[inline(always)]
fn result<const FTZ: bool>(x: f32) -> u32 {
    let bits = canonical(x);
    if FTZ { flush(bits) } else { bits }
}

/// `a + b`, to nearest; for `a - b` flip b's sign.
#[inline(always)]
pub fn add_rn<const FTZ: bool>(a: u32, b: u32) -> u32 {
    result::<FTZ>(operand::<FTZ>(a) + operand::<FTZ>(b))
}

/// `a * b`, to nearest.
#[inline(always)]
pub fn mul_rn<const FTZ: bool>(a: u32, b: u32) -> u32 {
    result::<FTZ>(operand::<FTZ>(a) * operand::<FTZ>(b))
}

/// `a * b + c`, to nearest. One instruction where the caller is compiled for FMA.
#[inline(always)]
pub fn fma_rn<const FTZ: bool>(a: u32, b: u32, c: u32) -> u32 {
    result::<FTZ>(operand::<FTZ>(a).mul_add(operand::<FTZ>(b), operand::<FTZ>(c)))
}

/// `a / b`, to nearest.
#[inline(always)]
pub fn div_rn<const FTZ: bool>(a: u32, b: u32) -> u32 {
    result::<FTZ>(operand::<FTZ>(a) / operand::<FTZ>(b))
}

/// `sqrt(a)`, to nearest.
#[inline(always)]
pub fn sqrt_rn<const FTZ: bool>(a: u32) -> u32 {
    result::<FTZ>(operand::<FTZ>(a).sqrt())
}

/// Clamps to [0, 1]; NaN and -0 become +0.
#[inline(always)]
pub fn saturate(a: u32) -> u32 {
    let x = f32::from_bits(a);
    if x > 0.0 { x.min(1.0).to_bits() } else { 0 }
}

/// Flushes and saturates the bits of a rounded result.
fn finish(bits: u32, mode: Mode) -> u32 {
    let bits = if mode.ftz { flush(bits) } else { bits };
    if mode.saturate { saturate(bits) } else { bits }
}

/// An operation: to nearest by the processor, otherwise from its exact value.
macro_rules! operation {
    ($mode:ident, $fast:expr, $exact:expr) => {{
        let bits = match $mode.round {
            Round::Nearest => $fast,
            round => match $exact {
                Some(x) => Finite::round(x, F32, round) as u32,
                None => $fast, // an operand or the result is special, whatever the rounding
            },
        };
        finish(bits, $mode)
    }};
}

fn finite(a: u32, mode: Mode) -> Option<Finite> {
    match unpack(u64::from(a), F32, mode.ftz) {
        Value::Finite(x) => Some(x),
        _ => None,
    }
}

fn nonzero(a: u32, mode: Mode) -> Option<Finite> {
    finite(a, mode).filter(|x| x.significand != 0)
}

macro_rules! fast {
    ($mode:ident, $name:ident($($operand:expr),*)) => {
        if $mode.ftz { $name::<true>($($operand),*) } else { $name::<false>($($operand),*) }
    };
}

/// `a + b`; for `a - b` flip b's sign.
#[inline]
pub fn add(a: u32, b: u32, mode: Mode) -> u32 {
    let exact = || Some(finite(a, mode)?.plus(finite(b, mode)?, mode.round));
    operation!(mode, fast!(mode, add_rn(a, b)), exact())
}

/// `a * b`.
#[inline]
pub fn mul(a: u32, b: u32, mode: Mode) -> u32 {
    let exact = || Some(finite(a, mode)?.times(finite(b, mode)?));
    operation!(mode, fast!(mode, mul_rn(a, b)), exact())
}

/// `a * b + c`, rounded once.
#[inline]
pub fn fma(a: u32, b: u32, c: u32, mode: Mode) -> u32 {
    let exact = || Some(finite(a, mode)?.times(finite(b, mode)?).plus(finite(c, mode)?, mode.round));
    operation!(mode, fast!(mode, fma_rn(a, b, c)), exact())
}

/// `a / b`.
#[inline]
pub fn div(a: u32, b: u32, mode: Mode) -> u32 {
    let exact = || Some(nonzero(a, mode)?.over(nonzero(b, mode)?));
    operation!(mode, fast!(mode, div_rn(a, b)), exact())
}

/// `1 / a`.
#[inline]
pub fn rcp(a: u32, mode: Mode) -> u32 {
    div(ONE, a, mode)
}

/// `sqrt(a)`.
#[inline]
pub fn sqrt(a: u32, mode: Mode) -> u32 {
    let exact = || nonzero(a, mode).filter(|x| !x.negative).map(Finite::root);
    operation!(mode, fast!(mode, sqrt_rn(a)), exact())
}

/// `|a|`.
#[inline(always)]
pub fn abs(a: u32, ftz: bool) -> u32 {
    (if ftz { flush(a) } else { a }) & !SIGN
}

/// `-a`.
#[inline(always)]
pub fn neg(a: u32, ftz: bool) -> u32 {
    (if ftz { flush(a) } else { a }) ^ SIGN
}

/// b with the sign of a.
#[inline(always)]
pub fn copysign(a: u32, b: u32) -> u32 {
    (a & SIGN) | (b & !SIGN)
}

/// An integer that orders as the number does, -0 before +0.
#[inline(always)]
fn order(a: u32) -> i32 {
    (a ^ ((a as i32 >> 31) as u32 & !SIGN)) as i32
}

#[inline(always)]
fn extremum(a: u32, b: u32, mode: MinMax, max: bool) -> u32 {
    let sign = (a ^ b) & SIGN;
    let clean = |x: u32| {
        let x = if mode.ftz { flush(x) } else { x };
        if mode.xorsign_abs { x & !SIGN } else { x }
    };
    let (a, b) = (clean(a), clean(b));
    let (nan_a, nan_b) = (a & !SIGN > INFINITY, b & !SIGN > INFINITY);
    let chosen = if (order(a) < order(b)) != max { a } else { b };
    let chosen = if nan_a { b } else { chosen };
    let chosen = if nan_b { a } else { chosen };
    let nan = (nan_a & nan_b) | (mode.nan & (nan_a | nan_b));
    let signed = if mode.xorsign_abs { chosen | sign } else { chosen };
    if nan { NAN_F32 } else { signed }
}

/// The smaller one; -0 is smaller than +0.
#[inline(always)]
pub fn min(a: u32, b: u32, mode: MinMax) -> u32 {
    extremum(a, b, mode, false)
}

/// The larger one; +0 is larger than -0.
#[inline(always)]
pub fn max(a: u32, b: u32, mode: MinMax) -> u32 {
    extremum(a, b, mode, true)
}

/// `testp`.
#[inline(always)]
pub fn test(a: u32, class: Class) -> bool {
    let magnitude = a & !SIGN;
    match class {
        Class::Finite => magnitude < INFINITY,
        Class::Infinite => magnitude == INFINITY,
        Class::Number => magnitude <= INFINITY,
        Class::NotANumber => magnitude > INFINITY,
        Class::Normal => (MIN_NORMAL..INFINITY).contains(&magnitude),
        Class::Subnormal => (1..MIN_NORMAL).contains(&magnitude),
    }
}
