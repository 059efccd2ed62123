//! A product of few rows with a weight: as fast as the weight comes from memory, once, in the order in which it lies there.
//!
//! Each output is one sum in the order of [`dot`], whatever the vector width, the number of
//! rows, and the thread that has it.

use crate::dtype::Element;
use crate::ops::convert::widen;
use crate::ops::math::{dot, simd};
use crate::ops::product::{Epilogue, Pairing, Strip};
use crate::ops::tile::{Block, HALF, SIDE};
use rayon::prelude::*;

/// Rows up to which the weight is not packed for the matrix unit.
pub const MOST_ROWS: usize = 4;

/// Bytes of a weight that are worth a thread.
const MIN_SHARE: usize = 1 << 17;

/// How far ahead of its use memory is asked for: the processor's own prefetching reaches two thirds of the bandwidth.
const AHEAD: usize = 1 << 13;

/// A weight `[out, in]` and rows `x` f32 `[T, in]`.
struct Operands<'a, E> {
    x: &'a [f32],
    w: &'a [E],
    inputs: usize,
}

/// Asks for the 32 elements that lie [`AHEAD`] of `at`, whether or not they are part of the weight.
#[inline(always)]
fn prefetch<T>(at: *const T) {
    const LINE: usize = 64;
    for line in 0..(SIDE * size_of::<T>()).div_ceil(LINE) {
        let address = at.wrapping_byte_add(AHEAD + line * LINE);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch reads nothing that the program sees, and faults at no address.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(address.cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = address;
    }
}

/// `x·wᵀ` into `epilogue`, as [`product`](crate::ops::product::product) would. `x` A `[T, in]`, `w` A `[out, in]`.
///
/// # Panics
/// If the columns do not come in whole pairs.
pub fn times_transpose<E: Element>(
    x: &[E],
    w: &[E],
    inputs: usize,
    pairing: Pairing,
    epilogue: &impl Epilogue,
) {
    let outputs = w.len() / inputs;
    let pairs =
        pairing == Pairing::ADJOINING || pairing.is_whole() && outputs.is_multiple_of(2 * pairing.distance);
    assert!(pairs, "{outputs} columns in {pairing:?}");
    let operands = Operands { x: &widen(x), w, inputs };
    let panel = |p: usize| {
        simd(
            #[inline(always)]
            || operands.panel(pairing, p, epilogue),
        );
    };
    let (panels, panel_bytes) = (outputs.div_ceil(SIDE), SIDE * inputs * size_of::<E>());
    if panels * panel_bytes < 2 * MIN_SHARE {
        (0..panels).for_each(panel);
    } else {
        let least = MIN_SHARE.div_ceil(panel_bytes);
        (0..panels).into_par_iter().with_min_len(least).for_each(panel);
    }
}

impl<E: Element> Operands<'_, E> {
    /// The 32 columns of panel `p`, for all rows.
    #[inline(always)]
    #[allow(
        clippy::needless_range_loop,
        reason = "adapters of iterators were seen not to inline into `simd`"
    )]
    fn panel(&self, pairing: Pairing, p: usize, epilogue: &impl Epilogue) {
        let outputs = self.w.len() / self.inputs;
        let firsts = pairing.firsts(p);
        let widths = [HALF.min(outputs - firsts[0]), HALF.min(outputs.saturating_sub(firsts[1]))];
        let rows = self.x.len() / self.inputs;
        let mut sums = Block::ZERO;
        for half in 0..2 {
            for i in 0..widths[half] {
                let w = &self.w[(firsts[half] + i) * self.inputs..][..self.inputs];
                for t in 0..rows {
                    let x = &self.x[t * self.inputs..][..self.inputs];
                    sums.0[t][half * HALF + i] = dot(
                        w,
                        x,
                        #[inline(always)]
                        |at| prefetch(at),
                    );
                }
            }
        }
        for row in 0..rows {
            let strip = Strip { row, firsts: &[firsts], blocks: std::slice::from_ref(&sums), line: row };
            epilogue.store::<false>(strip);
        }
    }
}
