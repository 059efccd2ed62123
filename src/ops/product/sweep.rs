//! All rows of a rectangle by a group of its columns, along one chunk of k: where the time of a product goes.
//!
//! The columns are packed and stay in L2; a panel of rows at a time is in L1. Results come out row by row, as memory
//! likes to be written.

use super::{Epilogue, MOST_STEPS, Product, Row, chunks};
use crate::ops::tile::{Block, HALF, Level, Line, Matrix, SIDE, Unit, pack_all_columns, pack_all_rows};
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
    /// As many panels of rows as are packed together.
    pub(super) rows: &'a mut [Line],
    /// A block per panel of columns, and of rows where there are several chunks.
    pub(super) sums: &'a mut [Block],
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
        let lines = room.columns.len() / sweep.columns.len().max(1);
        let firsts: Vec<_> = sweep.columns.clone().map(|p| self.pairing.firsts(p)).collect();
        pack_all_columns(self.level, sweep.b, |p| firsts[p], lines, room.columns);
        let together = (room.rows.len() / lines.max(1)).max(1);
        for first in sweep.rows.clone().step_by(together) {
            let panels = together.min(sweep.rows.end - first);
            let rows = &mut room.rows[..panels * lines];
            pack_all_rows(self.level, sweep.a, first * SIDE, lines, rows);
            for p in 0..panels {
                let row = first + p;
                let kept = if sweep.keeps { (row - sweep.rows.start) * sweep.columns.len() } else { 0 };
                let sums = &mut room.sums[kept..][..sweep.columns.len()];
                multiply(sweep, &rows[p * lines..][..lines], room.columns, sums);
                if sweep.finish {
                    self.store(row, &firsts, sums);
                }
            }
        }
    }

    /// Hands the blocks of a rows panel over, row by row.
    #[inline(always)]
    fn store(&self, panel: usize, firsts: &[[usize; 2]], sums: &[Block]) {
        let ([m, _], [_, n]) = (self.a.shape(), self.b.shape());
        for r in 0..SIDE.min(m - panel * SIDE) {
            let row = panel * SIDE + r;
            for (block, &[left, right]) in sums.iter().zip(firsts) {
                let ([one, two], []) = block.0[r].as_chunks() else { unreachable!("two halves") };
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
            }
        }
    }
}

/// A panel of rows with all panels of columns.
#[inline(always)]
fn multiply(sweep: &Sweep<'_>, rows: &[Line], columns: &[Line], sums: &mut [Block]) {
    let lines = rows.len();
    let mut unfinished = Block::ZERO;
    for (q, piece) in chunks(lines / SIDE, MOST_STEPS).into_iter().enumerate() {
        let a = &rows[piece.start * SIDE..piece.end * SIDE];
        for (p, sums) in sums.iter_mut().enumerate() {
            let b = &columns[p * lines + piece.start * SIDE..][..a.len()];
            let from = if sweep.add || q > 0 { Some(&*sums) } else { None };
            sweep.unit.begin(from, &mut unfinished);
            for (a, b) in a.as_chunks().0.iter().zip(b.as_chunks().0) {
                sweep.unit.step(a, b, &mut unfinished);
            }
            sweep.unit.end(&unfinished, sums);
        }
    }
}
