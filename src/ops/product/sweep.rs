//! All rows of a rectangle by a group of its columns, along one chunk of k: where the time of a product goes.
//!
//! The columns are packed and stay in L2; a panel of rows at a time is in L1. Results come out row by row, as memory
//! likes to be written.

use super::{Epilogue, MOST_STEPS, Product, Row, chunks};
use crate::ops::tile::{
    Block, HALF, Level, Line, Matrix, Packed, SIDE, Unit, pack_all_columns, pack_all_rows,
};
use std::ops::Range;

/// What is multiplied.
pub(super) struct Sweep<'a, T> {
    pub(super) unit: &'a Unit<T>,
    /// The left operand, of the columns of this chunk, and which panels of it.
    pub(super) a: Matrix<'a, T>,
    pub(super) rows: Range<usize>,
    /// The right operand, of the rows of this chunk, and which panels of it.
    pub(super) b: Matrix<'a, T>,
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
    /// As many panels of rows as are packed together.
    pub(super) rows: &'a mut [Line],
    /// Two blocks per panel of columns, or one for each panel of rows where there are several chunks.
    pub(super) sums: &'a mut [Block],
}

impl<T: Packed, E: Epilogue> Product<'_, T, E> {
    /// Packs the columns and multiplies.
    pub(super) fn sweep(&self, sweep: &Sweep<'_, T>, room: Room<'_>) {
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
    fn sweep_avx512(&self, sweep: &Sweep<'_, T>, room: Room<'_>) {
        self.sweep_plain(sweep, room);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn sweep_avx2(&self, sweep: &Sweep<'_, T>, room: Room<'_>) {
        self.sweep_plain(sweep, room);
    }

    #[inline(always)]
    fn sweep_plain(&self, sweep: &Sweep<'_, T>, room: Room<'_>) {
        let count = sweep.columns.len();
        let lines = room.columns.len() / count.max(1);
        let firsts: Vec<_> = sweep.columns.clone().map(|p| self.pairing.firsts(p)).collect();
        pack_all_columns(self.level, sweep.b, |p| firsts[p], lines, room.columns);
        let together = (room.rows.len() / lines.max(1)).max(1);
        let mut waiting = 0..0;
        for (i, row) in sweep.rows.clone().enumerate() {
            if i % together == 0 {
                let panels = together.min(sweep.rows.end - row);
                pack_all_rows(self.level, sweep.a, row * SIDE, lines, &mut room.rows[..panels * lines]);
            }
            let [sums, before] = places(room.sums, i, count, sweep.keeps);
            let mut pending = Pending::new(&firsts, before, waiting);
            self.multiply(
                sweep,
                &room.rows[i % together * lines..][..lines],
                room.columns,
                sums,
                &mut pending,
            );
            self.store(pending);
            waiting = if sweep.finish { self.rows_of(row) } else { 0..0 };
            if !E::BETWEEN_STEPS {
                self.store(Pending::new(&firsts, sums, std::mem::take(&mut waiting)));
            }
        }
        let [sums, _] = places(room.sums, sweep.rows.len().max(1) - 1, count, sweep.keeps);
        self.store(Pending::new(&firsts, sums, waiting));
    }

    /// Rows of the result in a panel.
    fn rows_of(&self, panel: usize) -> Range<usize> {
        panel * SIDE..self.a.shape()[0].min((panel + 1) * SIDE)
    }

    /// A panel of rows with all panels of columns. Between the steps of tiles the rest of the core has time for what is
    /// pending.
    #[inline(always)]
    fn multiply(
        &self,
        sweep: &Sweep<'_, T>,
        rows: &[Line],
        columns: &[Line],
        sums: &mut [Block],
        pending: &mut Pending<'_>,
    ) {
        let lines = rows.len();
        let share = SIDE.div_ceil((lines / SIDE).max(1));
        for (q, piece) in chunks(lines / SIDE, MOST_STEPS).into_iter().enumerate() {
            let a = &rows[piece.start * SIDE..piece.end * SIDE];
            for (p, sums) in sums.iter_mut().enumerate() {
                let b = &columns[p * lines + piece.start * SIDE..][..a.len()];
                let add = sweep.add || q > 0;
                let Some(tiles) = sweep.unit.tiles() else {
                    sweep.unit.multiply(a, b, sums, add);
                    continue;
                };
                tiles.begin(if add { Some(&*sums) } else { None });
                for (a, b) in a.as_chunks().0.iter().zip(b.as_chunks().0) {
                    tiles.step(a, b);
                    if E::BETWEEN_STEPS {
                        for _ in 0..share {
                            self.store_next(pending);
                        }
                    }
                }
                tiles.end(sums);
            }
        }
    }

    /// Hands over all that is pending, row by row.
    #[inline(always)]
    fn store(&self, mut pending: Pending<'_>) {
        while !pending.rows.is_empty() {
            self.store_next(&mut pending);
        }
    }

    /// Hands a row of a block over, if one is pending.
    #[inline(always)]
    fn store_next(&self, pending: &mut Pending<'_>) {
        let n = self.b.shape()[1];
        let Some(row) = pending.rows.clone().next() else { return };
        let [left, right] = pending.firsts[pending.block];
        let ([one, two], []) = pending.sums[pending.block].0[pending.line].as_chunks() else {
            unreachable!("two halves")
        };
        let sums = [one, two];
        if right + HALF <= n {
            // Constant widths, for which the stores are single instructions.
            self.epilogue.store(Row { row, firsts: [left, right], widths: [HALF; 2], sums });
        } else {
            // Half a block may lie beyond the result.
            let widths = [n.saturating_sub(left).min(HALF), n.saturating_sub(right)];
            let firsts = [left, if widths[1] == 0 { 0 } else { right }];
            self.epilogue.store(Row { row, firsts, widths, sums });
        }
        pending.block += 1;
        if pending.block == pending.sums.len() {
            (pending.block, pending.line, pending.rows.start) = (0, pending.line + 1, row + 1);
        }
    }
}

/// Blocks of a panel of rows that are to be stored.
struct Pending<'a> {
    /// First columns of their halves.
    firsts: &'a [[usize; 2]],
    sums: &'a [Block],
    /// Rows of the result that are left.
    rows: Range<usize>,
    /// The next of them in the blocks, and the next block of it.
    line: usize,
    block: usize,
}

impl<'a> Pending<'a> {
    fn new(firsts: &'a [[usize; 2]], sums: &'a [Block], rows: Range<usize>) -> Self {
        Self { firsts, sums, rows, line: 0, block: 0 }
    }
}

/// Where panel `i` of rows has its blocks, and the panel before it: in one of two places, or where they are kept.
fn places(sums: &mut [Block], i: usize, count: usize, keeps: bool) -> [&mut [Block]; 2] {
    let at = |i: usize| {
        let first = if keeps { i } else { i % 2 } * count;
        first..first + count
    };
    match i {
        0 => [&mut sums[..count], &mut []],
        _ => sums.get_disjoint_mut([at(i), at(i - 1)]).expect("two places"),
    }
}
