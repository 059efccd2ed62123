//! From a recipe to a run that can start: model, rows, order, memory plan.

use super::fit::Fit;
use super::rows::{Rows, Sources, order};
use super::sample::Sampler;
use super::save::OPTIMIZER;
use super::{Resumed, Trained};
use crate::arena::{Category, Plan};
use crate::backend::{self, Backend, Target};
use crate::batch::{BatchOptions, Batches, Examples};
use crate::checkpoint;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::metrics::available_memory_bytes;
use crate::model::{Capacity, initial, is_adapter};
use crate::pretrained::Pretrained;
use crate::recipe::{Compat, Precision, Recipe};
use crate::weights::{Adapter, Weights};
use serde_json::Value;

/// A run whose every part is open and checked.
pub struct Run {
    /// What was asked for.
    pub recipe: Recipe,
    /// Where that was found.
    pub sources: Sources,
    /// The model as it was.
    pub pretrained: Pretrained,
    /// The rows, and what became of them.
    pub rows: Rows,
    /// Optimizer steps.
    pub total_steps: usize,
    /// Steps of one epoch.
    pub steps_per_epoch: usize,
    /// Bytes by category, as planned.
    pub memory: Vec<(Category, usize)>,
    /// Type of weights and activations in the step.
    pub dtype: DType,
    pub(super) batches: Batches,
    pub(super) capacity: Capacity,
    pub(super) trained: Trained,
    pub(super) sampler: Option<Sampler>,
    plan: Plan,
}

/// A row as the model sees it, token by token.
pub struct Sample {
    /// Text of each token, and whether it is learnt.
    pub tokens: Vec<(String, bool)>,
}

impl Run {
    /// Opens and checks everything the recipe names, and plans the memory; nothing but the token cache is written.
    ///
    /// # Errors
    /// [`Error::Input`] for whatever is wrong with model, data or device.
    pub fn prepare(recipe: Recipe, sources: Sources) -> Result<Self> {
        let precision = match (recipe.compat, recipe.precision) {
            // torch says that every GPU has bf16, so the run that is reproduced was in bf16.
            (Compat::Trl017, Precision::Auto) => Precision::Bf16,
            (_, precision) => precision,
        };
        let pretrained = Pretrained::open(&sources.model)?;
        if recipe.lora_rank > 0 && pretrained.weights.adapter().is_some() {
            return Err(Error::input(
                format!("lora_rank = {}", recipe.lora_rank),
                format!("the model {} is itself an adapter and its base", recipe.model),
                "merge the two first: smolten export --model ADAPTER --out FOLDER --format hf, and train on FOLDER",
            ));
        }
        let target = Target::of(&recipe)?;
        let dtype = backend::precision(target, precision, &pretrained.config)?;
        let rows = Rows::load(&recipe, &sources, &pretrained)?;
        let options = BatchOptions {
            batch_size: recipe.batch_size,
            grad_accum: recipe.grad_accum,
            packing: recipe.packing.then_some(rows.data.audit.max_length),
            order: order(&recipe),
        };
        let batches = Batches::new(rows.data.examples.clone(), rows.trained.clone(), options);
        let mut sampler = match recipe.sample_every {
            0 => None,
            _ => Some(Sampler::new(&pretrained, &recipe.sample_prompt, recipe.system.as_deref())?),
        };
        let mut capacity = capacity(&batches, longest(rows.held_out_examples(), &rows.held_out));
        if let Some(sampler) = &sampler {
            capacity = sampler.widen(capacity, pretrained.config.max_position_embeddings);
        }
        let mut plan = Plan::default();
        let trained = Trained::plan(&mut plan, &recipe, &pretrained.config, dtype, capacity);
        if let Some(sampler) = &mut sampler {
            sampler.plan(&mut plan, &trained.model);
        }
        backend::plan_workspace(target, dtype, &mut plan)?;
        let steps_per_epoch = batches.steps_per_epoch();
        Ok(Self {
            total_steps: recipe.total_steps(steps_per_epoch),
            recipe,
            sources,
            pretrained,
            rows,
            steps_per_epoch,
            memory: plan.by_category().collect(),
            dtype,
            batches,
            capacity,
            trained,
            sampler,
            plan,
        })
    }

    /// The first row that is trained on.
    ///
    /// # Errors
    /// Those of the tokenizer.
    pub fn sample(&self) -> Result<Sample> {
        Sample::new(&self.rows.data.examples, self.rows.trained[0], &self.pretrained)
    }

    /// Compares the plan with the memory that is free.
    ///
    /// # Errors
    /// [`Error::Input`] when it does not fit.
    pub fn check_memory(&self) -> Result<()> {
        let (name, free) = self.free_memory()?;
        let short = free.filter(|&free| self.planned_bytes() as u64 > free);
        let remedy = short.map(|free| Fit::new(self, free).remedies()).transpose()?;
        check_memory(self.planned_bytes(), &name, free, &remedy.unwrap_or_default())
    }

    /// The largest batch size of these rows that the free memory holds, and that memory in bytes; none where the system
    /// does not tell, or not even one row fits.
    ///
    /// # Errors
    /// [`Error::Input`] when the device cannot be used.
    pub fn largest_batch(&self) -> Result<Option<(usize, u64)>> {
        let Some(free) = self.free_memory()?.1 else { return Ok(None) };
        Ok(Fit::new(self, free).largest_batch()?.map(|size| (size, free)))
    }

    /// Bytes of the whole arena.
    pub(super) fn planned_bytes(&self) -> usize {
        self.plan.bytes()
    }

    /// What the device is called, and how much of its memory is free.
    fn free_memory(&self) -> Result<(String, Option<u64>)> {
        let (name, of_device) = backend::describe(Target::of(&self.recipe)?)?;
        Ok((name, of_device.or_else(available_memory_bytes)))
    }

    /// Tokens of the longest row that is held out.
    pub(super) fn longest_held_out(&self) -> usize {
        longest(self.rows.held_out_examples(), &self.rows.held_out)
    }

    /// Weights that are trained.
    pub fn trained_parameters(&self) -> usize {
        let trained = self.trained.model.weights.iter().filter(|weight| weight.grad.is_some());
        trained.map(|weight| weight.master.len()).sum()
    }

    /// Bytes of a checkpoint: fp32 weights and the optimizer's state.
    pub fn checkpoint_bytes(&self) -> usize {
        let state: usize = self.trained.optimizer.state().map(|(_, tensor)| tensor.bytes()).sum();
        state + 4 * self.trained_parameters()
    }

    /// Opens the device and fills in weights and optimizer state: the model's as it was, or a checkpoint's.
    pub(super) fn open(&self, resumed: Option<&Resumed>, record: &Value) -> Result<Box<dyn Backend>> {
        self.check_memory()?;
        if let Some(resumed) = resumed {
            self.check_resumed(resumed, record)?;
        }
        let mut backend = backend::open(self.recipe.device, &self.plan, self.dtype)?;
        let (config, lora) = (&self.pretrained.config, self.recipe.lora());
        let mut saved: (Option<Weights>, Option<Adapter>) = (None, None);
        match resumed.and_then(|r| r.checkpoint.as_ref()) {
            None => self.trained.optimizer.reset(&mut *backend)?,
            Some((folder, _)) => {
                checkpoint::load_optimizer(&folder.join(OPTIMIZER), &self.trained.optimizer, &mut *backend)?;
                if lora.is_some() {
                    saved.1 = Some(Adapter::of_checkpoint(folder, config)?);
                } else {
                    let weights = Weights::open(folder)?;
                    weights.check(config)?;
                    saved.0 = Some(weights);
                }
            }
        }
        let (weights, adapter) = (saved.0.as_ref().unwrap_or(&self.pretrained.weights), &saved.1);
        self.trained.model.load(&mut *backend, |parameter, out| match adapter {
            _ if !is_adapter(parameter) => weights.read(parameter, out),
            Some(adapter) => adapter.read(parameter, out),
            None => {
                initial(parameter, self.recipe.seed, out);
                Ok(())
            }
        })?;
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
}

impl Sample {
    fn new(examples: &Examples, index: usize, pretrained: &Pretrained) -> Result<Self> {
        let pieces = pretrained.tokenizer.pieces(examples.ids(index))?;
        Ok(Self { tokens: pieces.into_iter().zip(examples.supervised(index)).collect() })
    }
}

/// Room for the largest micro-batch, and for one row of `held_out` tokens.
pub(crate) fn capacity(batches: &Batches, held_out: usize) -> Capacity {
    let tokens = batches.max_micro_batch_tokens().max(held_out);
    Capacity {
        tokens,
        sequences: tokens, // a sequence has at least one token
        positions: longest(batches.examples(), batches.chosen()).max(held_out),
    }
}

/// Tokens of the longest of these examples.
fn longest(examples: &Examples, indices: &[usize]) -> usize {
    indices.iter().map(|&i| examples.tokens_of(i)).max().unwrap_or(0)
}

/// Compares a plan with the memory that is free.
pub(crate) fn check_memory(planned: usize, device: &str, available: Option<u64>, remedy: &str) -> Result<()> {
    match available {
        Some(available) if planned as u64 > available => {
            let mib = |bytes: u64| bytes >> 20;
            Err(Error::input(
                "memory",
                format!(
                    "the run needs {} MiB ({device}), and {} MiB are free",
                    mib(planned as u64),
                    mib(available)
                ),
                remedy,
            ))
        }
        _ => Ok(()),
    }
}
