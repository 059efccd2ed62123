//! What a model makes of rows and prompts it is not trained on: its loss, through the same chunked head as training,
//! and figures about its answers.

mod accuracy;
mod final_answer;
mod interval;
mod number;
mod rows;

pub use accuracy::{Accuracy, Exam, Grade, accuracy_difference};
pub use final_answer::{FinalAnswer, Rule};
pub use interval::{Interval, LEVEL, RESAMPLES};
pub use rows::{RowLoss, Rows, evaluate_rows, loss_difference, mean_loss_interval};

use std::borrow::Borrow;
use std::collections::HashSet;

use crate::backend::{Backend, Part, StepParams};
use crate::batch::{Examples, MicroBatch};
use crate::error::Result;
use crate::generate::{Answer, StopReason};
use crate::metrics::nan_if_null;
use crate::model::{Capacity, Feed, Model};

/// Tokens that a micro-batch of an evaluation has room for, where there is no training plan whose room it takes.
const MICRO_BATCH_TOKENS: usize = 2048;

/// Tokens of the pieces whose repetition is counted.
const PIECE: usize = 4;

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

/// Runs every micro-batch once; none may be larger than the model's plan, and one must have a supervised token.
///
/// # Errors
/// Those of the backend.
pub fn evaluate(
    model: &Model,
    backend: &mut dyn Backend,
    batches: impl IntoIterator<Item = impl Borrow<MicroBatch>>,
) -> Result<Evaluation> {
    run(model, backend, batches, |_, _| Ok(()))
}

/// The same, with a look at the model after every micro-batch.
fn run(
    model: &Model,
    backend: &mut dyn Backend,
    batches: impl IntoIterator<Item = impl Borrow<MicroBatch>>,
    mut after: impl FnMut(&mut dyn Backend, &MicroBatch) -> Result<()>,
) -> Result<Evaluation> {
    let mut params: StepParams = bytemuck::Zeroable::zeroed();
    let (mut tokens, mut supervised) = (0, 0);
    for batch in batches {
        let batch = batch.borrow();
        model.feed(backend, &Feed::new(batch), &mut params)?;
        backend.run(Part::Evaluate, &mut |b| model.evaluate(b))?;
        after(backend, batch)?;
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

/// Room for an evaluation of the examples at `indices`: a few thousand tokens, however many rows there are, but never
/// less than the longest row.
pub fn capacity(examples: &Examples, indices: &[usize]) -> Capacity {
    let lengths = || indices.iter().map(|&i| examples.tokens_of(i));
    let longest = lengths().max().unwrap_or(0);
    let tokens = MICRO_BATCH_TOKENS.min(lengths().sum()).max(longest);
    Capacity { tokens, sequences: tokens, positions: longest } // a sequence has at least one token
}

/// The examples at `indices`, in order, in micro-batches of up to `tokens` tokens, each made when it is asked for.
///
/// # Panics
/// If an example is longer than `tokens`.
pub fn micro_batches<'a>(
    examples: &'a Examples,
    indices: &'a [usize],
    tokens: usize,
) -> impl Iterator<Item = MicroBatch> + 'a {
    let mut rest = indices;
    std::iter::from_fn(move || {
        let fits = |room: &mut usize, &index: &usize| {
            *room = room.checked_sub(examples.tokens_of(index))?;
            Some(())
        };
        let n = rest.iter().scan(tokens, fits).count();
        let (batch, later) = rest.split_at(n);
        assert!(n > 0 || later.is_empty(), "a row of more than {tokens} tokens");
        rest = later;
        (n > 0).then(|| MicroBatch::from_examples(examples, batch.iter().copied()))
    })
}

/// Figures about several answers.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct AnswerFigures {
    /// Share of the answers that the model ended itself, within the tokens it was allowed.
    pub end_of_turn_rate: f64,
    /// Mean number of tokens, without the end token.
    pub mean_new_tokens: f64,
    /// Of all pieces of four tokens, the share that stood in the same answer before; none where no answer has four
    /// tokens.
    pub repetition: Option<f64>,
}

impl AnswerFigures {
    /// Of at least one answer.
    pub fn new(answers: &[Answer]) -> Self {
        let n = answers.len() as f64;
        let (mut pieces, mut repeated) = (0, 0);
        for answer in answers {
            let mut seen = HashSet::new();
            for piece in answer.ids.windows(PIECE) {
                pieces += 1;
                repeated += usize::from(!seen.insert(piece));
            }
        }
        Self {
            end_of_turn_rate: answers.iter().filter(|a| a.stop_reason == StopReason::Stop).count() as f64 / n,
            mean_new_tokens: answers.iter().map(|a| a.ids.len()).sum::<usize>() as f64 / n,
            repetition: (pieces > 0).then(|| repeated as f64 / pieces as f64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Example;

    #[test]
    fn every_row_is_taken_once_and_no_batch_is_too_large() {
        let lengths = [5, 5, 3, 9, 1, 1, 10, 2];
        let row = |&n: &usize| Example { ids: vec![0; n], supervised: vec![false; n] };
        let examples = Examples::from_examples(lengths.iter().map(row));
        let tokens_of = |indices: &[usize], room| -> Vec<Vec<u32>> {
            let batches = micro_batches(&examples, indices, room);
            batches.map(|b| b.cu_seqlens.windows(2).map(|w| w[1] - w[0]).collect()).collect()
        };
        let all: Vec<usize> = (0..8).collect();
        let want = [vec![5, 5], vec![3], vec![9, 1], vec![1], vec![10], vec![2]];
        assert_eq!(tokens_of(&all, 10), want);
        assert_eq!(tokens_of(&[7, 0], 100), [[2, 5]]);
        assert!(tokens_of(&[], 10).is_empty());
        let room = |indices: &[usize]| capacity(&examples, indices);
        assert_eq!(room(&[0, 2]), Capacity { tokens: 8, sequences: 8, positions: 5 });
    }

    #[test]
    fn many_rows_need_no_more_room_than_a_few_thousand_tokens() {
        let row = |n: usize| Example { ids: vec![0; n], supervised: vec![false; n] };
        let examples = Examples::from_examples((0..1000).map(|_| row(100)).chain([row(5000)]));
        let all: Vec<usize> = (0..1000).collect();
        assert_eq!(capacity(&examples, &all).tokens, MICRO_BATCH_TOKENS);
        assert_eq!(capacity(&examples, &[3, 1000]).tokens, 5000);
    }

    #[test]
    fn figures_of_answers() {
        let answer = |ids: &[u32], stop_reason| Answer { ids: ids.to_vec(), stop_reason };
        // Pieces 1234 2341 3412 4123 1234 2341: two of six stood before. The second answer's only piece is new there.
        let answers = [
            answer(&[1, 2, 3, 4, 1, 2, 3, 4, 1], StopReason::Length),
            answer(&[1, 2, 3, 4], StopReason::Stop),
            answer(&[], StopReason::Stop),
        ];
        let figures = AnswerFigures::new(&answers);
        assert_eq!((figures.end_of_turn_rate, figures.mean_new_tokens), (2.0 / 3.0, 13.0 / 3.0));
        assert_eq!(figures.repetition, Some(2.0 / 7.0));
        assert_eq!(AnswerFigures::new(&answers[2..]).repetition, None);
    }
}
