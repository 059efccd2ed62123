//! From a recipe to a run that can start: model, rows, order, memory plan, folder.

use crate::arena::{Category, Plan};
use crate::backend::{self, Backend, UpdateRule};
use crate::batch::{BatchOptions, Batches, Examples, MicroBatch, split};
use crate::dataset::{Audit, DataSource, Dataset, Encoder, FieldNames, cache_folder, load};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::metrics::available_memory_bytes;
use crate::model::{Capacity, Model};
use crate::ops::matmul::{Threads, View, multiply};
use crate::optimizer::Optimizer;
use crate::pretrained::Pretrained;
use crate::recipe::{EmbeddingState, OptimizerKind, Recipe};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A run whose every part is open and checked.
pub struct Run {
    /// What was asked for.
    pub recipe: Recipe,
    /// The folder that the run writes; it exists and is writable.
    pub out: PathBuf,
    /// The model as it was.
    pub pretrained: Pretrained,
    /// What became of the rows.
    pub stats: Audit,
    /// The same for rows of `eval_data`.
    pub eval_stats: Option<Audit>,
    /// Rows held out.
    pub held_out_rows: usize,
    /// Optimizer steps.
    pub total_steps: usize,
    /// Steps of one epoch.
    pub steps_per_epoch: usize,
    /// Bytes by category, as planned.
    pub memory: Vec<(Category, usize)>,
    /// Type of weights and activations in the step.
    pub dtype: DType,
    /// One row to show.
    pub sample: Sample,
    pub(super) batches: Batches,
    pub(super) held_out: Vec<MicroBatch>,
    pub(super) model: Model,
    pub(super) optimizer: Optimizer,
    pub(super) backend: Option<Box<dyn Backend>>,
}

/// A row as the model sees it, token by token.
pub struct Sample {
    /// Text of each token, and whether it is learnt.
    pub tokens: Vec<(String, bool)>,
}

impl Run {
    /// Opens and checks everything the recipe names. `folder` names the run's folder where the recipe does not.
    ///
    /// # Errors
    /// [`Error::Input`] for whatever is wrong with model, data, device, folder or memory.
    pub fn prepare(recipe: Recipe, folder: impl FnOnce() -> PathBuf) -> Result<Self> {
        let dtype = backend::precision(recipe.device, recipe.precision)?;
        let pretrained = Pretrained::open(Path::new(&recipe.model))?;
        let encoder = Encoder::new(&recipe, &pretrained);
        let max_length = encoder.max_length;
        let Dataset { examples, audit: stats, .. } = encode_file(&recipe, &encoder, &recipe.data)?;
        // The examples held out, and which of their store those are.
        let (chosen, held_out, eval_stats) = match &recipe.eval_data {
            Some(file) => {
                let encoded = encode_file(&recipe, &encoder, file)?;
                let held_out: Vec<usize> = (0..encoded.examples.len()).collect();
                ((0..examples.len()).collect(), (encoded.examples, held_out), Some(encoded.audit))
            }
            None => {
                let (chosen, held_out) = split(examples.len(), recipe.eval_share, recipe.seed);
                (chosen, (examples.clone(), held_out), None)
            }
        };
        let sample = Sample::new(&examples, chosen[0], &pretrained)?;
        let held_out_rows = held_out.1.len();
        let batches = Batches::new(
            examples,
            chosen,
            BatchOptions {
                batch_size: recipe.batch_size,
                grad_accum: recipe.grad_accum,
                packing: recipe.packing.then_some(max_length),
                shuffle: recipe.shuffle.then_some(recipe.seed),
            },
        );
        let capacity = capacity(&batches, &held_out.0, &held_out.1);
        let held_out = group(&held_out.0, &held_out.1, capacity);
        let mut plan = Plan::default();
        let model = Model::plan(&mut plan, &pretrained.config, dtype, capacity, true);
        let rule = match recipe.optimizer {
            OptimizerKind::AdamW => UpdateRule::Torch,
            OptimizerKind::AdamW8bit => UpdateRule::Blockwise,
        };
        let embedding_8bit = recipe.embedding_state == EmbeddingState::EightBit;
        let optimizer = Optimizer::plan(&mut plan, &model, rule, embedding_8bit);
        check_memory(plan.bytes())?;
        let out = create_folder(recipe.out.clone().unwrap_or_else(folder))?;
        let mut backend = backend::open(recipe.device, &plan, dtype)?;
        optimizer.reset(&mut *backend)?;
        model.load(&mut *backend, |parameter, out| pretrained.weights.read(parameter, out))?;
        let steps_per_epoch = batches.steps_per_epoch();
        Ok(Self {
            total_steps: recipe.total_steps(steps_per_epoch),
            recipe,
            out,
            pretrained,
            stats,
            eval_stats,
            held_out_rows,
            steps_per_epoch,
            memory: plan.by_category().collect(),
            dtype,
            sample,
            batches,
            held_out,
            model,
            optimizer,
            backend: Some(backend),
        })
    }

    /// Seconds the steps will take on this CPU, from its matrix rate measured now; a forecast, not a promise.
    pub fn forecast_seconds(&self) -> f64 {
        let (examples, chosen) = (self.batches.examples(), self.batches.chosen());
        let all_tokens: usize = chosen.iter().map(|&i| examples.tokens_of(i)).sum();
        let mean_tokens = all_tokens as f64 / chosen.len() as f64;
        let rows = (self.total_steps * self.recipe.batch_size * self.recipe.grad_accum) as f64;
        let per_row = chosen.len() as f64 / self.batches.num_rows() as f64;
        let tokens = rows * per_row * mean_tokens;
        // Two operations per weight and token forward, four backward; the rest of a step is about a third of that.
        let operations = tokens * 6.0 * self.pretrained.config.num_parameters() as f64;
        operations / matrix_rate() / 0.75
    }
}

impl Sample {
    fn new(examples: &Examples, index: usize, pretrained: &Pretrained) -> Result<Self> {
        let pieces = pretrained.tokenizer.pieces(examples.ids(index))?;
        Ok(Self { tokens: pieces.into_iter().zip(examples.supervised(index)).collect() })
    }
}

fn encode_file(recipe: &Recipe, encoder: &Encoder<'_>, data: &str) -> Result<Dataset> {
    load(&DataSource::local(data)?, encoder, &FieldNames::new(recipe), cache_folder().as_deref())
}

/// Room for the largest micro-batch, and for the longest held-out row.
fn capacity(batches: &Batches, held_out: &Examples, indices: &[usize]) -> Capacity {
    let longest = |examples: &Examples, indices: &[usize]| {
        indices.iter().map(|&i| examples.tokens_of(i)).max().unwrap_or(0)
    };
    let longest_held_out = longest(held_out, indices);
    let tokens = batches.max_micro_batch_tokens().max(longest_held_out);
    Capacity {
        tokens,
        sequences: tokens, // a sequence has at least one token
        positions: longest(batches.examples(), batches.chosen()).max(longest_held_out),
    }
}

/// Held-out rows in micro-batches that fit.
fn group(examples: &Examples, indices: &[usize], capacity: Capacity) -> Vec<MicroBatch> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut room = 0;
    for &index in indices {
        let tokens = examples.tokens_of(index);
        if tokens > room {
            groups.push(Vec::new());
            room = capacity.tokens;
        }
        room -= tokens;
        groups.last_mut().expect("pushed above").push(index);
    }
    groups.into_iter().map(|group| MicroBatch::from_examples(examples, group)).collect()
}

fn check_memory(planned: usize) -> Result<()> {
    match available_memory_bytes() {
        Some(available) if planned as u64 > available => {
            let mib = |bytes: u64| bytes >> 20;
            Err(Error::input(
                "memory",
                format!("the run needs {} MiB, and {} MiB are free", mib(planned as u64), mib(available)),
                "use a smaller --batch-size (with more --grad-accum), a smaller --max-length, --optimizer \
                 adamw_8bit, or a smaller model",
            ))
        }
        _ => Ok(()),
    }
}

/// Creates the run's folder, or takes an empty one; one that holds a run is refused.
fn create_folder(out: PathBuf) -> Result<PathBuf> {
    let taken = ["run.json", "metrics.jsonl", "model.safetensors"].iter().find(|f| out.join(f).exists());
    if let Some(file) = taken {
        return Err(Error::input(
            format!("--out {}", out.display()),
            format!("the folder holds a run already ({file})"),
            "name another folder, or move that one away",
        ));
    }
    let unwritable = |e: std::io::Error| {
        Error::input(
            format!("--out {}", out.display()),
            format!("cannot write there: {e}"),
            "name another folder",
        )
    };
    std::fs::create_dir_all(&out).map_err(unwritable)?;
    let probe = out.join(format!(".probe.{}", std::process::id()));
    std::fs::write(&probe, b"").and_then(|()| std::fs::remove_file(&probe)).map_err(unwritable)?;
    Ok(out)
}

/// Floating-point operations per second of the matrix product, measured for a moment.
fn matrix_rate() -> f64 {
    const N: usize = 512;
    let (a, b, mut c) = (vec![1.0; N * N], vec![1.0; N * N], vec![0.0; N * N]);
    let mut once = || {
        multiply(View::new(&a, N, N), View::new(&b, N, N).t(), &mut c, N, false, Threads::All);
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
