//! Rows of a rectangle by a group of its columns, along one chunk of k: where the time of a product goes.
//!
//! The columns are packed and stay in L2; a panel of rows at a time is in L1. While tiles work on a block, the rest of the
//! core hands rows of earlier ones to the epilogue, and asks for the memory that later ones will need.

use super::addend::{Addend, Panels};
use super::{Epilogue, Product, Strip, chunks, most_steps};
use crate::ops::tile::{Block, Level, Line, Matrix, Packed, Rows, SIDE, Unit, pack_all_rows, pack_rows};
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What is multiplied, by whoever takes panels of rows of it.
pub(super) struct Stage<'a, T> {
    /// The left operand, of the columns of this chunk, and which panels of it.
    pub(super) a: Matrix<'a, T>,
    pub(super) rows: Range<usize>,
    /// All panels of it, if they were packed before.
    pub(super) left: Option<&'a [Line]>,
    /// Panels of columns.
    pub(super) columns: Range<usize>,
    /// These of the right operand and of the addend, packed.
    pub(super) packed: [&'a [Line]; 2],
    /// What is summed before this chunk.
    pub(super) addend: Option<Addend<'a, T>>,
    /// Sums hold those of an earlier chunk.
    pub(super) add: bool,
    /// Sums are whole after this chunk.
    pub(super) finish: bool,
    /// Where sums are.
    pub(super) places: Places,
    /// Places for all panels, where sums are kept from one chunk to the next.
    pub(super) kept: Option<Sums<'a>>,
    /// Panels of rows that are packed together.
    pub(super) together: usize,
    /// The first panel that nobody has taken, of those in `rows`.
    pub(super) next: AtomicUsize,
}

impl<T> Stage<'_, T> {
    /// Whether nothing is left to take.
    pub(super) fn is_taken(&self) -> bool {
        self.next.load(Ordering::Relaxed) >= self.rows.len()
    }

    /// The next panels of rows, fewer together towards the end.
    fn take(&self) -> Option<Range<usize>> {
        let all = self.rows.len();
        let some = |first| self.together.min(usize::div_ceil(all - first, 4));
        let next = |first| (first < all).then(|| first + some(first));
        let first = self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).ok()?;
        Some(first..first + some(first))
    }
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

/// Blocks of sums, each of which belongs to whoever has taken its panel of rows.
#[derive(Clone, Copy)]
pub(super) struct Sums<'a> {
    first: *mut Block,
    len: usize,
    lent: PhantomData<&'a mut [Block]>,
}

// SAFETY: used only through `get`, whose callers have taken the panel of rows.
unsafe impl Sync for Sums<'_> {}

impl<'a> Sums<'a> {
    pub(super) fn new(blocks: &'a mut [Block]) -> Self {
        Self { first: blocks.as_mut_ptr(), len: blocks.len(), lent: PhantomData }
    }

    /// Some of the blocks.
    ///
    /// # Safety
    /// They belong to panels of rows that this thread has taken, and no reference to them exists.
    #[inline(always)]
    #[allow(clippy::mut_from_ref, reason = "what the caller promises")]
    unsafe fn get(&self, places: Range<usize>) -> &mut [Block] {
        assert!(places.start <= places.end && places.end <= self.len, "a place of sums");
        // SAFETY: inside the slice that `new` borrowed for the life of self (asserted), and not aliased (the caller).
        unsafe { std::slice::from_raw_parts_mut(self.first.wrapping_add(places.start), places.len()) }
    }
}

/// What each thread has for itself: rows, those of an addend, and sums that are not kept.
pub(super) struct Own<'a> {
    pub(super) rows: &'a mut [Line],
    pub(super) addend: &'a mut [Line],
    pub(super) sums: Sums<'a>,
}

impl<T: Packed, E: Epilogue> Product<'_, T, E> {
    /// Multiplies panels of rows until all are taken.
    pub(super) fn sweep(&self, unit: &Unit<T>, stage: &Stage<'_, T>, own: Own<'_>) {
        // Compiled apart, so that a product without an addend knows nothing of one.
        match stage.addend {
            Some(_) => self.sweep_on_level::<true>(unit, stage, own),
            None => self.sweep_on_level::<false>(unit, stage, own),
        }
        // What went past the caches is there before another thread is told that it is.
        #[cfg(target_arch = "x86_64")]
        // SAFETY: SSE is part of x86-64.
        unsafe {
            std::arch::x86_64::_mm_sfence();
        }
    }

    fn sweep_on_level<const ADDEND: bool>(&self, unit: &Unit<T>, stage: &Stage<'_, T>, own: Own<'_>) {
        #[cfg(target_arch = "x86_64")]
        match self.level {
            Level::Amx | Level::Avx512Bf16 => {
                // SAFETY: levels are made available ones only, and these have AVX-512 with bf16.
                return unsafe { self.sweep_avx512_bf16::<ADDEND>(unit, stage, own) };
            }
            // SAFETY: as above, AVX-512.
            Level::Avx512 => return unsafe { self.sweep_avx512::<ADDEND>(unit, stage, own) },
            // SAFETY: as above, AVX2.
            Level::Avx2 => return unsafe { self.sweep_avx2::<ADDEND>(unit, stage, own) },
            Level::Portable => {}
        }
        self.sweep_plain::<false, ADDEND>(unit, stage, own);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    fn sweep_avx512_bf16<const ADDEND: bool>(&self, unit: &Unit<T>, stage: &Stage<'_, T>, own: Own<'_>) {
        self.sweep_plain::<true, ADDEND>(unit, stage, own);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    fn sweep_avx512<const ADDEND: bool>(&self, unit: &Unit<T>, stage: &Stage<'_, T>, own: Own<'_>) {
        self.sweep_plain::<false, ADDEND>(unit, stage, own);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn sweep_avx2<const ADDEND: bool>(&self, unit: &Unit<T>, stage: &Stage<'_, T>, own: Own<'_>) {
        self.sweep_plain::<false, ADDEND>(unit, stage, own);
    }

    #[inline(always)]
    fn sweep_plain<const NATIVE: bool, const ADDEND: bool>(
        &self,
        unit: &Unit<T>,
        stage: &Stage<'_, T>,
        own: Own<'_>,
    ) {
        let [columns, addend_columns] = stage.packed;
        let firsts: Vec<_> = stage.columns.clone().map(|p| self.pairing.firsts(p)).collect();
        let lines = columns.len() / firsts.len().max(1);
        let addend = if ADDEND { stage.addend } else { None };
        let sums = stage.kept.unwrap_or(own.sums);
        let (mut waiting, mut before) = (Waiting::NOTHING, 0);
        while let Some(taken) = stage.take() {
            let first = stage.rows.start + taken.start;
            let in_place = match stage.left {
                None => Rows::in_place(unit.level(), stage.a, first * SIDE),
                Some(_) => None,
            };
            if stage.left.is_none() && in_place.is_none() {
                pack_all_rows(self.level, stage.a, first * SIDE, lines, &mut own.rows[..taken.len() * lines]);
            }
            for (j, i) in taken.enumerate() {
                let row = first + j;
                let mut panels = None;
                if let Some(Addend { left, mask, .. }) = addend {
                    pack_rows(self.level, left, row * SIDE, own.addend);
                    let rows = &*own.addend;
                    panels = Some(Panels {
                        rows,
                        columns: addend_columns,
                        mask,
                        row: row * SIDE,
                        firsts: &firsts,
                    });
                }
                // In place is the first that was taken: only of a transpose there are more.
                let rows = match (stage.left, in_place) {
                    (Some(left), _) => Rows::packed(&left[row * lines..][..lines]),
                    (None, Some(rows)) => rows,
                    (None, None) => Rows::packed(&own.rows[j * lines..][..lines]),
                };
                let of = if stage.finish { self.rows_of(row) } else { 0..0 };
                let i = if stage.kept.is_some() { i } else { before };
                let panel = Panel { rows, columns, addend: panels, firsts: &firsts, i, of };
                self.multiply::<NATIVE>(unit, stage, &panel, sums, &mut waiting);
                before += 1;
            }
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
        unit: &Unit<T>,
        stage: &Stage<'_, T>,
        panel: &Panel<'_, 'f>,
        sums: Sums<'_>,
        waiting: &mut Waiting<'f>,
    ) {
        let lines = panel.rows.steps() * SIDE;
        let pieces = chunks(panel.rows.steps(), most_steps(unit.level()));
        for (q, piece) in pieces.iter().enumerate() {
            let Some(tiles) = unit.tiles() else {
                self.multiply_at_once::<NATIVE>(unit, stage, panel, [q, pieces.len()], piece, sums);
                continue;
            };
            let a = panel.rows.part(piece.clone());
            let share = SIDE.div_ceil(piece.len().max(1));
            let rows = if q + 1 == pieces.len() { panel.of.clone() } else { 0..0 };
            for p in 0..panel.firsts.len() {
                let b = &panel.columns[p * lines + piece.start * SIDE..][..piece.len() * SIDE];
                let place = stage.places.at(panel.i, p);
                let block = Waiting::new(place, &panel.firsts[p..=p], rows.clone());
                let (add, addend) = (stage.add || q > 0, panel.addend.filter(|_| q == 0));
                match addend {
                    Some(addend) => {
                        // Sums take their place for as long as they are masked.
                        if E::BLOCK_BY_BLOCK && addend.mask.is_some() {
                            self.store::<NATIVE>(sums, waiting, usize::MAX);
                        }
                        // SAFETY: of the panel that this thread has taken; nobody holds on to others.
                        addend.begin(tiles, p, unsafe { &mut sums.get(place..place + 1)[0] });
                    }
                    None if add => {
                        // SAFETY: as above.
                        tiles.begin(Some(unsafe { &sums.get(place..place + 1)[0] }));
                    }
                    None => tiles.begin(None),
                }
                let mut coming = rows.clone();
                for (i, b) in b.as_chunks().0.iter().enumerate() {
                    tiles.step(a, i, b);
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
                // SAFETY: as above.
                tiles.end(unsafe { &mut sums.get(place..place + 1)[0] });
            }
        }
        if !E::BLOCK_BY_BLOCK {
            self.store::<NATIVE>(sums, waiting, usize::MAX);
            *waiting = Waiting::new(stage.places.at(panel.i, 0), panel.firsts, panel.of.clone());
        }
    }

    /// Piece `q` of `of` where there are no tiles: two panels of columns at a time, and nothing between their steps.
    #[inline(always)]
    fn multiply_at_once<const NATIVE: bool>(
        &self,
        unit: &Unit<T>,
        stage: &Stage<'_, T>,
        panel: &Panel<'_, '_>,
        [q, of]: [usize; 2],
        piece: &Range<usize>,
        sums: Sums<'_>,
    ) {
        let (lines, count) = (panel.rows.steps() * SIDE, panel.firsts.len());
        let a = panel.rows.part(piece.clone());
        let piece = piece.start * SIDE..piece.end * SIDE;
        let rows = if q + 1 == of { panel.of.clone() } else { 0..0 };
        let addend = panel.addend.filter(|_| q == 0);
        let add = stage.add || q > 0 || addend.is_some();
        let columns = |p| &panel.columns[p * lines..][piece.clone()];
        for p in (0..count).step_by(2) {
            let (place, end) = (stage.places.at(panel.i, p), count.min(p + 2));
            // SAFETY: of the panel that this thread has taken; nobody holds on to others.
            let blocks = unsafe { sums.get(place..place + end - p) };
            for (p, block) in (p..end).zip(&mut *blocks) {
                if E::BLOCK_BY_BLOCK {
                    self.bring(&mut rows.clone(), panel.firsts[p], SIDE);
                }
                if let Some(addend) = addend {
                    addend.multiply(unit, p, block);
                }
            }
            match blocks {
                [one] => unit.multiply(a, columns(p), one, add),
                _ => {
                    let two = blocks.first_chunk_mut().expect("two blocks");
                    unit.multiply_two(a, [columns(p), columns(p + 1)], two, add);
                }
            }
            if E::BLOCK_BY_BLOCK {
                let mut blocks = Waiting::new(place, &panel.firsts[p..end], rows.clone());
                self.store::<NATIVE>(sums, &mut blocks, usize::MAX);
            }
        }
    }

    /// Hands over up to `most` waiting rows of blocks, row by row.
    #[inline(always)]
    fn store<const NATIVE: bool>(&self, sums: Sums<'_>, waiting: &mut Waiting<'_>, most: usize) {
        let (mut left, count) = (most, waiting.firsts.len());
        while left > 0 && !waiting.rows.is_empty() {
            let (row, from) = (waiting.rows.start, waiting.block);
            let until = from + left.min(count - from);
            // SAFETY: of a panel that this thread has taken; nobody holds on to them.
            let blocks = unsafe { sums.get(waiting.place + from..waiting.place + until) };
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
    rows: Rows<'a>,
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
