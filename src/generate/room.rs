//! Caches of keys and values in the plan of a model, and tokens through the model into them.

use super::PREFILL;
use crate::arena::{Category, Plan, Tensor};
use crate::backend::{Backend, CachedSequence, KvCache, StepParams};
use crate::batch::{MicroBatch, NO_TARGET};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::model::{Feed, Model, read_floats};

/// Room for some sequences.
#[derive(Clone, Debug)]
pub(super) struct Room {
    caches: Vec<KvCache>,
    logits: Tensor,
    /// The longest sequence.
    pub positions: usize,
    /// Tokens of a prompt that go through the model together.
    pub chunk: usize,
}

impl Room {
    /// For `slots` sequences of up to `positions` tokens, or as many as `model` was planned for where that is less.
    pub fn plan(plan: &mut Plan, model: &Model, positions: usize, slots: usize) -> Self {
        let capacity = model.capacity();
        let positions = positions.min(capacity.positions);
        Self {
            caches: model.plan_cache(plan, positions, slots),
            logits: plan.tensor(Category::Scratch, slots, model.config.vocab_size, DType::F32),
            positions,
            chunk: PREFILL.min(capacity.tokens),
        }
    }

    /// Refuses what cannot be continued.
    pub fn expect(&self, ids: &[u32]) -> Result<()> {
        if (1..=self.positions).contains(&ids.len()) {
            return Ok(());
        }
        let found = format!("{} tokens, while the context holds 1 to {}", ids.len(), self.positions);
        Err(Error::input("the text to continue", found, "shorten it, or allow fewer new tokens"))
    }

    /// Runs new tokens, as many of each of these sequences in turn.
    pub fn extend(
        &self,
        model: &Model,
        backend: &mut dyn Backend,
        ids: &[u32],
        sequences: &[CachedSequence],
    ) -> Result<()> {
        let count = |n: usize| u32::try_from(n).expect("positions fit 32 bits");
        let each = ids.len() / sequences.len();
        let batch = MicroBatch {
            ids: ids.to_vec(),
            positions: sequences.iter().flat_map(|s| count(s.past)..count(s.past + each)).collect(),
            cu_seqlens: (0..=sequences.len()).map(|i| count(i * each)).collect(),
            targets: vec![NO_TARGET; ids.len()],
        };
        let mut params: StepParams = bytemuck::Zeroable::zeroed();
        model.feed(backend, &Feed::new(&batch), &mut params)?;
        model.extend(backend, sequences, &self.caches)
    }

    /// Logits after the last `rows` of the tokens that were run, end to end.
    pub fn logits(&self, model: &Model, backend: &mut dyn Backend, rows: usize) -> Result<Vec<f32>> {
        let logits = self.logits.head(rows);
        model.logits(backend, logits)?;
        read_floats(backend, logits)
    }
}
