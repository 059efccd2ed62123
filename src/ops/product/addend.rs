//! A second product, of low rank, that is summed before the main one in the same sums.

use crate::ops::noise::{Dropout, index, row_key};
use crate::ops::tile::{Block, HALF, Line, Matrix, Packed, Rows, Tiles, Unit};

/// `(left·right)∘mask`, to which the main product is added.
#[derive(Clone, Copy)]
pub struct Addend<'a, T> {
    /// As many rows as the main left operand.
    pub left: Matrix<'a, T>,
    /// As many columns as the main right operand.
    pub right: Matrix<'a, T>,
    /// What its sums are multiplied by, before the main product is added.
    pub mask: Option<Mask>,
}

impl<T: Packed> Addend<'_, T> {
    /// Lines of a panel of it.
    pub(super) fn lines(&self) -> usize {
        T::panel_lines(self.left.shape()[1])
    }
}

/// A mask over a whole result.
#[derive(Clone, Copy, Debug)]
pub struct Mask {
    /// Which, and what it keeps.
    pub dropout: Dropout,
    /// The micro-batch's key.
    pub key: [u32; 2],
}

impl Mask {
    /// Multiplies a block with its part, from row `row` on, in columns whose halves begin at `firsts`.
    #[inline(always)]
    fn apply(&self, block: &mut Block, row: usize, firsts: [usize; 2]) {
        let (row, firsts) = (index(row), firsts.map(index));
        for (line, sums) in (0u32..).zip(&mut block.0) {
            let row_key = row_key(self.key, self.dropout.site, row.wrapping_add(line));
            for (first, half) in firsts.into_iter().zip(sums.as_chunks_mut::<HALF>().0) {
                for (lane, x) in (0u32..).zip(half) {
                    *x *= self.dropout.at(row_key, first.wrapping_add(lane));
                }
            }
        }
    }
}

/// An addend of one panel of rows and all panels of columns, packed.
#[derive(Clone, Copy)]
pub(super) struct Panels<'a> {
    pub(super) rows: &'a [Line],
    pub(super) columns: &'a [Line],
    pub(super) mask: Option<Mask>,
    /// First row of the panel.
    pub(super) row: usize,
    /// First columns of the halves of each panel of columns.
    pub(super) firsts: &'a [[usize; 2]],
}

impl<'a> Panels<'a> {
    fn columns(&self, p: usize) -> &'a [Line] {
        &self.columns[p * self.rows.len()..][..self.rows.len()]
    }

    /// The sums with panel `p` of columns.
    #[inline(always)]
    pub(super) fn multiply<T: Packed>(&self, unit: &Unit<T>, p: usize, sums: &mut Block) {
        unit.multiply(Rows::packed(self.rows), self.columns(p), sums, false);
        if let Some(mask) = self.mask {
            mask.apply(sums, self.row, self.firsts[p]);
        }
    }

    /// The same in the tiles, which go on from there; `sums` are for when the mask is applied.
    #[inline(always)]
    pub(super) fn begin(&self, tiles: Tiles<'_>, p: usize, sums: &mut Block) {
        tiles.begin(None);
        let rows = Rows::packed(self.rows);
        for (i, b) in self.columns(p).as_chunks().0.iter().enumerate() {
            tiles.step(rows, i, b);
        }
        if let Some(mask) = self.mask {
            tiles.end(sums);
            mask.apply(sums, self.row, self.firsts[p]);
            tiles.begin(Some(sums));
        }
    }
}
