//! The longest loops over blocks of bf16 for AVX-512. The compiler knows no fractions, permutations by index and powers of two.

use super::{Lanes, Panels, Running, Statistics, whole};
use crate::ops::tile::{Block, HALF, Line, SIDE};
use std::arch::x86_64::*;

/// 2^(i/32).
#[rustfmt::skip]
#[allow(clippy::approx_constant, reason = "powers, of which one is the root of 2")]
const POWERS: [[f32; HALF]; 2] = [
    [
        1.0, 1.021_897_2, 1.044_273_7, 1.067_140_5, 1.090_507_7, 1.114_386_8, 1.138_788_6, 1.163_724_9,
        1.189_207_1, 1.215_247_4, 1.241_857_8, 1.269_051, 1.296_839_6, 1.325_236_7, 1.354_255_6, 1.383_91,
    ],
    [
        1.414_213_5, 1.445_180_8, 1.476_826_2, 1.509_164_5, 1.542_210_8, 1.575_980_9, 1.610_490_3, 1.645_755_5,
        1.681_792_9, 1.718_619_3, 1.756_252_2, 1.794_709_1, 1.834_008_1, 1.874_167_7, 1.915_206_6, 1.957_144_1,
    ],
];

/// `2^x = 2^n · 2^(i/32) · p(r)`, n and i/32 the whole and the fractional part of x rounded down, p of degree 2 with p(0) = 1,
/// whose error is 6.6·10⁻⁸. Relative error below 2·2⁻²³, 0 and infinity beyond what floats hold.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn exp2(x: __m512) -> __m512 {
    const DOWN: i32 = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
    // Five bits behind the point are what is left of a sum with it.
    const SHIFT: f32 = 393_216.0;
    const P: [f32; 2] = [2.426_557e-1, 6.931_236_5e-1];
    let fraction = _mm512_castps_si512(_mm512_add_round_ps::<DOWN>(x, _mm512_set1_ps(SHIFT)));
    let power = _mm512_permutex2var_ps(load(&POWERS[0]), fraction, load(&POWERS[1]));
    let r = _mm512_reduce_ps::<{ 5 << 4 | _MM_FROUND_TO_NEG_INF }>(x);
    let p = _mm512_fmadd_ps(_mm512_set1_ps(P[0]), r, _mm512_set1_ps(P[1]));
    _mm512_scalef_ps(_mm512_fmadd_ps(_mm512_mul_ps(power, r), p, power), x)
}

/// See [`super::Operand::weigh`].
#[target_feature(enable = "avx512f,avx512dq,avx512bw")]
pub fn weigh(scores: &Block, factor: f32, running: &mut Running, panel: &mut [Line; SIDE]) {
    let factor = _mm512_set1_ps(factor);
    for half in 0..2 {
        let (shift, mut total) = (load(of(&running.shift, half)), load(of(&running.total, half)));
        for p in 0..HALF {
            let even = exp2(_mm512_fmsub_ps(load(of(&scores.0[2 * p], half)), factor, shift));
            let odd = exp2(_mm512_fmsub_ps(load(of(&scores.0[2 * p + 1], half)), factor, shift));
            total = _mm512_add_ps(total, _mm512_add_ps(even, odd));
            store(&mut panel[half * HALF + p], pairs(round(even), round(odd)));
        }
        running.total.as_chunks_mut().0[half] = unload(total);
    }
}

/// See [`super::Operand::gradients`].
#[target_feature(enable = "avx512f,avx512dq,avx512bw")]
pub fn gradients(scores: &Block, dp: &Block, factor: f32, statistics: &Statistics, panels: Panels<'_>) {
    let factor = _mm512_set1_ps(factor);
    let lse = [load(of(&statistics.lse, 0)), load(of(&statistics.lse, 1))];
    let delta = [load(of(&statistics.delta, 0)), load(of(&statistics.delta, 1))];
    let [to_p, to_ds, to_columns] = [panels.p, panels.ds, panels.ds_columns].map(whole::<SIDE>);
    for key in (0..SIDE).step_by(2) {
        let zero = [_mm512_setzero_si512(); 2];
        let (mut p, mut ds) = ([zero; 2], [zero; 2]);
        for odd in 0..2 {
            for half in 0..2 {
                let score = load(of(&scores.0[key + odd], half));
                let probability = exp2(_mm512_fmsub_ps(score, factor, lse[half]));
                let dp = _mm512_sub_ps(load(of(&dp.0[key + odd], half)), delta[half]);
                p[odd][half] = round(probability);
                ds[odd][half] = round(_mm512_mul_ps(probability, dp));
            }
            store(&mut to_p[key + odd], upper_halves(p[odd]));
            store(&mut to_ds[key + odd], upper_halves(ds[odd]));
        }
        for half in 0..2 {
            store(&mut to_columns[half * HALF + key / 2], pairs(ds[0][half], ds[1][half]));
        }
    }
}

/// As `bf16::round`.
#[inline]
#[target_feature(enable = "avx512f")]
fn round(x: __m512) -> __m512i {
    _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000))
}

/// As `bf16::pair`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn pairs(even: __m512i, odd: __m512i) -> __m512i {
    _mm512_mask_blend_epi16(0xaaaa_aaaa, _mm512_srli_epi32::<16>(even), odd)
}

/// The upper halves of two times 16 lanes, side by side.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn upper_halves(lanes: [__m512i; 2]) -> __m512i {
    const ODD: [u16; SIDE] = {
        let mut at = [0; SIDE];
        let (mut i, mut odd) = (0, 1);
        while i < SIDE {
            (at[i], i, odd) = (odd, i + 1, odd + 2);
        }
        at
    };
    // SAFETY: 32 numbers of 16 bits.
    let odd = unsafe { _mm512_loadu_si512(ODD.as_ptr().cast()) };
    _mm512_permutex2var_epi16(lanes[0], odd, lanes[1])
}

#[inline(always)]
fn of(lanes: &Lanes, half: usize) -> &[f32; HALF] {
    &lanes.as_chunks().0[half]
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(x: &[f32; HALF]) -> __m512 {
    // SAFETY: 16 floats.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn unload(x: __m512) -> [f32; HALF] {
    let mut to = [0.0; HALF];
    // SAFETY: 16 floats.
    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), x) };
    to
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(line: &mut Line, x: __m512i) {
    // SAFETY: a line is 64 bytes, aligned to as many.
    unsafe { _mm512_store_si512((&raw mut *line).cast(), x) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tile::Level;

    fn powers(x: &[f32; HALF]) -> [f32; HALF] {
        assert!(Level::Avx512.is_available());
        #[target_feature(enable = "avx512f,avx512dq")]
        fn all(x: &[f32; HALF]) -> [f32; HALF] {
            unload(exp2(load(x)))
        }
        // SAFETY: the processor has AVX-512 (asserted).
        unsafe { all(x) }
    }

    /// Every 97th float of both signs up to 126, denormals included; and the ends.
    #[test]
    fn exp2_is_within_its_bound() {
        if !Level::Avx512.is_available() {
            return;
        }
        let mut worst = 0.0f64;
        for bits in (0..126.0f32.to_bits()).step_by(97 * HALF / 2) {
            let mut x = [0.0; HALF];
            for i in 0..HALF {
                let size = f32::from_bits(bits + 97 * u32::try_from(i / 2).unwrap());
                x[i] = if i % 2 == 0 { size } else { -size };
            }
            for (got, x) in powers(&x).iter().zip(x) {
                let want = f64::from(x).exp2();
                let error = (f64::from(*got) - want).abs() / (want * f64::from(f32::EPSILON));
                assert!(error.is_finite(), "{x}: {got}");
                worst = worst.max(error);
            }
        }
        assert!(worst <= 2.0, "{worst} of 2^-23");
        assert_eq!(powers(&[0.0; HALF]), [1.0; HALF]);
        assert_eq!(powers(&[-1.0e4; HALF]), [0.0; HALF]);
        assert_eq!(powers(&[f32::NEG_INFINITY; HALF]), [0.0; HALF]);
        assert!(powers(&[f32::NAN; HALF])[0].is_nan());
    }
}
