//! The longest loops over blocks for AVX-512: the compiler knows none of the instructions that make powers of two.

use super::{Lanes, Panels, Running, Statistics};
use crate::ops::math::avx512::{exp2, load, unload};
use crate::ops::tile::{Block, HALF, Line, SIDE};
use std::arch::x86_64::*;

/// See [`super::weigh`].
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

/// See [`super::gradients`].
#[target_feature(enable = "avx512f,avx512dq,avx512bw")]
pub fn gradients(scores: &Block, dp: &Block, factor: f32, statistics: &Statistics, panels: Panels<'_>) {
    let factor = _mm512_set1_ps(factor);
    let lse = [load(of(&statistics.lse, 0)), load(of(&statistics.lse, 1))];
    let delta = [load(of(&statistics.delta, 0)), load(of(&statistics.delta, 1))];
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
            store(&mut panels.p[key + odd], upper_halves(p[odd]));
            store(&mut panels.ds[key + odd], upper_halves(ds[odd]));
        }
        for half in 0..2 {
            store(&mut panels.ds_columns[half * HALF + key / 2], pairs(ds[0][half], ds[1][half]));
        }
    }
}

/// See [`super::round`].
#[inline]
#[target_feature(enable = "avx512f")]
fn round(x: __m512) -> __m512i {
    _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000))
}

/// See [`super::pair`].
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
fn store(line: &mut Line, x: __m512i) {
    // SAFETY: a line is 64 bytes, aligned to as many.
    unsafe { _mm512_store_si512((&raw mut *line).cast(), x) };
}
