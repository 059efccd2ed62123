//! All rows of a rectangle by all its columns, along one chunk of k: where the time of a product goes.
//!
//! The matrix unit is slow to start and the rest of the core idle while it works. So between its steps the sweep stores
//! the block before, packs the columns that come next, and brings those after them close.

use super::{Epilogue, MOST_STEPS, Product, Row, chunks};
use crate::ops::tile::{
    Block, HALF, Level, Line, Matrix, SIDE, Unit, pack_columns, pack_half, prefetch_half,
};
use std::ops::Range;

/// What is multiplied.
pub(super) struct Sweep<'a> {
    pub(super) unit: &'a Unit,
    /// Panels of the rows, each as long as a panel of columns.
    pub(super) packed: &'a [Line],
    /// The columns, of the rows of this chunk.
    pub(super) b: Matrix<'a>,
    /// Panels of the left operand.
    pub(super) rows: Range<usize>,
    /// Panels of the right operand.
    pub(super) columns: Range<usize>,
    /// Sums hold those of an earlier chunk.
    pub(super) add: bool,
    /// Sums are whole after this chunk.
    pub(super) finish: bool,
    /// Sums are kept from one chunk to the next: a block for each panel of columns too.
    pub(super) keeps: bool,
}

/// What is done between the steps.
struct Meanwhile<'a, 'b, E> {
    product: &'a Product<'b, E>,
    b: Matrix<'a>,
    /// A finished block, and what of it is still to be stored.
    done: Block,
    rest: Rest,
    /// The columns to pack and those after them.
    next: Option<[usize; 2]>,
    then: Option<[usize; 2]>,
    /// Halves that are packed.
    packed: usize,
}

/// Rows of a finished block.
#[derive(Default)]
struct Rest {
    /// In the result.
    rows: Range<usize>,
    /// The first of them in the block.
    line: usize,
    firsts: [usize; 2],
    widths: [usize; 2],
}

impl<E: Epilogue> Meanwhile<'_, '_, E> {
    /// Stores up to `rows` rows of the finished block.
    #[inline(always)]
    fn store(&mut self, rows: usize) {
        let Rest { firsts, widths, .. } = self.rest;
        for row in self.rest.rows.by_ref().take(rows) {
            let ([left, right], []) = self.done.0[self.rest.line].as_chunks() else {
                unreachable!("two halves")
            };
            let sums = [left, right];
            // A constant width where there is one.
            if widths == [HALF; 2] {
                self.product.epilogue.store(Row { row, firsts, widths: [HALF; 2], sums });
            } else {
                self.product.epilogue.store(Row { row, firsts, widths, sums });
            }
            self.rest.line += 1;
        }
    }

    /// Packs halves of the next columns until there are `goal`.
    #[inline(always)]
    fn pack(&mut self, goal: usize, panel: &mut [[Line; HALF]]) {
        let Some(firsts) = self.next else { return };
        while self.packed < goal {
            pack_half(self.product.level, self.b, firsts, self.packed, &mut panel[self.packed]);
            if let Some(then) = self.then {
                prefetch_half(self.b, then, self.packed);
            }
            self.packed += 1;
        }
    }
}

impl<E: Epilogue> Product<'_, E> {
    /// Multiplies. `panels` is room for two panels of columns; `sums` for a block per panel of rows, and per panel of
    /// columns where there are several chunks.
    pub(super) fn sweep(&self, sweep: &Sweep<'_>, panels: &mut [Line], sums: &mut [Block]) {
        #[cfg(target_arch = "x86_64")]
        match self.level {
            // SAFETY: levels are made available ones only, and these have AVX-512.
            Level::Amx | Level::Avx512Bf16 | Level::Avx512 => unsafe {
                return self.sweep_avx512(sweep, panels, sums);
            },
            // SAFETY: as above, AVX2.
            Level::Avx2 => return unsafe { self.sweep_avx2(sweep, panels, sums) },
            Level::Portable => {}
        }
        self.sweep_plain(sweep, panels, sums);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    fn sweep_avx512(&self, sweep: &Sweep<'_>, panels: &mut [Line], sums: &mut [Block]) {
        self.sweep_plain(sweep, panels, sums);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn sweep_avx2(&self, sweep: &Sweep<'_>, panels: &mut [Line], sums: &mut [Block]) {
        self.sweep_plain(sweep, panels, sums);
    }

    #[inline(always)]
    fn sweep_plain(&self, sweep: &Sweep<'_>, panels: &mut [Line], sums: &mut [Block]) {
        let ([m, _], [_, n]) = (self.a.shape(), self.b.shape());
        let (lines, rows) = (panels.len() / 2, sweep.rows.len());
        let (steps, pieces) = (lines / SIDE, chunks(lines / SIDE, MOST_STEPS));
        let firsts_of = |column| (column < sweep.columns.end).then(|| self.pairing.firsts(column));
        let (mut panel, mut next) = panels.split_at_mut(lines);
        let (b, done, rest) = (sweep.b, Block::ZERO, Rest::default());
        let mut meanwhile = Meanwhile { product: self, b, done, rest, next: None, then: None, packed: 0 };
        let mut unfinished = Block::ZERO;
        pack_columns(self.level, b, self.pairing.firsts(sweep.columns.start), panel);
        for (p, column) in sweep.columns.clone().enumerate() {
            (meanwhile.next, meanwhile.then) = (firsts_of(column + 1), firsts_of(column + 2));
            meanwhile.packed = 0;
            let (turns, mut turn) = (steps * rows, 0);
            for (q, piece) in pieces.iter().enumerate() {
                for i in 0..rows {
                    let slot = if sweep.keeps { p * rows + i } else { i };
                    let a = &sweep.packed[i * lines + piece.start * SIDE..][..piece.len() * SIDE];
                    let b = &panel[piece.start * SIDE..piece.end * SIDE];
                    let from = (sweep.add || q > 0).then(|| &sums[slot]);
                    sweep.unit.begin(from, &mut unfinished);
                    for (a, b) in a.as_chunks().0.iter().zip(b.as_chunks().0) {
                        sweep.unit.step(a, b, &mut unfinished);
                        meanwhile.store(SIDE.div_ceil(piece.len()));
                        turn += 1;
                        meanwhile.pack((2 * steps * turn).div_ceil(turns), next.as_chunks_mut().0);
                    }
                    meanwhile.store(SIDE);
                    if sweep.finish && q + 1 == pieces.len() {
                        sweep.unit.end(&unfinished, &mut meanwhile.done);
                        let firsts = self.pairing.firsts(column);
                        let first = (sweep.rows.start + i) * SIDE;
                        let widths = firsts.map(|first| n.saturating_sub(first).min(HALF));
                        meanwhile.rest = Rest { rows: first..m.min(first + SIDE), line: 0, firsts, widths };
                    } else {
                        sweep.unit.end(&unfinished, &mut sums[slot]);
                    }
                }
            }
            meanwhile.pack(2 * steps, next.as_chunks_mut().0);
            (panel, next) = (next, panel);
        }
        meanwhile.store(SIDE);
    }
}
