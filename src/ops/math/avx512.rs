//! Exponentials of 16 floats in AVX-512, whose fractions, permutations by index and powers of two the compiler does not know.

use super::LANES;
use std::arch::x86_64::*;

/// 2^(i/32).
#[rustfmt::skip]
#[allow(clippy::approx_constant, reason = "powers, of which one is the root of 2")]
const POWERS: [[f32; LANES]; 2] = [
    [
        1.0, 1.021_897_2, 1.044_273_7, 1.067_140_5, 1.090_507_7, 1.114_386_8, 1.138_788_6, 1.163_724_9,
        1.189_207_1, 1.215_247_4, 1.241_857_8, 1.269_051, 1.296_839_6, 1.325_236_7, 1.354_255_6, 1.383_91,
    ],
    [
        1.414_213_5, 1.445_180_8, 1.476_826_2, 1.509_164_5, 1.542_210_8, 1.575_980_9, 1.610_490_3, 1.645_755_5,
        1.681_792_9, 1.718_619_3, 1.756_252_2, 1.794_709_1, 1.834_008_1, 1.874_167_7, 1.915_206_6, 1.957_144_1,
    ],
];

/// `2^x`. Relative error below 2·2⁻²³, 0 and infinity beyond what floats hold.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
pub fn exp2(x: __m512) -> __m512 {
    exp2_of(x, below_fraction(x))
}

/// `1 / (1 + e^-x)`. Relative error below 4·2⁻²³ where it is above e⁻⁸⁷, which it is at least.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
pub fn sigmoid(x: &[f32; LANES]) -> [f32; LANES] {
    // And what the constant lacks.
    const MINUS_LOG2_E: [f32; 2] = [-std::f32::consts::LOG2_E, -1.925_963e-8];
    const BOUND: f32 = 87.0;
    let one = _mm512_set1_ps(1.0);
    // Of a number and none, the second argument is taken.
    let x = _mm512_max_ps(_mm512_set1_ps(-BOUND), _mm512_min_ps(_mm512_set1_ps(BOUND), load(x)));
    let factor = _mm512_set1_ps(MINUS_LOG2_E[0]);
    let power = _mm512_mul_ps(x, factor);
    let lost = _mm512_fmadd_ps(x, _mm512_set1_ps(MINUS_LOG2_E[1]), _mm512_fmsub_ps(x, factor, power));
    let denominator = _mm512_add_ps(one, exp2_of(power, _mm512_add_ps(below_fraction(power), lost)));
    // Good for 14 bits, and one step of Newton's for twice as many.
    let y = _mm512_rcp14_ps(denominator);
    unload(_mm512_fmadd_ps(_mm512_fnmadd_ps(denominator, y, one), y, y))
}

/// What is left of x rounded down to a multiple of 1/32.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn below_fraction(x: __m512) -> __m512 {
    _mm512_reduce_ps::<{ 5 << 4 | _MM_FROUND_TO_NEG_INF }>(x)
}

/// `2^n · 2^(i/32) · p(r)`, n and i/32 the whole and the fractional part of x rounded down, r what is left, p of degree 2
/// with p(0) = 1, whose error is 6.6·10⁻⁸.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn exp2_of(x: __m512, r: __m512) -> __m512 {
    const DOWN: i32 = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
    // Five bits behind the point are what is left of a sum with it.
    const SHIFT: f32 = 393_216.0;
    const P: [f32; 2] = [2.426_557e-1, 6.931_236_5e-1];
    let fraction = _mm512_castps_si512(_mm512_add_round_ps::<DOWN>(x, _mm512_set1_ps(SHIFT)));
    let power = _mm512_permutex2var_ps(load(&POWERS[0]), fraction, load(&POWERS[1]));
    let p = _mm512_fmadd_ps(_mm512_set1_ps(P[0]), r, _mm512_set1_ps(P[1]));
    _mm512_scalef_ps(_mm512_fmadd_ps(_mm512_mul_ps(power, r), p, power), x)
}

/// 16 floats in a register.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn load(x: &[f32; LANES]) -> __m512 {
    // SAFETY: 16 floats.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

/// And back.
#[inline]
#[target_feature(enable = "avx512f")]
pub fn unload(x: __m512) -> [f32; LANES] {
    let mut to = [0.0; LANES];
    // SAFETY: 16 floats.
    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), x) };
    to
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tile::Level;

    #[target_feature(enable = "avx512f,avx512dq")]
    fn powers(x: &[f32; LANES]) -> [f32; LANES] {
        unload(exp2(load(x)))
    }

    /// The largest error in units of 2⁻²³ at every 97th float of both signs up to `largest`, denormals included.
    fn worst(largest: f32, got: impl Fn(&[f32; LANES]) -> [f32; LANES], want: impl Fn(f64) -> f64) -> f64 {
        let mut worst = 0.0f64;
        for bits in (0..largest.to_bits()).step_by(97 * LANES / 2) {
            let mut x = [0.0; LANES];
            for i in 0..LANES {
                let size = f32::from_bits(bits + 97 * u32::try_from(i / 2).unwrap()).min(largest);
                x[i] = if i % 2 == 0 { size } else { -size };
            }
            for (got, x) in got(&x).iter().zip(x) {
                let want = want(f64::from(x));
                let error = (f64::from(*got) - want).abs() / (want * f64::from(f32::EPSILON));
                assert!(error.is_finite(), "{x}: {got}");
                worst = worst.max(error);
            }
        }
        worst
    }

    #[test]
    fn exp2_is_within_its_bound() {
        if !Level::Avx512.is_available() {
            return;
        }
        // SAFETY: the processor has AVX-512.
        let powers = |x: &[f32; LANES]| unsafe { powers(x) };
        let worst = worst(126.0, powers, f64::exp2);
        assert!(worst <= 2.0, "{worst} of 2^-23");
        assert_eq!(powers(&[0.0; LANES]), [1.0; LANES]);
        assert_eq!(powers(&[-1.0e4; LANES]), [0.0; LANES]);
        assert_eq!(powers(&[f32::NEG_INFINITY; LANES]), [0.0; LANES]);
        assert!(powers(&[f32::NAN; LANES])[0].is_nan());
    }

    #[test]
    fn sigmoid_is_within_its_bound() {
        if !Level::Avx512.is_available() {
            return;
        }
        // SAFETY: the processor has AVX-512.
        let sigmoid = |x: &[f32; LANES]| unsafe { sigmoid(x) };
        let worst = worst(87.0, sigmoid, |x| 1.0 / (1.0 + (-x).exp()));
        assert!(worst <= 4.0, "{worst} of 2^-23");
        assert_eq!(sigmoid(&[0.0; LANES]), [0.5; LANES]);
        assert_eq!(sigmoid(&[f32::INFINITY; LANES]), [1.0; LANES]);
        assert!(sigmoid(&[f32::NEG_INFINITY; LANES])[0] < 2.0 * f32::MIN_POSITIVE);
        assert!(sigmoid(&[f32::NAN; LANES])[0].is_nan());
    }
}
