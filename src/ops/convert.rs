//! Whole buffers from fp32 to the type of activations and back.

use super::math::{self, simd};
use crate::dtype::{DType, Element};
use rayon::prelude::*;
use std::borrow::Cow;

/// Elements that a task converts.
const PIECE: usize = 1 << 14;

/// The slice as f32: itself, or a widened copy.
pub fn widen<E: Element>(x: &[E]) -> Cow<'_, [f32]> {
    if E::DTYPE == DType::F32 {
        Cow::Borrowed(bytemuck::cast_slice(x))
    } else {
        let mut wide = vec![0.0; x.len()];
        let pieces = wide.par_chunks_mut(PIECE).zip(x.par_chunks(PIECE));
        pieces.for_each(|(to, from)| {
            simd(
                #[inline(always)]
                || to.iter_mut().zip(from).for_each(|(to, from)| *to = from.to_f32()),
            );
        });
        Cow::Owned(wide)
    }
}

/// Rounds every element to E, on all threads.
pub fn round<E: Element>(from: &[f32], to: &mut [E]) {
    let pieces = to.par_chunks_mut(PIECE).zip(from.par_chunks(PIECE));
    pieces.for_each(|(to, from)| {
        simd(
            #[inline(always)]
            || math::round(from, to),
        )
    });
}

/// Lets `fill` write f32, and leaves them in `y` rounded to E: `fill` gets `y` itself where E is f32.
pub fn rounding<E: Element>(y: &mut [E], fill: impl FnOnce(&mut [f32])) {
    if E::DTYPE == DType::F32 {
        fill(bytemuck::cast_slice_mut(y));
    } else {
        let mut wide = vec![0.0; y.len()];
        fill(&mut wide);
        round(&wide, y);
    }
}
