//! The loss row by row, and how sure the mean over them is.

use super::{Evaluation, Interval, run};
use crate::backend::Backend;
use crate::batch::{MicroBatch, NO_TARGET};
use crate::error::Result;
use crate::metrics::nan_if_null;
use crate::model::{Model, read_floats};
use serde::{Deserialize, Serialize};
use std::borrow::Borrow;

/// What one row costs a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RowLoss {
    /// Sum over its supervised tokens, in nats.
    #[serde(deserialize_with = "nan_if_null")]
    pub loss: f64,
    /// How many those are.
    pub tokens: usize,
}

/// What a data set costs a model, and how far that may be chance.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rows {
    /// The mean over all supervised tokens, as [`super::evaluate`] has it.
    #[serde(flatten)]
    pub evaluation: Evaluation,
    /// How many rows there are.
    #[serde(rename = "rows")]
    pub count: usize,
    /// Of the loss; none for a single row.
    pub loss_interval: Option<Interval>,
    /// Of the perplexity, likewise.
    pub perplexity_interval: Option<Interval>,
    /// Each of them, in order.
    #[serde(skip)]
    pub losses: Vec<RowLoss>,
}

/// As [`super::evaluate`], row by row.
///
/// # Errors
/// Those of the backend.
pub fn evaluate_rows(
    model: &Model,
    backend: &mut dyn Backend,
    batches: impl IntoIterator<Item = impl Borrow<MicroBatch>>,
) -> Result<Rows> {
    let mut losses = Vec::new();
    let evaluation = run(model, backend, batches, |backend, batch| {
        let of_tokens = read_floats(backend, model.token_losses(batch.supervised()))?;
        losses.extend(rows_of(batch, &of_tokens));
        Ok(())
    })?;
    let loss_interval = mean_loss_interval(&losses);
    let perplexity_interval = loss_interval.map(|interval| interval.map(f64::exp));
    Ok(Rows { evaluation, count: losses.len(), loss_interval, perplexity_interval, losses })
}

/// The losses of a micro-batch's supervised tokens, in their order, by its sequences.
fn rows_of(batch: &MicroBatch, mut losses: &[f32]) -> Vec<RowLoss> {
    let rows = batch.cu_seqlens.windows(2).map(|ends| {
        let targets = &batch.targets[ends[0] as usize..ends[1] as usize];
        let tokens = targets.iter().filter(|&&target| target != NO_TARGET).count();
        let (own, rest) = losses.split_at(tokens);
        losses = rest;
        RowLoss { loss: own.iter().copied().map(f64::from).sum(), tokens }
    });
    rows.collect()
}

/// Mean over the tokens of the rows drawn.
fn mean(losses: &[RowLoss], drawn: &[usize]) -> f64 {
    let (mut loss, mut tokens) = (0.0, 0);
    for &row in drawn {
        loss += losses[row].loss;
        tokens += losses[row].tokens;
    }
    loss / tokens as f64
}

/// How far the mean over all tokens may be chance; none for a single row.
pub fn mean_loss_interval(losses: &[RowLoss]) -> Option<Interval> {
    Interval::bootstrap(losses.len(), |drawn| mean(losses, drawn))
}

/// By how much the mean loss differs over the same rows, `b` less `a`: each sample draws the same rows of both.
///
/// # Panics
/// If they are not as many rows.
pub fn loss_difference(a: &[RowLoss], b: &[RowLoss]) -> Option<Interval> {
    assert_eq!(a.len(), b.len(), "the same rows");
    Interval::bootstrap(a.len(), |drawn| mean(b, drawn) - mean(a, drawn))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_go_to_their_rows() {
        let no = NO_TARGET;
        let batch = MicroBatch {
            ids: vec![1; 7],
            positions: vec![0, 1, 2, 0, 0, 1, 2],
            cu_seqlens: vec![0, 3, 4, 7],
            targets: vec![no, 5, no, no, 6, 7, no],
        };
        let row = |loss, tokens| RowLoss { loss, tokens };
        assert_eq!(rows_of(&batch, &[0.5, 2.0, 4.0]), [row(0.5, 1), row(0.0, 0), row(6.0, 2)]);
    }

    /// Over two rows a sample is one row twice, or both: the interval's ends are the rows' own means.
    #[test]
    fn two_rows_span_the_interval() {
        let losses = [RowLoss { loss: 10.0, tokens: 10 }, RowLoss { loss: 6.0, tokens: 2 }];
        let interval = mean_loss_interval(&losses).unwrap();
        assert_eq!((interval.low, interval.high), (1.0, 3.0));
    }

    /// Rows that are hard for both models say nothing about the difference, which only pairing sees.
    #[test]
    fn a_difference_is_paired() {
        let a: Vec<RowLoss> = (0..50).map(|i| RowLoss { loss: f64::from(i), tokens: 10 }).collect();
        let b: Vec<RowLoss> = a.iter().map(|row| RowLoss { loss: row.loss - 0.5, ..*row }).collect();
        let interval = loss_difference(&a, &b).unwrap();
        assert!((interval.low + 0.05).abs() < 1e-9 && (interval.high + 0.05).abs() < 1e-9, "{interval:?}");
        assert!(!interval.holds_zero());
        let [alone_a, alone_b] = [&a, &b].map(|losses| mean_loss_interval(losses).unwrap());
        assert!(alone_a.low < alone_b.high, "each alone would hide it");
        let none = loss_difference(&a, &a).unwrap();
        assert_eq!((none.low, none.high), (0.0, 0.0));
        assert!(none.holds_zero());
    }
}
