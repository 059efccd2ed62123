//! Parts of panels in registers of eight lanes, a quarter of 16 × 16 at a time.

use super::{Coming, HALF, Line, Matrix, Packed};
use std::arch::x86_64::*;

/// Lanes of a register.
const LANES: usize = HALF / 2;

/// See [`super::pack`], for a part that lies inside the matrix.
#[target_feature(enable = "avx2")]
pub fn pack<T: Packed>(
    m: Matrix<'_, T>,
    paired: bool,
    [row, column]: [usize; 2],
    coming: Coming<T>,
    lines: &mut [Line; HALF],
) {
    for (p, line) in lines.iter_mut().enumerate() {
        coming.ask(p);
        for lane in [0, LANES] {
            let lanes = if paired && T::DEPTH > HALF {
                let even = m.stored(row + 2 * p, column + lane, LANES);
                let odd = m.stored(row + 2 * p + 1, column + lane, LANES);
                _mm256_or_si256(widen(even), _mm256_slli_epi32::<16>(widen(odd)))
            } else {
                let values = T::DEPTH / HALF;
                let from = m.stored(row + p, column + lane * values, LANES * values);
                debug_assert_eq!(size_of_val(from), 32);
                // SAFETY: a slice of 32 bytes.
                unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
            };
            store(lanes, line, lane);
        }
    }
    if m.transposed {
        transpose_lines(lines);
    }
}

/// See [`super::transpose`]: quarters on the diagonal stay, the other two change places.
#[target_feature(enable = "avx2")]
pub fn transpose_lines(lines: &mut [Line; HALF]) {
    for i in [0, LANES] {
        put(quarter(lines, i, i), lines, i, i);
    }
    let (right, below) = (quarter(lines, 0, LANES), quarter(lines, LANES, 0));
    put(right, lines, LANES, 0);
    put(below, lines, 0, LANES);
}

/// The transpose of 8 × 8 lanes: in halves of a register first, then the halves.
#[inline]
#[target_feature(enable = "avx2")]
fn quarter(lines: &[Line; HALF], row: usize, column: usize) -> [__m256i; LANES] {
    let zero = [_mm256_setzero_si256(); LANES];
    let (mut rows, mut pairs, mut quads, mut out) = (zero, zero, zero, zero);
    for (to, line) in rows.iter_mut().zip(&lines[row..]) {
        let lanes = &line.lanes()[column..][..LANES];
        // SAFETY: as many lanes.
        *to = unsafe { _mm256_loadu_si256(lanes.as_ptr().cast()) };
    }
    for i in (0..LANES).step_by(2) {
        pairs[i] = _mm256_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm256_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    for i in [0, 4] {
        quads[i] = _mm256_unpacklo_epi64(pairs[i], pairs[i + 2]);
        quads[i + 1] = _mm256_unpackhi_epi64(pairs[i], pairs[i + 2]);
        quads[i + 2] = _mm256_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
        quads[i + 3] = _mm256_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
    // quads[4g + j] holds, in half h, lane 4h + j of rows 4g..4g + 4.
    for j in 0..4 {
        out[j] = _mm256_permute2x128_si256::<0x20>(quads[j], quads[4 + j]);
        out[4 + j] = _mm256_permute2x128_si256::<0x31>(quads[j], quads[4 + j]);
    }
    out
}

#[inline]
#[target_feature(enable = "avx2")]
fn put(quarter: [__m256i; LANES], lines: &mut [Line; HALF], row: usize, column: usize) {
    for (from, line) in quarter.into_iter().zip(&mut lines[row..]) {
        store(from, line, column);
    }
}

/// Eight lanes of a line, from `lane` on.
#[inline]
#[target_feature(enable = "avx2")]
fn store(lanes: __m256i, line: &mut Line, lane: usize) {
    let line: &mut [u32; HALF] = bytemuck::cast_mut(line);
    let to = &mut line[lane..][..LANES];
    // SAFETY: as many lanes.
    unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), lanes) };
}

/// Eight values of two bytes as the lower halves of as many lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn widen<T: Packed>(x: &[T]) -> __m256i {
    debug_assert_eq!(size_of_val(x), 16);
    // SAFETY: a slice of eight values of two bytes.
    _mm256_cvtepu16_epi32(unsafe { _mm_loadu_si128(x.as_ptr().cast()) })
}
