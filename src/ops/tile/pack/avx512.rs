//! Parts of panels in 16 registers of 16 lanes.

use super::{Coming, HALF, Line, Matrix, Packed};
use std::arch::x86_64::*;

/// See [`super::pack`], for a part that lies inside the matrix.
#[target_feature(enable = "avx512f,avx512bw")]
pub fn pack<T: Packed>(
    m: Matrix<'_, T>,
    paired: bool,
    [row, column]: [usize; 2],
    coming: Coming<T>,
    lines: &mut [Line; HALF],
) {
    let mut tile = [_mm512_setzero_si512(); HALF];
    for (p, line) in tile.iter_mut().enumerate() {
        coming.ask(p);
        *line = if paired && T::DEPTH > HALF {
            let even = m.stored(row + 2 * p, column, HALF);
            let odd = m.stored(row + 2 * p + 1, column, HALF);
            _mm512_or_si512(widen(even), _mm512_slli_epi32::<16>(widen(odd)))
        } else {
            let from = m.stored(row + p, column, T::DEPTH);
            // SAFETY: a slice of 64 bytes.
            unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
        };
    }
    if m.transposed {
        tile = transpose(tile);
    }
    for (line, from) in lines.iter_mut().zip(tile) {
        // SAFETY: a line is 64 bytes, aligned to as many.
        unsafe { _mm512_store_si512((&raw mut *line).cast(), from) };
    }
}

/// See [`super::transpose`].
#[target_feature(enable = "avx512f,avx512bw")]
pub fn transpose_lines(lines: &mut [Line; HALF]) {
    let mut tile = [_mm512_setzero_si512(); HALF];
    for (to, line) in tile.iter_mut().zip(&*lines) {
        // SAFETY: a line is 64 bytes, aligned to as many.
        *to = unsafe { _mm512_load_si512((&raw const *line).cast()) };
    }
    for (line, from) in lines.iter_mut().zip(transpose(tile)) {
        // SAFETY: as above.
        unsafe { _mm512_store_si512((&raw mut *line).cast(), from) };
    }
}

/// 16 values of two bytes as the lower halves of 16 lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn widen<T: Packed>(x: &[T]) -> __m512i {
    debug_assert_eq!(size_of_val(x), 32);
    // SAFETY: a slice of 16 values of two bytes.
    _mm512_cvtepu16_epi32(unsafe { _mm256_loadu_si256(x.as_ptr().cast()) })
}

/// Transposes 16 × 16 lanes: within quarters of a register first, then the quarters.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn transpose(rows: [__m512i; HALF]) -> [__m512i; HALF] {
    let zero = [_mm512_setzero_si512(); HALF];
    let (mut pairs, mut quads) = (zero, zero);
    for i in (0..HALF).step_by(2) {
        pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    for i in (0..HALF).step_by(4) {
        quads[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
        quads[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
        quads[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
        quads[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
    // quads[4g + j] holds, in quarter q, lane 4q + j of rows 4g..4g + 4.
    let mut out = zero;
    for j in 0..4 {
        let [a, b, c, d] = [quads[j], quads[4 + j], quads[8 + j], quads[12 + j]];
        let (ab, ab_high) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
        let (cd, cd_high) = (_mm512_shuffle_i32x4::<0x88>(c, d), _mm512_shuffle_i32x4::<0xdd>(c, d));
        out[j] = _mm512_shuffle_i32x4::<0x88>(ab, cd);
        out[8 + j] = _mm512_shuffle_i32x4::<0xdd>(ab, cd);
        out[4 + j] = _mm512_shuffle_i32x4::<0x88>(ab_high, cd_high);
        out[12 + j] = _mm512_shuffle_i32x4::<0xdd>(ab_high, cd_high);
    }
    out
}
