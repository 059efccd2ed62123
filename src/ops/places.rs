//! Columns of a wide matrix that a narrow one takes: an adapter's B among those of the projections it is multiplied with.

use crate::arena::Tensor;
use crate::dtype::Element;
use crate::error::Result;
use rayon::prelude::*;

/// Where a narrow matrix `[out, r]` has its columns in rows `[out, R]` of a wide one.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    /// f32 `[out, r]`.
    pub narrow: Tensor,
    /// `[out, R]`, A where it is written, f32 where it is read.
    pub wide: Tensor,
    /// The first of its columns.
    pub column: usize,
    /// The adapter's scale.
    pub factor: f32,
}

impl Places {
    /// Checks the shapes, for every backend.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::error::Error::Shape) naming what does not fit.
    pub fn expect(&self, op: &'static str) -> Result<()> {
        self.narrow.expect(op, "narrow", [self.wide.rows, self.narrow.cols])?;
        // The wide one has at least these columns.
        let least = self.column + self.narrow.cols;
        self.wide.expect(op, "wide", [self.wide.rows, self.wide.cols.max(least)])
    }
}

/// `wide[:, column..] = A(factor·narrow)`; other columns stay. `narrow` f32 `[out, r]`, `wide` A `[out, R]`.
pub fn spread<E: Element>(narrow: &[f32], wide: &mut [E], [r, all]: [usize; 2], column: usize, factor: f32) {
    narrow.par_chunks_exact(r).zip(wide.par_chunks_exact_mut(all)).for_each(|(from, to)| {
        from.iter().zip(&mut to[column..]).for_each(|(x, to)| *to = E::from_f32(factor * x));
    });
}

/// `narrow = factor·wide[:, column..]`. `narrow` f32 `[out, r]`, `wide` f32 `[out, R]`.
pub fn gather(wide: &[f32], narrow: &mut [f32], [r, all]: [usize; 2], column: usize, factor: f32) {
    wide.par_chunks_exact(all).zip(narrow.par_chunks_exact_mut(r)).for_each(|(from, to)| {
        from[column..].iter().zip(to).for_each(|(x, to)| *to = factor * x);
    });
}
