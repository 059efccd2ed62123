//! AdamW with fp32 state (Loshchilov & Hutter 2019, <https://arxiv.org/abs/1711.05101>), in torch's order of operations.

use super::math::{self, simd};
use crate::arena::Tensor;
use crate::dtype::Element;
use crate::error::{Error, Result};
use bytemuck::{Pod, Zeroable};
use rayon::prelude::*;

const OP: &str = "adamw";

/// Elements of one task; results do not depend on it.
pub(super) const TASK: usize = 16_384;

/// Elements of a task that are updated and then rounded, while they are in L1.
const PIECE: usize = 1024;

/// What a user sets, and the schedule's learning rate of this step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWConfig {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment per step.
    pub beta1: f64,
    /// Decay of the second moment per step.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Share of a weight, times `lr`, taken off it per step.
    pub weight_decay: f64,
}

/// The constants of one step, worked out in f64 and rounded to f32 once; kernels read the same struct.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct AdamWScalars {
    /// β1.
    pub beta1: f32,
    /// β2.
    pub beta2: f32,
    /// 1 − β1.
    pub one_minus_beta1: f32,
    /// 1 − β2.
    pub one_minus_beta2: f32,
    /// `−lr / (1 − β1^t)`, in the 8-bit rule times √(1 − β2^t).
    pub step_size: f32,
    /// ε, in the 8-bit rule times √(1 − β2^t).
    pub eps: f32,
    /// `√(1 − β2^t)`; the 8-bit rule does not read it.
    pub sqrt_bias_correction2: f32,
    /// `1 − lr · weight_decay`.
    pub decay: f32,
}

/// Moments of one weight.
#[derive(Clone, Copy, Debug)]
pub enum Moments {
    /// fp32 first and second moment, shaped as the weight.
    Full {
        /// First moment.
        m: Tensor,
        /// Second moment.
        v: Tensor,
    },
    /// One byte per element and one fp32 magnitude per 256 elements (recipe: blockwise 8-bit AdamW).
    Blockwise {
        /// Codes of the first moment, u8.
        m: Tensor,
        /// Block magnitudes of the first moment, f32 `[1, blocks]`.
        m_absmax: Tensor,
        /// Codes of the second moment, u8.
        v: Tensor,
        /// Block magnitudes of the second moment, f32 `[1, blocks]`.
        v_absmax: Tensor,
    },
}

/// The order in which weight decay and the moments enter the update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpdateRule {
    /// `torch.optim.AdamW`: decay first.
    Torch,
    /// bitsandbytes' 8-bit AdamW: decay last. Weights too small for 8-bit state follow it with fp32 moments.
    Blockwise,
}

/// One weight as the optimizer sees it.
#[derive(Clone, Copy, Debug)]
pub struct Trainable {
    /// fp32 weight that is updated.
    pub master: Tensor,
    /// Weight the model computes with; the same buffer as `master` where A is f32.
    pub working: Tensor,
    /// fp32 gradient.
    pub grad: Tensor,
    /// Optimizer state.
    pub moments: Moments,
    /// Whether weight decay applies.
    pub decays: bool,
}

impl AdamWScalars {
    /// For [`update`]. `t` counts the steps that update the moments, from 1.
    pub fn adamw(config: &AdamWConfig, t: u64) -> Self {
        let AdamWConfig { lr, beta1, beta2, eps, weight_decay } = *config;
        let power = |beta: f64| beta.powf(t as f64);
        Self {
            beta1: round(beta1),
            beta2: round(beta2),
            one_minus_beta1: round(1.0 - beta1),
            one_minus_beta2: round(1.0 - beta2),
            step_size: round(-lr / (1.0 - power(beta1))),
            eps: round(eps),
            sqrt_bias_correction2: round((1.0 - power(beta2)).sqrt()),
            decay: round(1.0 - lr * weight_decay),
        }
    }

    /// For [`super::adamw_8bit`]: the root of the second bias correction moves from the denominator's first term to
    /// the step size and to ε. `t` counts the steps that update the moments, from 1.
    pub fn adamw_8bit(config: &AdamWConfig, t: u64) -> Self {
        let power = |beta: f64| beta.powf(t as f64);
        let correction2 = (1.0 - power(config.beta2)).sqrt();
        Self {
            step_size: round(-config.lr * correction2 / (1.0 - power(config.beta1))),
            eps: round(correction2 * config.eps),
            ..Self::adamw(config, t)
        }
    }
}

/// A weight to be updated.
pub struct Weight<'a, A> {
    /// fp32 master weight.
    pub master: &'a mut [f32],
    /// What the model computes with: the master weight rounded to A. Empty where A is f32 and `master` itself serves.
    pub working: &'a mut [A],
}

impl<'a> Weight<'a, f32> {
    /// Without another copy.
    pub fn only(master: &'a mut [f32]) -> Self {
        Self { master, working: &mut [] }
    }
}

impl<'a, A: Element> Weight<'a, A> {
    /// Checks the lengths of the working weight, if there is one, and of every other argument.
    pub(super) fn check<const N: usize>(
        &self,
        op: &'static str,
        others: [(&'static str, usize); N],
    ) -> Result<()> {
        if !self.working.is_empty() {
            same_length(op, self.master.len(), [("working", self.working.len())])?;
        }
        same_length(op, self.master.len(), others)
    }

    /// Pieces of [`TASK`] elements of both, for the threads to share.
    pub(super) fn tasks(self) -> impl IndexedParallelIterator<Item = Weight<'a, A>> {
        let mut rest = self.working;
        let task = |master: &'a mut [f32]| {
            let working = std::mem::take(&mut rest);
            let (working, behind) = working.split_at_mut(master.len().min(working.len()));
            rest = behind;
            Weight { master, working }
        };
        self.master.chunks_mut(TASK).map(task).collect::<Vec<_>>().into_par_iter()
    }

    /// Elements from `first` on, `n` at most, of both.
    #[inline(always)]
    pub(super) fn piece(&mut self, first: usize, n: usize) -> Weight<'_, A> {
        let end = self.master.len().min(first + n);
        Weight {
            master: &mut self.master[first..end],
            working: self.working.get_mut(first..end).unwrap_or_default(),
        }
    }

    /// Renews the working weight.
    #[inline(always)]
    pub(super) fn round(self) {
        math::round(self.master, self.working);
    }
}

/// f64 to f32, to nearest even.
#[expect(clippy::cast_possible_truncation, reason = "rounding is the point")]
fn round(x: f64) -> f32 {
    x as f32
}

/// One step of one tensor: `p *= decay` (if it `decays`), `m += (1−β1)·(g−m)`, `v = β2·v + (1−β2)·g·g`,
/// `p += step_size·m / (√v/√(1−β2^t) + ε)`, where `g` is the gradient times `scale` ([`super::grad_norm::GradNorm`]).
///
/// `p` (fp32 master weights, rounded to A too), `g`, `m`, `v` are of one length. Every operation is rounded by itself (no fused
/// multiply-add), so a GPU gives the same bits; the thread count plays no part.
///
/// # Errors
/// [`Error::Shape`] if a length differs from `p`'s.
pub fn update<A: Element>(
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
        let decayed = *p * s.decay;
        *m += s.one_minus_beta1 * (g - *m);
        *v = s.beta2 * *v + s.one_minus_beta2 * g * g;
        let denominator = v.sqrt() / s.sqrt_bias_correction2 + s.eps;
        *p = decayed + s.step_size * *m / denominator;
    }
}

/// Runs `body` over pieces of the four slices and rounds the new weights, in parallel, compiled for the vector unit found
/// at run time.
pub(super) fn for_pieces<A: Element>(
    weight: Weight<'_, A>,
    g: &[f32],
    m: &mut [f32],
    v: &mut [f32],
    body: impl Fn(&mut [f32], &[f32], &mut [f32], &mut [f32]) + Sync,
) {
    let tasks =
        weight.tasks().zip(g.par_chunks(TASK)).zip(m.par_chunks_mut(TASK)).zip(v.par_chunks_mut(TASK));
    tasks.for_each(|(((mut weight, g), m), v)| {
        simd(
            #[inline(always)]
            || {
                let pieces = g.chunks(PIECE).zip(m.chunks_mut(PIECE)).zip(v.chunks_mut(PIECE));
                for (i, ((g, m), v)) in pieces.enumerate() {
                    let piece = weight.piece(i * PIECE, PIECE);
                    body(piece.master, g, m, v);
                    piece.round();
                }
            },
        );
    });
}

/// Checks the length of every argument against that of `p`.
pub(super) fn same_length<const N: usize>(
    op: &'static str,
    p: usize,
    others: [(&'static str, usize); N],
) -> Result<()> {
    match others.into_iter().find(|&(_, len)| len != p) {
        None => Ok(()),
        Some((arg, len)) => Err(Error::Shape { op, arg, got: [1, len], want: [1, p] }),
    }
}
