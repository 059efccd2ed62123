//! How far a run has come: with weights and optimizer state, all that it needs to go on.

use crate::backend::StepOutput;
use crate::dtype::DType;
use crate::eval::Evaluation;
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

    #[test]
    fn a_state_comes_back_from_json_in_every_bit() {
        let mut state = State::new(9, 1, DType::F16);
        (state.step, state.first_loss) = (2, 0.1 + 0.2);
        state.evaluated(Evaluation { loss: 1.0 / 3.0, perplexity: f64::INFINITY, ..Evaluation::default() });
        let text = serde_json::to_string(&state).unwrap();
        let back: State = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&back).unwrap(), text);
        assert!(back.first_loss == 0.1 + 0.2 && back.last_loss.is_nan());
        assert_eq!(back.best, state.best);
    }
}
