//! A weight as it lies in memory.

use crate::arena::Slice;
use crate::dtype::{DType, Element, Q8_0};
use crate::ops::math::simd;
use rayon::prelude::*;
use std::borrow::Cow;

/// A weight `[out, in]`.
#[derive(Clone, Copy, Debug)]
pub enum Weight<'a, A> {
    /// In the type of the activations.
    Plain(&'a [A]),
    /// In blocks along its rows: only read, and read as it is where few rows are multiplied with it.
    Q8_0(&'a [Q8_0]),
}

impl<'a, A: Element> Weight<'a, A> {
    /// The weight in a buffer.
    pub fn of(buffer: Slice<'a>) -> Self {
        if buffer.dtype == DType::Q8_0 { Self::Q8_0(buffer.get()) } else { Self::Plain(buffer.get()) }
    }

    /// Rows of `inputs` elements.
    pub fn outputs(self, inputs: usize) -> usize {
        match self {
            Self::Plain(w) => w.len() / inputs,
            Self::Q8_0(w) => w.len() * Q8_0::LEN / inputs,
        }
    }

    /// Bytes of `n` elements.
    pub fn bytes(self, n: usize) -> usize {
        match self {
            Self::Plain(_) => A::DTYPE.bytes(n),
            Self::Q8_0(_) => DType::Q8_0.bytes(n),
        }
    }

    /// The elements in the type of the activations, blocks rounded to it.
    pub fn elements(self) -> Cow<'a, [A]> {
        /// Blocks that a task takes.
        const TASK: usize = 1 << 9;
        let blocks = match self {
            Self::Plain(w) => return Cow::Borrowed(w),
            Self::Q8_0(blocks) => blocks,
        };
        let mut wide = vec![A::from_f32(0.0); blocks.len() * Q8_0::LEN];
        wide.par_chunks_mut(TASK * Q8_0::LEN)
            .zip(blocks.par_chunks(TASK))
            .for_each(|(to, from)| widen(from, to));
        Cow::Owned(wide)
    }
}

/// Blocks as elements, rounded.
pub fn widen<A: Element>(blocks: &[Q8_0], to: &mut [A]) {
    simd(
        #[inline(always)]
        || {
            for (block, to) in blocks.iter().zip(to.as_chunks_mut::<{ Q8_0::LEN }>().0) {
                let scale = block.scale.to_f32();
                for (to, &code) in to.iter_mut().zip(&block.codes) {
                    *to = A::from_f32(scale * f32::from(code));
                }
            }
        },
    );
}
