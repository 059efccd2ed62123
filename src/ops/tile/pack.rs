//! Packing of row-major matrices into panels. What a panel has beyond the matrix is zero.
//!
//! Both kinds of panel come from either orientation in two moves on 16 lines: take rows as they are or, where a lane is a
//! pair, in interleaved pairs, then leave or transpose the 16 × 16 lanes.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

use super::{HALF, Level, Line, Packed, SIDE};
use crate::ops::math::prefetch_to_l2;
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

    /// What memory has from the first to the last element of some rows of the matrix, and its stride, if it has them row by
    /// row and all of them.
    pub fn stored_rows_of(self, range: Range<usize>) -> Option<(&'a [T], usize)> {
        if self.transposed || range.is_empty() || range.end > self.rows {
            return None;
        }
        Some((
            &self.data[range.start * self.stride..][..(range.len() - 1) * self.stride + self.cols],
            self.stride,
        ))
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

    /// Where an element of a row of memory is, or would be.
    #[inline(always)]
    fn address(&self, row: usize, column: usize) -> *const T {
        self.data.as_ptr().wrapping_add(row * self.stride + column)
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
    pack_panels(level, a, a.transposed, panel, lines, panels);
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
    pack_panels(level, b, !b.transposed, firsts, lines, panels);
}

/// Panels whose halves begin at `firsts` of the outer dimension, in the order in which memory has what they hold.
fn pack_panels<T: Packed>(
    level: Level,
    m: Matrix<'_, T>,
    paired: bool,
    firsts: impl Fn(usize) -> [usize; 2],
    lines: usize,
    panels: &mut [Line],
) {
    if lines == 0 {
        return;
    }
    let count = panels.len() / lines;
    let steps = lines / SIDE;
    if !paired {
        let mut halves = (0..count).flat_map(&firsts).peekable();
        for i in 0..2 * count {
            let first = halves.next().expect("two of each panel");
            let next = halves.peek().copied().unwrap_or(first);
            for step in 0..steps {
                let inner = step * T::DEPTH;
                let coming = Coming { first: m.address(next, inner), apart: m.stride };
                let lines = &mut panels[i / 2 * lines + step * SIDE + i % 2 * HALF..];
                pack(level, m, paired, first, inner, coming, lines.first_chunk_mut().expect("half a step"));
            }
        }
        return;
    }
    // Rows of memory that a line holds. Of pairs, adjoining halves read the same lines: each asks for every other row.
    let rows = T::DEPTH / HALF;
    for step in 0..steps {
        let inner = step * T::DEPTH;
        let next = (step + 1).min(steps - 1) * T::DEPTH;
        for p in 0..count {
            let halves = firsts(p);
            for (half, first) in halves.into_iter().enumerate() {
                let row = half % rows;
                let coming =
                    Coming { first: m.address(next + row, halves[half - row]), apart: rows * m.stride };
                let lines = &mut panels[p * lines + step * SIDE + half * HALF..];
                pack(level, m, paired, first, inner, coming, lines.first_chunk_mut().expect("half a step"));
            }
        }
    }
}

/// What is asked of memory while 16 lines are packed, a line with each: the same part of what is packed next in this way.
/// Asked for one by one, it comes at nearly the rate of reading straight on; together, it waits for itself.
#[derive(Clone, Copy)]
struct Coming<T> {
    first: *const T,
    /// Elements from one to the next.
    apart: usize,
}

impl<T> Coming<T> {
    /// Asks for line `i`, wherever it is.
    #[inline(always)]
    fn ask(&self, i: usize) {
        prefetch_to_l2(self.first.wrapping_add(i * self.apart));
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
    coming: Coming<T>,
    lines: &mut [Line; HALF],
) {
    let (row, column, [rows, columns]) =
        if paired { (inner, outer, [T::DEPTH, HALF]) } else { (outer, inner, [HALF, T::DEPTH]) };
    let inside = row + rows <= m.rows && column + columns <= m.cols;
    #[cfg(target_arch = "x86_64")]
    if inside && level >= Level::Avx512 {
        // SAFETY: levels are made available ones only, and this one has AVX-512.
        return unsafe { avx512::pack(m, paired, [row, column], coming, lines) };
    }
    #[cfg(target_arch = "x86_64")]
    if inside && level == Level::Avx2 {
        // SAFETY: as above, AVX2.
        return unsafe { avx2::pack(m, paired, [row, column], coming, lines) };
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
        transpose(level, lines);
    }
}

/// Transposes 16 × 16 elements of four bytes: pairs of bf16, or fp32.
pub fn transpose(level: Level, lines: &mut [Line; HALF]) {
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx512 {
        // SAFETY: levels are made available ones only, and this one has AVX-512.
        return unsafe { avx512::transpose_lines(lines) };
    }
    #[cfg(target_arch = "x86_64")]
    if level == Level::Avx2 {
        // SAFETY: as above, AVX2.
        return unsafe { avx2::transpose_lines(lines) };
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
