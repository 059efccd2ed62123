//! Rows of a left operand: packed, or where memory has them.

use super::{Level, Line, Matrix, Packed, SIDE};

/// Sets of lines in a first-level cache of 4096 bytes a way.
const SETS: usize = 64;

/// 32 rows along some steps of k.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// From the first line of the first row to the last of the last one: unless there are no steps,
    /// `31·row + (steps - 1)·step < lines.len()`.
    lines: &'a [Line],
    /// Lines from a row to the next.
    row: usize,
    /// Lines from a step to the next.
    step: usize,
    steps: usize,
}

impl<'a> Rows<'a> {
    /// As [`pack_rows`](super::pack_rows) leaves them, of whole steps.
    pub fn packed(lines: &'a [Line]) -> Self {
        assert!(lines.len().is_multiple_of(SIDE), "a panel of {} lines", lines.len());
        Self { lines, row: 1, step: SIDE, steps: lines.len() / SIDE }
    }

    /// Rows `first..first + 32` of `a` where they lie, if they are all there, row by row in whole lines; and, for tiles, not
    /// so far apart that one set of the cache would hold them all. From two on, what they cannot hold is read from the next
    /// cache in less time than a packed copy takes; and vectors need few rows at a time.
    pub fn in_place<T: Packed>(level: Level, a: Matrix<'a, T>, first: usize) -> Option<Self> {
        let [_, k] = a.shape();
        let (data, stride) = a.stored_rows_of(first..first + SIDE)?;
        let row = stride / T::DEPTH;
        let in_one_set = level == Level::Amx && row.is_multiple_of(SETS);
        if !k.is_multiple_of(T::DEPTH) || !stride.is_multiple_of(T::DEPTH) || in_one_set {
            return None;
        }
        let lines = bytemuck::try_cast_slice(data).ok()?;
        Some(Self { lines, row, step: 1, steps: k / T::DEPTH })
    }

    /// How many steps there are.
    #[inline(always)]
    pub fn steps(self) -> usize {
        self.steps
    }

    /// Some of the steps.
    ///
    /// # Panics
    /// If there are fewer.
    #[inline(always)]
    pub fn part(self, steps: std::ops::Range<usize>) -> Self {
        assert!(steps.end <= self.steps, "steps {steps:?} of {}", self.steps);
        let lines = self.lines.get(steps.start * self.step..).unwrap_or(&[]);
        Self { lines, steps: steps.len(), ..self }
    }

    /// Where the first row has step `i`, and the bytes from there to the next row, for 32 of them.
    #[inline(always)]
    pub fn tile(self, i: usize) -> (*const Line, usize) {
        assert!(i < self.steps, "step {i} of {}", self.steps);
        (self.lines.as_ptr().wrapping_add(i * self.step), self.row * size_of::<Line>())
    }

    /// Line of row `r` in step `i`.
    #[inline(always)]
    pub fn line(self, i: usize, r: usize) -> &'a Line {
        &self.lines[i * self.step + r * self.row]
    }

    /// Whether they are as [`Rows::packed`] has them.
    pub fn are_packed(self) -> bool {
        self.row == 1 && self.step == SIDE
    }

    /// Lines of `COUNT` rows from `FIRST` on in step `i`. `PACKED`: as they are known to be.
    #[inline(always)]
    #[allow(
        clippy::needless_range_loop,
        reason = "closures were seen not to inline in functions for one processor"
    )]
    pub fn some<const PACKED: bool, const FIRST: usize, const COUNT: usize>(
        self,
        i: usize,
    ) -> [&'a Line; COUNT] {
        let mut lines = [&Line::ZERO; COUNT];
        if PACKED {
            let packed: &[Line; COUNT] =
                self.lines.as_chunks::<SIDE>().0[i][FIRST..].first_chunk().expect("rows of a block");
            for r in 0..COUNT {
                lines[r] = &packed[r];
            }
        } else {
            for r in 0..COUNT {
                lines[r] = self.line(i, FIRST + r);
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tile::pack_rows;
    use half::bf16;

    /// Each row's lines of each step, of some of the steps too.
    fn all(rows: Rows<'_>) -> Vec<Line> {
        (0..rows.steps).flat_map(|i| (0..SIDE).map(move |r| *rows.line(i, r))).collect()
    }

    fn in_place_are_those_packed_in<T: Packed>(stride: usize, k: usize) {
        let mut lines = vec![Line::ZERO; 70 * stride / T::DEPTH];
        for (i, x) in bytemuck::cast_slice_mut(&mut lines).iter_mut().enumerate() {
            *x = T::from_f32((i % 251) as f32);
        }
        let a = Matrix::strided(bytemuck::cast_slice::<_, T>(&lines), 70, k, stride);
        let mut panel = vec![Line::ZERO; T::panel_lines(k)];
        for first in [0, 33, 38] {
            let rows = Rows::in_place(Level::Amx, a, first).expect("whole lines");
            pack_rows(Level::Portable, a, first, &mut panel);
            assert_eq!(all(rows), panel, "rows from {first} on");
            assert_eq!(all(rows.part(1..2)), panel[SIDE..2 * SIDE]);
            let packed = Rows::packed(&panel);
            assert!(packed.are_packed() && !rows.are_packed());
            assert_eq!(packed.some::<true, 3, 5>(1), rows.some::<false, 3, 5>(1));
            let (at, bytes) = rows.tile(1);
            assert_eq!(
                (at, bytes),
                (&raw const lines[first * stride / T::DEPTH + 1], stride * size_of::<T>())
            );
        }
        // Not all there; across memory; not in whole lines; in one set of a cache.
        assert!(Rows::in_place(Level::Amx, a, 39).is_none());
        assert!(Rows::in_place(Level::Amx, a.t().columns(0..32).t(), 0).is_some());
        assert!(Rows::in_place(Level::Amx, a.t(), 0).is_none());
        let of = |level, beyond, cols, stride| {
            let data = &bytemuck::cast_slice::<_, T>(&lines)[beyond..];
            Rows::in_place(level, Matrix::strided(data, 33, cols, stride), 0).is_some()
        };
        for level in Level::ALL {
            let of = |beyond, cols, stride| of(level, beyond, cols, stride);
            assert!(of(0, k, stride) && !of(1, k, stride) && !of(0, k - 1, stride) && !of(0, k, stride + 1));
            assert!(of(0, k, 32 * T::DEPTH) && of(0, k, 64 * T::DEPTH) == (level < Level::Amx));
        }
    }

    #[test]
    fn rows_in_place_are_those_that_are_packed() {
        in_place_are_those_packed_in::<bf16>(35 * 32, 2 * 32);
        in_place_are_those_packed_in::<f32>(48 * 16, 3 * 16);
    }
}
