//! How far a run has come: with weights and optimizer state, all that it needs to go on.

use crate::backend::StepOutput;
use crate::dtype::DType;
use crate::eval::{Evaluation, RowLoss, loss_difference};
use crate::metrics::{StepRecord, nan_if_null};
use crate::ops::loss_scale::LossScale;
use serde::{Deserialize, Serialize};

/// `trainer_state.json` of a checkpoint. The rows of every later step follow from `step`, the seed and the data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Optimizer steps done, skipped ones counted: where the data go on.
    pub step: usize,
    /// Steps of the whole run, which the learning rate's schedule spans.
    pub total_steps: usize,
    /// Seed of the order and of the held-out share.
    pub seed: u64,
    /// Type of weights and activations in the step.
    pub precision: DType,
    /// Factor on the loss, for the next step.
    pub loss_scale: LossScale,
    /// Steps left out because their gradient was not finite.
    pub skipped: usize,
    /// The last of those that followed directly on one another.
    pub skipped_in_a_row: usize,
    /// Mean loss of the first step; NaN before it.
    #[serde(deserialize_with = "nan_if_null")]
    pub first_loss: f64,
    /// Mean loss of the last step done.
    #[serde(deserialize_with = "nan_if_null")]
    pub last_loss: f64,
    /// Held-out rows before the first step and at the latest evaluation.
    pub evaluations: Option<(Evaluation, Evaluation)>,
    /// Loss of each held-out row before the first step.
    #[serde(default)]
    pub rows_before: Vec<RowLoss>,
    /// From where to where the change of the held-out loss since then may reasonably lie, at 95 %.
    #[serde(default)]
    pub change: Option<[f64; 2]>,
    /// Step and held-out loss of the best evaluation after the first step.
    pub best: Option<(usize, f64)>,
}

impl State {
    /// Before the first step.
    pub fn new(total_steps: usize, seed: u64, precision: DType) -> Self {
        Self {
            step: 0,
            total_steps,
            seed,
            precision,
            loss_scale: LossScale::new(precision),
            skipped: 0,
            skipped_in_a_row: 0,
            first_loss: f64::NAN,
            last_loss: f64::NAN,
            evaluations: None,
            rows_before: Vec::new(),
            change: None,
            best: None,
        }
    }

    /// Takes in a step.
    pub fn stepped(&mut self, record: &StepRecord, output: &StepOutput) {
        self.step = record.step;
        self.first_loss = if record.step == 1 { record.loss } else { self.first_loss };
        self.last_loss = record.loss;
        self.skipped += usize::from(output.skipped);
        self.skipped_in_a_row = if output.skipped { self.skipped_in_a_row + 1 } else { 0 };
        self.loss_scale = output.loss_scale;
    }

    /// Takes in the rows of an evaluation.
    pub fn evaluated_rows(&mut self, losses: &[RowLoss]) {
        if self.step == 0 {
            self.rows_before = losses.to_vec();
        } else if self.rows_before.len() == losses.len() {
            self.change = loss_difference(&self.rows_before, losses).map(|interval| interval.ends());
        }
    }

    /// Takes in an evaluation; whether it is the best so far.
    pub fn evaluated(&mut self, evaluation: Evaluation) -> bool {
        self.evaluations = Some((self.evaluations.map_or(evaluation, |(first, _)| first), evaluation));
        // A loss that is not a number is never the best.
        let better = evaluation.loss < self.best.map_or(f64::INFINITY, |(_, loss)| loss);
        if self.step > 0 && better {
            self.best = Some((self.step, evaluation.loss));
        }
        self.step > 0 && better
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_evaluation_is_the_lowest_after_the_first_step() {
        let of = |loss| Evaluation { loss, ..Evaluation::default() };
        let mut state = State::new(9, 1, DType::F32);
        assert!(!state.evaluated(of(1.0)));
        for (step, loss, best) in [(1, 3.0, true), (2, f64::NAN, false), (3, 2.0, true), (4, 2.0, false)] {
            state.step = step;
            assert_eq!(state.evaluated(of(loss)), best, "step {step}");
        }
        assert_eq!((state.best, state.evaluations.unwrap().0.loss), (Some((3, 2.0)), 1.0));
    }

    /// Rows that all fell by as much leave no doubt; the first evaluation is what later ones are held against.
    #[test]
    fn a_change_is_over_the_same_rows() {
        let rows = |by: f64| -> Vec<RowLoss> {
            (0..20).map(|i| RowLoss { loss: f64::from(i) - by, tokens: 10 }).collect()
        };
        let mut state = State::new(9, 1, DType::F32);
        state.evaluated_rows(&rows(0.0));
        assert_eq!(state.change, None);
        state.step = 3;
        for by in [5.0, 1.0] {
            state.evaluated_rows(&rows(by));
            let [low, high] = state.change.unwrap();
            assert!((low + by / 10.0).abs() < 1e-9 && (high + by / 10.0).abs() < 1e-9, "{low} to {high}");
        }
        state.evaluated_rows(&rows(0.0)[1..]);
        assert!(state.change.is_some(), "other rows say nothing");
    }

    #[test]
    fn a_state_comes_back_from_json_in_every_bit() {
        let mut state = State::new(9, 1, DType::F16);
        state
            .evaluated_rows(&[RowLoss { loss: f64::NAN, tokens: 1 }, RowLoss { loss: 0.1 + 0.2, tokens: 2 }]);
        (state.step, state.first_loss) = (2, 0.1 + 0.2);
        state.evaluated(Evaluation { loss: 1.0 / 3.0, perplexity: f64::INFINITY, ..Evaluation::default() });
        let text = serde_json::to_string(&state).unwrap();
        let back: State = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&back).unwrap(), text);
        assert!(back.first_loss == 0.1 + 0.2 && back.last_loss.is_nan());
        assert_eq!(back.best, state.best);
    }
}
