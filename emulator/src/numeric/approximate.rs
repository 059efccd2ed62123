//! The approximate functions, until they are calibrated on a card: an evaluation of the exact function in f64,
//! rounded once to nearest. Its error is below 2^-40 of the value, so the result is the correctly rounded one but
//! for about one operand in 2^16.
//!
//! Plain multiplications and additions only, never fused, so every machine gives the same bits, and no branch in
//! those that are hot, so that a loop over lanes vectorises.

use super::half::{Bf16, F16, Sixteen};
use super::single::{canonical, flush};
use super::{Mode, Round, double, single};

const INFINITY: f64 = f64::INFINITY;

/// `.approx.ftz`: flushes the operand and the result around a function.
#[inline(always)]
fn with_ftz(a: u32, ftz: bool, function: impl Fn(f32) -> f32) -> u32 {
    let result = canonical(function(f32::from_bits(if ftz { flush(a) } else { a })));
    if ftz { flush(result) } else { result }
}

/// Horner's rule, highest coefficient first.
#[inline(always)]
fn polynomial<const N: usize>(x: f64, coefficients: [f64; N]) -> f64 {
    let mut sum = coefficients[0];
    for coefficient in &coefficients[1..] {
        sum = sum * x + coefficient;
    }
    sum
}

/// ln(2)^k / k!, for k from 11 down to 0.
const EX2: [f64; 12] = [
    4.455_382_271_855_068e-10,
    7.072_549_214_168_787e-9,
    1.017_808_600_923_97e-7,
    1.321_548_679_014_430_7e-6,
    1.525_273_380_405_984e-5,
    1.540_353_039_338_160_5e-4,
    1.333_355_814_642_844_2e-3,
    9.618_129_107_628_477e-3,
    5.550_410_866_482_157_4e-2,
    0.240_226_506_959_100_7,
    std::f64::consts::LN_2,
    1.0,
];

/// 2^x for |x| below 1000.
#[inline(always)]
fn exp2(x: f64) -> f64 {
    // Adding 1.5 * 2^52 rounds to an integer and leaves it in the low bits.
    const SHIFT: f64 = 6_755_399_441_055_744.0;
    let shifted = x + SHIFT;
    let fraction = x - (shifted - SHIFT);
    let scale = f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52);
    polynomial(fraction, EX2) * scale
}

/// 2^x in f32, infinities and NaN included.
#[inline(always)]
fn exp2_f32(x: f32) -> f32 {
    // Beyond -160 and 160 the f32 is 0 or infinity already. NaN fails both comparisons and passes.
    let x = f64::from(x);
    let low = if x < -160.0 { -160.0 } else { x };
    let clamped = if low > 160.0 { 160.0 } else { low };
    exp2(clamped) as f32
}

/// `ex2.approx.f32`.
#[inline(always)]
pub fn ex2(a: u32, ftz: bool) -> u32 {
    with_ftz(a, ftz, exp2_f32)
}
