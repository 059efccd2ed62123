//! Rows of a weight times a vector on AVX-512: the sums of [`dot`](crate::ops::math::dot) and of
//! [`dot_q8_0`](crate::ops::math::dot_q8_0) in their order, so in the same bits. What the compiler makes of those loops for
//! AVX-512 took 1.4 times as long over a bf16 model, and three times over one in blocks.

use super::prefetch;
use crate::dtype::{Element, Q8_0};
use crate::ops::math::{LANES, finish};
use crate::ops::tile::{HALF, SIDE};
use half::bf16;
use std::arch::x86_64::*;

/// Sums of 32 products, by their place among 32.
type Lanes = [__m512; 2];

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

/// The first 16 of 32.
#[inline(always)]
fn first<T>(of: &[T; 2 * LANES]) -> &[T; LANES] {
    &of.as_chunks().0[0]
}

/// The last 16 of 32.
#[inline(always)]
fn second<T>(of: &[T; 2 * LANES]) -> &[T; LANES] {
    &of.as_chunks().0[1]
}

/// As [`halve`](crate::ops::math::halve).
#[inline]
#[target_feature(enable = "avx512f")]
fn halve(lanes: __m512) -> f32 {
    let upper = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(lanes)));
    let eight = _mm256_add_ps(_mm512_castps512_ps256(lanes), upper);
    let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

/// As [`finish`].
#[inline]
#[target_feature(enable = "avx512f")]
fn end<E: Element>(lanes: Lanes, w: &[E], x: &[f32]) -> f32 {
    if w.is_empty() {
        return halve(_mm512_add_ps(lanes[0], lanes[1]));
    }
    let mut sums = [0.0; 2 * LANES];
    // SAFETY: the first 16 of 32 floats.
    unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), lanes[0]) };
    // SAFETY: the last 16.
    unsafe { _mm512_storeu_ps(sums[LANES..].as_mut_ptr(), lanes[1]) };
    finish(sums, w, x)
}

/// `lanes + w·x`, rounded twice.
#[inline]
#[target_feature(enable = "avx512f")]
fn add(lanes: __m512, w: __m512, x: &[f32; LANES]) -> __m512 {
    _mm512_add_ps(lanes, _mm512_mul_ps(w, load(x)))
}

/// `w·x` for one row.
#[inline]
#[target_feature(enable = "avx512f")]
fn dot_f32(w: &[f32], x: &[f32]) -> f32 {
    let ((w, w_rest), (x, x_rest)) = (w.as_chunks::<{ 2 * LANES }>(), x.as_chunks::<{ 2 * LANES }>());
    let (mut lanes, mut i, n) = ([_mm512_setzero_ps(); 2], 0, w.len().min(x.len()));
    while i < n {
        prefetch(&raw const w[i], size_of_val(&w[i]));
        lanes[0] = add(lanes[0], load(first(&w[i])), first(&x[i]));
        lanes[1] = add(lanes[1], load(second(&w[i])), second(&x[i]));
        i += 1;
    }
    end(lanes, w_rest, x_rest)
}

/// As [`dot_f32`].
#[inline]
#[target_feature(enable = "avx512f")]
fn dot_bf16(w: &[bf16], x: &[f32]) -> f32 {
    let ((w, w_rest), (x, x_rest)) = (w.as_chunks::<{ 2 * LANES }>(), x.as_chunks::<{ 2 * LANES }>());
    let (mut lanes, mut i, n) = ([_mm512_setzero_ps(); 2], 0, w.len().min(x.len()));
    while i < n {
        prefetch(&raw const w[i], size_of_val(&w[i]));
        lanes[0] = add(lanes[0], widen(first(&w[i])), first(&x[i]));
        lanes[1] = add(lanes[1], widen(second(&w[i])), second(&x[i]));
        i += 1;
    }
    end(lanes, w_rest, x_rest)
}

/// As [`dot_f32`].
#[inline]
#[target_feature(enable = "avx512f")]
fn dot_q8_0(w: &[Q8_0], x: &[f32]) -> f32 {
    let x = x.as_chunks::<{ Q8_0::LEN }>().0;
    let (mut lanes, mut i, n) = (_mm512_setzero_ps(), 0, w.len().min(x.len()));
    while i < n {
        prefetch(&raw const w[i], size_of_val(&w[i]));
        let low = _mm512_mul_ps(floats(first(&w[i].codes)), load(first(&x[i])));
        let high = _mm512_mul_ps(floats(second(&w[i].codes)), load(second(&x[i])));
        let scale = _mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(w[i].scale.to_bits())));
        lanes = _mm512_add_ps(lanes, _mm512_mul_ps(_mm512_broadcastss_ps(scale), _mm512_add_ps(low, high)));
        i += 1;
    }
    halve(lanes)
}

/// A function that takes as many rows of `w` as there are, each as long as `x` (in blocks: `x.len() / 32`).
macro_rules! rows {
    ($name:ident, $dot:ident, $element:ty, $per:expr) => {
        /// `sums[i] = w[i]·x` for as many rows of `w`, as long as `x`, as there are.
        #[target_feature(enable = "avx512f")]
        pub fn $name(w: &[$element], x: &[f32], sums: &mut [f32; HALF]) {
            let (length, mut i) = (x.len() / $per, 0);
            while i < HALF && (i + 1) * length <= w.len() {
                sums[i] = $dot(&w[i * length..(i + 1) * length], x);
                i += 1;
            }
        }
    };
}

rows!(dots_f32, dot_f32, f32, 1);
rows!(dots_bf16, dot_bf16, bf16, 1);
rows!(dots_q8_0, dot_q8_0, Q8_0, Q8_0::LEN);

/// Rows of `x` that what is loaded of a weight serves: their sums and the weight fit into registers.
const TOGETHER: usize = 4;

/// `lanes + w·x`, each product and each sum rounded.
#[inline]
#[target_feature(enable = "avx512f")]
fn add_all(lanes: Lanes, w: Lanes, x: &[f32; 2 * LANES]) -> Lanes {
    [add(lanes[0], w[0], first(x)), add(lanes[1], w[1], second(x))]
}

#[inline(always)]
fn row(x: &[f32], inputs: usize, t: usize) -> &[f32] {
    &x[t * inputs..][..inputs]
}

/// A function that multiplies with several rows of `x`: of each the sums of `$dot`, in its order.
macro_rules! several {
    ($name:ident, $together:ident, $dot:ident, $element:ty, $wide:ident) => {
        /// As `$dot`, of four rows. No closure: one would have no AVX-512, and what is called around it would not be
        /// compiled into this.
        #[inline]
        #[target_feature(enable = "avx512f")]
        fn $together(w: &[$element], [a, b, c, d]: [&[f32]; TOGETHER]) -> [f32; TOGETHER] {
            let (w, w_rest) = w.as_chunks::<{ 2 * LANES }>();
            let ((a, a_rest), (b, b_rest)) = (a.as_chunks(), b.as_chunks());
            let ((c, c_rest), (d, d_rest)) = (c.as_chunks(), d.as_chunks());
            let (mut lanes, mut i, n) = ([[_mm512_setzero_ps(); 2]; TOGETHER], 0, w.len());
            let (a, b, c, d) = (&a[..n], &b[..n], &c[..n], &d[..n]);
            while i < n {
                prefetch(&raw const w[i], size_of_val(&w[i]));
                let wide = [$wide(first(&w[i])), $wide(second(&w[i]))];
                lanes[0] = add_all(lanes[0], wide, &a[i]);
                lanes[1] = add_all(lanes[1], wide, &b[i]);
                lanes[2] = add_all(lanes[2], wide, &c[i]);
                lanes[3] = add_all(lanes[3], wide, &d[i]);
                i += 1;
            }
            let [p, q, r, s] = lanes;
            [end(p, w_rest, a_rest), end(q, w_rest, b_rest), end(r, w_rest, c_rest), end(s, w_rest, d_rest)]
        }

        /// `lines[t][first + i] = w[i]·x[t]` for as many rows of `w` and of `x`, of `inputs` elements, as there are.
        #[target_feature(enable = "avx512f")]
        pub fn $name(w: &[$element], x: &[f32], inputs: usize, lines: &mut [[f32; SIDE]], first: usize) {
            for (i, w) in w.chunks_exact(inputs).enumerate() {
                for (x, lines) in x.chunks(TOGETHER * inputs).zip(lines.chunks_mut(TOGETHER)) {
                    let last = lines.len() - 1;
                    if last == 0 {
                        lines[0][first + i] = $dot(w, x);
                        continue;
                    }
                    // Where there are less than four, the last stands in.
                    let [a, b, c, d] = [0, 1, 2.min(last), 3.min(last)];
                    let x = [row(x, inputs, a), row(x, inputs, b), row(x, inputs, c), row(x, inputs, d)];
                    let sums = $together(w, x);
                    let mut t = 0;
                    while t <= last {
                        lines[t][first + i] = sums[t];
                        t += 1;
                    }
                }
            }
        }
    };
}

several!(rows_f32, four_f32, dot_f32, f32, load);
several!(rows_bf16, four_bf16, dot_bf16, bf16, widen);
