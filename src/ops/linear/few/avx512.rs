//! Rows of a weight times a vector on AVX-512: the sums of [`dot`](crate::ops::math::dot) and of
//! [`dot_q8_0`](crate::ops::math::dot_q8_0) in their order, so in the same bits. The compiler took those loops apart into
//! scalars in some places, for a third of the bandwidth.

use crate::dtype::Q8_0;
use crate::ops::math::{LANES, finish, halve};
use crate::ops::tile::HALF;
use half::bf16;
use std::arch::x86_64::*;

/// How far ahead of its use memory is asked for. In reach of the processor's own prefetching, which stops at pages of
/// 4 KiB; 1 to 4 KiB gave the same within noise, 8 KiB a tenth less in fp32.
const AHEAD: usize = 1 << 11;

/// Sums of 32 products, by their place among 32.
type Lanes = [__m512; 2];

/// Asks for the line that lies [`AHEAD`] of `at`, whether or not it is part of the weight.
#[inline]
#[target_feature(enable = "avx512f")]
fn prefetch<T>(at: *const T) {
    _mm_prefetch::<_MM_HINT_T0>(at.wrapping_byte_add(AHEAD).cast());
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(x: &[f32; LANES]) -> __m512 {
    // SAFETY: 16 floats.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn widen(w: &[bf16; LANES]) -> __m512 {
    // SAFETY: 32 bytes.
    let bits = unsafe { _mm256_loadu_si256(w.as_ptr().cast()) };
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn floats(codes: &[i8; LANES]) -> __m512 {
    // SAFETY: 16 bytes.
    _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(unsafe { _mm_loadu_si128(codes.as_ptr().cast()) }))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(lanes: __m512, to: &mut [f32; LANES]) {
    // SAFETY: 16 floats.
    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), lanes) };
}

/// The lanes as [`finish`] takes them.
#[inline]
#[target_feature(enable = "avx512f")]
fn stored(lanes: Lanes) -> [f32; 2 * LANES] {
    let mut sums = [0.0; 2 * LANES];
    let halves = sums.as_chunks_mut::<LANES>().0;
    store(lanes[0], &mut halves[0]);
    store(lanes[1], &mut halves[1]);
    sums
}

/// `lanes + w·x`, rounded twice.
#[inline]
#[target_feature(enable = "avx512f")]
fn add(lanes: Lanes, w: Lanes, x: &[f32; 2 * LANES]) -> Lanes {
    let x = x.as_chunks::<LANES>().0;
    [
        _mm512_add_ps(lanes[0], _mm512_mul_ps(w[0], load(&x[0]))),
        _mm512_add_ps(lanes[1], _mm512_mul_ps(w[1], load(&x[1]))),
    ]
}

/// Sums of as many rows of `w`, of the length of `x`, as there are.
#[target_feature(enable = "avx512f")]
pub fn dots_f32(w: &[f32], x: &[f32], sums: &mut [f32; HALF]) {
    for (sum, w) in sums.iter_mut().zip(w.chunks_exact(x.len())) {
        let ((w, w_rest), (x, x_rest)) = (w.as_chunks::<{ 2 * LANES }>(), x.as_chunks::<{ 2 * LANES }>());
        let mut lanes = [_mm512_setzero_ps(); 2];
        for (w, x) in w.iter().zip(x) {
            let halves = w.as_chunks::<LANES>().0;
            prefetch(&halves[0]);
            prefetch(&halves[1]);
            lanes = add(lanes, [load(&halves[0]), load(&halves[1])], x);
        }
        *sum = finish(stored(lanes), w_rest, x_rest);
    }
}

/// As [`dots_f32`].
#[target_feature(enable = "avx512f")]
pub fn dots_bf16(w: &[bf16], x: &[f32], sums: &mut [f32; HALF]) {
    for (sum, w) in sums.iter_mut().zip(w.chunks_exact(x.len())) {
        let ((w, w_rest), (x, x_rest)) = (w.as_chunks::<{ 2 * LANES }>(), x.as_chunks::<{ 2 * LANES }>());
        let mut lanes = [_mm512_setzero_ps(); 2];
        for (w, x) in w.iter().zip(x) {
            prefetch(w);
            let halves = w.as_chunks::<LANES>().0;
            lanes = add(lanes, [widen(&halves[0]), widen(&halves[1])], x);
        }
        *sum = finish(stored(lanes), w_rest, x_rest);
    }
}

/// As [`dots_f32`].
#[target_feature(enable = "avx512f")]
pub fn dots_q8_0(w: &[Q8_0], x: &[f32], sums: &mut [f32; HALF]) {
    let x = x.as_chunks::<{ Q8_0::LEN }>().0;
    for (sum, w) in sums.iter_mut().zip(w.chunks_exact(x.len())) {
        let mut lanes = _mm512_setzero_ps();
        for (w, x) in w.iter().zip(x) {
            prefetch(w);
            let (codes, x) = (w.codes.as_chunks::<LANES>().0, x.as_chunks::<LANES>().0);
            let first = _mm512_mul_ps(floats(&codes[0]), load(&x[0]));
            let second = _mm512_mul_ps(floats(&codes[1]), load(&x[1]));
            let scale = _mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(w.scale.to_bits())));
            let products = _mm512_add_ps(first, second);
            lanes = _mm512_add_ps(lanes, _mm512_mul_ps(_mm512_broadcastss_ps(scale), products));
        }
        let mut sums = [0.0; LANES];
        store(lanes, &mut sums);
        *sum = halve(sums);
    }
}
