//! A fine-tuning run: everything is opened and checked first, then the steps, then the model is saved.

mod prepare;
mod record;

pub use prepare::{Run, Sample};

use crate::backend::{Backend, StepParams};
use crate::batch::Window;
use crate::checkpoint;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::eval::{self, Evaluation};
use crate::metrics::{EvalRecord, Log, StepRecord, peak_memory_bytes};
use crate::model::Feed;
use crate::ops::adamw::AdamWConfig;
use std::ops::ControlFlow;
use std::time::Instant;

/// Steps without a finite gradient, one after the other, that end a run.
const MAX_SKIPPED: usize = 3;

/// Steps after which fp16's loss scale is doubled, none having overflowed (as `torch.amp.GradScaler`).
const GROWTH_INTERVAL: usize = 2000;

/// Sees a run as it goes, for the screen.
pub trait Observer {
    /// A step is done; `Break` ends the run here, and the model is saved as it is.
    fn step(&mut self, record: &StepRecord, total: usize) -> ControlFlow<()>;
    /// The held-out rows were run.
    fn evaluation(&mut self, record: &EvalRecord);
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Held-out rows before the first step and after the last, where there are any.
    pub evaluations: Option<(Evaluation, Evaluation)>,
    /// Mean loss of the first step, and of the last.
    pub losses: (f64, f64),
    /// Steps left out because their gradient was not finite.
    pub skipped: usize,
}

/// Factor on fp16's loss, so that small gradients do not vanish; 1 in the other precisions.
struct LossScale {
    value: f32,
    dynamic: bool,
    good_steps: usize,
}

impl LossScale {
    fn new(dtype: DType) -> Self {
        let dynamic = dtype == DType::F16;
        Self { value: if dynamic { 65_536.0 } else { 1.0 }, dynamic, good_steps: 0 }
    }

    /// Halved when a step overflowed, doubled after many that did not; powers of two, so scaling rounds nothing.
    fn update(&mut self, skipped: bool) {
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
    fn excuses_skipping(&self) -> bool {
        self.dynamic && self.value >= 1.0
    }
}

impl Run {
    /// Trains, and saves the model and its records into the run's folder.
    ///
    /// # Errors
    /// [`Error::Run`] when gradients stop being finite: the weights of the last good step are saved then too;
    /// [`Error::Io`] when the disk does not take the files.
    pub fn execute(mut self, observer: &mut dyn Observer) -> Result<Outcome> {
        let mut backend = self.backend.take().expect("a prepared run holds its backend");
        let backend = &mut *backend;
        self.write_record()?;
        let mut log = Log::create(&self.out)?;
        let outcome = self.steps(backend, &mut log, observer);
        if matches!(outcome, Ok(_) | Err(Error::Run { .. })) {
            self.save(backend)?;
        }
        outcome
    }

    fn steps(
        &self,
        backend: &mut dyn Backend,
        log: &mut Log,
        observer: &mut dyn Observer,
    ) -> Result<Outcome> {
        let first = self.evaluate(backend, log, observer, 0, 0.0)?;
        let (mut last, mut losses) = (first, (f64::NAN, f64::NAN));
        let (mut skipped, mut in_a_row) = (0, 0);
        let mut scale = LossScale::new(backend.activation_dtype());
        for window in self.batches.windows(0) {
            let (record, was_skipped) = self.step(backend, &window, &mut scale)?;
            log.write(&record)?;
            let flow = observer.step(&record, self.total_steps);
            losses = (if record.step == 1 { record.loss } else { losses.0 }, record.loss);
            in_a_row = if was_skipped { in_a_row + 1 } else { 0 };
            skipped += usize::from(was_skipped);
            if in_a_row >= MAX_SKIPPED && !scale.excuses_skipping() {
                let what =
                    format!("steps {} to {} had no finite gradient", record.step + 1 - in_a_row, record.step);
                let remedy =
                    "the weights from before them are saved; use a smaller --lr, or --precision fp32";
                return Err(Error::run(what, remedy));
            }
            let every = self.recipe.eval_every;
            let ends = flow.is_break() || record.step == self.total_steps;
            if ends || (every > 0 && record.step.is_multiple_of(every)) {
                last = self.evaluate(backend, log, observer, record.step, record.epoch)?;
            }
            if ends {
                break;
            }
        }
        Ok(Outcome { evaluations: first.zip(last), losses, skipped })
    }

    /// One optimizer step; whether it was skipped.
    fn step(
        &self,
        backend: &mut dyn Backend,
        window: &Window,
        scale: &mut LossScale,
    ) -> Result<(StepRecord, bool)> {
        let start = Instant::now();
        let r = &self.recipe;
        let supervised = window.supervised();
        let learning_rate = r.learning_rate(window.step, self.total_steps);
        let [beta1, beta2] = r.betas;
        let config =
            AdamWConfig { lr: learning_rate, beta1, beta2, eps: r.eps, weight_decay: r.weight_decay };
        #[allow(clippy::cast_possible_truncation, reason = "the kernels take fp32")]
        let mut params = StepParams {
            inverse_denominator: (1.0 / supervised as f64) as f32,
            loss_scale: scale.value,
            max_grad_norm: if r.clip == 0.0 { f32::INFINITY } else { r.clip as f32 },
            adamw: self.optimizer.scalars(&config, window.step as u64 + 1),
            ..bytemuck::Zeroable::zeroed()
        };
        for (i, batch) in window.micro_batches.iter().enumerate() {
            params.accumulate = u32::from(i > 0);
            self.model.feed(backend, &Feed::new(batch), &mut params)?;
            self.model.train(backend)?;
        }
        self.optimizer.step(backend)?;
        let output = backend.take_output()?;
        scale.update(output.skipped);
        let (tokens, seconds) = (window.tokens(), start.elapsed().as_secs_f64());
        let record = StepRecord {
            step: window.step + 1,
            epoch: window.epoch,
            loss: output.loss_sum / supervised as f64,
            grad_norm: output.grad_norm,
            learning_rate,
            tokens,
            supervised_tokens: supervised,
            padded_tokens: 0,
            mean_token_accuracy: output.correct as f64 / supervised as f64,
            tokens_per_second: tokens as f64 / seconds,
            step_seconds: seconds,
            peak_memory_bytes: peak_memory_bytes(),
        };
        Ok((record, output.skipped))
    }

    fn evaluate(
        &self,
        backend: &mut dyn Backend,
        log: &mut Log,
        observer: &mut dyn Observer,
        step: usize,
        epoch: f64,
    ) -> Result<Option<Evaluation>> {
        if self.held_out.is_empty() {
            return Ok(None);
        }
        let start = Instant::now();
        let evaluation = eval::evaluate(&self.model, backend, &self.held_out)?;
        let record = EvalRecord {
            step,
            epoch,
            eval_loss: evaluation.loss,
            eval_mean_token_accuracy: evaluation.mean_token_accuracy,
            eval_supervised_tokens: evaluation.supervised_tokens,
            eval_seconds: start.elapsed().as_secs_f64(),
        };
        log.write(&record)?;
        observer.evaluation(&record);
        Ok(Some(evaluation))
    }

    fn save(&self, backend: &mut dyn Backend) -> Result<()> {
        checkpoint::save_pretrained(&self.out, &self.pretrained, self.recipe.save_dtype, |parameter| {
            self.model.read_weight(backend, parameter)
        })
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
}
