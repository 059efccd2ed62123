//! Softmax cross-entropy over rows of logits: loss, gradient in place, and whether the best logit is the target's.

use super::math::{exp, max, simd, sums};
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
    /// Entropies of the predictions in the same order, f32 `[1, T]`.
    pub entropies: Tensor,
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
    /// `−Σ p·ln p` of the softmax, in nats.
    pub entropy: f32,
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
    // Where e^d vanishes d may be minus infinity, and must not make the product NaN.
    let [total, weighted] = sums(row.len(), |i| {
        let d = row[i] - highest;
        let e = exp(d);
        if weight.is_some() {
            row[i] = e;
        }
        [e, e * d.max(LEAST)]
    });
    if let Some(weight) = weight {
        let factor = weight / total;
        for l in row.iter_mut() {
            *l *= factor;
        }
        row[target] -= weight;
    }
    RowLoss { loss: total.ln() - (best - highest), entropy: total.ln() - weighted / total, correct }
}

/// A logarithm whose exponential is zero in f32.
const LEAST: f32 = -200.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropy_is_that_of_the_softmax() {
        let uniform = rows(&mut [0.5; 96], 96, &[3], None)[0].entropy;
        assert!((uniform - 96f32.ln()).abs() <= 4.0 * f32::EPSILON, "{uniform}");
        let mut sure = [-30.0; 48];
        sure[7] = 80.0;
        sure[9] = f32::NEG_INFINITY;
        assert!(rows(&mut sure, 48, &[7], Some(1.0))[0].entropy == 0.0);
        let two = |p: f32| rows(&mut [p.ln(), (1.0 - p).ln()], 2, &[0], None)[0].entropy;
        for p in [0.5f32, 0.25, 0.01] {
            let want = -(p * p.ln() + (1.0 - p) * (1.0 - p).ln());
            assert!((two(p) - want).abs() <= 4.0 * f32::EPSILON, "{p}: {} for {want}", two(p));
        }
        assert!(rows(&mut [f32::NAN, 0.0], 2, &[1], None)[0].entropy.is_nan());
    }
}
