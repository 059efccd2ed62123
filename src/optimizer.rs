//! AdamW over all weights: which state each keeps, which decay, and the scalars of a step.

use crate::arena::{Category, Plan, Tensor};
use crate::backend::{Backend, Moments, Places, Trainable, UpdateRule};
use crate::dtype::DType;
use crate::error::Result;
use crate::model::{Model, Weight};
use crate::ops::adamw::{AdamWConfig, AdamWScalars};
use crate::ops::adamw_8bit::{BLOCK, ZERO_CODE_M};

/// Weights with fewer elements keep fp32 moments (bitsandbytes' `min_8bit_size`).
const MIN_8BIT_ELEMENTS: usize = 4096;

/// The token embedding; a separate output head is not one.
const EMBEDDING: &str = "model.embed_tokens.weight";

/// Optimizer state in the arena, one entry per trained weight of the model.
#[derive(Clone, Debug)]
pub struct Optimizer {
    rule: UpdateRule,
    names: Vec<String>,
    weights: Vec<Trainable>,
    grads: Tensor,
    /// Of adapters: see [`Model::adapter_places`].
    places: Vec<[Places; 2]>,
}

impl Optimizer {
    /// Plans the state. With [`UpdateRule::Torch`] all of it is fp32; otherwise 8-bit but for small weights and,
    /// unless `embedding_8bit`, the token embedding, tied or not, as transformers has it since 4.57.
    ///
    /// # Panics
    /// If the model was not planned for training.
    pub fn plan(plan: &mut Plan, model: &Model, rule: UpdateRule, embedding_8bit: bool) -> Self {
        let trained = || model.weights.iter().filter(|weight| weight.grad.is_some());
        let weights = trained()
            .map(|weight| {
                let blockwise = rule == UpdateRule::Blockwise
                    && weight.master.len() >= MIN_8BIT_ELEMENTS
                    && (embedding_8bit || weight.parameter.name != EMBEDDING);
                Trainable {
                    master: weight.master,
                    working: weight.working,
                    grad: weight.grad.expect("planned for training"),
                    moments: plan_moments(plan, weight, blockwise),
                    decays: !weight.parameter.is_vector(), // as transformers' Trainer chooses them
                }
            })
            .collect();
        let names = trained().map(|weight| weight.parameter.name.clone()).collect();
        Self {
            rule,
            names,
            weights,
            grads: model.grads.expect("planned for training"),
            places: model.adapter_places().to_vec(),
        }
    }

    /// Every buffer of the state with its name, `<weight>.m`, `.m_absmax`, `.v`, `.v_absmax`.
    pub fn state(&self) -> impl Iterator<Item = (String, Tensor)> {
        self.names.iter().zip(&self.weights).flat_map(|(name, weight)| {
            let parts = match weight.moments {
                Moments::Full { m, v } => vec![("m", m), ("v", v)],
                Moments::Blockwise { m, m_absmax, v, v_absmax } => {
                    vec![("m", m), ("m_absmax", m_absmax), ("v", v), ("v_absmax", v_absmax)]
                }
            };
            parts.into_iter().map(move |(part, tensor)| (format!("{name}.{part}"), tensor))
        })
    }

    /// Sets the state to zero: fresh memory is, but the code of zero in the first moment is not 0.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn reset(&self, backend: &mut dyn Backend) -> Result<()> {
        for weight in &self.weights {
            if let Moments::Blockwise { m, .. } = weight.moments {
                backend.upload(m, &vec![ZERO_CODE_M; m.len()])?;
            }
        }
        Ok(())
    }

    /// The scalars of optimizer step `t`, counted from 1.
    pub fn scalars(&self, config: &AdamWConfig, t: u64) -> AdamWScalars {
        match self.rule {
            UpdateRule::Torch => AdamWScalars::adamw(config, t),
            UpdateRule::Blockwise => AdamWScalars::adamw_8bit(config, t),
        }
    }

    /// Norm, clipping and update, from the gradients and parameters on the device.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn step(&self, backend: &mut dyn Backend) -> Result<()> {
        self.places.iter().try_for_each(|[_, gradient]| backend.gather(*gradient))?;
        backend.gradient_norm(self.grads)?;
        backend.adamw(self.rule, &self.weights)?;
        self.places.iter().try_for_each(|[value, _]| backend.spread(*value))
    }
}

fn plan_moments(plan: &mut Plan, weight: &Weight, blockwise: bool) -> Moments {
    let (rows, cols) = (weight.master.rows, weight.master.cols);
    let mut of = |rows, cols, dtype| plan.tensor(Category::OptimizerState, rows, cols, dtype);
    if !blockwise {
        return Moments::Full { m: of(rows, cols, DType::F32), v: of(rows, cols, DType::F32) };
    }
    let blocks = weight.master.len().div_ceil(BLOCK);
    Moments::Blockwise {
        m: of(rows, cols, DType::U8),
        m_absmax: of(1, blocks, DType::F32),
        v: of(rows, cols, DType::U8),
        v_absmax: of(1, blocks, DType::F32),
    }
}
