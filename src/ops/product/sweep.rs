//! All rows of a rectangle by a group of its columns, along one chunk of k: where the time of a product goes.
//!
//! The columns are packed and stay in L2; a panel of rows at a time is in L1. Results come out row by row, as memory
//! likes to be written.

use super::addend::{Addend, Panels};
use super::{Epilogue, MOST_STEPS, Product, Strip, chunks};
use crate::ops::tile::{
    Block, Level, Line, Matrix, Packed, SIDE, Unit, pack_all_columns, pack_all_rows, pack_rows,
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
    /// What is summed before this chunk.
    pub(super) addend: Option<Addend<'a, T>>,
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
    /// Of an addend, panels of all columns and one of rows.
    pub(super) addend: [&'a mut [Line]; 2],
    /// Two blocks per panel of columns, or one for each panel of rows where there are several chunks.
    pub(super) sums: &'a mut [Block],
}

impl<T: Packed, E: Epilogue> Product<'_, T, E> {
    /// Packs the columns and multiplies.
    pub(super) fn sweep(&self, sweep: &Sweep<'_, T>, room: Room<'_>) {
        // Compiled apart, so that a product without an addend knows nothing of one.
        match sweep.addend {
            Some(_) => self.sweep_on_level::<true>(sweep, room),
            None => self.sweep_on_level::<false>(sweep, room),
        }
    }

    fn sweep_on_level<const ADDEND: bool>(&self, sweep: &Sweep<'_, T>, room: Room<'_>) {
        #[cfg(target_arch = "x86_64")]
        match self.level {
            Level::Amx | Level::Avx512Bf16 => {
                // SAFETY: levels are made available ones only, and these have AVX-512 with bf16.
                return unsafe { self.sweep_avx512_bf16::<ADDEND>(sweep, room) };
            }
            // SAFETY: as above, AVX-512.
            Level::Avx512 => return unsafe { self.sweep_avx512::<ADDEND>(sweep, room) },
            // SAFETY: as above, AVX2.
            Level::Avx2 => return unsafe { self.sweep_avx2::<ADDEND>(sweep, room) },
            Level::Portable => {}
        }
        self.sweep_plain::<false, ADDEND>(sweep, room);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    fn sweep_avx512_bf16<const ADDEND: bool>(&self, sweep: &Sweep<'_, T>, room: Room<'_>) {
        self.sweep_plain::<true, ADDEND>(sweep, room);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    fn sweep_avx512<const ADDEND: bool>(&self, sweep: &Sweep<'_, T>, room: Room<'_>) {
        self.sweep_plain::<false, ADDEND>(sweep, room);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn sweep_avx2<const ADDEND: bool>(&self, sweep: &Sweep<'_, T>, room: Room<'_>) {
        self.sweep_plain::<false, ADDEND>(sweep, room);
    }

    #[inline(always)]
    fn sweep_plain<const NATIVE: bool, const ADDEND: bool>(&self, sweep: &Sweep<'_, T>, room: Room<'_>) {
        let count = sweep.columns.len();
        let lines = room.columns.len() / count.max(1);
        let firsts: Vec<_> = sweep.columns.clone().map(|p| self.pairing.firsts(p)).collect();
        pack_all_columns(self.level, sweep.b, |p| firsts[p], lines, room.columns);
        let [addend_columns, addend_rows] = room.addend;
        let addend = if ADDEND { sweep.addend } else { None };
        if let Some(Addend { right, .. }) = addend {
            pack_all_columns(self.level, right, |p| firsts[p], addend_rows.len(), addend_columns);
        }
        let together = (room.rows.len() / lines.max(1)).max(1);
        let mut waiting = 0..0;
        for (i, row) in sweep.rows.clone().enumerate() {
            if i % together == 0 {
                let panels = together.min(sweep.rows.end - row);
                pack_all_rows(self.level, sweep.a, row * SIDE, lines, &mut room.rows[..panels * lines]);
            }
            let [sums, before] = places(room.sums, i, count, sweep.keeps);
            let mut panels = None;
            if let Some(Addend { left, mask, .. }) = addend {
                pack_rows(self.level, left, row * SIDE, addend_rows);
                let (rows, columns) = (&*addend_rows, &*addend_columns);
                panels = Some(Panels { rows, columns, mask, row: row * SIDE, firsts: &firsts });
            }
            let mut pending = Pending::new(&firsts, before, waiting);
            self.multiply::<NATIVE>(
                sweep,
                &room.rows[i % together * lines..][..lines],
                room.columns,
                panels,
                sums,
                &mut pending,
            );
            self.store::<NATIVE>(&mut pending, usize::MAX);
            waiting = if sweep.finish { self.rows_of(row) } else { 0..0 };
            if !E::BETWEEN_STEPS {
                let mut all = Pending::new(&firsts, sums, std::mem::take(&mut waiting));
                self.store::<NATIVE>(&mut all, usize::MAX);
            }
        }
        let [sums, _] = places(room.sums, sweep.rows.len().max(1) - 1, count, sweep.keeps);
        self.store::<NATIVE>(&mut Pending::new(&firsts, sums, waiting), usize::MAX);
    }

    /// Rows of the result in a panel.
    fn rows_of(&self, panel: usize) -> Range<usize> {
        panel * SIDE..self.a.shape()[0].min((panel + 1) * SIDE)
    }

    /// A panel of rows with all panels of columns. Between the steps of tiles the rest of the core has time for what is
    /// pending.
    #[inline(always)]
    fn multiply<const NATIVE: bool>(
        &self,
        sweep: &Sweep<'_, T>,
        rows: &[Line],
        columns: &[Line],
        addend: Option<Panels<'_>>,
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
                let addend = addend.filter(|_| q == 0);
                let Some(tiles) = sweep.unit.tiles() else {
                    if let Some(addend) = addend {
                        addend.multiply(sweep.unit, p, sums);
                    }
                    sweep.unit.multiply(a, b, sums, add || addend.is_some());
                    continue;
                };
                match addend {
                    Some(addend) => addend.begin(tiles, p, sums),
                    None => tiles.begin(if add { Some(&*sums) } else { None }),
                }
                for (a, b) in a.as_chunks().0.iter().zip(b.as_chunks().0) {
                    tiles.step(a, b);
                    if E::BETWEEN_STEPS {
                        self.store::<NATIVE>(pending, share);
                    }
                }
                tiles.end(sums);
            }
        }
    }

    /// Hands over up to `most` pending rows of blocks, row by row.
    #[inline(always)]
    fn store<const NATIVE: bool>(&self, pending: &mut Pending<'_>, most: usize) {
        let (mut left, count) = (most, pending.sums.len());
        while left > 0 && !pending.rows.is_empty() {
            let (row, line, from) = (pending.rows.start, pending.line, pending.block);
            let until = from + left.min(count - from);
            let (firsts, blocks) = (&pending.firsts[from..until], &pending.sums[from..until]);
            self.epilogue.store::<NATIVE>(Strip { row, firsts, blocks, line });
            left -= until - from;
            pending.block = until;
            if until == count {
                (pending.block, pending.line, pending.rows.start) = (0, line + 1, row + 1);
            }
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
