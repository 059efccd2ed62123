//! Whole training steps, timed: `smolten bench train`.
//!
//! What runs is the trainer's own step ([`Trained::submit`]), from the submission of the first micro-batch to the report of
//! the update; the window is ready before. Neither a record nor a checkpoint is written.

use super::fill::Random;
use super::suite::Size;
use crate::arena::Plan;
use crate::backend::{self, Backend};
use crate::batch::{BatchOptions, Batches, Example, Examples};
use crate::config::{ModelConfig, Parameter};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::metrics::available_memory_bytes;
use crate::model::{initial, is_adapter};
use crate::ops::loss_scale::LossScale;
use crate::pretrained::Pretrained;
use crate::recipe::Recipe;
use crate::trainer::{Rows, Sources, Trained, capacity, check_memory, order, peak_memory};
use serde::Serialize;
use std::time::Instant;

/// Steps before the first one that is timed: they touch the memory, and a GPU records.
pub const WARM_UP: usize = 2;

/// Deviation of random weights, as models of this family begin.
const WEIGHT: f32 = 0.02;

/// One step.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct StepTime {
    /// Of the wall clock.
    pub seconds: f64,
    /// Trained on in it; nothing is padded.
    pub tokens: usize,
    /// Mean over its supervised tokens.
    pub loss: f64,
}

/// A model, its optimizer and rows on a device, ready to step.
pub struct TrainBench {
    /// Type of weights and activations.
    pub dtype: DType,
    /// Weights of the model.
    pub parameters: usize,
    recipe: Recipe,
    trained: Trained,
    batches: Batches,
    backend: Box<dyn Backend>,
}

/// Writes one weight as fp32.
type Read<'a> = dyn FnMut(&Parameter, &mut [f32]) -> Result<()> + 'a;

impl TrainBench {
    /// A model of this size with random weights, on full rows.
    ///
    /// # Errors
    /// [`Error::Input`] where memory is short or the device cannot be used; [`Error::Cuda`].
    pub fn random(recipe: Recipe, size: &Size) -> Result<Self> {
        let config = size.config();
        let rows = full_rows(&recipe, &config)?;
        let mut random = Random(1);
        Self::open(recipe, &config, rows, &mut |parameter, out| {
            let is_vector = parameter.is_vector();
            out.fill_with(|| if is_vector { 1.0 } else { WEIGHT * random.normal() });
            Ok(())
        })
    }

    /// This model, on full rows.
    ///
    /// # Errors
    /// As [`Self::random`].
    pub fn full(recipe: Recipe, pretrained: &Pretrained) -> Result<Self> {
        let rows = full_rows(&recipe, &pretrained.config)?;
        let weights = &pretrained.weights;
        Self::open(recipe, &pretrained.config, rows, &mut |parameter, out| weights.read(parameter, out))
    }

    /// This model on these rows, as the recipe cuts and orders them.
    ///
    /// # Errors
    /// As [`Self::random`], and [`Error::Input`] for data that cannot be trained on.
    pub fn ragged(recipe: Recipe, sources: &Sources, pretrained: &Pretrained) -> Result<Self> {
        let Rows { data, trained, .. } = Rows::load(&recipe, sources, pretrained)?;
        let (rows, weights) = ((data.examples, trained), &pretrained.weights);
        Self::open(recipe, &pretrained.config, rows, &mut |parameter, out| weights.read(parameter, out))
    }

    fn open(
        recipe: Recipe,
        config: &ModelConfig,
        (examples, chosen): (Examples, Vec<usize>),
        read: &mut Read<'_>,
    ) -> Result<Self> {
        let dtype = backend::precision(recipe.device, recipe.precision, config)?;
        let options = BatchOptions {
            batch_size: recipe.batch_size,
            grad_accum: recipe.grad_accum,
            packing: None,
            order: order(&recipe),
        };
        let batches = Batches::new(examples, chosen, options);
        let mut plan = Plan::default();
        let trained = Trained::plan(&mut plan, &recipe, config, dtype, capacity(&batches, 0));
        backend::plan_workspace(recipe.device, dtype, &mut plan)?;
        let (name, of_device) = backend::describe(recipe.device)?;
        let remedy = "fewer --rows, a smaller --length, --optimizer adamw_8bit, or a smaller model";
        check_memory(plan.bytes(), &name, of_device.or_else(available_memory_bytes), remedy)?;
        let mut backend = backend::open(recipe.device, &plan, dtype)?;
        trained.optimizer.reset(&mut *backend)?;
        let seed = recipe.seed;
        trained.model.load(&mut *backend, |parameter, out| {
            if !is_adapter(parameter) {
                return read(parameter, out);
            }
            initial(parameter, seed, out);
            Ok(())
        })?;
        backend.set_loss_scale(LossScale::new(dtype))?;
        Ok(Self { dtype, parameters: config.num_parameters(), recipe, trained, batches, backend })
    }

    /// Takes the warm-up steps and then `steps` more, of which `seen` is told.
    ///
    /// # Errors
    /// [`Error::Run`] where a timed step's update was skipped, for then it did less; those of the backend.
    pub fn steps(&mut self, steps: usize, mut seen: impl FnMut(StepTime)) -> Result<()> {
        let Self { recipe, trained, batches, backend, .. } = self;
        for (i, window) in batches.windows(0).take(WARM_UP + steps).enumerate() {
            let start = Instant::now();
            trained.submit(&mut **backend, recipe, &window, recipe.lr)?;
            let output = backend.take_output()?;
            let seconds = start.elapsed().as_secs_f64();
            if i < WARM_UP {
                continue;
            }
            if output.skipped {
                let what = format!("step {} had no finite gradient, so its update was skipped", i + 1);
                return Err(Error::run(what, "use --precision fp32, or another --model"));
            }
            let loss = output.loss_sum / window.supervised() as f64;
            seen(StepTime { seconds, tokens: window.tokens(), loss });
        }
        Ok(())
    }

    /// Peak bytes of the device's own memory, else of the process.
    pub fn peak_memory_bytes(&self) -> Option<u64> {
        peak_memory(&*self.backend)
    }
}

/// Rows of one step, each of the recipe's length, of random tokens that are all learnt.
fn full_rows(recipe: &Recipe, config: &ModelConfig) -> Result<(Examples, Vec<usize>)> {
    let (length, most) = (recipe.max_length, config.max_position_embeddings);
    if length > most {
        let found = format!("the model's context holds {most} tokens");
        return Err(Error::input(format!("--length {length}"), found, "use shorter rows"));
    }
    let rows = recipe.batch_size * recipe.grad_accum;
    let mut random = Random(2);
    let mut token = || u32::try_from(random.next() % config.vocab_size as u64).expect("ids are u32");
    let mut row = || Example { ids: (0..length).map(|_| token()).collect(), supervised: vec![true; length] };
    let examples = Examples::from_examples((0..rows).map(|_| row()));
    Ok((examples, (0..rows).collect()))
}

#[cfg(test)]
mod tests {
    use super::super::suite::SIZES;
    use super::*;
    use crate::recipe::RecipeOverrides;

    fn recipe(rows: u64, length: u64) -> Recipe {
        let flags = RecipeOverrides {
            model: Some("random".into()),
            data: Some("random".into()),
            device: Some("cpu".into()),
            batch_size: Some(rows),
            grad_accum: Some(2),
            max_length: Some(length),
            ..RecipeOverrides::default()
        };
        Recipe::resolve(None, &[], &flags).unwrap()
    }

    #[test]
    fn steps_train_on_full_rows_and_learn_them() {
        let mut seen = Vec::new();
        let mut bench = TrainBench::random(recipe(3, 20), &SIZES[3]).unwrap();
        bench.steps(4, |step| seen.push(step)).unwrap();
        assert_eq!(seen.iter().map(|s| s.tokens).collect::<Vec<_>>(), [2 * 3 * 20; 4]);
        assert!(seen.iter().all(|s| s.seconds > 0.0));
        // Random weights know nothing: the loss begins at ln 96, and the same rows come again at each step.
        assert!((seen[0].loss - 96_f64.ln()).abs() < 0.1, "{seen:?}");
        assert!(seen.windows(2).all(|two| two[1].loss < two[0].loss), "{seen:?}");
    }

    #[test]
    fn rows_longer_than_the_context_are_refused() {
        let error = TrainBench::random(recipe(1, 8193), &SIZES[3]).err().unwrap();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("holds 8192 tokens"), "{error}");
    }
}
