//! f64. A NaN operand's payload is kept: the first operand that is a NaN is returned, quiet.

use super::exact::{F64, Finite, Value, unpack};
use super::{Class, NAN_F64, Round};

const SIGN: u64 = 1 << 63;
const INFINITY: u64 = 0x7ff0_0000_0000_0000;
const QUIET: u64 = 1 << 51;
const MIN_NORMAL: u64 = 1 << 52;

/// Bits of a result; for a NaN the first NaN operand.
#[inline(always)]
fn result(x: f64, operands: &[u64]) -> u64 {
    if !x.is_nan() {
        return x.to_bits();
    }
    operands.iter().find(|&&a| a & !SIGN > INFINITY).map_or(NAN_F64, |a| a | QUIET)
}

fn finite(a: u64) -> Option<Finite> {
    match unpack(a, F64, false) {
        Value::Finite(x) => Some(x),
        _ => None,
    }
}

fn nonzero(a: u64) -> Option<Finite> {
    finite(a).filter(|x| x.significand != 0)
}

/// To nearest by the processor, otherwise from the exact value (`None`: a special case, alike in all roundings).
#[inline(always)]
fn rounded(round: Round, nearest: u64, exact: impl FnOnce() -> Option<Finite>) -> u64 {
    if round == Round::Nearest {
        return nearest;
    }
    exact().map_or(nearest, |x| x.round(F64, round))
}

/// `a + b`; for `a - b` flip b's sign.
#[inline]
pub fn add(a: u64, b: u64, round: Round) -> u64 {
    let nearest = result(f64::from_bits(a) + f64::from_bits(b), &[a, b]);
    rounded(round, nearest, || Some(finite(a)?.plus(finite(b)?, round)))
}

/// `a * b`.
#[inline]
pub fn mul(a: u64, b: u64, round: Round) -> u64 {
    let nearest = result(f64::from_bits(a) * f64::from_bits(b), &[a, b]);
    rounded(round, nearest, || Some(finite(a)?.times(finite(b)?)))
}

/// `a * b + c`, rounded once.
#[inline]
pub fn fma(a: u64, b: u64, c: u64, round: Round) -> u64 {
    let nearest = result(f64::from_bits(a).mul_add(f64::from_bits(b), f64::from_bits(c)), &[a, b, c]);
    rounded(round, nearest, || Some(finite(a)?.times(finite(b)?).plus(finite(c)?, round)))
}

/// `a / b`.
#[inline]
pub fn div(a: u64, b: u64, round: Round) -> u64 {
    let nearest = result(f64::from_bits(a) / f64::from_bits(b), &[a, b]);
    rounded(round, nearest, || Some(nonzero(a)?.over(nonzero(b)?)))
}

/// `1 / a`.
#[inline]
pub fn rcp(a: u64, round: Round) -> u64 {
    div(1f64.to_bits(), a, round)
}

/// `sqrt(a)`.
#[inline]
pub fn sqrt(a: u64, round: Round) -> u64 {
    let nearest = result(f64::from_bits(a).sqrt(), &[a]);
    rounded(round, nearest, || nonzero(a).filter(|x| !x.negative).map(Finite::root))
}

/// `|a|`.
#[inline(always)]
pub fn abs(a: u64) -> u64 {
    a & !SIGN
}

/// `-a`.
#[inline(always)]
pub fn neg(a: u64) -> u64 {
    a ^ SIGN
}

/// b with the sign of a.
#[inline(always)]
pub fn copysign(a: u64, b: u64) -> u64 {
    (a & SIGN) | (b & !SIGN)
}

/// An integer that orders as the number does, -0 before +0.
#[inline(always)]
fn order(a: u64) -> i64 {
    (a ^ ((a as i64 >> 63) as u64 & !SIGN)) as i64
}

#[inline(always)]
fn extremum(a: u64, b: u64, max: bool) -> u64 {
    match (a & !SIGN > INFINITY, b & !SIGN > INFINITY) {
        (true, true) => NAN_F64,
        (true, false) => b,
        (false, true) => a,
        _ if (order(a) < order(b)) != max => a,
        _ => b,
    }
}

/// The smaller one; -0 is smaller than +0; a NaN loses.
#[inline(always)]
pub fn min(a: u64, b: u64) -> u64 {
    extremum(a, b, false)
}

/// The larger one; +0 is larger than -0; a NaN loses.
#[inline(always)]
pub fn max(a: u64, b: u64) -> u64 {
    extremum(a, b, true)
}

/// `testp`.
#[inline(always)]
pub fn test(a: u64, class: Class) -> bool {
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
