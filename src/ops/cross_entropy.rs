//! Softmax cross-entropy over rows of logits: loss, gradient in place, and whether the best logit is the target's.

use super::math::{LANES, exp, halve, max, simd};
use crate::arena::Tensor;
use crate::dtype::Element;
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
    /// Gradient of `w`, f32 `[V, C]`, overwritten or added to, where the head is trained.
    pub dw: Option<Tensor>,
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

/// The loss of each row; with `weight`, the row becomes its gradient `weight·(softmax − onehot)`. `logits` f32 `[rows, V]`.
pub fn rows(logits: &mut [f32], vocab: usize, targets: &[u32], weight: Option<f32>) -> Vec<RowLoss> {
    let rows = logits.par_chunks_exact_mut(vocab).zip(targets);
    rows.map(|(row, &target)| {
        simd(
            #[inline(always)]
            || {
                let softmax = Softmax::of(row);
                let loss = softmax.loss(row, target as usize);
                if let Some(weight) = weight {
                    let factor = weight / softmax.total;
                    row.iter_mut().for_each(|l| *l = softmax.share(*l) * factor);
                    row[target as usize] -= weight;
                }
                loss
            },
        )
    })
    .collect()
}

/// The loss of each row and its gradient, rounded once. `logits` f32 `[rows, V]`, `gradients` A `[rows, V]`.
pub fn rows_into<A: Element>(
    logits: &[f32],
    gradients: &mut [A],
    vocab: usize,
    targets: &[u32],
    weight: f32,
) -> Vec<RowLoss> {
    let rows = logits.par_chunks_exact(vocab).zip(gradients.par_chunks_exact_mut(vocab)).zip(targets);
    let shares = || vec![0.0; vocab];
    rows.map_init(shares, |shares, ((row, gradient), &target)| {
        simd(
            #[inline(always)]
            || {
                let (softmax, target) = (Softmax::keeping(row, shares), target as usize);
                let factor = weight / softmax.total;
                for (g, &share) in gradient.iter_mut().zip(shares.iter()) {
                    *g = A::from_f32(share * factor);
                }
                gradient[target] = A::from_f32(shares[target] * factor - weight);
                softmax.loss(row, target)
            },
        )
    })
    .collect()
}

/// What the loss and the gradient of a row need. A row stays in L2 from one pass to the next, and so do its exponentials
/// where there is room for them.
struct Softmax {
    highest: f32,
    /// `Σ exp(l − highest)`
    total: f32,
    /// `Σ exp(l − highest)·(l − highest)`
    weighted: f32,
}

impl Softmax {
    #[inline(always)]
    fn of(row: &[f32]) -> Self {
        let highest = max(row);
        let mut sums = Sums { total: [0.0; LANES], weighted: [0.0; LANES] };
        let (chunks, rest) = row.as_chunks();
        for chunk in chunks {
            sums.add(chunk, highest);
        }
        sums.add(&padded(rest), highest);
        sums.softmax(highest)
    }

    /// The same, and what each logit has of the total; `shares` as long as the row.
    #[inline(always)]
    fn keeping(row: &[f32], shares: &mut [f32]) -> Self {
        let highest = max(row);
        let mut sums = Sums { total: [0.0; LANES], weighted: [0.0; LANES] };
        let ((chunks, rest), (kept, kept_rest)) = (row.as_chunks(), shares.as_chunks_mut());
        for (chunk, kept) in chunks.iter().zip(kept) {
            *kept = sums.add(chunk, highest);
        }
        let last = sums.add(&padded(rest), highest);
        kept_rest.copy_from_slice(&last[..rest.len()]);
        sums.softmax(highest)
    }

    /// What a logit has of the total.
    #[inline(always)]
    fn share(&self, logit: f32) -> f32 {
        exp(logit - self.highest)
    }

    #[inline(always)]
    fn loss(&self, row: &[f32], target: usize) -> RowLoss {
        let (best, log) = (row[target], self.total.ln());
        // Not `any`, which would look at one logit after the other.
        let before = || row[..target].iter().fold(false, |found, &l| found | (l == self.highest));
        let correct = best == self.highest && !before();
        RowLoss { loss: log - (best - self.highest), entropy: log - self.weighted / self.total, correct }
    }
}

/// The sums of a [`Softmax`], lane by lane.
struct Sums {
    total: [f32; LANES],
    weighted: [f32; LANES],
}

impl Sums {
    /// Adds a logit to each lane; their exponentials.
    #[inline(always)]
    fn add(&mut self, logits: &[f32; LANES], highest: f32) -> [f32; LANES] {
        let mut shares = [0.0; LANES];
        for l in 0..LANES {
            let d = logits[l] - highest;
            let e = exp(d);
            self.total[l] += e;
            // Where e vanishes d may be minus infinity, and must not make the product NaN.
            self.weighted[l] += e * d.max(LEAST);
            shares[l] = e;
        }
        shares
    }

    #[inline(always)]
    fn softmax(self, highest: f32) -> Softmax {
        Softmax { highest, total: halve(self.total), weighted: halve(self.weighted) }
    }
}

/// The end of a row, filled up with what has no exponential.
#[inline(always)]
fn padded(rest: &[f32]) -> [f32; LANES] {
    let mut last = [f32::NEG_INFINITY; LANES];
    last[..rest.len()].copy_from_slice(rest);
    last
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
