//! The matrix product, in bf16 and fp32: operands packed block by block, threads, and what is done with each finished block.
//!
//! Each thread gets a rectangle of the result. It packs as many columns of the right operand as fill a good half of its L2,
//! then takes the rows 32 at a time, multiplies the one panel with all column panels, and hands the blocks to the
//! [`Epilogue`] while they are in cache. Who is done takes rows of another's rectangle. Weights are packed as they are used:
//! a second, packed copy would have to be read all the same, and written before. Rows are read where they lie, unless they
//! lie across memory or not in whole lines: then they are packed, and once where each thread would for each of its groups
//! of columns.
//!
//! Sums run along k in one order that depends on the shape of the operands alone, so neither the number of threads nor
//! the rectangle an element lies in changes a bit. An [`Addend`] is summed before all of k.

mod addend;
mod epilogue;
mod help;
mod output;
mod scratch;
mod sweep;

pub use addend::{Addend, Mask};
pub use epilogue::{Into, Residual, Rope, Rounded, Sum, Swiglu, SwigluGradient};
pub use output::Output;

use super::tile::{
    Block, HALF, Level, Line, Matrix, Packed, Rows, SIDE, Unit, pack_all_columns, pack_all_rows,
};
use help::Board;
use rayon::prelude::*;
use scratch::{LEFT, SCRATCH};
use std::ops::Range;
use std::sync::atomic::AtomicUsize;
use sweep::{Own, Places, Stage, Sums};

/// Which columns share a block: half of it is 16 columns, the other half those `distance` further on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pairing {
    /// Columns from one half to the other; a multiple of 16.
    pub distance: usize,
}

impl Pairing {
    /// 32 columns in a row.
    pub const ADJOINING: Self = Self { distance: HALF };

    /// Whether halves of 16 columns make it up.
    pub fn is_whole(self) -> bool {
        self.distance > 0 && self.distance.is_multiple_of(HALF)
    }

    /// First columns of the halves of panel `p`. Pairs repeat every `2·distance` columns.
    #[inline]
    pub fn firsts(self, p: usize) -> [usize; 2] {
        let per_period = self.distance / HALF;
        let first = p / per_period * 2 * self.distance + p % per_period * HALF;
        [first, first + self.distance]
    }
}

/// What is done with finished blocks, row by row. Every element of the result is handed over once, by whichever thread
/// has it. Compiled for the level's vector unit, into which both functions must be inlined.
pub trait Epilogue: Sync {
    /// Whether blocks are handed over one by one, out of L1. Else those of a panel of rows are together, along each row:
    /// better where a block has only half of a line of memory, or more places than L1 has room for.
    const BLOCK_BY_BLOCK: bool = true;

    /// Asks for the memory that a row of a block will be stored to and computed from, while the block is multiplied.
    /// `firsts`: columns of the result where its halves begin, which may lie beyond it. Only where they come one by one:
    /// along whole rows the processor sees by itself what comes next.
    #[inline(always)]
    fn bring(&self, row: usize, firsts: [usize; 2]) {
        let _ = (row, firsts);
    }

    /// Stores a row of some blocks, what of them lies within the result. `NATIVE`: with the processor's own instruction to
    /// round to bf16.
    fn store<const NATIVE: bool>(&self, strip: Strip<'_>);
}

/// A row of adjoining panels of columns.
#[derive(Clone, Copy)]
pub struct Strip<'a> {
    /// Row of the result.
    pub row: usize,
    /// Columns of the result where the halves of each block begin.
    pub firsts: &'a [[usize; 2]],
    /// The sums: of each block,
    pub blocks: &'a [Block],
    /// this row.
    pub line: usize,
}

impl Strip<'_> {
    /// Block `i`: where its halves begin, and their sums.
    #[inline(always)]
    fn block(&self, i: usize) -> ([usize; 2], [&[f32; HALF]; 2]) {
        (self.firsts[i], self.blocks[i].halves(self.line))
    }
}

/// Steps of k that are multiplied at a time, of what is read again and again: for tiles a panel of rows, 36 KiB of L1; with
/// AVX2 one of columns, as much. AVX-512 multiplies so many sums per line it reads that L2 is near enough.
fn most_steps(level: Level) -> usize {
    match level {
        Level::Avx512 | Level::Avx512Bf16 => usize::MAX,
        Level::Portable | Level::Avx2 | Level::Amx => 18,
    }
}

/// Inner dimension that is packed at a time: of fp32 640, or 320 where sums are kept from one part to the next in any case,
/// so that more columns fit in L2 for each rows panel that is packed. Up to 1536 of bf16 are one part. More are cut into
/// parts of two pieces that L1 holds, see [`most_steps`]; or of one, which is read in fewer groups of columns though sums
/// move twice as often: quicker where the `columns` panels of a thread are too many for one group, except where packing
/// transposes.
const fn most_k<T: Packed>(k: usize, columns: usize, transposed: bool) -> usize {
    if T::DEPTH < SIDE {
        return if k <= 640 { 640 } else { 320 };
    }
    match k {
        ..=1536 => 1536,
        _ if transposed || columns * 1024 <= MOST_LINES => 1024,
        _ => 512,
    }
}

/// Lines of packed columns that a thread has at a time, for nine sixteenths of 2 MiB of L2: 576 columns of 1024.
const MOST_LINES: usize = (9 << 17) / size_of::<Line>();

/// Bytes of a left operand above which it is not packed as a whole.
const MOST_LEFT: usize = 32 << 20;

/// Panels of rows that are packed together where memory runs across them, for more of a row of it at a time.
const TOGETHER: usize = 4;

/// Whether a product may use all threads of the current pool, or runs inside a task that is one of many.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// All of the current rayon pool.
    All,
    /// The calling one.
    One,
}

/// Multiplications and additions below which a share is not worth a thread.
const MIN_SHARE: usize = 1 << 20;

/// `addend + a·b`, block by block into `epilogue`.
///
/// # Panics
/// If the inner dimensions differ, the addend has another shape, or the columns do not come in whole pairs.
pub fn product<T: Packed>(
    level: Level,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    addend: Option<Addend<'_, T>>,
    pairing: Pairing,
    threads: Threads,
    epilogue: &impl Epilogue,
) {
    let ([m, k], [inner, n]) = (a.shape(), b.shape());
    assert_eq!(k, inner, "inner dimensions");
    if let Some(Addend { left, right, .. }) = addend {
        let ([rows, rank], [inner, columns]) = (left.shape(), right.shape());
        assert_eq!([rows, inner, columns], [m, rank, n], "an addend's rows, inner dimension and columns");
    }
    let pairs = pairing == Pairing::ADJOINING || pairing.is_whole() && n.is_multiple_of(2 * pairing.distance);
    assert!(pairs, "{n} columns in {pairing:?}");
    let shares = match threads {
        Threads::One => 1,
        Threads::All => rayon::current_num_threads().min(m * n * k / MIN_SHARE).max(1),
    };
    let all = Rectangle { rows: 0..m.div_ceil(SIDE), columns: 0..n.div_ceil(SIDE) };
    let transposed = a.is_transposed() || b.is_transposed();
    let most_k = most_k::<T>(k, all.columns.len().div_ceil(shares), transposed);
    Product { level, a, b, addend, pairing, most_k, epilogue }.run(all, shares);
}

/// A product under way.
struct Product<'a, T, E> {
    level: Level,
    a: Matrix<'a, T>,
    b: Matrix<'a, T>,
    addend: Option<Addend<'a, T>>,
    pairing: Pairing,
    /// Of the inner dimension, at a time.
    most_k: usize,
    epilogue: &'a E,
}

/// Panels of rows and of columns.
#[derive(Clone, Debug)]
struct Rectangle {
    rows: Range<usize>,
    columns: Range<usize>,
}

impl<T: Packed, E: Epilogue> Product<'_, T, E> {
    /// All of it, by so many threads.
    fn run(&self, all: Rectangle, shares: usize) {
        let in_place = self.is_read_in_place();
        let mut parts = Vec::with_capacity(shares);
        self.cut(all.clone(), in_place, shares, &mut parts);
        let lines = all.rows.len() * self.chunks().map(|chunk| T::panel_lines(chunk.len())).sum::<usize>();
        // How often a row would be packed, times their number. From 3 on the copy, which no cache of a core holds, pays off.
        let times = parts.iter().map(|part| part.rows.len() * self.groups(part.columns.len())).sum::<usize>();
        if times < 3 * all.rows.len() || lines > MOST_LEFT / size_of::<Line>() || in_place {
            return self.work_on(&parts, None);
        }
        parts.clear();
        self.cut(all.clone(), true, shares, &mut parts);
        // Taken, not borrowed: this thread may come here again while it waits for others.
        let mut scratch = LEFT.take();
        let left = scratch.lines(lines);
        let mut rest = &mut *left;
        for chunk in self.chunks() {
            let lines = T::panel_lines(chunk.len());
            let panels = rest.split_off_mut(..all.rows.len() * lines).expect("room for all chunks");
            let a = self.a.columns(chunk);
            panels.par_chunks_mut((TOGETHER * lines).max(1)).enumerate().for_each(|(i, panels)| {
                pack_all_rows(self.level, a, i * TOGETHER * SIDE, lines, panels);
            });
        }
        self.work_on(&parts, Some(left));
        LEFT.set(scratch);
    }

    /// Whether the left operand needs no packing.
    fn is_read_in_place(&self) -> bool {
        let first = self.a.columns(self.chunks().next().unwrap_or(0..0));
        Rows::in_place(T::level(self.level), first, 0).is_some()
    }

    /// A thread for each part. `left`: all of the left operand, packed chunk by chunk.
    fn work_on(&self, parts: &[Rectangle], left: Option<&[Line]>) {
        if let [all] = parts {
            return self.work(all, left, |_, multiply| multiply());
        }
        let board = Board::new(parts.len());
        parts.par_iter().enumerate().with_max_len(1).for_each(|(i, part)| {
            board.share(i, || self.work(part, left, |stage, multiply| board.lend(i, stage, multiply)));
            board.help(|stage| self.help(stage));
        });
    }

    /// The parts of k that are packed at a time.
    fn chunks(&self) -> impl Iterator<Item = Range<usize>> + use<T, E> {
        chunks(self.a.shape()[1], self.most_k).into_iter()
    }

    /// Lines of a panel of the right operand and of the addend, at most.
    fn widest(&self) -> [usize; 2] {
        let first = self.chunks().next().map_or(0, |chunk| chunk.len());
        [T::panel_lines(first), self.addend.map_or(0, |addend| addend.lines())]
    }

    /// In how many groups so many panels of columns are packed.
    fn groups(&self, columns: usize) -> usize {
        let lines = self.widest().iter().sum::<usize>().max(1);
        columns.div_ceil((MOST_LINES / lines).max(1)).max(1)
    }

    /// Cuts the rectangle in proportion until there is one for each of `shares` threads. `ready`: rows need no packing.
    fn cut(&self, all: Rectangle, ready: bool, shares: usize, parts: &mut Vec<Rectangle>) {
        let [rows, columns] = [&all.rows, &all.columns].map(|panels| panels.len() >= 2);
        if shares <= 1 || !rows && !columns {
            return parts.push(all);
        }
        let cut = |by_rows: bool| {
            let mut parts = [all.clone(), all.clone()];
            let [first, second] =
                parts.each_mut().map(|part| if by_rows { &mut part.rows } else { &mut part.columns });
            first.end = first.start + (first.len() * (shares / 2) / shares).max(1);
            second.start = first.end;
            parts
        };
        let cost = |by_rows| cut(by_rows).iter().map(|part| self.cost(part, ready)).sum::<usize>();
        let [first, second] = cut(!columns || rows && cost(true) <= cost(false));
        self.cut(first, ready, shares / 2, parts);
        self.cut(second, ready, shares - shares / 2, parts);
    }

    /// What a thread packs for its part, in quarters of a panel: rows for each group of its columns. What has to be
    /// transposed costs twice as much. What is only read counts a quarter, lest each of many threads read all rows for one
    /// panel of columns.
    fn cost(&self, part: &Rectangle, ready: bool) -> usize {
        let of = |m: &Matrix<'_, T>| if m.is_transposed() { 8 } else { 4 };
        let row = if ready { 1 } else { of(&self.a) };
        part.rows.len() * self.groups(part.columns.len()) * row + part.columns.len() * of(&self.b)
    }

    /// One thread's rectangle. `multiply` is given each stage, and what multiplies it.
    fn work(
        &self,
        all: &Rectangle,
        left: Option<&[Line]>,
        multiply: impl Fn(&Stage<'_, T>, &mut dyn FnMut()),
    ) {
        let unit = Unit::new(self.level);
        let chunks: Vec<_> = self.chunks().collect();
        let ([widest, narrow], together) = (self.widest(), self.together());
        let panels = self.a.shape()[0].div_ceil(SIDE);
        SCRATCH.with_borrow_mut(|scratch| {
            for columns in shares_of(&all.columns, self.groups(all.columns.len())) {
                let mut left = left;
                let count = columns.len();
                let lines = [count * widest, together * widest];
                let places = Self::places(&unit, all.rows.len(), count, &chunks);
                let room = scratch.take(lines, [count * narrow, narrow], places.panels * places.width);
                let [addend_columns, addend_rows] = room.addend;
                let sums = Sums::new(room.sums);
                for (i, chunk) in chunks.iter().enumerate() {
                    let lines = T::panel_lines(chunk.len());
                    let addend = self.addend.filter(|_| i == 0);
                    let packed = &mut room.columns[..count * lines];
                    self.pack(&columns, self.b.rows(chunk.clone()), lines, packed);
                    if let Some(Addend { right, .. }) = addend {
                        self.pack(&columns, right, narrow, addend_columns);
                    }
                    let stage = Stage {
                        a: self.a.columns(chunk.clone()),
                        left: left.as_mut().map(|left| left.split_off(..panels * lines).expect("all chunks")),
                        rows: all.rows.clone(),
                        columns: columns.clone(),
                        packed: [packed, addend_columns],
                        addend,
                        add: i > 0,
                        finish: i + 1 == chunks.len(),
                        places,
                        kept: (chunks.len() > 1).then_some(sums),
                        together,
                        next: AtomicUsize::new(0),
                    };
                    multiply(&stage, &mut || {
                        let rows = &mut room.rows[..together * lines];
                        self.sweep(&unit, &stage, Own { rows, addend: addend_rows, sums });
                    });
                }
            }
        });
    }

    /// Packs panels `columns` of a right operand.
    fn pack(&self, columns: &Range<usize>, b: Matrix<'_, T>, lines: usize, packed: &mut [Line]) {
        let firsts = |p| self.pairing.firsts(columns.start + p);
        pack_all_columns(self.level, b, firsts, lines, packed);
    }

    /// Panels of rows that are packed together.
    fn together(&self) -> usize {
        if self.a.is_transposed() { TOGETHER } else { 1 }
    }

    /// Takes part in what another thread has begun.
    fn help(&self, stage: &Stage<'_, T>) {
        if stage.is_taken() {
            return;
        }
        let unit = Unit::new(self.level);
        let count = stage.columns.len().max(1);
        let [lines, narrow] = stage.packed.map(|packed| packed.len() / count);
        let places = if stage.kept.is_some() { 0 } else { stage.places.panels * stage.places.width };
        SCRATCH.with_borrow_mut(|scratch| {
            let room = scratch.take([0, self.together() * lines], [0, narrow], places);
            let [_, addend] = room.addend;
            self.sweep(&unit, stage, Own { rows: room.rows, addend, sums: Sums::new(room.sums) });
        });
    }

    /// Places for the blocks of `rows` panels of rows and `columns` of columns, along chunks of k.
    fn places(unit: &Unit<T>, rows: usize, columns: usize, chunks: &[Range<usize>]) -> Places {
        let steps = chunks.first().map_or(0, |chunk| T::panel_lines(chunk.len()) / SIDE);
        let [panels, width] = match chunks.len() {
            2.. => [rows, columns],
            // Those of the panel before wait while the next has its own.
            _ if !E::BLOCK_BY_BLOCK => [2, columns],
            _ if steps > most_steps(unit.level()) => [1, columns],
            _ if unit.tiles().is_some() => [1, 1],
            _ => [1, 2],
        };
        Places { panels: panels.max(1), width: width.max(1) }
    }
}

/// `0..n` in as few, nearly equal parts of at most `most` as possible; all but the last of them whole steps.
fn chunks(n: usize, most: usize) -> Vec<Range<usize>> {
    let count = n.div_ceil(most).max(1);
    let step = if most > SIDE { SIDE } else { 1 };
    let per = n.div_ceil(count).next_multiple_of(step).max(1);
    (0..count).map(|i| (i * per).min(n)..((i + 1) * per).min(n)).collect()
}

/// `all` in `parts` nearly equal parts.
fn shares_of(all: &Range<usize>, parts: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let (start, len) = (all.start, all.len());
    (0..parts).map(move |i| start + len * i / parts..start + len * (i + 1) / parts)
}
