//! All rows of a rectangle by a group of its columns, along one chunk of k: where the time of a product goes.
//!
//! The columns are packed and stay in L2; a panel of rows at a time is in L1. Results come out row by row, as memory
//! likes to be written. The matrix unit is slow to start and the rest of the core idle while it works, so between its
//! steps the sweep stores the block before, packs the rows that come next, and brings those after them close.

use super::{Epilogue, MOST_STEPS, Product, Row, chunks};
use crate::ops::tile::{
    Block, HALF, Level, Line, Matrix, Rows, SIDE, Unit, pack_columns, pack_rows, pack_rows_half,
    prefetch_rows_half,
};
use std::ops::Range;

/// What is multiplied.
pub(super) struct Sweep<'a> {
    pub(super) unit: &'a Unit,
    /// The left operand, of the columns of this chunk, and which panels of it.
    pub(super) a: Matrix<'a>,
    pub(super) rows: Range<usize>,
    /// The right operand, of the rows of this chunk, and which panels of it.
    pub(super) b: Matrix<'a>,
    pub(super) columns: Range<usize>,
    /// Sums hold those of an earlier chunk.
    pub(super) add: bool,
    /// Sums are whole after this chunk.
    pub(super) finish: bool,
    /// Sums are kept from one chunk to the next: a block for each panel of rows too.
    pub(super) keeps: bool,
}

/// Room to work in.
pub(super) struct Room<'a> {
    /// Panels of all columns.
    pub(super) columns: &'a mut [Line],
    /// Two panels of rows.
    pub(super) rows: &'a mut [Line],
    /// A block per panel of columns, and of rows where there are several chunks.
    pub(super) sums: &'a mut [Block],
}

/// What is done between the steps.
struct Meanwhile<'a, 'b, E> {
    product: &'a Product<'b, E>,
    a: Matrix<'a>,
    /// A finished block, and what of it is still to be stored.
    done: Block,
    rest: Rest,
    /// First of the rows to pack, and the end of all rows.
    next: usize,
    end: usize,
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

    /// Packs halves of the next rows until there are `goal`.
    #[inline(always)]
    fn pack(&mut self, goal: usize, panel: &mut [[Line; HALF]]) {
        if self.next >= self.end {
            return;
        }
        while self.packed < goal {
            let i = self.packed;
            pack_rows_half(self.product.level, self.a, self.next, i, &mut panel[i]);
            prefetch_rows_half(self.a, self.next + SIDE, i);
            self.packed += 1;
        }
    }
}

impl<E: Epilogue> Product<'_, E> {
    /// Packs the columns and multiplies.
    pub(super) fn sweep(&self, sweep: &Sweep<'_>, room: Room<'_>) {
        #[cfg(target_arch = "x86_64")]
        match self.level {
            // SAFETY: levels are made available ones only, and these have AVX-512.
            Level::Amx | Level::Avx512Bf16 | Level::Avx512 => unsafe {
                return self.sweep_avx512(sweep, room);
            },
            // SAFETY: as above, AVX2.
            Level::Avx2 => return unsafe { self.sweep_avx2(sweep, room) },
            Level::Portable => {}
        }
        self.sweep_plain(sweep, room);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    fn sweep_avx512(&self, sweep: &Sweep<'_>, room: Room<'_>) {
        self.sweep_plain(sweep, room);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn sweep_avx2(&self, sweep: &Sweep<'_>, room: Room<'_>) {
        self.sweep_plain(sweep, room);
    }

    #[inline(always)]
    fn sweep_plain(&self, sweep: &Sweep<'_>, room: Room<'_>) {
        let ([m, _], [_, n]) = (self.a.shape(), self.b.shape());
        let (lines, columns) = (room.rows.len() / 2, sweep.columns.len());
        let (steps, pieces) = (lines / SIDE, chunks(lines / SIDE, MOST_STEPS));
        for (column, panel) in sweep.columns.clone().zip(room.columns.chunks_exact_mut(lines.max(1))) {
            pack_columns(self.level, sweep.b, self.pairing.firsts(column), panel);
        }
        let panel = &mut room.rows[..lines];
        let mut unfinished = Block::ZERO;
        for (i, row) in sweep.rows.clone().enumerate() {
            pack_rows(self.level, sweep.a, row * SIDE, panel);
            let kept = if sweep.keeps { i * columns } else { 0 };
            let sums = &mut room.sums[kept..][..columns];
            for (q, piece) in pieces.iter().enumerate() {
                let a = &panel[piece.start * SIDE..piece.end * SIDE];
                for (p, sums) in sums.iter_mut().enumerate() {
                    let b = &room.columns[p * lines + piece.start * SIDE..][..a.len()];
                    let from = (sweep.add || q > 0).then_some(&*sums);
                    sweep.unit.begin(from, &mut unfinished);
                    for (a, b) in a.as_chunks().0.iter().zip(b.as_chunks().0) {
                        sweep.unit.step(Rows::packed(a), b, &mut unfinished);
                    }
                    sweep.unit.end(&unfinished, sums);
                }
            }
            if !sweep.finish {
                continue;
            }
            for r in 0..SIDE.min(m - row * SIDE) {
                for (column, sums) in sweep.columns.clone().zip(&*sums) {
                    let [first, second] = self.pairing.firsts(column);
                    let widths = [n.saturating_sub(first).min(HALF), n.saturating_sub(second).min(HALF)];
                    let ([left, right], []) = sums.0[r].as_chunks() else { unreachable!("two halves") };
                    let row = row * SIDE + r;
                    if widths[1] == HALF {
                        self.epilogue.store(Row {
                            row,
                            firsts: [first, second],
                            widths: [HALF; 2],
                            sums: [left, right],
                        });
                    } else {
                        let firsts = [first, if widths[1] == 0 { 0 } else { second }];
                        self.epilogue.store(Row { row, firsts, widths, sums: [left, right] });
                    }
                }
            }
        }
    }
}
