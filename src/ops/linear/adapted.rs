//! A weight and what an adapter adds to its products.

use super::{Operand, Weight};
use crate::ops::product::{Addend, Mask};
use crate::ops::tile::Matrix;
use std::borrow::Cow;

/// A [`LowRank`](super::LowRank) product as it lies in memory.
#[derive(Clone, Copy, Debug)]
pub struct Narrow<'a, A> {
    /// `[T, rank]`.
    pub left: &'a [A],
    /// `[out, rank]` in a forward product, which is of its transpose; `[rank, in]` in an input gradient.
    pub right: &'a [A],
    /// Its inner dimension, 1 or more.
    pub rank: usize,
    /// What its sums are masked with; only in an input gradient.
    pub mask: Option<Mask>,
}

impl<A: Operand> Narrow<'_, A> {
    /// Both sides as they are packed.
    pub(super) fn packed(&self) -> [Cow<'_, [A::Packed]>; 2] {
        [A::packed(self.left), A::packed(self.right)]
    }

    /// The product, of sides that are packed so; `transposed`: of the right one's transpose.
    pub(super) fn addend<'a>(
        &self,
        [left, right]: &'a [Cow<'_, [A::Packed]>; 2],
        transposed: bool,
    ) -> Addend<'a, A::Packed> {
        let (r, n) = (self.rank, right.len() / self.rank);
        let right = if transposed { Matrix::new(right, n, r).t() } else { Matrix::new(right, r, n) };
        Addend { left: Matrix::new(left, left.len() / r, r), right, mask: self.mask }
    }
}

/// A weight `[out, in]`, and the adapter that is added to its forward products.
#[derive(Clone, Copy, Debug)]
pub struct Adapted<'a, A> {
    /// Weight.
    pub w: Weight<'a, A>,
    /// Adapter.
    pub adapter: Option<Narrow<'a, A>>,
}

impl<'a, A> From<Weight<'a, A>> for Adapted<'a, A> {
    fn from(w: Weight<'a, A>) -> Self {
        Self { w, adapter: None }
    }
}
