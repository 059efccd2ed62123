//! Softmax cross-entropy over rows of logits: loss, gradient in place, and whether the best logit is the target's.

use super::math::{exp, max, simd, sum};
use rayon::prelude::*;

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
