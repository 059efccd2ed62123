//! All rows of a rectangle by a group of its columns, along one chunk of k: where the time of a product goes.
//!
//! The columns are packed and stay in L2; a panel of rows at a time is in L1. While tiles work on a block, the rest of the
//! core hands rows of earlier ones to the epilogue, and asks for the memory that later ones will need.

use super::addend::{Addend, Panels};
use super::{Epilogue, Product, Strip, chunks, most_steps};
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
    /// Where sums are.
    pub(super) places: Places,
}

/// Where the blocks of sums are.
#[derive(Clone, Copy)]
pub(super) struct Places {
    /// Panels of rows that have places of their own.
    pub(super) panels: usize,
    /// Places of each: one for each panel of columns; or one or two in all, as many as are multiplied together, where
    /// these are handed over before the next are finished.
    pub(super) width: usize,
}

impl Places {
    /// Of the block of the `i`th panel of rows with panel `p` of columns.
    fn at(self, i: usize, p: usize) -> usize {
        let column = match self.width {
            1 => 0,
            2 => p % 2,
            _ => p,
        };
        i % self.panels * self.width + column
    }
}

/// Room to work in.
pub(super) struct Room<'a> {
    /// Panels of all columns.
    pub(super) columns: &'a mut [Line],
    /// As many panels of rows as are packed together.
    pub(super) rows: &'a mut [Line],
    /// Of an addend, panels of all columns and one of rows.
    pub(super) addend: [&'a mut [Line]; 2],
    /// See [`Places`].
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
        let sums = room.sums;
        let mut waiting = Waiting::NOTHING;
        for (i, row) in sweep.rows.clone().enumerate() {
            if i % together == 0 {
                let panels = together.min(sweep.rows.end - row);
                pack_all_rows(self.level, sweep.a, row * SIDE, lines, &mut room.rows[..panels * lines]);
            }
            let mut panels = None;
            if let Some(Addend { left, mask, .. }) = addend {
                pack_rows(self.level, left, row * SIDE, addend_rows);
                let (rows, columns) = (&*addend_rows, &*addend_columns);
                panels = Some(Panels { rows, columns, mask, row: row * SIDE, firsts: &firsts });
            }
            let rows = &room.rows[i % together * lines..][..lines];
            let of = if sweep.finish { self.rows_of(row) } else { 0..0 };
            let panel = Panel { rows, columns: room.columns, addend: panels, firsts: &firsts, i, of };
            self.multiply::<NATIVE>(sweep, &panel, sums, &mut waiting);
        }
        self.store::<NATIVE>(sums, &mut waiting, usize::MAX);
    }

    /// Rows of the result in a panel.
    fn rows_of(&self, panel: usize) -> Range<usize> {
        panel * SIDE..self.a.shape()[0].min((panel + 1) * SIDE)
    }

    /// A panel of rows with all panels of columns.
    #[inline(always)]
    fn multiply<'f, const NATIVE: bool>(
        &self,
        sweep: &Sweep<'_, T>,
        panel: &Panel<'_, 'f>,
        sums: &mut [Block],
        waiting: &mut Waiting<'f>,
    ) {
        let lines = panel.rows.len();
        let pieces = chunks(lines / SIDE, most_steps(sweep.unit.level()));
        for (q, piece) in pieces.iter().enumerate() {
            let Some(tiles) = sweep.unit.tiles() else {
                self.multiply_at_once::<NATIVE>(sweep, panel, [q, pieces.len()], piece, sums);
                continue;
            };
            let a = &panel.rows[piece.start * SIDE..piece.end * SIDE];
            let share = SIDE.div_ceil(piece.len().max(1));
            let rows = if q + 1 == pieces.len() { panel.of.clone() } else { 0..0 };
            for p in 0..panel.firsts.len() {
                let b = &panel.columns[p * lines + piece.start * SIDE..][..a.len()];
                let place = sweep.places.at(panel.i, p);
                let block = Waiting::new(place, &panel.firsts[p..=p], rows.clone());
                let (add, addend) = (sweep.add || q > 0, panel.addend.filter(|_| q == 0));
                match addend {
                    Some(addend) => {
                        // Sums take their place for as long as they are masked.
                        if E::BLOCK_BY_BLOCK && addend.mask.is_some() {
                            self.store::<NATIVE>(sums, waiting, usize::MAX);
                        }
                        addend.begin(tiles, p, &mut sums[place]);
                    }
                    None => tiles.begin(if add { Some(&sums[place]) } else { None }),
                }
                let mut coming = rows.clone();
                for (a, b) in a.as_chunks().0.iter().zip(b.as_chunks().0) {
                    tiles.step(a, b);
                    self.store::<NATIVE>(sums, waiting, share);
                    if E::BLOCK_BY_BLOCK {
                        self.bring(&mut coming, panel.firsts[p], share);
                    }
                }
                if E::BLOCK_BY_BLOCK {
                    // Of no steps at all.
                    self.store::<NATIVE>(sums, waiting, usize::MAX);
                    *waiting = block;
                }
                tiles.end(&mut sums[place]);
            }
        }
        if !E::BLOCK_BY_BLOCK {
            self.store::<NATIVE>(sums, waiting, usize::MAX);
            *waiting = Waiting::new(sweep.places.at(panel.i, 0), panel.firsts, panel.of.clone());
        }
    }

    /// Piece `q` of `of` where there are no tiles: two panels of columns at a time, and nothing between their steps.
    #[inline(always)]
    fn multiply_at_once<const NATIVE: bool>(
        &self,
        sweep: &Sweep<'_, T>,
        panel: &Panel<'_, '_>,
        [q, of]: [usize; 2],
        piece: &Range<usize>,
        sums: &mut [Block],
    ) {
        let (lines, count) = (panel.rows.len(), panel.firsts.len());
        let piece = piece.start * SIDE..piece.end * SIDE;
        let rows = if q + 1 == of { panel.of.clone() } else { 0..0 };
        let addend = panel.addend.filter(|_| q == 0);
        let add = sweep.add || q > 0 || addend.is_some();
        let columns = |p| &panel.columns[p * lines..][piece.clone()];
        for p in (0..count).step_by(2) {
            let (place, end) = (sweep.places.at(panel.i, p), count.min(p + 2));
            for p in p..end {
                if E::BLOCK_BY_BLOCK {
                    self.bring(&mut rows.clone(), panel.firsts[p], SIDE);
                }
                if let Some(addend) = addend {
                    addend.multiply(sweep.unit, p, &mut sums[sweep.places.at(panel.i, p)]);
                }
            }
            let a = &panel.rows[piece.clone()];
            match sums[place..].first_chunk_mut() {
                Some(two) if p + 1 < end => {
                    sweep.unit.multiply_two(a, [columns(p), columns(p + 1)], two, add);
                }
                _ => sweep.unit.multiply(a, columns(p), &mut sums[place], add),
            }
            if E::BLOCK_BY_BLOCK {
                let mut blocks = Waiting::new(place, &panel.firsts[p..end], rows.clone());
                self.store::<NATIVE>(sums, &mut blocks, usize::MAX);
            }
        }
    }

    /// Hands over up to `most` waiting rows of blocks, row by row.
    #[inline(always)]
    fn store<const NATIVE: bool>(&self, sums: &[Block], waiting: &mut Waiting<'_>, most: usize) {
        let (mut left, count) = (most, waiting.firsts.len());
        while left > 0 && !waiting.rows.is_empty() {
            let (row, from) = (waiting.rows.start, waiting.block);
            let until = from + left.min(count - from);
            let blocks = &sums[waiting.place + from..waiting.place + until];
            self.epilogue.store::<NATIVE>(Strip {
                row,
                firsts: &waiting.firsts[from..until],
                blocks,
                line: row % SIDE,
            });
            left -= until - from;
            waiting.block = until;
            if until == count {
                (waiting.block, waiting.rows.start) = (0, row + 1);
            }
        }
    }

    /// Asks for the memory of up to `most` rows of a block.
    #[inline(always)]
    fn bring(&self, rows: &mut Range<usize>, firsts: [usize; 2], most: usize) {
        rows.take(most).for_each(|row| self.epilogue.bring(row, firsts));
    }
}

/// A panel of rows, and what it is multiplied with.
struct Panel<'a, 'f> {
    rows: &'a [Line],
    /// All panels of columns.
    columns: &'a [Line],
    addend: Option<Panels<'a>>,
    /// First columns of the halves of each panel of columns.
    firsts: &'f [[usize; 2]],
    /// How many panels were before.
    i: usize,
    /// Rows of the result, where it finishes them.
    of: Range<usize>,
}

/// Finished blocks whose rows are still to be handed over: one, or all of a panel of rows.
struct Waiting<'a> {
    /// The first of them.
    place: usize,
    /// First columns of their halves.
    firsts: &'a [[usize; 2]],
    /// Rows of the result that are left.
    rows: Range<usize>,
    /// The next block of the first of them.
    block: usize,
}

impl<'a> Waiting<'a> {
    const NOTHING: Self = Self { place: 0, firsts: &[], rows: 0..0, block: 0 };

    fn new(place: usize, firsts: &'a [[usize; 2]], rows: Range<usize>) -> Self {
        Self { place, firsts, rows, block: 0 }
    }
}
