//! The micro-batches of each optimizer step, a pure function of examples, options and step.

use super::{Example, MicroBatch, Order, best_fit_decreasing};

/// How examples become micro-batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchOptions {
    /// Rows of a micro-batch, ≥ 1.
    pub batch_size: usize,
    /// Micro-batches of a window, that is, of an optimizer step; ≥ 1.
    pub grad_accum: usize,
    /// `Some(max_length)` packs several examples into a row of at most so many tokens; `None`: one example a row.
    pub packing: Option<usize>,
    /// In which order an epoch takes the rows.
    pub order: Order,
}

/// The examples of a run, cut into windows. An epoch's last window, and its last micro-batch, may be short: no row
/// is taken twice in an epoch, and none is left out.
#[derive(Clone, Debug)]
pub struct Batches {
    examples: Vec<Example>,
    /// Indices into `examples`, per row.
    rows: Vec<Vec<usize>>,
    options: BatchOptions,
}

/// What one optimizer step trains on.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    /// Index of the step, from 0.
    pub step: usize,
    /// Epochs done once this step is: micro-batches taken ÷ micro-batches of an epoch.
    pub epoch: f64,
    /// In order; none of them is empty.
    pub micro_batches: Vec<MicroBatch>,
}

impl Window {
    /// Tokens of all micro-batches.
    pub fn tokens(&self) -> usize {
        self.micro_batches.iter().map(MicroBatch::tokens).sum()
    }

    /// Supervised tokens of all micro-batches: the one denominator of the step's loss.
    pub fn supervised(&self) -> usize {
        self.micro_batches.iter().map(MicroBatch::supervised).sum()
    }
}

impl Batches {
    /// Packs the examples into rows where asked to.
    ///
    /// # Panics
    /// If there are no examples, a size is 0, or an example is longer than a packed row: the recipe and the
    /// encoding have refused all of these before.
    pub fn new(examples: Vec<Example>, options: BatchOptions) -> Self {
        assert!(!examples.is_empty() && options.batch_size > 0 && options.grad_accum > 0);
        let rows = match options.packing {
            Some(capacity) => {
                let lengths: Vec<usize> = examples.iter().map(|e| e.ids.len()).collect();
                best_fit_decreasing(&lengths, capacity)
            }
            None => (0..examples.len()).map(|i| vec![i]).collect(),
        };
        Self { examples, rows, options }
    }

    /// The examples, in the order given.
    pub fn examples(&self) -> &[Example] {
        &self.examples
    }

    /// Rows: as many as examples, or fewer where they are packed.
    pub fn num_rows(&self) -> usize {
        self.rows.len()
    }

    /// Optimizer steps of one epoch, a short last one counted.
    pub fn steps_per_epoch(&self) -> usize {
        self.micro_batches_per_epoch().div_ceil(self.options.grad_accum)
    }

    fn micro_batches_per_epoch(&self) -> usize {
        self.rows.len().div_ceil(self.options.batch_size)
    }

    /// Tokens of the largest micro-batch any epoch can bring.
    ///
    /// Any rows may meet where they are shuffled, so the longest ones do; else it is the largest there is.
    pub fn max_micro_batch_tokens(&self) -> usize {
        let mut tokens: Vec<usize> = self.rows.iter().map(|row| self.row_tokens(row)).collect();
        if self.options.order != Order::AsGiven {
            tokens.sort_unstable_by(|a, b| b.cmp(a));
        }
        tokens.chunks(self.options.batch_size).map(|batch| batch.iter().sum()).max().unwrap_or(0)
    }

    fn row_tokens(&self, row: &[usize]) -> usize {
        row.iter().map(|&i| self.examples[i].ids.len()).sum()
    }

    /// The windows from `first_step` on, epoch after epoch, without end.
    pub fn windows(&self, first_step: usize) -> Windows<'_> {
        let mut windows = Windows { batches: self, step: first_step, order: Vec::new() };
        windows.order = windows.epoch_order();
        windows
    }
}

/// Endless iterator over the [`Window`]s of a run; from [`Batches::windows`].
#[derive(Clone, Debug)]
pub struct Windows<'a> {
    batches: &'a Batches,
    /// Step of the next window.
    step: usize,
    /// Rows in the order of the epoch of `step`.
    order: Vec<usize>,
}

impl Windows<'_> {
    fn epoch_order(&self) -> Vec<usize> {
        let epoch = self.step / self.batches.steps_per_epoch();
        self.batches.options.order.of_epoch(self.batches.rows.len(), epoch as u64)
    }
}

impl Iterator for Windows<'_> {
    type Item = Window;

    fn next(&mut self) -> Option<Window> {
        let Batches { examples, rows, options } = self.batches;
        let steps_per_epoch = self.batches.steps_per_epoch();
        let (epoch, within) = (self.step / steps_per_epoch, self.step % steps_per_epoch);
        let micro_batches: Vec<_> = self
            .order
            .chunks(options.batch_size)
            .skip(within * options.grad_accum)
            .take(options.grad_accum)
            .map(|batch| {
                MicroBatch::from_examples(batch.iter().flat_map(|&r| &rows[r]).map(|&i| &examples[i]))
            })
            .collect();
        let done = within * options.grad_accum + micro_batches.len();
        let fraction = done as f64 / self.batches.micro_batches_per_epoch() as f64;
        let window = Window { step: self.step, epoch: epoch as f64 + fraction, micro_batches };
        self.step += 1;
        if self.step.is_multiple_of(steps_per_epoch) {
            self.order = self.epoch_order();
        }
        Some(window)
    }
}
