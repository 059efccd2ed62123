//! Packing of row-major matrices into panels. What a panel has beyond the matrix is zero.
//!
//! Both kinds of panel come from either orientation in two moves on 16 lines: take rows as they are or, where a lane is a
//! pair, in interleaved pairs, then leave or transpose the 16 × 16 lanes.

use super::{HALF, Level, Line, Packed, SIDE};
use crate::ops::math::prefetch;
use std::ops::Range;

/// A matrix in a slice, row-major with `stride` elements from one row to the next, or the transpose of one.
#[derive(Clone, Copy)]
pub struct Matrix<'a, T> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    stride: usize,
    transposed: bool,
}

impl<'a, T: Packed> Matrix<'a, T> {
    /// Row-major with `stride` elements from one row to the next.
    ///
    /// # Panics
    /// If the last element lies outside `data`.
    pub fn strided(data: &'a [T], rows: usize, cols: usize, stride: usize) -> Self {
        let fits = rows == 0 || cols == 0 || (stride >= cols && (rows - 1) * stride + cols <= data.len());
        assert!(fits, "matrix of {rows}x{cols} outside its slice");
        Self { data, rows, cols, stride, transposed: false }
    }

    /// Row-major and contiguous.
    ///
    /// # Panics
    /// As [`Matrix::strided`].
    pub fn new(data: &'a [T], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// The transpose; nothing moves.
    pub fn t(self) -> Self {
        Self { transposed: !self.transposed, ..self }
    }

    /// Rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        if self.transposed { [self.cols, self.rows] } else { [self.rows, self.cols] }
    }

    /// Rows `range` of the matrix.
    pub fn rows(self, range: Range<usize>) -> Self {
        if self.transposed { self.t().columns(range).t() } else { self.stored_rows(range) }
    }

    /// Columns `range` of the matrix.
    pub fn columns(self, range: Range<usize>) -> Self {
        if self.transposed {
            return self.t().rows(range).t();
        }
        assert!(range.end <= self.cols, "columns {range:?} of {}", self.cols);
        let data = self.data.get(range.start..).unwrap_or(&[]);
        Self { data, cols: range.len(), ..self }
    }

    fn stored_rows(self, range: Range<usize>) -> Self {
        assert!(range.end <= self.rows, "rows {range:?} of {}", self.rows);
        let data = self.data.get(range.start * self.stride..).unwrap_or(&[]);
        Self { data, rows: range.len(), ..self }
    }

    /// Whether rows of the matrix lie across the rows of memory.
    pub fn is_transposed(&self) -> bool {
        self.transposed
    }

    /// `width` elements of row `row` in memory.
    #[inline(always)]
    fn stored(&self, row: usize, column: usize, width: usize) -> &'a [T] {
        &self.data[row * self.stride + column..][..width]
    }
}

/// Packs rows `first..first + 32` of `a`; `panel` holds [`Packed::panel_lines`] of its columns.
pub fn pack_rows<T: Packed>(level: Level, a: Matrix<'_, T>, first: usize, panel: &mut [Line]) {
    pack_all_rows(level, a, first, panel.len(), panel);
}

/// Packs rows from `first` on, one panel of `lines` lines after the other.
pub fn pack_all_rows<T: Packed>(
    level: Level,
    a: Matrix<'_, T>,
    first: usize,
    lines: usize,
    panels: &mut [Line],
) {
    let panel = |p| [first + p * SIDE, first + p * SIDE + HALF];
    // Activations, which follow each other row by row: what the processor fetches by itself is quicker.
    pack_panels(level, a, a.transposed, a.transposed, panel, lines, panels);
}

/// Packs two times 16 columns of `b`, which begin at `firsts`; `panel` holds [`Packed::panel_lines`] of its rows.
pub fn pack_columns<T: Packed>(level: Level, b: Matrix<'_, T>, firsts: [usize; 2], panel: &mut [Line]) {
    pack_all_columns(level, b, |_| firsts, panel.len(), panel);
}

/// Packs panels of columns, whose halves begin where `firsts` says.
pub fn pack_all_columns<T: Packed>(
    level: Level,
    b: Matrix<'_, T>,
    firsts: impl Fn(usize) -> [usize; 2],
    lines: usize,
    panels: &mut [Line],
) {
    pack_panels(level, b, !b.transposed, true, firsts, lines, panels);
}

/// Panels whose halves begin at `firsts` of the outer dimension, in the order in which memory has what they hold. `ask`: for
/// some of it together, before it is packed.
fn pack_panels<T: Packed>(
    level: Level,
    m: Matrix<'_, T>,
    paired: bool,
    ask: bool,
    firsts: impl Fn(usize) -> [usize; 2],
    lines: usize,
    panels: &mut [Line],
) {
    if lines == 0 {
        return;
    }
    let count = panels.len() / lines;
    if !paired {
        for (p, panel) in panels.chunks_exact_mut(lines).enumerate() {
            let firsts = firsts(p);
            if ask {
                for first in firsts {
                    bring(m, first..first + HALF, 0..lines / SIDE * T::DEPTH);
                }
            }
            for (i, lines) in panel.as_chunks_mut().0.iter_mut().enumerate() {
                pack(level, m, paired, firsts[i % 2], i / 2 * T::DEPTH, lines);
            }
        }
        return;
    }
    for step in 0..lines / SIDE {
        let inner = step * T::DEPTH;
        // One panel reads no more of a row than a line.
        if ask && count > 1 {
            bring(m, inner..inner + T::DEPTH, firsts(0)[0]..firsts(count - 1)[1] + HALF);
        }
        for p in 0..count {
            for (half, first) in firsts(p).into_iter().enumerate() {
                let lines = &mut panels[p * lines + step * SIDE + half * HALF..];
                pack(level, m, paired, first, inner, lines.first_chunk_mut().expect("half a step"));
            }
        }
    }
}

/// Asks for a part of memory's rows in the order in which they lie there, which the processor is quick to go on with.
#[inline]
fn bring<T: Packed>(m: Matrix<'_, T>, rows: Range<usize>, columns: Range<usize>) {
    let columns = columns.start..columns.end.min(m.cols);
    for row in rows.start..rows.end.min(m.rows) {
        let first = m.data.as_ptr().wrapping_add(row * m.stride);
        columns.clone().step_by(T::DEPTH).for_each(|column| prefetch(first.wrapping_add(column)));
    }
}

/// 16 of the outer by a step of the inner dimension. `paired`: the inner dimension runs down the rows of memory, so that
/// those of a lane are interleaved; a transposed matrix also has its lanes transposed.
fn pack<T: Packed>(
    level: Level,
    m: Matrix<'_, T>,
    paired: bool,
    outer: usize,
    inner: usize,
    lines: &mut [Line; HALF],
) {
    let (row, column, [rows, columns]) =
        if paired { (inner, outer, [T::DEPTH, HALF]) } else { (outer, inner, [HALF, T::DEPTH]) };
    let inside = row + rows <= m.rows && column + columns <= m.cols;
    #[cfg(target_arch = "x86_64")]
    if inside && level >= Level::Avx512 {
        // SAFETY: levels are made available ones only, and this one has AVX-512.
        return unsafe { registers::pack(m, paired, row, column, lines) };
    }
    let _ = level;
    let rows = if inside { rows } else { m.rows.saturating_sub(row).min(rows) };
    let columns = if inside { columns } else { m.cols.saturating_sub(column).min(columns) };
    *lines = [Line::ZERO; HALF];
    for r in 0..rows {
        let from = if columns == 0 { &[] } else { m.stored(row + r, column, columns) };
        if paired && T::DEPTH > HALF {
            let line: &mut [T] = bytemuck::cast_slice_mut(&mut lines[r / 2].0);
            from.iter().zip(line.iter_mut().skip(r % 2).step_by(2)).for_each(|(x, to)| *to = *x);
        } else {
            bytemuck::cast_slice_mut(&mut lines[r].0)[..columns].copy_from_slice(from);
        }
    }
    if m.transposed {
        transpose_lanes(lines);
    }
}

/// Transposes 16 × 16 elements of four bytes: pairs of bf16, or fp32.
pub fn transpose(level: Level, lines: &mut [Line; HALF]) {
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx512 {
        // SAFETY: levels are made available ones only, and this one has AVX-512.
        return unsafe { registers::transpose_lines(lines) };
    }
    let _ = level;
    transpose_lanes(lines);
}

fn transpose_lanes(lines: &mut [Line; HALF]) {
    let from = *lines;
    for (p, line) in lines.iter_mut().enumerate() {
        for (q, pair) in line.0.chunks_exact_mut(2).enumerate() {
            pair.copy_from_slice(&from[q].0[2 * p..][..2]);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod registers {
    use super::{HALF, Line, Matrix, Packed};
    use std::arch::x86_64::*;

    /// See [`super::pack`], for a part that lies inside the matrix.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub fn pack<T: Packed>(
        m: Matrix<'_, T>,
        paired: bool,
        row: usize,
        column: usize,
        lines: &mut [Line; HALF],
    ) {
        let mut tile = [_mm512_setzero_si512(); HALF];
        for (p, line) in tile.iter_mut().enumerate() {
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
}
