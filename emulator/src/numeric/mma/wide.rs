//! The arithmetic of [`super::plain`] in AVX-512, for f16 and bf16 with f32 accumulators. A vector is a column of 16
//! outputs.

use super::{Element, FRACTION_BITS, Float, Row};
use std::arch::x86_64::*;

/// Added to exponents: f32's own bias. Those of products are biased once, by A's.
const BIAS: i32 = 127;
/// Exponent of a zero in A or B: below all others, in sums too.
const ZERO: i16 = -8192;
/// A maximum below this comes from zeros only.
const ONLY_ZEROS: i32 = -4000;
/// The largest biased exponents of a step for which the powers of two and the products are normal.
const LOWEST: i32 = BIAS - 100;
const HIGHEST: i32 = BIAS + 126;

/// One step's A: eight columns of 16 rows, and the exponents of two columns each in the halves of a word.
struct A {
    value: [__m512; 8],
    exponent: [__m512i; 4],
}

/// One step's B by lane (`4n + t`): elements 2t and 2t + 1 of column n, and both exponents.
#[repr(align(64))]
struct B {
    even: [f32; 32],
    odd: [f32; 32],
    exponent: [i32; 32],
}

/// All outputs; false if a value needs the reference, and then `d` is unspecified.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub fn run(mma: &Float, d: &mut [Row], a: &[&Row], b: &[&Row], c: &[&Row]) -> bool {
    match mma.element {
        Element::Bf16 => run_steps::<true>(mma.steps, d, a, b, c),
        _ => run_steps::<false>(mma.steps, d, a, b, c),
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn run_steps<const BF16: bool>(steps: usize, d: &mut [Row], a: &[&Row], b: &[&Row], c: &[&Row]) -> bool {
    let (even, odd) = (columns(c[0], c[2]), columns(c[1], c[3]));
    let mut out = [even[0], odd[0], even[1], odd[1], even[2], odd[2], even[3], odd[3]];
    let mut special = 0;
    let mut range = Range { bad: 0, largest: _mm512_setzero_si512() };
    for step in 0..steps {
        let a = load_a::<BF16>(a[2 * step], a[2 * step + 1], &mut special);
        let b = load_b::<BF16>(b[step], &mut special);
        for (n, c) in out.iter_mut().enumerate() {
            *c = fused_dot_add(&a, &b, n, *c, &mut range);
        }
    }
    let high = _mm512_cmpgt_epi32_mask(range.largest, _mm512_set1_epi32(HIGHEST));
    let (first, second) = d.split_at_mut(2);
    let [d0, d1] = first else { return false };
    let [d2, d3] = second else { return false };
    rows([out[0], out[2], out[4], out[6]], d0, d2);
    rows([out[1], out[3], out[5], out[7]], d1, d3);
    special == 0 && range.bad == 0 && high == 0
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(row: &Row, half: usize) -> __m512i {
    let half = &row[16 * half..16 * half + 16];
    // SAFETY: the slice has 16 words.
    unsafe { _mm512_loadu_si512(half.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(row: &mut Row, half: usize, words: __m512i) {
    let half = &mut row[16 * half..16 * half + 16];
    // SAFETY: the slice has 16 words.
    unsafe { _mm512_storeu_si512(half.as_mut_ptr().cast(), words) }
}

/// Column t of rows 0 to 7 (lanes 4g + t of one register) and 8 to 15 (of the other).
#[inline]
#[target_feature(enable = "avx512f")]
fn columns(upper: &Row, lower: &Row) -> [__m512i; 4] {
    let first = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
    let second = _mm512_add_epi32(first, _mm512_set1_epi32(2));
    let (u0, u1) = (load(upper, 0), load(upper, 1));
    let (l0, l1) = (load(lower, 0), load(lower, 1));
    let (u01, u23) = (_mm512_permutex2var_epi32(u0, first, u1), _mm512_permutex2var_epi32(u0, second, u1));
    let (l01, l23) = (_mm512_permutex2var_epi32(l0, first, l1), _mm512_permutex2var_epi32(l0, second, l1));
    [
        _mm512_shuffle_i64x2(u01, l01, 0x44),
        _mm512_shuffle_i64x2(u01, l01, 0xee),
        _mm512_shuffle_i64x2(u23, l23, 0x44),
        _mm512_shuffle_i64x2(u23, l23, 0xee),
    ]
}

/// The inverse of [`columns`].
#[inline]
#[target_feature(enable = "avx512f")]
fn rows(column: [__m512i; 4], upper: &mut Row, lower: &mut Row) {
    let first = _mm512_setr_epi32(0, 8, 16, 24, 1, 9, 17, 25, 2, 10, 18, 26, 3, 11, 19, 27);
    let second = _mm512_add_epi32(first, _mm512_set1_epi32(4));
    let u01 = _mm512_shuffle_i64x2(column[0], column[1], 0x44);
    let u23 = _mm512_shuffle_i64x2(column[2], column[3], 0x44);
    let l01 = _mm512_shuffle_i64x2(column[0], column[1], 0xee);
    let l23 = _mm512_shuffle_i64x2(column[2], column[3], 0xee);
    store(upper, 0, _mm512_permutex2var_epi32(u01, first, u23));
    store(upper, 1, _mm512_permutex2var_epi32(u01, second, u23));
    store(lower, 0, _mm512_permutex2var_epi32(l01, first, l23));
    store(lower, 1, _mm512_permutex2var_epi32(l01, second, l23));
}

/// The two elements of each word in f32.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn widened<const BF16: bool>(pairs: __m512i) -> [__m512; 2] {
    if BF16 {
        let odd = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000u32 as i32));
        return [_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)), _mm512_castsi512_ps(odd)];
    }
    let even = _mm512_cvtepi32_epi16(pairs);
    let odd = _mm512_cvtepi32_epi16(_mm512_srli_epi32(pairs, 16));
    [_mm512_cvtph_ps(even), _mm512_cvtph_ps(odd)]
}

/// The exponents of both elements of each word, plus `bias`; notes infinities and NaN.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn exponents<const BF16: bool>(pairs: __m512i, bias: i16, special: &mut u32) -> __m512i {
    let (field_mask, own_bias) = if BF16 { (0xff, 127) } else { (0x1f, 15) };
    let mask = _mm512_set1_epi16(field_mask);
    let shifted = if BF16 { _mm512_srli_epi16::<7>(pairs) } else { _mm512_srli_epi16::<10>(pairs) };
    let field = _mm512_and_si512(shifted, mask);
    *special |= _mm512_cmpeq_epi16_mask(field, mask);
    let normal = _mm512_max_epi16(field, _mm512_set1_epi16(1));
    let exponent = _mm512_add_epi16(normal, _mm512_set1_epi16(bias - own_bias));
    let nonzero = _mm512_test_epi16_mask(pairs, _mm512_set1_epi16(0x7fff));
    _mm512_mask_mov_epi16(_mm512_set1_epi16(ZERO), nonzero, exponent)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load_a<const BF16: bool>(upper: &Row, lower: &Row, special: &mut u32) -> A {
    let pairs = columns(upper, lower);
    let [v0, v1] = widened::<BF16>(pairs[0]);
    let [v2, v3] = widened::<BF16>(pairs[1]);
    let [v4, v5] = widened::<BF16>(pairs[2]);
    let [v6, v7] = widened::<BF16>(pairs[3]);
    let mut exponent = pairs;
    for pair in &mut exponent {
        *pair = exponents::<BF16>(*pair, BIAS as i16, special);
    }
    A { value: [v0, v1, v2, v3, v4, v5, v6, v7], exponent }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load_b<const BF16: bool>(row: &Row, special: &mut u32) -> B {
    let mut b = B { even: [0.0; 32], odd: [0.0; 32], exponent: [0; 32] };
    for half in 0..2 {
        let pairs = load(row, half);
        let [even, odd] = widened::<BF16>(pairs);
        let exponent = exponents::<BF16>(pairs, 0, special);
        let range = 16 * half..16 * half + 16;
        // SAFETY: 16 elements.
        unsafe { _mm512_storeu_ps(b.even[range.clone()].as_mut_ptr(), even) };
        // SAFETY: 16 elements.
        unsafe { _mm512_storeu_ps(b.odd[range.clone()].as_mut_ptr(), odd) };
        // SAFETY: 16 elements.
        unsafe { _mm512_storeu_si512(b.exponent[range].as_mut_ptr().cast(), exponent) };
    }
    b
}

/// Whether the exponents of all steps were in range.
struct Range {
    /// Lanes that were below it.
    bad: u16,
    /// The largest one of each lane.
    largest: __m512i,
}

/// A column of a step.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
fn fused_dot_add(a: &A, b: &B, n: usize, c: __m512i, range: &mut Range) -> __m512i {
    // The largest exponent: of the products in both halves of words, then in words, with c's (its field).
    let sum = |t: usize| _mm512_add_epi16(a.exponent[t], _mm512_set1_epi32(b.exponent[4 * n + t]));
    let both = _mm512_max_epi16(_mm512_max_epi16(sum(0), sum(1)), _mm512_max_epi16(sum(2), sum(3)));
    let even = _mm512_srai_epi32(_mm512_slli_epi32(both, 16), 16);
    let products = _mm512_max_epi32(even, _mm512_srai_epi32(both, 16));
    let c_magnitude = _mm512_slli_epi32(c, 1);
    let largest = _mm512_max_epi32(products, _mm512_srli_epi32(c_magnitude, 24));
    range.largest = _mm512_max_epi32(range.largest, largest);
    let lowest = _mm512_set1_epi32(LOWEST);
    let low = _mm512_cmplt_epi32_mask(largest, lowest);
    if low != 0 {
        let nonzero = _mm512_cmpgt_epi32_mask(products, _mm512_set1_epi32(ONLY_ZEROS))
            | _mm512_test_epi32_mask(c_magnitude, c_magnitude);
        range.bad |= low & nonzero;
    }
    let exponent = _mm512_max_epi32(largest, lowest);
    let up = _mm512_slli_epi32(_mm512_sub_epi32(_mm512_set1_epi32(2 * BIAS + FRACTION_BITS), exponent), 23);
    let down = _mm512_sub_epi32(_mm512_set1_epi32((2 * BIAS) << 23), up);
    let up = _mm512_castsi512_ps(up);
    let mut sum = _mm512_cvttps_epi32(_mm512_mul_ps(_mm512_castsi512_ps(c), up));
    for t in 0..4 {
        for (i, b) in [b.even[4 * n + t], b.odd[4 * n + t]].into_iter().enumerate() {
            let product = _mm512_mul_ps(a.value[2 * t + i], _mm512_set1_ps(b));
            sum = _mm512_add_epi32(sum, _mm512_cvttps_epi32(_mm512_mul_ps(product, up)));
        }
    }
    let rounded = _mm512_cvt_roundepi32_ps::<{ _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC }>(sum);
    _mm512_castps_si512(_mm512_mul_ps(rounded, _mm512_castsi512_ps(down)))
}
