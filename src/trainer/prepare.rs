//! From a recipe to a run that can start: model, rows, order, memory plan, folder.

use super::Resumed;
use super::sample::Sampler;
use super::save::OPTIMIZER;
use crate::arena::{Category, Plan};
use crate::backend::{self, Backend, UpdateRule};
use crate::batch::{BatchOptions, Batches, Examples, MicroBatch, Order, split};
use crate::checkpoint;
use crate::dataset::{Encoded, Encoder, EncodingStats, FieldNames, encode, read_rows};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::metrics::available_memory_bytes;
use crate::model::{Capacity, Model};
use crate::ops::matmul::{Threads, View, multiply};
use crate::optimizer::Optimizer;
use crate::pretrained::Pretrained;
use crate::recipe::{Compat, EmbeddingState, OptimizerKind, Precision, Recipe};
use crate::weights::Weights;
use serde_json::Value;
use std::path::Path;
use std::time::Instant;

/// A run whose every part is open and checked.
pub struct Run {
    /// What was asked for.
    pub recipe: Recipe,
    /// The model as it was.
    pub pretrained: Pretrained,
    /// What became of the rows.
    pub stats: EncodingStats,
    /// The same for rows of `eval_data`.
    pub eval_stats: Option<EncodingStats>,
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
    pub(super) sampler: Option<Sampler>,
    plan: Plan,
}

/// A row as the model sees it, token by token.
pub struct Sample {
    /// Text of each token, and whether it is learnt.
    pub tokens: Vec<(String, bool)>,
}

impl Run {
    /// Opens and checks everything the recipe names, and plans the memory; nothing is written.
    ///
    /// # Errors
    /// [`Error::Input`] for whatever is wrong with model, data or device.
    pub fn prepare(recipe: Recipe) -> Result<Self> {
        let precision = match (recipe.compat, recipe.precision) {
            // torch says that every GPU has bf16, so the run that is reproduced was in bf16.
            (Compat::Trl017, Precision::Auto) => Precision::Bf16,
            (_, precision) => precision,
        };
        let dtype = backend::precision(recipe.device, precision)?;
        let pretrained = Pretrained::open(Path::new(&recipe.model))?;
        let max_length = recipe.max_length.min(pretrained.config.max_position_embeddings);
        let Encoded { examples, stats } = encode_file(&recipe, &pretrained, &recipe.data, max_length)?;
        // The examples held out, and which of their store those are.
        let (chosen, held_out, eval_stats) = match &recipe.eval_data {
            Some(file) => {
                let encoded = encode_file(&recipe, &pretrained, file, max_length)?;
                let held_out: Vec<usize> = (0..encoded.examples.len()).collect();
                ((0..examples.len()).collect(), (encoded.examples, held_out), Some(encoded.stats))
            }
            None => {
                let (chosen, held_out) = split(examples.len(), recipe.eval_share, recipe.seed);
                (chosen, (examples.clone(), held_out), None)
            }
        };
        let sample = Sample::new(&examples, chosen[0], &pretrained);
        let held_out_rows = held_out.1.len();
        let batches = Batches::new(
            examples,
            chosen,
            BatchOptions {
                batch_size: recipe.batch_size,
                grad_accum: recipe.grad_accum,
                packing: recipe.packing.then_some(max_length),
                order: order(&recipe),
            },
        );
        let mut sampler = match recipe.sample_every {
            0 => None,
            _ => Some(Sampler::new(&pretrained, &recipe.sample_prompt, recipe.system.as_deref())?),
        };
        let mut capacity = capacity(&batches, &held_out.0, &held_out.1);
        if let Some(sampler) = &sampler {
            capacity = sampler.widen(capacity, pretrained.config.max_position_embeddings);
        }
        let held_out = group(&held_out.0, &held_out.1, capacity);
        let mut plan = Plan::default();
        let model = Model::plan(&mut plan, &pretrained.config, dtype, capacity, true);
        let rule = match recipe.optimizer {
            OptimizerKind::AdamW => UpdateRule::Torch,
            OptimizerKind::AdamW8bit => UpdateRule::Blockwise,
        };
        let embedding_8bit = recipe.embedding_state == EmbeddingState::EightBit;
        let optimizer = Optimizer::plan(&mut plan, &model, rule, embedding_8bit);
        if let Some(sampler) = &mut sampler {
            sampler.plan(&mut plan, &model);
        }
        let steps_per_epoch = batches.steps_per_epoch();
        Ok(Self {
            total_steps: recipe.total_steps(steps_per_epoch),
            recipe,
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
            sampler,
            plan,
        })
    }

    /// Compares the plan with the memory that is free.
    ///
    /// # Errors
    /// [`Error::Input`] when it does not fit.
    pub fn check_memory(&self) -> Result<()> {
        check_memory(self.plan.bytes())
    }

    /// Bytes of a checkpoint: fp32 weights and the optimizer's state.
    pub fn checkpoint_bytes(&self) -> usize {
        let state: usize = self.optimizer.state().map(|(_, tensor)| tensor.bytes()).sum();
        state + 4 * self.pretrained.config.num_parameters()
    }

    /// Opens the device and fills in weights and optimizer state: the model's as it was, or a checkpoint's.
    pub(super) fn open(&self, resumed: Option<&Resumed>, record: &Value) -> Result<Box<dyn Backend>> {
        self.check_memory()?;
        if let Some(resumed) = resumed {
            self.check_resumed(resumed, record)?;
        }
        let mut backend = backend::open(self.recipe.device, &self.plan, self.dtype)?;
        let saved = match resumed.and_then(|r| r.checkpoint.as_ref()) {
            None => {
                self.optimizer.reset(&mut *backend)?;
                None
            }
            Some((folder, _)) => {
                checkpoint::load_optimizer(&folder.join(OPTIMIZER), &self.optimizer, &mut *backend)?;
                let weights = Weights::open(folder)?;
                weights.check(&self.pretrained.config)?;
                Some(weights)
            }
        };
        let weights = saved.as_ref().unwrap_or(&self.pretrained.weights);
        self.model.load(&mut *backend, |parameter, out| weights.read(parameter, out))?;
        Ok(backend)
    }

    /// Data, model, schedule and precision must be those of the run that goes on.
    fn check_resumed(&self, resumed: &Resumed, now: &Value) -> Result<()> {
        for path in ["/total_steps", "/precision", "/data/sha256", "/eval_data/sha256", "/model/sha256"] {
            let (was, is) = (resumed.record.pointer(path), now.pointer(path));
            if was != is {
                let show = |v: Option<&Value>| v.map_or("nothing".to_owned(), Value::to_string);
                return Err(Error::input(
                    format!("--resume: {}", path[1..].replace('/', ", ")),
                    format!("{} now, and {} when the run was started", show(is), show(was)),
                    "bring back the data, model and device it was started with, or start a new run",
                ));
            }
        }
        let (found, step) = match &resumed.checkpoint {
            Some((_, s)) => ((s.total_steps, s.seed, s.precision), s.step),
            None => return Ok(()),
        };
        if found == (self.total_steps, self.recipe.seed, self.dtype) && step < self.total_steps {
            return Ok(());
        }
        let found = format!("the latest checkpoint's steps, seed or precision are not the run's: {found:?}");
        Err(Error::input(
            "--resume",
            found,
            "remove that checkpoint's folder: the one before it is taken then",
        ))
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
    fn new(examples: &Examples, index: usize, pretrained: &Pretrained) -> Self {
        let text = |id: u32| {
            let decoded = pretrained.tokenizer.decode(&[id], false).unwrap_or_default();
            // Part of a character: show the token's own spelling.
            if decoded.contains('\u{fffd}') {
                pretrained.tokenizer.token(id).unwrap_or(decoded)
            } else {
                decoded
            }
        };
        let ids = examples.ids(index).iter().zip(examples.supervised(index));
        let tokens = ids.map(|(&id, learnt)| (text(id), learnt));
        Self { tokens: tokens.collect() }
    }
}

fn encode_file(recipe: &Recipe, pretrained: &Pretrained, data: &str, max_length: usize) -> Result<Encoded> {
    let fields = FieldNames { prompt: recipe.prompt_field.clone(), response: recipe.response_field.clone() };
    let rows = read_rows(data, &fields)?;
    let encoder = Encoder {
        tokenizer: &pretrained.tokenizer,
        template: &pretrained.template,
        eos: pretrained.eos_token.as_deref().and_then(|token| pretrained.tokenizer.id(token)),
        loss_on: recipe.loss_on,
        max_length,
        system: recipe.system.as_deref(),
    };
    encode(&rows, &encoder)
}

fn order(recipe: &Recipe) -> Order {
    match (recipe.compat, recipe.shuffle) {
        (Compat::Trl017, _) => Order::TorchRandperm(recipe.seed),
        (Compat::Off, true) => Order::Shuffled(recipe.seed),
        (Compat::Off, false) => Order::AsGiven,
    }
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
