//! A product of few rows with a weight: as fast as the weight comes from memory, once, in the order in which it lies there.
//!
//! Each output is one sum in the order of [`dot`] or [`dot_q8_0`], whatever the vector width, the number of
//! rows, and the thread that has it; an adapter's is one more, added to it.

#[cfg(target_arch = "x86_64")]
mod avx512;

use super::{Adapted, Weight};
use crate::dtype::{DType, Element, Q8_0};
use crate::ops::convert::widen;
use crate::ops::math::{self, dot, dot_q8_0, simd};
use crate::ops::product::{Epilogue, Pairing, Strip};
use crate::ops::tile::{Block, HALF, Level, SIDE};
use rayon::prelude::*;
use std::ops::Range;

/// Rows up to which the weight is not packed for the matrix unit.
pub const MOST_ROWS: usize = 8;

/// Bytes of a weight that are worth a thread.
const MIN_SHARE: usize = 1 << 17;

/// How far ahead of its use memory is asked for. Within reach of the processor's own prefetching, which ends with a page of
/// 4 KiB: 1 to 4 KiB gave the same within noise, 8 KiB a tenth less in fp32, nothing at all a sixth less.
const AHEAD: usize = 1 << 11;

/// Asks for the bytes that lie [`AHEAD`] of `at`, whether or not they are part of the weight.
#[inline(always)]
fn prefetch<T>(at: *const T, bytes: usize) {
    const LINE: usize = 64;
    let mut line = 0;
    while line < bytes {
        math::prefetch(at.wrapping_byte_add(AHEAD + line));
        line += LINE;
    }
}

/// A weight `[out, in]` and rows `x` f32 `[T, in]`.
struct Factors<'a, E> {
    x: &'a [f32],
    w: Weight<'a, E>,
    inputs: usize,
}

/// What is multiplied with, and added to it, its adapter.
struct Operands<'a, E> {
    main: Factors<'a, E>,
    adapter: Option<Factors<'a, E>>,
    outputs: usize,
}

/// `adapter + x·wᵀ` into `epilogue`, as [`product`](crate::ops::product::product) would. `x` A `[T, in]`, `w` `[out, in]`.
///
/// # Panics
/// If the columns do not come in whole pairs, the adapter has another shape, or a mask, which no forward product has.
pub fn times_transpose<E: Element>(
    x: &[E],
    Adapted { w, adapter }: Adapted<'_, E>,
    inputs: usize,
    pairing: Pairing,
    epilogue: &impl Epilogue,
) {
    let outputs = w.outputs(inputs);
    let pairs =
        pairing == Pairing::ADJOINING || pairing.is_whole() && outputs.is_multiple_of(2 * pairing.distance);
    assert!(pairs, "{outputs} columns in {pairing:?}");
    let x = widen(x);
    let left = adapter.map(|adapter| {
        let rank = adapter.rank;
        let shapes = [adapter.left.len() / rank, adapter.right.len() / rank];
        assert_eq!(shapes, [x.len() / inputs, outputs], "an adapter's rows and columns");
        assert!(adapter.mask.is_none(), "a mask in a forward product");
        (widen(adapter.left), Weight::Plain(adapter.right), rank)
    });
    let adapter = left.as_ref().map(|(x, w, rank)| Factors { x, w: *w, inputs: *rank });
    let operands = Operands { main: Factors { x: &x, w, inputs }, adapter, outputs };
    let panel = |p: usize| operands.panel(pairing, p, epilogue);
    let (panels, panel_bytes) = (outputs.div_ceil(SIDE), w.bytes(SIDE * inputs));
    if panels * panel_bytes < 2 * MIN_SHARE {
        (0..panels).for_each(panel);
    } else {
        let least = MIN_SHARE.div_ceil(panel_bytes);
        (0..panels).into_par_iter().with_min_len(least).for_each(panel);
    }
}

impl<E: Element> Factors<'_, E> {
    fn rows(&self) -> usize {
        self.x.len() / self.inputs
    }
}

impl<E: Element> Operands<'_, E> {
    /// The 32 columns of panel `p`, for all rows.
    fn panel(&self, pairing: Pairing, p: usize, epilogue: &impl Epilogue) {
        let firsts = pairing.firsts(p);
        let (mut sums, rows) = (self.sums(&self.main, firsts), self.main.rows());
        if let Some(adapter) = &self.adapter {
            let addend = self.sums(adapter, firsts);
            let lines = sums.0[..rows].iter_mut().zip(&addend.0);
            lines.for_each(|(sums, addend)| sums.iter_mut().zip(addend).for_each(|(x, y)| *x += y));
        }
        for row in 0..rows {
            let strip = Strip { row, firsts: &[firsts], blocks: std::slice::from_ref(&sums), line: row };
            simd(
                #[inline(always)]
                || epilogue.store::<false>(strip),
            );
        }
    }

    /// Sums of both halves of a panel.
    fn sums(&self, of: &Factors<'_, E>, firsts: [usize; 2]) -> Block {
        let (mut sums, rows) = (Block::ZERO, of.rows());
        for (half, first) in firsts.into_iter().enumerate() {
            // Half a panel may lie beyond the weight.
            let until = self.outputs.min(first + HALF);
            if first < until {
                of.w.dots(first..until, of.x, of.inputs, half, &mut sums.0[..rows]);
            }
        }
        sums
    }
}

impl<E: Element> Weight<'_, E> {
    /// Sums of rows `rows`, at most 16, with each row of `x`, of `inputs` elements, into that half of its line.
    fn dots(self, rows: Range<usize>, x: &[f32], inputs: usize, half: usize, lines: &mut [[f32; SIDE]]) {
        #[cfg(target_arch = "x86_64")]
        if lines.len() > 1
            && Level::best() >= Level::Avx512
            && self.dots_of_rows_avx512(rows.clone(), x, inputs, half, lines)
        {
            return;
        }
        for (x, line) in x.chunks_exact(inputs).zip(lines) {
            self.dots_of_row(rows.clone(), x, &mut line.as_chunks_mut().0[half]);
        }
    }

    /// As [`Weight::dots_avx512`], of several rows of `x`.
    #[cfg(target_arch = "x86_64")]
    fn dots_of_rows_avx512(
        self,
        rows: Range<usize>,
        x: &[f32],
        inputs: usize,
        half: usize,
        lines: &mut [[f32; SIDE]],
    ) -> bool {
        let Self::Plain(w) = self else { return false };
        let (w, columns) = (&w[rows.start * inputs..rows.end * inputs], half * HALF);
        match E::DTYPE {
            // SAFETY: the level has AVX-512.
            DType::F32 => unsafe { avx512::rows_f32(bytemuck::cast_slice(w), x, inputs, lines, columns) },
            // SAFETY: as above.
            DType::BF16 => unsafe { avx512::rows_bf16(bytemuck::cast_slice(w), x, inputs, lines, columns) },
            _ => return false,
        }
        true
    }

    /// Sums of rows `rows`, at most 16, of the length of `x` each.
    fn dots_of_row(self, rows: Range<usize>, x: &[f32], sums: &mut [f32; HALF]) {
        #[cfg(target_arch = "x86_64")]
        {
            if Level::best() >= Level::Avx512 && self.dots_avx512(rows.clone(), x, sums) {
                return;
            }
            if Level::best() >= Level::Avx2 {
                // SAFETY: levels are made available ones only, and these have AVX2.
                return unsafe { self.dots_avx2(rows, x, sums) };
            }
        }
        self.dots_plain(rows, x, sums);
    }

    /// False for a type that has no code of its own; the level has AVX-512.
    #[cfg(target_arch = "x86_64")]
    fn dots_avx512(self, rows: Range<usize>, x: &[f32], sums: &mut [f32; HALF]) -> bool {
        let of = |per_row: usize| rows.start * per_row..rows.end * per_row;
        match self {
            // SAFETY: the level has AVX-512.
            Self::Q8_0(w) => unsafe { avx512::dots_q8_0(&w[of(x.len() / Q8_0::LEN)], x, sums) },
            Self::Plain(w) if E::DTYPE == DType::F32 => {
                let w = bytemuck::cast_slice(&w[of(x.len())]);
                // SAFETY: as above.
                unsafe { avx512::dots_f32(w, x, sums) };
            }
            Self::Plain(w) if E::DTYPE == DType::BF16 => {
                let w = bytemuck::cast_slice(&w[of(x.len())]);
                // SAFETY: as above.
                unsafe { avx512::dots_bf16(w, x, sums) };
            }
            Self::Plain(_) => return false,
        }
        true
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn dots_avx2(self, rows: Range<usize>, x: &[f32], sums: &mut [f32; HALF]) {
        self.dots_plain(rows, x, sums);
    }

    #[inline(always)]
    fn dots_plain(self, rows: Range<usize>, x: &[f32], sums: &mut [f32; HALF]) {
        let (mut row, mut i) = (rows.start, 0);
        while row < rows.end {
            sums[i] = match self {
                Self::Plain(w) => dot(
                    &w[row * x.len()..(row + 1) * x.len()],
                    x,
                    #[inline(always)]
                    |at| prefetch(at, Q8_0::LEN * size_of::<E>()),
                ),
                Self::Q8_0(w) => dot_q8_0(
                    &w[row * (x.len() / Q8_0::LEN)..(row + 1) * (x.len() / Q8_0::LEN)],
                    x,
                    #[inline(always)]
                    |at| prefetch(at, size_of::<Q8_0>()),
                ),
            };
            (row, i) = (row + 1, i + 1);
        }
    }
}
