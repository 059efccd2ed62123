//! Loss of a model on rows that are not trained on, through the same chunked head as training.

use crate::backend::{Backend, StepParams};
use crate::batch::MicroBatch;
use crate::error::Result;
use crate::metrics::nan_if_null;
use crate::model::{Feed, Model};

/// What a data set costs a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Evaluation {
    /// Mean over the supervised tokens, in nats.
    #[serde(deserialize_with = "nan_if_null")]
    pub loss: f64,
    /// `e^loss`.
    #[serde(deserialize_with = "nan_if_null")]
    pub perplexity: f64,
    /// Tokens run through the model.
    pub tokens: usize,
    /// Tokens in the loss.
    pub supervised_tokens: usize,
    /// Share of the supervised tokens that had the largest logit.
    #[serde(deserialize_with = "nan_if_null")]
    pub mean_token_accuracy: f64,
}

/// Runs every micro-batch once; none may be larger than the model's plan.
///
/// # Errors
/// Those of the backend.
pub fn evaluate(model: &Model, backend: &mut dyn Backend, batches: &[MicroBatch]) -> Result<Evaluation> {
    let mut params = StepParams { loss_scale: 1.0, ..bytemuck::Zeroable::zeroed() };
    let (mut tokens, mut supervised) = (0, 0);
    for batch in batches {
        model.feed(backend, &Feed::new(batch), &mut params)?;
        model.evaluate(backend)?;
        tokens += batch.tokens();
        supervised += batch.supervised();
    }
    let output = backend.take_output()?;
    let loss = output.loss_sum / supervised as f64;
    Ok(Evaluation {
        loss,
        perplexity: loss.exp(),
        tokens,
        supervised_tokens: supervised,
        mean_token_accuracy: output.correct as f64 / supervised as f64,
    })
}
