//! Every kernel operation of the training step, timed on one GPU: `smolten bench kernels`.
//!
//! A [`Case`] is an operation at a place of the step with the shape it has there. Its work, in operations and in bytes
//! that must move whatever the kernel does, comes from [`Operation::work`]; its buffers and its launch from `setup`.
//! Times are those of device events around one launch, with everything flushed from L2 before it.

mod calibrate;
mod card;
mod fill;
mod operation;
mod published;
mod setup;
mod suite;
mod timer;

pub use calibrate::Calibration;
pub use card::Card;
pub use operation::{Operation, Product, Work};
pub use published::{Figure, figures, nearest};
pub use suite::{Case, SIZES, Size, cases};
pub use timer::Times;

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
    cuda: Cuda,
    timer: timer::Timer,
    options: Options,
}

impl Bench {
    /// Opens the GPU for these cases.
    ///
    /// # Errors
    /// [`Error::Input`] where a case does not fit into its free memory, named with what would fit; [`Error::Cuda`].
    pub fn new(gpu: &Device, card: &Card, cases: &[Case], options: Options) -> Result<Self> {
        let needs = cases.iter().map(|case| (Setup::new(case, options.dtype).plan.bytes(), case));
        let Some((bytes, largest)) = needs.max_by_key(|(bytes, _)| *bytes) else {
            return Err(Error::input("bench kernels", "no operation is chosen", "choose one with --only"));
        };
        let (free, flush) = (gpu.memory()?.0, card.flush_bytes());
        let mib = |bytes: usize| bytes.div_ceil(1 << 20);
        if bytes + flush > free {
            let found = format!("it needs {} MiB and {} are free on the GPU", mib(bytes + flush), mib(free));
            let remedy = "use a smaller --tokens or --model, or leave it out with --only";
            return Err(Error::input(largest.name(), found, remedy));
        }
        let cuda = Cuda::new(gpu, bytes, options.dtype)?;
        let timer = timer::Timer::new(&cuda, flush)?;
        Ok(Self { cuda, timer, options })
    }

    /// Times one operation.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where a rung does not take the shape; [`Error::Cuda`].
    pub fn measure(&mut self, case: &Case) -> Result<Measured> {
        let rung =
            if self.options.rungs.contains(&Rung::Production) { Rung::Production } else { Rung::Naive };
        let repeats = self.options.repeats;
        let times = self.time(case, &[(rung, repeats)])?.remove(0);
        if self.options.rungs.len() < 2 {
            return Ok(Measured { case: case.clone(), rung, times, comparison: None });
        }
        let mut smaller = case.clone();
        while smaller.operation.work(self.options.dtype).flops > MOST_NAIVE_FLOPS {
            let Some(next) = smaller.halved() else { break };
            smaller = next;
        }
        let both = [(Rung::Production, repeats), (Rung::Naive, repeats.min(MOST_NAIVE_REPEATS))];
        let both = self.time(&smaller, &both)?;
        let ratio = both[1].median_us / both[0].median_us;
        let comparison = Some(Comparison { tokens: smaller.tokens, ratio });
        Ok(Measured { case: case.clone(), rung, times, comparison })
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
        setup.fill(&mut self.cuda)?;
        let times = rungs.iter().map(|&(rung, repeats)| {
            self.timer.time(&self.cuda, repeats, &mut |cuda| (setup.launch)(cuda, rung))
        });
        times.collect()
    }
}
