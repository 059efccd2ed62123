//! What is done between the products: arithmetic on blocks of keys × queries, a query to a lane.

#![allow(clippy::needless_range_loop, reason = "the same lane of several arrays")]

#[cfg(target_arch = "x86_64")]
mod avx512;

use crate::ops::tile::{Block, HALF, Level, Line, Packed, SIDE};

/// Compiles a function for the vectors of each level. `FUSED`: a fused product and sum is one instruction. All that it
/// calls must inline; loops over arrays of constant length become single instructions.
macro_rules! for_each_level {
    ($(#[$attribute:meta])* fn $name:ident<FUSED>($($argument:ident: $type:ty),* $(,)?) $(-> $output:ty)? $body:block) => {
        $(#[$attribute])*
        pub fn $name(level: Level, $($argument: $type),*) $(-> $output)? {
            #[inline(always)]
            fn plain<const FUSED: bool>($($argument: $type),*) $(-> $output)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            fn avx512($($argument: $type),*) $(-> $output)? {
                plain::<true>($($argument),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($argument: $type),*) $(-> $output)? {
                plain::<true>($($argument),*)
            }
            match level {
                // SAFETY: levels are made available ones only, and these have AVX-512.
                #[cfg(target_arch = "x86_64")]
                Level::Amx | Level::Avx512Bf16 | Level::Avx512 => unsafe { avx512($($argument),*) },
                // SAFETY: as above, AVX2.
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 => unsafe { avx2($($argument),*) },
                _ => plain::<false>($($argument),*),
            }
        }
    };
}

mod bf16;
mod fp32;

/// A type of queries, keys and values.
pub trait Operand: Packed {
    /// Lines of a panel along 32 keys or queries.
    const LINES: usize = SIDE / Self::DEPTH * SIDE;

    /// `2^(factor·score − shift)`, added to the total and, rounded, laid into a columns panel.
    fn weigh(level: Level, scores: &Block, factor: f32, running: &mut Running, panel: &mut [Line]);

    /// Rows of a block, from `part·DEPTH` on, of 16 columns, from `half·16` on; times a factor for each column and rounded.
    /// A line has what lanes are transposed for.
    fn lines(level: Level, block: &Block, part: usize, half: usize, factor: &Lanes) -> [Line; HALF];

    /// For each column of two columns panels the sum of the products.
    fn dots(level: Level, a: &[Line], b: &[Line]) -> Lanes;

    /// `p = 2^(factor·score − lse)` and `p·(dp − delta)`, rounded.
    fn gradients(level: Level, scores: &Block, dp: &Block, factor: f32, of: &Statistics, panels: Panels<'_>);

    /// Rounds for good.
    fn rounded(level: Level, row: &[f32], out: &mut [Self]);
}

/// A panel along 32 keys or queries.
#[inline(always)]
fn whole<const LINES: usize>(panel: &mut [Line]) -> &mut [Line; LINES] {
    panel.first_chunk_mut().expect("a panel along 32")
}

/// One value for each query of a block.
pub type Lanes = [f32; SIDE];

/// `2^x` for x up to 127: `2^n · p(r)`, n the nearest integer, p of degree 5 with p(0) = 1, the best for the relative
/// error (1.1·10⁻⁷). Relative error below 2·2⁻²³; 0 below 2^-126.5.
#[inline(always)]
pub fn exp2<const FUSED: bool>(x: f32) -> f32 {
    // Adding it rounds to an integer and leaves it, plus the bias of an exponent, in the lowest bits.
    const SHIFT: f32 = 12_582_912.0 + 127.0;
    #[allow(clippy::approx_constant, reason = "the best coefficient, close to ln 2")]
    const P: [f32; 5] = [1.326_472_8e-3, 9.671_513e-3, 5.550_733_6e-2, 2.402_224_2e-1, 6.931_47e-1];
    let x = if x < -127.0 { -127.0 } else { x };
    let shifted = x + SHIFT;
    let r = x - (shifted - SHIFT);
    let mut p = P[0];
    for c in &P[1..] {
        p = multiply_add::<FUSED>(p, r, *c);
    }
    p = multiply_add::<FUSED>(p, r, 1.0);
    p * f32::from_bits(shifted.to_bits() << 23)
}

#[inline(always)]
pub fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

for_each_level! {
    /// Hides from each query the keys after its own, in the block where they meet.
    fn mask<FUSED>(scores: &mut Block) {
        for key in 0..SIDE {
            for query in 0..SIDE {
                let s = &mut scores.0[key][query];
                *s = if query < key { f32::NEG_INFINITY } else { *s };
            }
        }
    }
}

/// The softmax so far, of one block of queries of one head.
#[derive(Clone, Copy)]
pub struct Running {
    /// Subtracted from the scores before they are exponents: no further than [`SLACK`] below the largest.
    pub shift: Lanes,
    /// Sum of the weights.
    pub total: Lanes,
    /// What the latest change of the shift has made of one.
    pub shrink: Lanes,
}

impl Running {
    /// Nothing so far.
    pub const START: Self =
        Self { shift: [f32::NEG_INFINITY; SIDE], total: [0.0; SIDE], shrink: [1.0; SIDE] };
}

/// How far, to base 2, scores may lie above the shift before the sums so far are scaled for a new one. The weights then
/// stay below 2⁸, which is as good as below one.
const SLACK: f32 = 8.0;

for_each_level! {
    /// Makes way for further scores, to be multiplied by `factor`. Whether the shift changed, so that sums must shrink.
    fn make_way<FUSED>(running: &mut Running, scores: &Block, factor: f32) -> bool {
        // Two at a time: one alone would wait for itself.
        let (mut even, mut odd) = ([f32::NEG_INFINITY; SIDE], [f32::NEG_INFINITY; SIDE]);
        for key in (0..SIDE).step_by(2) {
            for i in 0..SIDE {
                even[i] = larger(scores.0[key][i], even[i]);
            }
            for i in 0..SIDE {
                odd[i] = larger(scores.0[key + 1][i], odd[i]);
            }
        }
        let (mut changed, mut shift) = (0u32, running.shift);
        for i in 0..SIDE {
            let (old, new) = (running.shift[i], larger(even[i], odd[i]) * factor);
            shift[i] = if new > old + SLACK { new } else { old };
            changed |= u32::from(shift[i] != old);
        }
        if changed != 0 {
            for i in 0..SIDE {
                running.shrink[i] = exp2::<FUSED>(running.shift[i] - shift[i]);
                running.total[i] *= running.shrink[i];
                running.shift[i] = shift[i];
            }
        }
        changed != 0
    }
}

/// The second if either is no number.
#[inline(always)]
fn larger(x: f32, y: f32) -> f32 {
    if x > y { x } else { y }
}

for_each_level! {
    /// Multiplies each column.
    fn scale<FUSED>(block: &mut Block, factor: &Lanes) {
        for row in &mut block.0 {
            for i in 0..SIDE {
                row[i] *= factor[i];
            }
        }
    }
}

/// What the softmax of a query needs on the way back.
#[derive(Clone, Copy)]
pub struct Statistics {
    /// Log-sum-exp, to base 2.
    pub lse: Lanes,
    /// Σ dout·out.
    pub delta: Lanes,
}

impl Statistics {
    /// For queries that do not exist.
    pub const NONE: Self = Self { lse: [0.0; SIDE], delta: [0.0; SIDE] };
}

/// What the gradients are products of, along 32 queries or keys.
pub struct Panels<'a> {
    /// Probabilities, keys × queries, as rows.
    pub p: &'a mut [Line],
    /// Gradients of the scores likewise.
    pub ds: &'a mut [Line],
    /// The same as columns.
    pub ds_columns: &'a mut [Line],
}

for_each_level! {
    /// The gradient of a query or key as it is to be stored: scaled as the scores were, and rotated back by the angles
    /// whose cosines and sines are given.
    fn finish<FUSED>(row: &mut [f32], scale: f32, cos: &[f32], sin: &[f32]) {
        let (a, b) = row.split_at_mut(cos.len());
        let ((a, a_rest), (b, b_rest)) = (a.as_chunks_mut::<HALF>(), b.as_chunks_mut::<HALF>());
        let ((cos, cos_rest), (sin, sin_rest)) = (cos.as_chunks::<HALF>(), sin.as_chunks::<HALF>());
        for part in 0..cos.len().min(sin.len()).min(a.len()).min(b.len()) {
            turn(&mut a[part], &mut b[part], scale, &cos[part], &sin[part]);
        }
        turn(a_rest, b_rest, scale, cos_rest, sin_rest);
    }
}

#[inline(always)]
fn turn(a: &mut [f32], b: &mut [f32], scale: f32, cos: &[f32], sin: &[f32]) {
    for i in 0..cos.len() {
        let (x, y) = (a[i] * scale, b[i] * scale);
        (a[i], b[i]) = (x * cos[i] + y * sin[i], y * cos[i] - x * sin[i]);
    }
}

#[cfg(test)]
mod tests;
