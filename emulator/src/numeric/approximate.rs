//! The approximate functions, until they are calibrated on a card: an evaluation of the exact function in f64,
//! rounded once to nearest. Its error is below 2^-40 of the value, so the result is the correctly rounded one but
//! for about one operand in 2^16.
//!
//! Plain multiplications and additions only, never fused, so every machine gives the same bits, and no branch in
//! those that are hot, so that a loop over lanes vectorises.

use super::half::{Sixteen, to_odd};
use super::single::{self, canonical, flush};
use super::{NAN_F64, double};
use std::f64::consts::{FRAC_PI_2, LN_2, LOG2_E, SQRT_2};

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

/// Adding it to a number below 2^51 rounds that to an integer, which stays in the low bits.
const SHIFT: f64 = 6_755_399_441_055_744.0; // 1.5 * 2^52

/// ln(2)^k / k!, for k from 11 down to 0.
const EX2: [f64; 12] = [
    4.455_438_271_870_812e-10,
    7.054_911_620_801_123e-9,
    1.017_808_600_923_97e-7,
    1.321_548_679_014_431e-6,
    1.525_273_380_405_984_1e-5,
    1.540_353_039_338_161e-4,
    1.333_355_814_642_844_3e-3,
    9.618_129_107_628_477e-3,
    5.550_410_866_482_158e-2,
    0.240_226_506_959_100_72,
    LN_2,
    1.0,
];

/// 2^x. Taylor's series to the 11th power on [-1/2, 1/2]: the rest is below (ln(2)/2)^12 / 12! = 2^-47. Beyond
/// +-160 as at 160, where every narrower format is at 0 or infinity.
#[inline(always)]
fn exp2(x: f64) -> f64 {
    let low = if x < -160.0 { -160.0 } else { x }; // a NaN passes
    let x = if low > 160.0 { 160.0 } else { low };
    let shifted = x + SHIFT;
    let fraction = x - (shifted - SHIFT);
    let scale = f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52);
    polynomial(fraction, EX2) * scale
}

/// `ex2.approx.f32`.
#[inline(always)]
pub fn ex2(a: u32, ftz: bool) -> u32 {
    with_ftz(a, ftz, |x| exp2(f64::from(x)) as f32)
}

/// `ex2.approx.f16`, `ex2.approx.ftz.bf16`.
#[inline(always)]
pub fn ex2_half<T: Sixteen>(a: u16, ftz: bool) -> u16 {
    let a = if ftz { super::half::flush::<T>(a) } else { a };
    let result = T::narrow(to_odd(exp2(f64::from(T::widen(a)))));
    if ftz { super::half::flush::<T>(result) } else { result }
}

/// 2 / ln(2) / (2k + 1), for k from 11 down to 0.
const LG2: [f64; 12] = [
    0.125_451_742_685_996_82,
    0.137_399_527_703_710_8,
    0.151_862_635_883_048_77,
    0.169_728_828_339_878_04,
    0.192_359_338_785_195_12,
    0.221_953_083_213_686_67,
    0.262_308_189_252_538_8,
    0.320_598_897_975_325_2,
    0.412_198_583_111_132_4,
    0.577_078_016_355_585_3,
    0.961_796_693_925_975_6,
    2.885_390_081_777_926_8,
];

/// log2(x), by 2/ln(2) artanh((m - 1) / (m + 1)) of the significand m in [sqrt(1/2), sqrt(2)): the rest of the
/// series is below 0.1716^24 / 25 of the value, 2^-65.
#[inline(always)]
fn log2(x: f64) -> f64 {
    let bits = x.to_bits();
    let exponent = bits.wrapping_sub((SQRT_2 / 2.0).to_bits()) as i64 >> 52;
    let m = f64::from_bits(bits.wrapping_sub((exponent as u64) << 52));
    let s = (m - 1.0) / (m + 1.0);
    let value = exponent as f64 + s * polynomial(s * s, LG2);
    let value = if x == 0.0 { f64::NEG_INFINITY } else { value };
    let value = if x == f64::INFINITY { x } else { value };
    if x >= 0.0 { value } else { f64::NAN }
}

/// `lg2.approx.f32`.
#[inline(always)]
pub fn lg2(a: u32, ftz: bool) -> u32 {
    with_ftz(a, ftz, |x| log2(f64::from(x)) as f32)
}

/// `rcp.approx.f32`.
#[inline(always)]
pub fn rcp(a: u32, ftz: bool) -> u32 {
    with_ftz(a, ftz, |x| 1.0 / x)
}

/// `sqrt.approx.f32`.
#[inline(always)]
pub fn sqrt(a: u32, ftz: bool) -> u32 {
    with_ftz(a, ftz, f32::sqrt)
}

/// `rsqrt.approx.f32`.
#[inline(always)]
pub fn rsqrt(a: u32, ftz: bool) -> u32 {
    with_ftz(a, ftz, |x| (1.0 / f64::from(x).sqrt()) as f32)
}

/// `div.approx.f32`. It multiplies by a reciprocal, which is 0 for a divisor above 2^126.
#[inline(always)]
pub fn div(a: u32, b: u32, ftz: bool) -> u32 {
    const LARGEST: u32 = (126 + 127) << 23;
    if (LARGEST + 1..0x7f80_0000).contains(&(b & 0x7fff_ffff)) {
        return single::mul_rn::<true>(a, b & 0x8000_0000);
    }
    div_full(a, b, ftz)
}

/// `div.full.f32`.
#[inline(always)]
pub fn div_full(a: u32, b: u32, ftz: bool) -> u32 {
    if ftz { single::div_rn::<true>(a, b) } else { single::div_rn::<false>(a, b) }
}

/// The first 256 bits of 2/pi after the point.
const TWO_OVER_PI: [u64; 4] =
    [0xa2f9_836e_4e44_1529, 0xfc27_57d1_f534_ddc0, 0xdb62_9599_3c43_9041, 0xfe51_63ab_debb_c561];

/// The quarter turns of x, modulo 4, and the angle that is left, within pi/4.
#[inline(always)]
fn reduced(x: f32) -> (u64, f64) {
    if x.abs() < 1_048_576.0 {
        // pi/2 in three parts; the first two have 33 bits, so that their products with k are exact.
        const PARTS: [f64; 3] =
            [1.570_796_326_734_125_6, 6.077_100_506_303_966e-11, 2.022_266_248_795_950_6e-21];
        let x = f64::from(x);
        let shifted = x * (1.0 / FRAC_PI_2) + SHIFT;
        let k = shifted - SHIFT;
        return (shifted.to_bits() & 3, ((x - k * PARTS[0]) - k * PARTS[1]) - k * PARTS[2]);
    }
    reduced_large(x)
}

/// The same for 2^20 <= |x|, by Payne and Hanek: of 2/pi only the bits that matter modulo 4.
#[cold]
fn reduced_large(x: f32) -> (u64, f64) {
    let bits = x.to_bits();
    if !x.is_finite() {
        return (0, f64::NAN);
    }
    let significand = u128::from(bits & 0x7f_ffff | 0x80_0000);
    let exponent = (bits >> 23 & 0xff) as i32 - 150;
    // 100 bits of 2/pi, of which the highest weighs 2 once multiplied by the exponent's power of two.
    let shift = (158 - exponent) as u32;
    let window = (0..4).fold(0u128, |window, i: u32| {
        let word = u128::from(TWO_OVER_PI[3 - i as usize]);
        let by = 64 * i as i32 - shift as i32;
        window
            | match by {
                -63..0 => word >> -by,
                0..128 => word << by,
                _ => 0,
            }
    });
    let mask = (1 << 100) - 1;
    let turns = (significand * (window & mask)) & mask;
    let quarter = (turns + (1 << 97)) >> 98;
    let rest = turns as i128 - (quarter << 98) as i128;
    let angle = rest as f64 * (FRAC_PI_2 / (1u128 << 98) as f64);
    if x < 0.0 { ((4 - quarter as u64) & 3, -angle) } else { (quarter as u64 & 3, angle) }
}

/// sin of a reduced angle; the series to the 15th power.
#[inline(always)]
fn sine(x: f64) -> f64 {
    let y = x * x;
    let series = polynomial(
        y,
        [
            -1.0 / 1_307_674_368_000.0,
            1.0 / 6_227_020_800.0,
            -1.0 / 39_916_800.0,
            1.0 / 362_880.0,
            -1.0 / 5_040.0,
            1.0 / 120.0,
            -1.0 / 6.0,
        ],
    );
    x + x * y * series
}

/// cos of a reduced angle; the series to the 16th power.
#[inline(always)]
fn cosine(x: f64) -> f64 {
    let y = x * x;
    polynomial(
        y,
        [
            1.0 / 20_922_789_888_000.0,
            -1.0 / 87_178_291_200.0,
            1.0 / 479_001_600.0,
            -1.0 / 3_628_800.0,
            1.0 / 40_320.0,
            -1.0 / 720.0,
            1.0 / 24.0,
            -0.5,
            1.0,
        ],
    )
}

#[inline(always)]
fn sin_at(x: f32, quarters: u64) -> f32 {
    let (quarter, angle) = reduced(x);
    let quarter = quarter.wrapping_add(quarters);
    let value = if quarter & 1 == 0 { sine(angle) } else { cosine(angle) };
    (if quarter & 2 == 0 { value } else { -value }) as f32
}

/// `sin.approx.f32`.
#[inline(always)]
pub fn sin(a: u32, ftz: bool) -> u32 {
    with_ftz(a, ftz, |x| if x == 0.0 { x } else { sin_at(x, 0) })
}

/// `cos.approx.f32`.
#[inline(always)]
pub fn cos(a: u32, ftz: bool) -> u32 {
    with_ftz(a, ftz, |x| sin_at(x, 1))
}

/// tanh(x): for |x| < 0.05 the series to the 11th power, else 1 - 2 / (e^(2x) + 1), which loses 4 bits of exp2's.
#[inline(always)]
fn hyperbolic_tangent(x: f64) -> f64 {
    let y = x * x;
    let series =
        polynomial(y, [-1382.0 / 155_925.0, 62.0 / 2835.0, -17.0 / 315.0, 2.0 / 15.0, -1.0 / 3.0, 1.0]);
    let small = x * series; // -0 stays
    let large = 1.0 - 2.0 / (exp2(x.abs() * (2.0 * LOG2_E)) + 1.0);
    if x.abs() < 0.05 { small } else { large.copysign(x) }
}

/// `tanh.approx.f32`.
#[inline(always)]
pub fn tanh(a: u32) -> u32 {
    canonical(hyperbolic_tangent(f64::from(f32::from_bits(a))) as f32)
}

/// `tanh.approx.f16`, `tanh.approx.bf16`.
#[inline(always)]
pub fn tanh_half<T: Sixteen>(a: u16) -> u16 {
    T::narrow(to_odd(hyperbolic_tangent(f64::from(T::widen(a)))))
}

/// The upper word of an f64 operand, subnormals flushed, and of the result: 20 bits of fraction, truncated.
#[inline(always)]
fn upper_word(a: u64, function: impl Fn(f64) -> f64) -> u64 {
    let flushed = |a: u64| if a << 1 >> 53 == 0 { a & 1 << 63 } else { a };
    let result = function(f64::from_bits(flushed(a & !0xffff_ffff)));
    if result.is_nan() { NAN_F64 } else { flushed(result.to_bits()) & !0xffff_ffff }
}

/// `rcp.approx.ftz.f64`.
#[inline(always)]
pub fn rcp_f64(a: u64) -> u64 {
    upper_word(a, |x| 1.0 / x)
}

/// `rsqrt.approx.f64`; with `.ftz` of the upper words only.
#[inline(always)]
pub fn rsqrt_f64(a: u64, ftz: bool) -> u64 {
    if ftz {
        return upper_word(a, |x| 1.0 / x.sqrt());
    }
    double::div(1f64.to_bits(), double::sqrt(a, super::Round::Nearest), super::Round::Nearest)
}
