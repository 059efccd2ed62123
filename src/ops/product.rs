//! The bf16 matrix product: operands packed block by block, threads, and what is done with each finished block.
//!
//! Each thread gets a rectangle of the result. It packs as many rows of the left operand as its L2 cache holds, then
//! takes the columns 32 at a time: packs them, multiplies the one panel, which stays in L1, with all row panels, and hands
//! the blocks to the [`Epilogue`] while they are in cache. Weights are packed as they are used: that reads them once, as
//! a second, packed copy would have to be read, and costs no memory (2 bytes per parameter and orientation otherwise).
//!
//! Sums run along k in one order that depends on the shape of the operands alone, so neither the number of threads nor
//! the rectangle an element lies in changes a bit.

mod epilogue;

pub use epilogue::{Output, Residual, Rope, Rounded, Sum, Swiglu, SwigluGradient};

use super::matmul::Threads;
use super::tile::{
    Block, HALF, Level, Line, Matrix, SIDE, Unit, pack_columns, pack_rows, panel_lines, prefetch_columns,
};
use std::cell::RefCell;
use std::ops::Range;

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
    fn firsts(self, p: usize) -> [usize; 2] {
        let per_period = self.distance / HALF;
        let first = p / per_period * 2 * self.distance + p % per_period * HALF;
        [first, first + self.distance]
    }
}

/// What is done with a finished block, row by row. Every element of the result is handed over once, by whichever thread
/// has it. Compiled for the level's vector unit, which `store` must inline into.
pub trait Epilogue: Sync {
    /// Stores a row of a block.
    fn store(&self, part: Row<'_>);
}

/// A row of a block: two halves of 16 sums.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    /// Row of the result.
    pub row: usize,
    /// Column of the result where each half begins.
    pub firsts: [usize; 2],
    /// Columns of each half that the result has.
    pub widths: [usize; 2],
    /// The sums.
    pub sums: [&'a [f32; HALF]; 2],
}

/// Steps of k that a columns panel has in L1 at a time: 36 KiB.
const MOST_STEPS: usize = 18;

/// Inner dimension that is packed at a time.
const MOST_K: usize = 2560;

/// Lines of packed rows that a thread has at a time: three quarters of 2 MiB of L2.
const MOST_LINES: usize = (3 << 19) / size_of::<Line>();

/// Multiplications and additions below which a share is not worth a thread.
const MIN_SHARE: usize = 1 << 20;

/// `a·b`, block by block into `epilogue`.
///
/// # Panics
/// If the inner dimensions differ, or the columns do not come in whole pairs.
pub fn product(
    level: Level,
    a: Matrix<'_>,
    b: Matrix<'_>,
    pairing: Pairing,
    threads: Threads,
    epilogue: &impl Epilogue,
) {
    let ([m, k], [inner, n]) = (a.shape(), b.shape());
    assert_eq!(k, inner, "inner dimensions");
    let pairs = pairing == Pairing::ADJOINING || pairing.is_whole() && n.is_multiple_of(2 * pairing.distance);
    assert!(pairs, "{n} columns in {pairing:?}");
    let shares = match threads {
        Threads::One => 1,
        Threads::All => rayon::current_num_threads().min(m * n * k / MIN_SHARE).max(1),
    };
    let all = Rectangle { rows: 0..m.div_ceil(SIDE), columns: 0..n.div_ceil(SIDE) };
    Product { level, a, b, pairing, epilogue }.share(all, shares);
}

/// A product under way.
struct Product<'a, E> {
    level: Level,
    a: Matrix<'a>,
    b: Matrix<'a>,
    pairing: Pairing,
    epilogue: &'a E,
}

/// Panels of rows and of columns.
#[derive(Clone, Debug)]
struct Rectangle {
    rows: Range<usize>,
    columns: Range<usize>,
}

/// What a thread packs into, kept from one product to the next.
#[derive(Default)]
struct Scratch {
    rows: Vec<Line>,
    columns: Vec<Line>,
    blocks: Vec<Block>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl<E: Epilogue> Product<'_, E> {
    /// Cuts the rectangle in proportion until there is one for each of `shares` threads.
    fn share(&self, all: Rectangle, shares: usize) {
        // Both sides of a cut pack what lies across it. Rows cost half as much, and what has to be transposed twice.
        let cost =
            |panels: &Range<usize>, m: &Matrix<'_>| panels.len() * if m.is_transposed() { 2 } else { 1 };
        let (rows, columns) = (cost(&all.rows, &self.a), 2 * cost(&all.columns, &self.b));
        let by_rows = (rows >= columns || all.columns.len() < 2) && all.rows.len() >= 2;
        if shares <= 1 || !by_rows && all.columns.len() < 2 {
            return SCRATCH.with_borrow_mut(|scratch| self.run(&all, scratch));
        }
        let cut = |r: &Range<usize>| r.start + (r.len() * (shares / 2) / shares).max(1);
        let (mut first, mut second) = (all.clone(), all);
        if by_rows {
            first.rows.end = cut(&first.rows);
            second.rows.start = first.rows.end;
        } else {
            first.columns.end = cut(&first.columns);
            second.columns.start = first.columns.end;
        }
        rayon::join(|| self.share(first, shares / 2), || self.share(second, shares - shares / 2));
    }

    /// One thread's rectangle.
    fn run(&self, all: &Rectangle, scratch: &mut Scratch) {
        let unit = Unit::new(self.level);
        let chunks = chunks(self.a.shape()[1], MOST_K);
        let widest = panel_lines(chunks.first().map_or(0, Range::len));
        let per_block = (MOST_LINES / widest.max(1)).max(1);
        let blocks = all.rows.len().div_ceil(per_block).max(1);
        for rows in shares_of(&all.rows, blocks) {
            let panels = all.columns.len();
            let kept = if chunks.len() == 1 { 1 } else { panels };
            grow(&mut scratch.blocks, kept * rows.len(), Block::ZERO);
            grow(&mut scratch.rows, rows.len() * widest, Line::ZERO);
            grow(&mut scratch.columns, widest, Line::ZERO);
            for (i, chunk) in chunks.iter().enumerate() {
                let lines = panel_lines(chunk.len());
                let (a, b) = (self.a.columns(chunk.clone()), self.b.rows(chunk.clone()));
                let packed = &mut scratch.rows[..rows.len() * lines];
                pack_rows(self.level, a, rows.start * SIDE, lines, packed);
                for (p, column) in all.columns.clone().enumerate() {
                    let firsts = self.pairing.firsts(column);
                    let panel = &mut scratch.columns[..lines];
                    pack_columns(self.level, b, firsts, panel);
                    let blocks =
                        &mut scratch.blocks[if kept == 1 { 0 } else { p * rows.len() }..][..rows.len()];
                    let next = (p + 1 < panels).then(|| (b, self.pairing.firsts(column + 1)));
                    multiply(&unit, &scratch.rows, panel, blocks, i > 0, next);
                    if i + 1 == chunks.len() {
                        self.finish(blocks, rows.start, firsts);
                    }
                }
            }
        }
    }

    /// Hands a column of blocks over.
    fn finish(&self, blocks: &[Block], first: usize, firsts: [usize; 2]) {
        let ([m, _], [_, n]) = (self.a.shape(), self.b.shape());
        let rows = first * SIDE..m.min((first + blocks.len()) * SIDE);
        let widths = firsts.map(|first| n.saturating_sub(first).min(HALF));
        let part = Part { blocks, rows, firsts, widths };
        #[cfg(target_arch = "x86_64")]
        match self.level {
            // SAFETY: levels are made available ones only, and these have AVX-512.
            Level::Amx | Level::Avx512Bf16 | Level::Avx512 => {
                return unsafe { part.store_avx512(self.epilogue) };
            }
            // SAFETY: as above, AVX2.
            Level::Avx2 => return unsafe { part.store_avx2(self.epilogue) },
            Level::Portable => {}
        }
        part.store(self.epilogue);
    }
}

/// Blocks one below the other, and what the result has of them.
struct Part<'a> {
    blocks: &'a [Block],
    rows: Range<usize>,
    firsts: [usize; 2],
    widths: [usize; 2],
}

impl Part<'_> {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    fn store_avx512(self, epilogue: &impl Epilogue) {
        self.store(epilogue);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn store_avx2(self, epilogue: &impl Epilogue) {
        self.store(epilogue);
    }

    #[inline(always)]
    fn store(self, epilogue: &impl Epilogue) {
        let Self { firsts, widths, .. } = self;
        let rows = self.blocks.iter().flat_map(|block| &block.0);
        for (row, sums) in self.rows.zip(rows) {
            let ([left, right], []) = sums.as_chunks() else { unreachable!("two halves") };
            let sums = [left, right];
            // A constant width where there is one.
            if widths == [HALF; 2] {
                epilogue.store(Row { row, firsts, widths: [HALF; 2], sums });
            } else {
                epilogue.store(Row { row, firsts, widths, sums });
            }
        }
    }
}

/// All row panels by one columns panel, in pieces of k for which the latter stays in L1. Meanwhile the columns that come
/// `next` are brought close.
fn multiply(
    unit: &Unit,
    rows: &[Line],
    column: &[Line],
    blocks: &mut [Block],
    add: bool,
    next: Option<(Matrix<'_>, [usize; 2])>,
) {
    let lines = column.len();
    if lines == 0 {
        if !add {
            blocks.fill(Block::ZERO);
        }
        return;
    }
    let pieces = chunks(lines / SIDE, MOST_STEPS);
    let turns = pieces.len() * blocks.len();
    for (i, piece) in pieces.into_iter().enumerate() {
        let piece = piece.start * SIDE..piece.end * SIDE;
        for ((block, row), turn) in
            blocks.iter_mut().zip(rows.chunks_exact(lines)).zip(i * rows.len() / lines..)
        {
            if let Some((b, firsts)) = next {
                prefetch_columns(b, firsts, turn, turns);
            }
            unit.multiply(&row[piece.clone()], &column[piece.clone()], block, add || i > 0);
        }
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

fn grow<T: Copy>(v: &mut Vec<T>, len: usize, zero: T) {
    if v.len() < len {
        v.resize(len, zero);
    }
}
