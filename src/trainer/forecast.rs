//! How long a run will take.

use super::Run;
use crate::dtype::DType;
use crate::ops::linear::{Operand, Weight, forward_f32};
use crate::ops::tile::Level;
use half::bf16;
use std::time::Instant;

impl Run {
    /// Seconds the steps will take on this CPU, from its matrix rate measured now; a forecast, not a promise.
    pub fn forecast_seconds(&self) -> f64 {
        let tokens = self.total_steps as f64 * self.mean_step_tokens();
        // Two operations per weight and token forward, two for the gradient of the input, and two for that of the weight where
        // it is trained; the rest of a step takes about a third of that, in bf16 as
        // long again.
        let per_weight = if self.recipe.lora_rank > 0 { 4.0 } else { 6.0 };
        let operations = tokens * per_weight * self.pretrained.config.num_parameters() as f64;
        let (rate, share) = match self.dtype {
            DType::BF16 => (matrix_rate::<bf16>(), 0.5),
            _ => (matrix_rate::<f32>(), 0.75),
        };
        operations / rate / share
    }

    /// Tokens of a step, on average, but for an epoch's short last one.
    fn mean_step_tokens(&self) -> f64 {
        let (examples, chosen) = (self.batches.examples(), self.batches.chosen());
        let all_tokens: usize = chosen.iter().map(|&i| examples.tokens_of(i)).sum();
        let rows = self.batches.num_rows().min(self.recipe.batch_size * self.recipe.grad_accum);
        rows as f64 * all_tokens as f64 / self.batches.num_rows() as f64
    }

    /// How a step is computed, on average: tokens of a pass, passes, and tokens of a row.
    #[allow(clippy::cast_possible_truncation, reason = "rounded, of counts that are usize")]
    #[allow(clippy::cast_sign_loss, reason = "they are positive")]
    pub fn mean_passes(&self) -> (usize, usize, usize) {
        let tokens = self.mean_step_tokens();
        let passes = (tokens / self.batches.max_micro_batch_tokens() as f64).ceil().max(1.0);
        let length = tokens / (self.recipe.batch_size * self.recipe.grad_accum) as f64;
        ((tokens / passes).ceil() as usize, passes as usize, (length.ceil() as usize).max(1))
    }
}

/// Floating-point operations per second of the matrix product in this type, measured for a moment.
fn matrix_rate<E: Operand>() -> f64 {
    const N: usize = 512;
    let (a, b, mut c) = (vec![E::from_f32(1.0); N * N], vec![E::from_f32(1.0); N * N], vec![0.0; N * N]);
    let mut once = || {
        forward_f32(Level::best(), &a, Weight::Plain(&b), &mut c, N);
    };
    once();
    let start = Instant::now();
    let mut done = 0;
    while done < 4 || start.elapsed().as_millis() < 30 {
        once();
        done += 1;
    }
    2.0 * (N * N * N * done) as f64 / start.elapsed().as_secs_f64()
}
