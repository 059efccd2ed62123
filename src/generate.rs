//! Text from a model, token by token, with a cache of keys and values.

mod batch;
mod room;
mod sampling;

pub use batch::BatchDecoder;
pub use sampling::Sampling;

use crate::arena::Plan;
use crate::backend::{Backend, CachedSequence};
use crate::config::{ModelConfig, Parameter};
use crate::dtype::DType;
use crate::error::Result;
use crate::model::{Capacity, Model, Purpose};
use crate::ops::awake::awake;
use crate::weights::Weights;
use room::Room;
use sampling::Sampler;

/// Prompt tokens that go through the model together.
const PREFILL: usize = 256;

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StopReason {
    /// The model produced an end token.
    Stop,
    /// The limit of new tokens, or the end of the context.
    Length,
}

/// How a text is continued, and where that ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Continuation<'a> {
    /// How each token is drawn.
    pub sampling: Sampling,
    /// Tokens at most.
    pub max_new_tokens: usize,
    /// Tokens that end a text.
    pub stop_ids: &'a [u32],
}

/// One answer of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Its tokens, without the end token.
    pub ids: Vec<u32>,
    /// Why it ends.
    pub stop_reason: StopReason,
}

/// The cache of one sequence, in the plan of any model: also of one that trains, between two of its steps.
#[derive(Clone, Debug)]
pub struct Decoder {
    room: Room,
    /// The tokens whose keys and values are cached.
    cached: Vec<u32>,
}

impl Decoder {
    /// Plans for sequences of up to `positions` tokens, or as many as `model` was planned for where that is less.
    pub fn plan(plan: &mut Plan, model: &Model, positions: usize) -> Self {
        Self { room: Room::plan(plan, model, positions, 1), cached: Vec::new() }
    }

    /// The longest sequence, prompt and answer together.
    pub fn positions(&self) -> usize {
        self.room.positions
    }

    /// Forgets what is cached: a must when the weights have changed.
    pub fn reset(&mut self) {
        self.cached.clear();
    }

    /// Logits of the token after `ids`, f32 `[V]`. What `ids` shares with the sequence before is not computed again.
    ///
    /// `model` and `backend` are those of the plan. What the backend holds of a micro-batch and its parameters is
    /// overwritten.
    ///
    /// # Errors
    /// [`Error::Input`](crate::error::Error::Input) for an empty or too long sequence; those of the backend.
    pub fn logits(&mut self, model: &Model, backend: &mut dyn Backend, ids: &[u32]) -> Result<Vec<f32>> {
        self.room.expect(ids)?;
        let shared = self.cached.iter().zip(ids).take_while(|(a, b)| a == b).count();
        self.cached.truncate(shared.min(ids.len() - 1)); // the last token runs in any case: its logits are asked for
        for chunk in ids[self.cached.len()..].chunks(self.room.chunk) {
            let sequence = CachedSequence { slot: 0, past: self.cached.len() };
            self.room.extend(model, backend, chunk, &[sequence])?;
            self.cached.extend(chunk);
        }
        self.room.logits(model, backend, 1)
    }

    /// Continues `prompt`, telling each new token to `on_token`. The end token is neither told nor returned.
    ///
    /// # Errors
    /// As [`Decoder::logits`], and those of `on_token`.
    pub fn generate(
        &mut self,
        model: &Model,
        backend: &mut dyn Backend,
        prompt: &[u32],
        how: &Continuation<'_>,
        on_token: impl FnMut(u32) -> Result<()>,
    ) -> Result<(Vec<u32>, StopReason)> {
        awake(|| self.answer(model, backend, prompt, how, on_token))
    }

    fn answer(
        &mut self,
        model: &Model,
        backend: &mut dyn Backend,
        prompt: &[u32],
        how: &Continuation<'_>,
        mut on_token: impl FnMut(u32) -> Result<()>,
    ) -> Result<(Vec<u32>, StopReason)> {
        let mut sampler = Sampler::new(how.sampling);
        let mut ids = prompt.to_vec();
        while ids.len() - prompt.len() < how.max_new_tokens && ids.len() < self.room.positions {
            let mut logits = self.logits(model, backend, &ids)?;
            let next = sampler.next(&mut logits, &ids);
            if how.stop_ids.contains(&next) {
                return Ok((ids.split_off(prompt.len()), StopReason::Stop));
            }
            ids.push(next);
            on_token(next)?;
        }
        Ok((ids.split_off(prompt.len()), StopReason::Length))
    }
}

/// A model planned for generation alone, its memory and its cache.
pub struct Generator {
    model: Model,
    backend: Box<dyn Backend>,
    decoder: Decoder,
}

impl Generator {
    /// Plans for sequences of up to `positions` tokens, opens a backend on the plan with `open`, and fills in the
    /// weights with `read`.
    ///
    /// # Errors
    /// Those of `open` and `read`.
    pub fn new(
        config: &ModelConfig,
        dtype: DType,
        positions: usize,
        open: impl FnOnce(&Plan) -> Result<Box<dyn Backend>>,
        read: impl FnMut(&Parameter, &mut [f32]) -> Result<()>,
    ) -> Result<Self> {
        let mut generator = Self::plan(config, dtype, positions, Purpose::Inference, open)?;
        generator.model.load(&mut *generator.backend, read)?;
        Ok(generator)
    }

    /// The same with matrices of Q8_0 as they are in `weights`, on a backend that [multiplies](crate::backend::multiplies_q8_0)
    /// them.
    ///
    /// # Errors
    /// As [`Generator::new`].
    pub fn of_q8_0(
        config: &ModelConfig,
        dtype: DType,
        positions: usize,
        open: impl FnOnce(&Plan) -> Result<Box<dyn Backend>>,
        weights: &Weights,
    ) -> Result<Self> {
        let mut generator = Self::plan(config, dtype, positions, Purpose::InferenceQ8_0, open)?;
        let Self { model, backend, .. } = &mut generator;
        model.load(&mut **backend, |parameter, out| weights.read(parameter, out))?;
        model.load_q8_0(&mut **backend, |parameter, out| weights.read_q8_0(parameter, out))?;
        Ok(generator)
    }

    fn plan(
        config: &ModelConfig,
        dtype: DType,
        positions: usize,
        purpose: Purpose<'_>,
        open: impl FnOnce(&Plan) -> Result<Box<dyn Backend>>,
    ) -> Result<Self> {
        let mut plan = Plan::default();
        let capacity = Capacity { tokens: PREFILL.min(positions), sequences: 1, positions };
        let model = Model::plan(&mut plan, config, dtype, capacity, purpose);
        let decoder = Decoder::plan(&mut plan, &model, positions);
        Ok(Self { backend: open(&plan)?, model, decoder })
    }

    /// As [`Decoder::positions`].
    pub fn positions(&self) -> usize {
        self.decoder.positions()
    }

    /// As [`Decoder::logits`].
    ///
    /// # Errors
    /// The same.
    pub fn logits(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        self.decoder.logits(&self.model, &mut *self.backend, ids)
    }

    /// As [`Decoder::generate`].
    ///
    /// # Errors
    /// The same.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        how: &Continuation<'_>,
        on_token: impl FnMut(u32) -> Result<()>,
    ) -> Result<(Vec<u32>, StopReason)> {
        self.decoder.generate(&self.model, &mut *self.backend, prompt, how, on_token)
    }
}
