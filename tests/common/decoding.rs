//! A tiny model that only generates, with both decoders in one plan.

use super::common::{engine::tiny_parts, uniform};
use smolten::arena::Plan;
use smolten::backend::Backend;
use smolten::config::Parameter;
use smolten::dtype::DType;
use smolten::generate::{Answer, BatchDecoder, Continuation, Decoder};
use smolten::model::{Capacity, Model, Purpose};

/// Tokens of a sequence at most.
pub const POSITIONS: usize = 60;

/// The model, and what writes with it.
pub struct Decoding {
    model: Model,
    alone: Decoder,
    together: BatchDecoder,
    backend: Box<dyn Backend>,
}

impl Decoding {
    /// With caches for `slots` sequences; prompts go through 20 tokens at a time.
    pub fn new(dtype: DType, slots: usize, open: impl FnOnce(&Plan) -> Box<dyn Backend>) -> Self {
        let (mut config, _) = tiny_parts("tied");
        // No whole number of warps: a kernel's block has heads of two tokens.
        config.num_attention_heads = 6;
        let mut plan = Plan::default();
        let capacity = Capacity { tokens: 20, sequences: slots, positions: POSITIONS };
        let model = Model::plan(&mut plan, &config, dtype, capacity, Purpose::Inference);
        let alone = Decoder::plan(&mut plan, &model, POSITIONS);
        let together = BatchDecoder::plan(&mut plan, &model, capacity);
        let mut backend = open(&plan);
        let read = |p: &Parameter, out: &mut [f32]| {
            let [rows, cols] = p.shape;
            let scale = if p.is_vector() { 1.0 } else { 3.0 / (cols as f32).sqrt() };
            let random = uniform(rows * cols, p.name.bytes().map(u64::from).sum());
            out.iter_mut().zip(random).for_each(|(out, x)| *out = scale * x);
            Ok(())
        };
        model.load(&mut *backend, read).unwrap();
        Self { model, alone, together, backend }
    }

    /// One after the other.
    pub fn alone(&mut self, prompts: &[Vec<u32>], how: &Continuation<'_>) -> Vec<Answer> {
        let Self { model, alone, backend, .. } = self;
        let answer = |prompt: &Vec<u32>| {
            alone.reset();
            let (ids, stop_reason) = alone.generate(model, &mut **backend, prompt, how, |_| Ok(())).unwrap();
            Answer { ids, stop_reason }
        };
        prompts.iter().map(answer).collect()
    }

    /// All at once; also how many tokens were told.
    pub fn together(
        &mut self,
        prompts: &[Vec<u32>],
        how: &Continuation<'_>,
    ) -> smolten::error::Result<(Vec<Answer>, usize)> {
        let mut told = 0;
        let answers = self.together.generate(&self.model, &mut *self.backend, prompts, how, || told += 1)?;
        Ok((answers, told))
    }
}
