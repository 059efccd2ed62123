//! Learning-rate schedules, as transformers' `get_scheduler` has them.

use super::Scheduler;

/// Learning rate of step index `step` (from 0) as a share of the peak, in f64.
///
/// `step / warmup` during the warm-up; after it `(total − step) / (total − warmup)`, or
/// `(1 + cos(π · (step − warmup) / (total − warmup))) / 2`, or 1. From `total` on linear and cosine give 0.
pub(super) fn factor(scheduler: Scheduler, step: usize, warmup: usize, total: usize) -> f64 {
    if step < warmup {
        return step as f64 / warmup as f64;
    }
    let span = total.saturating_sub(warmup).max(1) as f64;
    match scheduler {
        Scheduler::Constant => 1.0,
        Scheduler::Linear => total.saturating_sub(step) as f64 / span,
        Scheduler::Cosine if step >= total => 0.0,
        Scheduler::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * ((step - warmup) as f64 / span)).cos()),
    }
}
