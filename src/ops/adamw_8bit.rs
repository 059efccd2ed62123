//! AdamW with 8-bit state in blocks of 256 (Dettmers et al. 2022, <https://arxiv.org/abs/2110.02861>): the semantics
//! of bitsandbytes' CUDA kernel, with every rounding fixed.
//!
//! Per element, each operation rounded by itself, `g` the gradient times `scale`:
//!
//! ```text
//! m = β1·m + (1−β1)·g
//! v = β2·v + ((1−β2)·g)·g
//! p = (p + step_size · (m / (√v + eps))) · decay
//! ```
//!
//! The new weight comes from the new moments before they are quantised. With 8-bit state the moments are then
//! divided by the largest magnitude of their block and stored as the nearest code.

#[cfg(target_arch = "x86_64")]
mod avx512;

use super::adamw::{AdamWScalars, TASK, Weight, for_pieces, same_length};
use super::codebook::{Codebook, SIGNED, SIGNED_SHIFT, UNSIGNED, UNSIGNED_SHIFT};
use super::math::simd;
use crate::dtype::Element;
use crate::error::Result;
use rayon::prelude::*;

const OP: &str = "adamw_8bit";

/// Consecutive elements of the flattened Hugging Face tensor that share a largest magnitude; the last block of a
/// tensor may be shorter.
pub const BLOCK: usize = 256;

/// Tensors with fewer elements keep fp32 state.
pub const MIN_QUANTISED: usize = 4096;

/// Code of 0.0 in the first moment, which a fresh state is filled with; in the second moment it is 0.
pub const ZERO_CODE_M: u8 = 127;

/// The moments of one tensor of `n` elements.
pub struct State<'a> {
    /// Codes of the first moment, `[n]`, signed book.
    pub m_codes: &'a mut [u8],
    /// Largest magnitude of the first moment per block, `[ceil(n / 256)]`.
    pub m_absmax: &'a mut [f32],
    /// Codes of the second moment, `[n]`, unsigned book.
    pub v_codes: &'a mut [u8],
    /// Largest value of the second moment per block, `[ceil(n / 256)]`.
    pub v_absmax: &'a mut [f32],
}

/// One step of one tensor with 8-bit state; `p` fp32 master weights, rounded to A too, `g` gradients, all `[n]`.
///
/// `scalars` from [`AdamWScalars::adamw_8bit`], `scale` from [`super::grad_norm::GradNorm`]; a norm weight does not
/// decay. Bit-identical for any thread count and on a GPU.
///
/// # Errors
/// [`crate::error::Error::Shape`] naming the argument whose length is wrong.
pub fn update<A: Element>(
    scalars: &AdamWScalars,
    scale: f32,
    decays: bool,
    weight: Weight<'_, A>,
    g: &[f32],
    state: State<'_>,
) -> Result<()> {
    let State { m_codes, m_absmax, v_codes, v_absmax } = state;
    weight.check(OP, [("g", g.len()), ("m_codes", m_codes.len()), ("v_codes", v_codes.len())])?;
    let blocks = g.len().div_ceil(BLOCK);
    same_length(OP, blocks, [("m_absmax", m_absmax.len()), ("v_absmax", v_absmax.len())])?;
    let s = AdamWScalars { decay: if decays { scalars.decay } else { 1.0 }, ..*scalars };
    let step = Step { s, scale, signed: &SIGNED, unsigned: &UNSIGNED };
    let tasks = weight.tasks().zip(g.par_chunks(TASK));
    let tasks = tasks.zip(m_codes.par_chunks_mut(TASK)).zip(m_absmax.par_chunks_mut(TASK / BLOCK));
    let tasks = tasks.zip(v_codes.par_chunks_mut(TASK)).zip(v_absmax.par_chunks_mut(TASK / BLOCK));
    tasks.for_each(|(((((weight, g), m_codes), m_absmax), v_codes), v_absmax)| {
        let mut task = Task { weight, g, state: State { m_codes, m_absmax, v_codes, v_absmax } };
        step.task(&mut task);
    });
    Ok(())
}

/// What all blocks of a step share.
struct Step {
    s: AdamWScalars,
    scale: f32,
    signed: &'static Codebook,
    unsigned: &'static Codebook,
}

/// Elements of a tensor that one thread updates, from the first element of a block on.
struct Task<'a, A> {
    weight: Weight<'a, A>,
    g: &'a [f32],
    state: State<'a>,
}

impl Step {
    /// All blocks, in the fastest way that this processor has.
    fn task<A: Element>(&self, task: &mut Task<'_, A>) {
        #[cfg(target_arch = "x86_64")]
        let first = avx512::whole_blocks(self, task);
        #[cfg(not(target_arch = "x86_64"))]
        let first = 0;
        simd(
            #[inline(always)]
            || self.blocks(task, first),
        );
    }

    /// The blocks of a task from `first` on.
    #[inline(always)]
    fn blocks<A: Element>(&self, task: &mut Task<'_, A>, first: usize) {
        let Task { weight, g, state } = task;
        let (m_codes, v_codes) = (state.m_codes.chunks_mut(BLOCK), state.v_codes.chunks_mut(BLOCK));
        let (m, v) = (m_codes.zip(state.m_absmax.iter_mut()), v_codes.zip(state.v_absmax.iter_mut()));
        for (i, ((g, m), v)) in g.chunks(BLOCK).zip(m).zip(v).enumerate().skip(first) {
            let piece = weight.piece(i * BLOCK, BLOCK);
            self.block(piece.master, g, m, v);
            piece.round();
        }
    }

    /// One block: decode, update, find the largest magnitudes, encode.
    #[inline(always)]
    fn block(
        &self,
        p: &mut [f32],
        g: &[f32],
        (m_codes, m_absmax): (&mut [u8], &mut f32),
        (v_codes, v_absmax): (&mut [u8], &mut f32),
    ) {
        let n = p.len();
        let (mut m, mut v) = ([0.0; BLOCK], [0.0; BLOCK]);
        let (m, v) = (&mut m[..n], &mut v[..n]);
        self.signed.dequantise_block(m_codes, *m_absmax, m);
        self.unsigned.dequantise_block(v_codes, *v_absmax, v);
        elements(&self.s, self.scale, p, g, m, v);
        (*m_absmax, *v_absmax) = (largest_magnitude(m), largest_magnitude(v));
        self.signed.quantise_block::<SIGNED_SHIFT>(m, *m_absmax, m_codes);
        self.unsigned.quantise_block::<UNSIGNED_SHIFT>(v, *v_absmax, v_codes);
    }
}

/// One step of one tensor with fp32 state, in the order of the 8-bit rule; arguments as in [`super::adamw::update`].
///
/// # Errors
/// [`crate::error::Error::Shape`] if a length differs from `p`'s.
pub fn update_fp32_state<A: Element>(
    scalars: &AdamWScalars,
    scale: f32,
    decays: bool,
    weight: Weight<'_, A>,
    g: &[f32],
    m: &mut [f32],
    v: &mut [f32],
) -> Result<()> {
    weight.check(OP, [("g", g.len()), ("m", m.len()), ("v", v.len())])?;
    let s = AdamWScalars { decay: if decays { scalars.decay } else { 1.0 }, ..*scalars };
    for_pieces(
        weight,
        g,
        m,
        v,
        #[inline(always)]
        |p, g, m, v| elements(&s, scale, p, g, m, v),
    );
    Ok(())
}

#[inline(always)]
fn elements(s: &AdamWScalars, scale: f32, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
    for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m.iter_mut()).zip(v.iter_mut()) {
        let g = g * scale;
        *m = s.beta1 * *m + s.one_minus_beta1 * g;
        *v = s.beta2 * *v + s.one_minus_beta2 * g * g;
        *p = (*p + s.step_size * (*m / (v.sqrt() + s.eps))) * s.decay;
    }
}

/// Largest magnitude. Those of finite numbers are ordered as their bits are, and a maximum of integers vectorises.
#[inline(always)]
fn largest_magnitude(x: &[f32]) -> f32 {
    f32::from_bits(x.iter().fold(0, |largest, x| largest.max(x.to_bits() & 0x7fff_ffff)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::adamw::AdamWConfig;
    use half::bf16;

    /// Blocks beside one another whose magnitudes lie anywhere, with some that no register holds: of zeros, denormal, too
    /// large. They take the vector path of this processor, and once more the plain loops.
    #[test]
    fn whole_blocks_have_the_bits_of_the_plain_loops() {
        const N: usize = 40 * BLOCK + 100;
        let config = AdamWConfig { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };
        let mut seed = 1u64;
        let mut uniform = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 40) as f32 / (1u32 << 23) as f32 - 1.0
        };
        let p: Vec<f32> = (0..N).map(|_| uniform()).collect();
        let mut buffers = [0, 1].map(|_| {
            let n = N.div_ceil(BLOCK);
            (p.clone(), vec![bf16::ZERO; N], vec![ZERO_CODE_M; N], vec![0; N], vec![0.0; n], vec![0.0; n])
        });
        for t in 1..=4 {
            let s = AdamWScalars::adamw_8bit(&config, t);
            let step = Step { s, scale: 0.7, signed: &SIGNED, unsigned: &UNSIGNED };
            let g: Vec<f32> = (0..N)
                .map(|i| uniform() * [1e-4, 0.0, 1e-9, 1e-19, 1e-38, 1e3, 1.0, 1e-16][i / BLOCK % 8])
                .collect();
            for (plainly, (p, working, m_codes, v_codes, m_absmax, v_absmax)) in
                buffers.iter_mut().enumerate()
            {
                let weight = Weight { master: &mut p[..], working: &mut working[..] };
                let state = State { m_codes, m_absmax, v_codes, v_absmax };
                let mut task = Task { weight, g: &g, state };
                if plainly == 1 { step.blocks(&mut task, 0) } else { step.task(&mut task) }
            }
            let [fast, plain] = &buffers;
            let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&fast.0), bits(&plain.0), "weights, step {t}");
            assert!(fast.1 == plain.1, "working weights, step {t}");
            assert!(fast.2 == plain.2 && fast.3 == plain.3, "codes, step {t}");
            assert_eq!(bits(&fast.4), bits(&plain.4), "first moment, step {t}");
            assert_eq!(bits(&fast.5), bits(&plain.5), "second moment, step {t}");
        }
    }
}
