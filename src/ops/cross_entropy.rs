//! Softmax cross-entropy over rows of logits: loss, gradient in place, and whether the best logit is the target's.

use super::math::{exp, max, simd, sum};
use crate::arena::Tensor;
use rayon::prelude::*;

/// Buffers of the output head, on every device.
#[derive(Clone, Copy, Debug)]
pub struct LinearCrossEntropy {
    /// Output of the final norm, A `[T, C]`.
    pub x: Tensor,
    /// Output head, A `[V, C]`.
    pub w: Tensor,
    /// Token losses in the order of `loss_rows`, f32 `[1, T]`.
    pub losses: Tensor,
    /// Gradients, when training.
    pub gradients: Option<HeadGradients>,
    /// Supervised rows of one chunk of `x`, A `[chunk, C]`.
    pub x_chunk: Tensor,
    /// Logits of one chunk, f32 `[chunk, V]`; no more than one chunk of logits ever exists.
    pub logits: Tensor,
}

/// The part of [`LinearCrossEntropy`] that only training needs.
#[derive(Clone, Copy, Debug)]
pub struct HeadGradients {
    /// Out: gradient of `x`, A `[T, C]`; zero where a position has no target.
    pub dx: Tensor,
    /// Gradient of `w`, f32 `[V, C]`, overwritten or added to.
    pub dw: Tensor,
    /// Gradient of the logits of one chunk, A `[chunk, V]`; the same buffer as `logits` where A is f32.
    pub dlogits: Tensor,
    /// Gradient of `x_chunk`, A `[chunk, C]`.
    pub dx_chunk: Tensor,
}

/// What one row of logits yields.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowLoss {
    /// `lse − logit[target]`, in nats.
    pub loss: f32,
    /// No logit is larger than the target's, and none before it equal.
    pub correct: bool,
}

/// The loss of each row; with `weight`, the row becomes `weight·(softmax − onehot)`. `logits` f32 `[rows, V]`.
pub fn rows(logits: &mut [f32], vocab: usize, targets: &[u32], weight: Option<f32>) -> Vec<RowLoss> {
    logits
        .par_chunks_exact_mut(vocab)
        .zip(targets)
        .map(|(row, &target)| simd(|| one_row(row, target as usize, weight)))
        .collect()
}

#[inline(always)]
fn one_row(row: &mut [f32], target: usize, weight: Option<f32>) -> RowLoss {
    let highest = max(row);
    let best = row[target];
    let correct = best == highest && row[..target].iter().all(|&l| l != highest);
    let total;
    if let Some(weight) = weight {
        for l in row.iter_mut() {
            *l = exp(*l - highest);
        }
        total = sum(row.len(), |i| row[i]);
        let factor = weight / total;
        for l in row.iter_mut() {
            *l *= factor;
        }
        row[target] -= weight;
    } else {
        total = sum(row.len(), |i| exp(row[i] - highest));
    }
    RowLoss { loss: total.ln() - (best - highest), correct }
}
