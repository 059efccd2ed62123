//! How far a run has come: with weights and optimizer state, all that it needs to go on.

use crate::dtype::DType;
use crate::eval::Evaluation;
use crate::metrics::{StepRecord, nan_if_null};
use serde::{Deserialize, Serialize};

/// Steps after which fp16's loss scale is doubled, none having overflowed (as `torch.amp.GradScaler`).
const GROWTH_INTERVAL: usize = 2000;

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
    /// Factor on the loss.
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
    pub fn stepped(&mut self, record: &StepRecord, skipped: bool) {
        self.step = record.step;
        self.first_loss = if record.step == 1 { record.loss } else { self.first_loss };
        self.last_loss = record.loss;
        self.skipped += usize::from(skipped);
        self.skipped_in_a_row = if skipped { self.skipped_in_a_row + 1 } else { 0 };
        self.loss_scale.update(skipped);
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

/// Factor on fp16's loss, so that small gradients do not vanish; 1 in the other precisions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    /// The factor, a power of two.
    pub value: f32,
    dynamic: bool,
    good_steps: usize,
}

impl LossScale {
    fn new(dtype: DType) -> Self {
        let dynamic = dtype == DType::F16;
        Self { value: if dynamic { 65_536.0 } else { 1.0 }, dynamic, good_steps: 0 }
    }

    /// Halved when a step overflowed, doubled after many that did not; powers of two, so scaling rounds nothing.
    pub fn update(&mut self, skipped: bool) {
        if !self.dynamic {
            return;
        }
        self.good_steps = if skipped { 0 } else { self.good_steps + 1 };
        if skipped {
            self.value /= 2.0;
        } else if self.good_steps.is_multiple_of(GROWTH_INTERVAL) {
            self.value *= 2.0;
        }
    }

    /// Skipping is part of finding the scale, until there is none left to take away.
    pub fn excuses_skipping(&self) -> bool {
        self.dynamic && self.value >= 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loss_scale_halves_on_overflow_and_doubles_after_many_good_steps() {
        let mut scale = LossScale::new(DType::F16);
        scale.update(true);
        assert_eq!(scale.value, 32_768.0);
        (0..GROWTH_INTERVAL).for_each(|_| scale.update(false));
        assert_eq!(scale.value, 65_536.0);
        (0..17).for_each(|_| scale.update(true));
        assert!(!scale.excuses_skipping());
        let mut fixed = LossScale::new(DType::BF16);
        fixed.update(true);
        assert!(fixed.value == 1.0 && !fixed.excuses_skipping());
    }

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
