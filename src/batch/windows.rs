//! The micro-batches of each optimizer step, a pure function of examples, options and step.

use super::{Examples, MicroBatch, Order, best_fit_decreasing};

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
    examples: Examples,
    rows: Rows,
    options: BatchOptions,
    /// Tokens of the largest micro-batch any epoch can bring.
    largest: usize,
}

/// Which examples each row holds, in two flat lists, as there may be many millions.
#[derive(Clone, Debug)]
struct Rows {
    /// Indices of examples, row after row.
    members: Vec<usize>,
    /// Row `i` is `members[starts[i]..starts[i + 1]]`; absent where each row holds one.
    starts: Option<Vec<usize>>,
}

impl Rows {
    fn packed(rows: &[Vec<usize>], chosen: &[usize]) -> Self {
        let (mut members, mut starts) = (Vec::with_capacity(chosen.len()), vec![0]);
        for row in rows {
            members.extend(row.iter().map(|&i| chosen[i]));
            starts.push(members.len());
        }
        Self { members, starts: Some(starts) }
    }

    fn len(&self) -> usize {
        self.starts.as_ref().map_or(self.members.len(), |starts| starts.len() - 1)
    }

    fn row(&self, index: usize) -> &[usize] {
        match &self.starts {
            Some(starts) => &self.members[starts[index]..starts[index + 1]],
            None => &self.members[index..=index],
        }
    }
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
    /// Indices of the examples in them, in their order.
    pub examples: Vec<usize>,
    /// Tokens that can be computed at a time: those of the largest micro-batch of the run.
    pub room: usize,
}

impl Window {
    /// Tokens of all micro-batches.
    pub fn tokens(&self) -> usize {
        self.micro_batches.iter().map(MicroBatch::tokens).sum()
    }

    /// Its sequences in as few micro-batches as there is room for without taking one apart. Each brings all weights from
    /// memory, and adds to all their gradients. Depends on data and options alone, and so do the sums' bits.
    pub fn joined(&self) -> Vec<MicroBatch> {
        let mut joined: Vec<MicroBatch> = Vec::with_capacity(self.micro_batches.len());
        for batch in &self.micro_batches {
            match joined.last_mut() {
                Some(last) if last.tokens() + batch.tokens() <= self.room => last.append(batch),
                _ => joined.push(batch.clone()),
            }
        }
        joined
    }

    /// Supervised tokens of all micro-batches: the one denominator of the step's loss.
    pub fn supervised(&self) -> usize {
        self.micro_batches.iter().map(MicroBatch::supervised).sum()
    }
}

impl Batches {
    /// Packs the examples at the indices `chosen` into rows where asked to. Their tokens stay where they are.
    ///
    /// # Panics
    /// If none is chosen, a size is 0, or an example is longer than a packed row: the recipe and the encoding have
    /// refused all of these before.
    pub fn new(examples: Examples, chosen: Vec<usize>, options: BatchOptions) -> Self {
        assert!(!chosen.is_empty() && options.batch_size > 0 && options.grad_accum > 0);
        let rows = match options.packing {
            Some(capacity) => {
                let lengths: Vec<usize> = chosen.iter().map(|&i| examples.tokens_of(i)).collect();
                Rows::packed(&best_fit_decreasing(&lengths, capacity), &chosen)
            }
            None => Rows { members: chosen, starts: None },
        };
        let mut batches = Self { examples, rows, options, largest: 0 };
        batches.largest = batches.largest();
        batches
    }

    /// All examples, those that were not chosen too.
    pub fn examples(&self) -> &Examples {
        &self.examples
    }

    /// Indices of the chosen examples; packed ones row by row.
    pub fn chosen(&self) -> &[usize] {
        &self.rows.members
    }

    /// Rows: as many as chosen examples, or fewer where they are packed.
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
    pub fn max_micro_batch_tokens(&self) -> usize {
        self.largest
    }

    /// Any rows may meet where they are shuffled, so the longest ones do; else it is the largest there is.
    fn largest(&self) -> usize {
        let mut tokens: Vec<usize> = (0..self.rows.len()).map(|row| self.row_tokens(row)).collect();
        if self.options.order != Order::AsGiven {
            tokens.sort_unstable_by(|a, b| b.cmp(a));
        }
        tokens.chunks(self.options.batch_size).map(|batch| batch.iter().sum()).max().unwrap_or(0)
    }

    fn row_tokens(&self, row: usize) -> usize {
        self.rows.row(row).iter().map(|&i| self.examples.tokens_of(i)).sum()
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
        let Batches { examples, rows, options, largest } = self.batches;
        let steps_per_epoch = self.batches.steps_per_epoch();
        let (epoch, within) = (self.step / steps_per_epoch, self.step % steps_per_epoch);
        let of_batch = |batch: &[usize]| batch.iter().flat_map(|&r| rows.row(r)).copied().collect();
        let batches = self.order.chunks(options.batch_size).skip(within * options.grad_accum);
        let indices: Vec<Vec<usize>> = batches.take(options.grad_accum).map(of_batch).collect();
        let done = within * options.grad_accum + indices.len();
        let fraction = done as f64 / self.batches.micro_batches_per_epoch() as f64;
        let batch = |indices: &Vec<usize>| MicroBatch::from_examples(examples, indices.iter().copied());
        let window = Window {
            step: self.step,
            epoch: epoch as f64 + fraction,
            micro_batches: indices.iter().map(batch).collect(),
            examples: indices.concat(),
            room: *largest,
        };
        self.step += 1;
        if self.step.is_multiple_of(steps_per_epoch) {
            self.order = self.epoch_order();
        }
        Some(window)
    }
}
