//! Every operation of the training step, timed on one GPU or on the processor: `smolten bench kernels`. Whole steps: `train`.
//!
//! A [`Case`] is an operation at a place of the step with the shape it has there. Its work, in operations and in bytes
//! that must move whatever the kernel does, comes from [`Operation::work`]; its buffers and its launch from `setup`.
//! On a GPU times are those of device events around one launch, with everything flushed from L2 before it; on the
//! processor see `cpu`.

mod calibrate;
mod card;
mod cpu;
mod fill;
mod forecast;
mod operation;
mod published;
mod setup;
mod suite;
mod timed;
mod timer;
mod train;

pub use calibrate::Calibration;
pub use card::Card;
pub use cpu::{CpuBench, CpuMeasured, FLUSH_BYTES, Limits};
pub use forecast::{Step, step_seconds};
pub use operation::{Operation, Product, Work};
pub use published::{Figure, cpu_figures, figures, nearest, step_figures};
pub use suite::{Case, SIZES, Size, cases};
pub use timed::{Shares, Timed};
pub use timer::Times;
pub use train::{StepTime, TrainBench, WARM_UP};

use crate::arena::Plan;
use crate::cuda::{Cuda, Device, NORM_AT, Rung};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::grad_norm::GradNorm;
use setup::Setup;

/// What is measured, and how often.
#[derive(Clone, Debug)]
pub struct Options {
    /// Timed launches of each operation.
    pub repeats: usize,
    /// The rungs to time.
    pub rungs: Vec<Rung>,
    /// Type of weights and activations.
    pub dtype: DType,
}

/// The naive rung beside the production one.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// Where both were measured: the case itself, or one of fewer tokens where the naive rung would take too long.
    pub tokens: usize,
    /// Median of the naive rung ÷ median of the production rung.
    pub ratio: f64,
}

/// One operation, measured.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Which.
    pub case: Case,
    /// Of the production rung, or of the naive one where that alone was asked for.
    pub rung: Rung,
    /// At the case's own shape.
    pub times: Times,
    /// Where both rungs were asked for.
    pub comparison: Option<Comparison>,
}

/// Work of a naive kernel that is waited for: above it the comparison is made with fewer tokens.
const MOST_NAIVE_FLOPS: f64 = 1e11;

/// Timed launches of a naive kernel, at most.
const MOST_NAIVE_REPEATS: usize = 5;

/// One GPU with memory for the largest of the cases.
pub struct Bench {
    /// Measured before the cases.
    pub calibration: Calibration,
    cuda: Cuda,
    timer: timer::Timer,
    options: Options,
}

impl Bench {
    /// Calibrates the GPU and gets it ready for these cases.
    ///
    /// # Errors
    /// [`Error::Input`] where a case does not fit into its free memory, named with what would fit; [`Error::Cuda`].
    pub fn new(gpu: &Device, card: &Card, cases: &[Case], options: Options) -> Result<Self> {
        let bytes = room(cases, options.dtype, card.flush_bytes(), gpu.memory()?.0)?.bytes();
        let calibration = Calibration::measure(gpu, card, options.dtype, options.repeats)?;
        let cuda = Cuda::new(gpu, bytes, options.dtype)?;
        let timer = timer::Timer::new(&cuda, card.flush_bytes())?;
        Ok(Self { calibration, cuda, timer, options })
    }

    /// Times one operation.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where a rung does not take the shape; [`Error::Cuda`].
    pub fn measure(&mut self, case: &Case) -> Result<Measured> {
        let (naive, repeats) = (self.options.repeats.min(MOST_NAIVE_REPEATS), self.options.repeats);
        let both = [(Rung::Production, repeats), (Rung::Naive, naive)];
        if let &[rung] = &self.options.rungs[..] {
            let repeats = if rung == Rung::Naive { naive } else { repeats };
            let times = self.time(case, &[(rung, repeats)])?[0];
            return Ok(Measured { case: case.clone(), rung, times, comparison: None });
        }
        let smaller = comparable(case, self.options.dtype);
        let compared = self.time(&smaller, &both)?;
        let ratio = compared[1].median_us / compared[0].median_us;
        let times = if smaller == *case { compared[0] } else { self.time(case, &both[..1])?[0] };
        let comparison = Some(Comparison { tokens: smaller.tokens, ratio });
        Ok(Measured { case: case.clone(), rung: Rung::Production, times, comparison })
    }

    /// Whether the last step of an optimizer was skipped, as its gradient was not finite.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn skipped(&mut self) -> Result<bool> {
        let step = self.cuda.read_step()?;
        let norm: GradNorm = bytemuck::pod_read_unaligned(&step[NORM_AT..NORM_AT + size_of::<GradNorm>()]);
        Ok(norm.skip != 0)
    }

    /// Times of one case on the same data, for each rung so many.
    fn time(&mut self, case: &Case, rungs: &[(Rung, usize)]) -> Result<Vec<Times>> {
        let mut setup = Setup::new(case, self.options.dtype);
        self.cuda.workspace = setup.plan.workspace();
        setup.fill(&mut self.cuda)?;
        let times = rungs.iter().map(|&(rung, repeats)| {
            self.timer.time(&self.cuda, repeats, &mut |cuda| (setup.launch.gpu)(cuda, rung))
        });
        times.collect()
    }
}

/// The case, or the same with as few tokens as the naive rung is waited for.
fn comparable(case: &Case, dtype: DType) -> Case {
    let mut smaller = case.clone();
    while smaller.operation.work(dtype).flops > MOST_NAIVE_FLOPS {
        let Some(next) = smaller.halved() else { break };
        smaller = next;
    }
    smaller
}

/// The plan of the largest case, which fits into `free` bytes beside the buffer that flushes the cache.
fn room(cases: &[Case], dtype: DType, flush: usize, free: usize) -> Result<Plan> {
    let plans = cases.iter().map(|case| (Setup::new(case, dtype).plan, case));
    let Some((plan, largest)) = plans.max_by_key(|(plan, _)| plan.bytes()) else {
        return Err(Error::input("bench kernels", "no operation is chosen", "choose one with --only"));
    };
    if plan.bytes() + flush <= free {
        return Ok(plan);
    }
    let mib = |bytes: usize| bytes.div_ceil(1 << 20);
    let asked = format!("bench kernels: {} of {}", largest.name(), largest.model);
    let found = format!("it needs {} MiB and {} are free", mib(plan.bytes() + flush), mib(free));
    Err(Error::input(
        asked,
        found,
        "choose other operations with --only, a smaller --model or fewer --tokens",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn naive_kernels_get_a_part_of_what_would_take_them_too_long() {
        let size = SIZES.iter().find(|size| size.name == "1.7b").unwrap();
        for case in cases(size, 8192) {
            let part = comparable(&case, DType::BF16);
            let flops = part.operation.work(DType::BF16).flops;
            assert!(flops <= MOST_NAIVE_FLOPS || part.tokens < 512, "{}: {flops}", case.name());
            let is_same = case.operation.work(DType::BF16).flops <= MOST_NAIVE_FLOPS;
            assert_eq!(part == case, is_same, "{}", case.name());
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_what_there_is() {
        let all = cases(&SIZES[2], 8192);
        // fp32 moments, master weight and gradient of 1.7 billion weights, and their bf16.
        let bytes = room(&all, DType::BF16, 0, usize::MAX).unwrap().bytes();
        assert_eq!(bytes / 1_711_376_384, 18, "{bytes}");
        assert_eq!(room(&all, DType::BF16, 100, bytes + 100).unwrap().bytes(), bytes);
        let error = room(&all, DType::BF16, 100, bytes + 99).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let text = error.to_string();
        assert!(text.contains("adamw of 1.7b: it needs 29") && text.contains("--only"), "{text}");
    }
}
