//! A product of few rows with a weight: as fast as the weight comes from memory, once, in the order in which it lies there.
//!
//! Each output is one sum in the order of [`dot`] or [`dot_q8_0`], whatever the vector width, the number of
//! rows, and the thread that has it.

#[cfg(target_arch = "x86_64")]
mod avx512;

use super::weight::Weight;
use crate::dtype::{Element, Q8_0};
use crate::ops::math::{dot, dot_q8_0, simd};
use crate::ops::matmul::widen;
use crate::ops::product::{Epilogue, Pairing, Row};
use crate::ops::tile::{HALF, Level, SIDE};
use rayon::prelude::*;
use std::ops::Range;

/// Rows up to which the weight is not packed for the matrix unit.
pub const MOST_ROWS: usize = 4;

/// Bytes of a weight that are worth a thread.
const MIN_SHARE: usize = 1 << 17;

/// A weight `[out, in]` and rows `x` f32 `[T, in]`.
struct Operands<'a, E> {
    x: &'a [f32],
    w: Weight<'a, E>,
    inputs: usize,
    outputs: usize,
}

/// `x·wᵀ` into `epilogue`, as [`product`](crate::ops::product::product) would. `x` A `[T, in]`, `w` `[out, in]`.
///
/// # Panics
/// If the columns do not come in whole pairs.
pub fn times_transpose<E: Element>(
    x: &[E],
    w: Weight<'_, E>,
    inputs: usize,
    pairing: Pairing,
    epilogue: &impl Epilogue,
) {
    let outputs = w.outputs(inputs);
    let pairs =
        pairing == Pairing::ADJOINING || pairing.is_whole() && outputs.is_multiple_of(2 * pairing.distance);
    assert!(pairs, "{outputs} columns in {pairing:?}");
    let operands = Operands { x: &widen(x), w, inputs, outputs };
    let panel = |p: usize| operands.panel(pairing, p, epilogue);
    let (panels, panel_bytes) = (outputs.div_ceil(SIDE), w.bytes(SIDE * inputs));
    if panels * panel_bytes < 2 * MIN_SHARE {
        (0..panels).for_each(panel);
    } else {
        let least = MIN_SHARE.div_ceil(panel_bytes);
        (0..panels).into_par_iter().with_min_len(least).for_each(panel);
    }
}

impl<E: Element> Operands<'_, E> {
    /// The 32 columns of panel `p`, for all rows.
    fn panel(&self, pairing: Pairing, p: usize, epilogue: &impl Epilogue) {
        let [first, second] = pairing.firsts(p);
        let widths = [HALF.min(self.outputs - first), HALF.min(self.outputs.saturating_sub(second))];
        let firsts = [first, if widths[1] == 0 { 0 } else { second }];
        for (row, x) in self.x.chunks_exact(self.inputs).enumerate() {
            let mut sums = [[0.0; HALF]; 2];
            for half in 0..2 {
                self.w.dots(firsts[half]..firsts[half] + widths[half], x, &mut sums[half]);
            }
            let part = Row { row, firsts, widths, sums: [&sums[0], &sums[1]] };
            simd(
                #[inline(always)]
                || epilogue.store(part),
            );
        }
    }
}

impl<E: Element> Weight<'_, E> {
    /// Sums of rows `rows`, at most 16, of the length of `x` each.
    fn dots(self, rows: Range<usize>, x: &[f32], sums: &mut [f32; HALF]) {
        let of = |n: usize| rows.start * n..rows.end * n;
        let blocks = x.len() / Q8_0::LEN;
        #[cfg(target_arch = "x86_64")]
        if Level::best() >= Level::Avx512 {
            match self {
                // SAFETY: the level has AVX-512.
                Self::Q8_0(w) => return unsafe { avx512::dots_q8_0(&w[of(blocks)], x, sums) },
                Self::Plain(w) => {
                    let w = &w[of(x.len())];
                    match E::DTYPE {
                        // SAFETY: as above.
                        crate::dtype::DType::F32 => {
                            return unsafe { avx512::dots_f32(bytemuck::cast_slice(w), x, sums) };
                        }
                        // SAFETY: as above.
                        crate::dtype::DType::BF16 => {
                            return unsafe { avx512::dots_bf16(bytemuck::cast_slice(w), x, sums) };
                        }
                        _ => {}
                    }
                }
            }
        }
        simd(
            #[inline(always)]
            || match self {
                Self::Plain(w) => {
                    let rows = w[of(x.len())].chunks_exact(x.len());
                    sums.iter_mut().zip(rows).for_each(|(sum, w)| *sum = dot(w, x));
                }
                Self::Q8_0(w) => {
                    let rows = w[of(blocks)].chunks_exact(blocks);
                    sums.iter_mut().zip(rows).for_each(|(sum, w)| *sum = dot_q8_0(w, x));
                }
            },
        );
    }
}
