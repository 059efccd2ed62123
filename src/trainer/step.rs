//! One optimizer step: what is planned for it, and how a window is submitted.

use crate::arena::Plan;
use crate::backend::{Backend, Part, StepParams, UpdateRule};
use crate::batch::Window;
use crate::config::{ModelConfig, round_f32};
use crate::dtype::DType;
use crate::error::Result;
use crate::metrics::peak_memory_bytes;
use crate::model::{Capacity, Feed, Model, Purpose};
use crate::ops::adamw::AdamWConfig;
use crate::ops::noise;
use crate::optimizer::Optimizer;
use crate::recipe::{Compat, EmbeddingState, OptimizerKind, Recipe};

/// A model and its optimizer, planned together.
#[derive(Clone, Debug)]
pub struct Trained {
    /// The model.
    pub model: Model,
    /// Its optimizer.
    pub optimizer: Optimizer,
}

impl Trained {
    /// Plans both as the recipe says.
    pub fn plan(
        plan: &mut Plan,
        recipe: &Recipe,
        config: &ModelConfig,
        dtype: DType,
        capacity: Capacity,
    ) -> Self {
        let lora = recipe.lora();
        let purpose = match &lora {
            None => Purpose::Training(recipe.recompute),
            Some(lora) => Purpose::Adapters(recipe.recompute, lora),
        };
        let mut model = Model::plan(plan, config, dtype, capacity, purpose);
        model.neftune_alpha = round_f32(recipe.neftune_alpha);
        let rule = match recipe.optimizer {
            OptimizerKind::AdamW => UpdateRule::Torch,
            OptimizerKind::AdamW8bit => UpdateRule::Blockwise,
        };
        let embedding_8bit = recipe.embedding_state == EmbeddingState::EightBit;
        let optimizer = Optimizer::plan(plan, &model, rule, embedding_8bit);
        Self { model, optimizer }
    }

    /// Submits a step: the window's micro-batches forward and backward, joined, then the update. [`Backend::take_output`] waits for it.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn submit(&self, backend: &mut dyn Backend, recipe: &Recipe, window: &Window, lr: f64) -> Result<()> {
        let [beta1, beta2] = recipe.betas;
        let config = AdamWConfig { lr, beta1, beta2, eps: recipe.eps, weight_decay: recipe.weight_decay };
        #[allow(clippy::cast_possible_truncation, reason = "the kernels take fp32")]
        let mut params = StepParams {
            inverse_denominator: (1.0 / counted(recipe, window) as f64) as f32,
            max_grad_norm: if recipe.clip == 0.0 { f32::INFINITY } else { recipe.clip as f32 },
            adamw: self.optimizer.scalars(&config, window.step as u64 + 1),
            ..bytemuck::Zeroable::zeroed()
        };
        for (i, batch) in window.joined().iter().enumerate() {
            params.accumulate = u32::from(i > 0);
            params.noise_key = noise::key(recipe.seed, window.step as u64, i as u64);
            self.model.feed(backend, &Feed::new(batch), &mut params)?;
            backend.run(Part::Train, &mut |b| self.model.train(b))?;
        }
        backend.run(Part::Update, &mut |b| self.optimizer.step(b))
    }
}

/// The denominator of the step's loss: its supervised tokens. transformers 4.51 counted the labels before it shifted
/// them: every token of a row, its first one too.
pub(super) fn counted(recipe: &Recipe, window: &Window) -> usize {
    if recipe.compat == Compat::Trl017 { window.tokens() } else { window.supervised() }
}

/// Peak bytes of the device's own memory, else of the process.
pub fn peak_memory(backend: &dyn Backend) -> Option<u64> {
    backend.device_memory_bytes().or_else(peak_memory_bytes)
}
