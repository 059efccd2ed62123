//! f16 and bf16: `half::add::<F16>(a, b, mode)`. Packed forms apply these to each half.

use super::convert::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use super::{MinMax, NAN_16};

const SIGN: u16 = 0x8000;

/// A format of 16 bits.
pub trait Sixteen {
    /// Bits of infinity.
    const INFINITY: u16;
    /// Bits of 1.
    const ONE: u16;
    /// Exact.
    fn widen(a: u16) -> f32;
    /// To nearest; NaN is canonical.
    fn narrow(x: f32) -> u16;
}

/// IEEE 754's binary16.
pub struct F16;

/// The upper half of an f32.
pub struct Bf16;

impl Sixteen for F16 {
    const INFINITY: u16 = 0x7c00;
    const ONE: u16 = 0x3c00;

    #[inline(always)]
    fn widen(a: u16) -> f32 {
        f32::from_bits(f16_to_f32(a))
    }

    #[inline(always)]
    fn narrow(x: f32) -> u16 {
        f32_to_f16(x.to_bits())
    }
}

impl Sixteen for Bf16 {
    const INFINITY: u16 = 0x7f80;
    const ONE: u16 = 0x3f80;

    #[inline(always)]
    fn widen(a: u16) -> f32 {
        f32::from_bits(bf16_to_f32(a))
    }

    #[inline(always)]
    fn narrow(x: f32) -> u16 {
        f32_to_bf16(x.to_bits())
    }
}

/// How an operation treats extremes; it rounds to nearest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HalfMode {
    /// `.ftz`.
    pub ftz: bool,
    /// `.sat`: clamped to [0, 1]; NaN becomes +0.
    pub saturate: bool,
    /// `.relu`: negative results become +0; NaN is canonical.
    pub relu: bool,
}

/// A zero of the same sign for a subnormal.
#[inline(always)]
pub fn flush<T: Sixteen>(a: u16) -> u16 {
    if a & T::INFINITY == 0 { a & SIGN } else { a }
}

#[inline(always)]
fn operand<T: Sixteen>(a: u16, mode: HalfMode) -> f32 {
    T::widen(if mode.ftz { flush::<T>(a) } else { a })
}

#[inline(always)]
fn finish<T: Sixteen>(bits: u16, mode: HalfMode) -> u16 {
    let bits = if mode.ftz { flush::<T>(bits) } else { bits };
    let bits = if mode.saturate { saturate::<T>(bits) } else { bits };
    if mode.relu { relu::<T>(bits) } else { bits }
}

/// Clamps to [0, 1]; NaN and -0 become +0.
#[inline(always)]
pub fn saturate<T: Sixteen>(a: u16) -> u16 {
    if a > T::INFINITY { 0 } else { a.min(T::ONE) } // negative ones and NaN have larger bits
}

/// Negative numbers and -0 become +0.
#[inline(always)]
pub fn relu<T: Sixteen>(a: u16) -> u16 {
    if a & SIGN != 0 && a & !SIGN <= T::INFINITY { 0 } else { a }
}

/// An f64 as an f32 whose further rounding to 16 bits is right: inexact ones have their lowest bit set.
#[inline(always)]
pub(super) fn to_odd(x: f64) -> f32 {
    let nearest = x as f32;
    let (bits, back) = (nearest.to_bits(), f64::from(nearest));
    let truncated = if back.abs() > x.abs() { bits.wrapping_sub(1) } else { bits };
    f32::from_bits(if back == x || x.is_nan() { bits } else { truncated | 1 })
}

/// `a + b`; for `a - b` flip b's sign.
#[inline(always)]
pub fn add<T: Sixteen>(a: u16, b: u16, mode: HalfMode) -> u16 {
    // The f32 has more than twice the bits, so that rounding twice is harmless.
    finish::<T>(T::narrow(operand::<T>(a, mode) + operand::<T>(b, mode)), mode)
}

/// `a * b`.
#[inline(always)]
pub fn mul<T: Sixteen>(a: u16, b: u16, mode: HalfMode) -> u16 {
    let product = f64::from(operand::<T>(a, mode)) * f64::from(operand::<T>(b, mode)); // exact
    finish::<T>(T::narrow(to_odd(product)), mode)
}

/// `a * b + c`, rounded once.
#[inline(always)]
pub fn fma<T: Sixteen>(a: u16, b: u16, c: u16, mode: HalfMode) -> u16 {
    let product = f64::from(operand::<T>(a, mode)) * f64::from(operand::<T>(b, mode)); // exact
    let c = f64::from(operand::<T>(c, mode));
    // The sum, and what its rounding lost (exactly): then to odd.
    let sum = product + c;
    let part = sum - product;
    let lost = (product - (sum - part)) + (c - part);
    let bits = sum.to_bits();
    let neighbour = if (lost > 0.0) == (sum > 0.0) { bits.wrapping_add(1) } else { bits.wrapping_sub(1) };
    let inexact = (lost != 0.0) & !lost.is_nan() & (bits & 1 == 0);
    finish::<T>(T::narrow(to_odd(f64::from_bits(if inexact { neighbour } else { bits }))), mode)
}

/// `|a|`.
#[inline(always)]
pub fn abs<T: Sixteen>(a: u16, ftz: bool) -> u16 {
    (if ftz { flush::<T>(a) } else { a }) & !SIGN
}

/// `-a`.
#[inline(always)]
pub fn neg<T: Sixteen>(a: u16, ftz: bool) -> u16 {
    (if ftz { flush::<T>(a) } else { a }) ^ SIGN
}

/// An integer that orders as the number does, -0 before +0.
#[inline(always)]
fn order(a: u16) -> i16 {
    (a ^ ((a as i16 >> 15) as u16 & !SIGN)) as i16
}

#[inline(always)]
fn extremum<T: Sixteen>(a: u16, b: u16, mode: MinMax, max: bool) -> u16 {
    let sign = (a ^ b) & SIGN;
    let clean = |x: u16| {
        let x = if mode.ftz { flush::<T>(x) } else { x };
        if mode.xorsign_abs { x & !SIGN } else { x }
    };
    let (a, b) = (clean(a), clean(b));
    let (nan_a, nan_b) = (a & !SIGN > T::INFINITY, b & !SIGN > T::INFINITY);
    let chosen = if (order(a) < order(b)) != max { a } else { b };
    let chosen = if nan_a { b } else { chosen };
    let chosen = if nan_b { a } else { chosen };
    let nan = (nan_a & nan_b) | (mode.nan & (nan_a | nan_b));
    let signed = if mode.xorsign_abs { chosen | sign } else { chosen };
    if nan { NAN_16 } else { signed }
}

/// The smaller one; -0 is smaller than +0.
#[inline(always)]
pub fn min<T: Sixteen>(a: u16, b: u16, mode: MinMax) -> u16 {
    extremum::<T>(a, b, mode, false)
}

/// The larger one; +0 is larger than -0.
#[inline(always)]
pub fn max<T: Sixteen>(a: u16, b: u16, mode: MinMax) -> u16 {
    extremum::<T>(a, b, mode, true)
}
