//! Rows of a left operand as tiles read them: packed, or where memory has them.

use super::{Line, Matrix, Packed, SIDE};

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

    /// Rows `first..first + 32` of `a` where they lie, if they are all there, row by row in whole lines; and not so far
    /// apart that one set of the cache would hold them all. From two on, what they cannot hold is read from the next cache
    /// in less time than a packed copy takes.
    pub fn in_place<T: Packed>(a: Matrix<'a, T>, first: usize) -> Option<Self> {
        let [_, k] = a.shape();
        let (data, stride) = a.stored_rows_of(first..first + SIDE)?;
        let row = stride / T::DEPTH;
        if !k.is_multiple_of(T::DEPTH) || !stride.is_multiple_of(T::DEPTH) || row.is_multiple_of(SETS) {
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

    /// The lines of packed rows, which is how vectors read them.
    ///
    /// # Panics
    /// Of rows where they lie.
    #[inline(always)]
    pub fn lines(self) -> &'a [Line] {
        assert!(self.row == 1 && self.step == SIDE, "rows that are not packed");
        &self.lines[..self.steps * SIDE]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tile::{Level, pack_rows};
    use half::bf16;

    /// Each row's lines of each step, of some of the steps too.
    fn all(rows: Rows<'_>) -> Vec<Line> {
        let line = |i: usize, r: usize| rows.lines[i * rows.step + r * rows.row];
        (0..rows.steps).flat_map(|i| (0..SIDE).map(move |r| line(i, r))).collect()
    }

    fn in_place_are_those_packed_in<T: Packed>(stride: usize, k: usize) {
        let mut lines = vec![Line::ZERO; 70 * stride / T::DEPTH];
        for (i, x) in bytemuck::cast_slice_mut(&mut lines).iter_mut().enumerate() {
            *x = T::from_f32((i % 251) as f32);
        }
        let a = Matrix::strided(bytemuck::cast_slice::<_, T>(&lines), 70, k, stride);
        let mut panel = vec![Line::ZERO; T::panel_lines(k)];
        for first in [0, 33, 38] {
            let rows = Rows::in_place(a, first).expect("whole lines");
            pack_rows(Level::Portable, a, first, &mut panel);
            assert_eq!(all(rows), panel, "rows from {first} on");
            assert_eq!(all(rows.part(1..2)), panel[SIDE..2 * SIDE]);
            let (at, bytes) = rows.tile(1);
            assert_eq!(
                (at, bytes),
                (&raw const lines[first * stride / T::DEPTH + 1], stride * size_of::<T>())
            );
        }
        // Not all there; across memory; not in whole lines; in one set of a cache.
        assert!(Rows::in_place(a, 39).is_none());
        assert!(Rows::in_place(a.t().columns(0..32).t(), 0).is_some());
        assert!(Rows::in_place(a.t(), 0).is_none());
        let of = |beyond, cols, stride| {
            let data = &bytemuck::cast_slice::<_, T>(&lines)[beyond..];
            Rows::in_place(Matrix::strided(data, 33, cols, stride), 0).is_some()
        };
        assert!(of(0, k, stride) && !of(1, k, stride) && !of(0, k - 1, stride) && !of(0, k, stride + 1));
        assert!(of(0, k, 32 * T::DEPTH) && !of(0, k, 64 * T::DEPTH));
    }

    #[test]
    fn rows_in_place_are_those_that_are_packed() {
        in_place_are_those_packed_in::<bf16>(35 * 32, 2 * 32);
        in_place_are_those_packed_in::<f32>(48 * 16, 3 * 16);
    }
}
