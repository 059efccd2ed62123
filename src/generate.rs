//! Text from a model, token by token, with a cache of keys and values.

mod awake;

use crate::arena::{Category, Plan, Tensor};
use crate::backend::{Backend, KvCache, StepParams};
use crate::batch::{MicroBatch, NO_TARGET};
use crate::config::{ModelConfig, Parameter};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::model::{Capacity, Feed, Model, Purpose, read_floats};
use crate::weights::Weights;
use awake::awake;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::cmp::Ordering;

/// Prompt tokens that go through the model together.
const PREFILL: usize = 256;

/// How the next token is drawn from the logits, in the order of transformers' processors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the largest (greedy).
    pub temperature: f32,
    /// Only this many of the largest logits stay; 0 keeps all.
    pub top_k: usize,
    /// Only the most probable tokens whose sum reaches this stay; 1 keeps all.
    pub top_p: f32,
    /// Logits of tokens seen before are divided (positive) or multiplied (negative) by it; 1 does nothing.
    pub repetition_penalty: f32,
    /// Seed of the draws.
    pub seed: u64,
}

impl Sampling {
    /// The largest logit, always.
    pub const GREEDY: Self =
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, repetition_penalty: 1.0, seed: 0 };
}

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

/// The cache of one sequence, in the plan of any model: also of one that trains, between two of its steps.
#[derive(Clone, Debug)]
pub struct Decoder {
    caches: Vec<KvCache>,
    logits: Tensor,
    /// The tokens whose keys and values are cached.
    cached: Vec<u32>,
    positions: usize,
    /// Tokens that go through the model together.
    chunk: usize,
}

impl Decoder {
    /// Plans for sequences of up to `positions` tokens, or as many as `model` was planned for where that is less.
    pub fn plan(plan: &mut Plan, model: &Model, positions: usize) -> Self {
        let capacity = model.capacity();
        let positions = positions.min(capacity.positions);
        Self {
            caches: model.plan_cache(plan, positions),
            logits: plan.tensor(Category::Scratch, 1, model.config.vocab_size, DType::F32),
            cached: Vec::new(),
            positions,
            chunk: PREFILL.min(capacity.tokens),
        }
    }

    /// The longest sequence, prompt and answer together.
    pub fn positions(&self) -> usize {
        self.positions
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
    /// [`Error::Input`] for an empty or too long sequence; those of the backend.
    pub fn logits(&mut self, model: &Model, backend: &mut dyn Backend, ids: &[u32]) -> Result<Vec<f32>> {
        if ids.is_empty() || ids.len() > self.positions {
            let found = format!("{} tokens, while the context holds 1 to {}", ids.len(), self.positions);
            return Err(Error::input("the text to continue", found, "shorten it, or allow fewer new tokens"));
        }
        let shared = self.cached.iter().zip(ids).take_while(|(a, b)| a == b).count();
        self.cached.truncate(shared.min(ids.len() - 1)); // the last token runs in any case: its logits are asked for
        for chunk in ids[self.cached.len()..].chunks(self.chunk) {
            self.extend(model, backend, chunk)?;
        }
        model.logits(backend, self.logits)?;
        read_floats(backend, self.logits)
    }

    fn extend(&mut self, model: &Model, backend: &mut dyn Backend, chunk: &[u32]) -> Result<()> {
        let past = self.cached.len();
        let count = |n: usize| u32::try_from(n).expect("positions fit 32 bits");
        let batch = MicroBatch {
            ids: chunk.to_vec(),
            positions: (count(past)..count(past + chunk.len())).collect(),
            cu_seqlens: vec![0, count(chunk.len())],
            targets: vec![NO_TARGET; chunk.len()],
        };
        let mut params: StepParams = bytemuck::Zeroable::zeroed();
        model.feed(backend, &Feed::new(&batch), &mut params)?;
        model.extend(backend, past, &self.caches)?;
        self.cached.extend(chunk);
        Ok(())
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
        while ids.len() - prompt.len() < how.max_new_tokens && ids.len() < self.positions {
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
        purpose: Purpose,
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

/// Draws tokens.
struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
}

impl Sampler {
    fn new(sampling: Sampling) -> Self {
        Self { sampling, rng: ChaCha8Rng::seed_from_u64(sampling.seed) }
    }

    fn next(&mut self, logits: &mut [f32], seen: &[u32]) -> u32 {
        penalise(logits, seen, self.sampling.repetition_penalty);
        if self.sampling.temperature == 0.0 {
            return largest(logits);
        }
        let kept = kept(logits, &self.sampling);
        let total: f64 = kept.iter().map(|&(_, p)| p).sum();
        // 53 random bits: uniform in [0, 1).
        let unit = (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let mut left = unit * total;
        for &(id, p) in &kept {
            left -= p;
            if left < 0.0 {
                return id;
            }
        }
        kept[kept.len() - 1].0
    }
}

/// Keskar et al. 2019 (CTRL): each token seen before becomes less likely, once.
fn penalise(logits: &mut [f32], seen: &[u32], penalty: f32) {
    if penalty == 1.0 {
        return;
    }
    let distinct: std::collections::BTreeSet<u32> = seen.iter().copied().collect();
    for id in distinct {
        let l = &mut logits[id as usize];
        *l = if *l < 0.0 { *l * penalty } else { *l / penalty };
    }
}

/// Index of the largest logit, the lowest of equals.
fn largest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, l) in logits.iter().enumerate() {
        if l.total_cmp(&logits[best]) == Ordering::Greater {
            best = i;
        }
    }
    u32::try_from(best).expect("ids fit 32 bits")
}

/// 32 bits that order floats as `total_cmp` does, the largest first: of integers, a whole vocabulary is sorted in a fraction
/// of the time that comparisons of its logits take.
fn descending(x: f32) -> u64 {
    let bits = x.to_bits();
    u64::from(if x.is_sign_negative() { bits } else { 0x7fff_ffff - bits })
}

/// The tokens that temperature, top-k and top-p leave, most probable first, with unnormalised probabilities.
fn kept(logits: &[f32], sampling: &Sampling) -> Vec<(u32, f64)> {
    let mut order: Vec<u64> = (0..).zip(logits).map(|(id, &logit)| descending(logit) << 32 | id).collect();
    if (1..order.len()).contains(&sampling.top_k) {
        order.select_nth_unstable(sampling.top_k);
        order.truncate(sampling.top_k);
    }
    order.sort_unstable(); // no two are equal
    let id = |key: u64| u32::try_from(key & u64::from(u32::MAX)).expect("the lower half");
    let logit = |id: u32| logits[id as usize];
    let highest = logit(id(order[0]));
    let weigh = |id: u32| f64::from((logit(id) - highest) / sampling.temperature).exp();
    let weighed: Vec<(u32, f64)> = order.into_iter().map(|key| (id(key), weigh(id(key)))).collect();
    let limit = f64::from(sampling.top_p) * weighed.iter().map(|&(_, p)| p).sum::<f64>();
    let mut reached = 0.0;
    weighed
        .into_iter()
        .take_while(|&(_, p)| {
            let needed = reached < limit || reached == 0.0;
            reached += p;
            needed
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, 3.0, -1.0];

    #[test]
    fn greedy_takes_the_lowest_of_equal_logits() {
        assert_eq!(Sampler::new(Sampling::GREEDY).next(&mut LOGITS.clone(), &[]), 1);
    }

    #[test]
    fn the_penalty_divides_positive_and_multiplies_negative_logits_once() {
        let mut logits = LOGITS;
        penalise(&mut logits, &[1, 4, 1], 2.0);
        assert_eq!(logits, [1.0, 1.5, 2.0, 3.0, -2.0]);
    }

    #[test]
    fn top_k_and_top_p_keep_the_most_probable() {
        let s = Sampling { temperature: 1.0, ..Sampling::GREEDY };
        let ids = |s: &Sampling| kept(&LOGITS, s).into_iter().map(|(id, _)| id).collect::<Vec<_>>();
        assert_eq!(ids(&s), [1, 3, 2, 0, 4]);
        assert_eq!(ids(&Sampling { top_k: 3, ..s }), [1, 3, 2]);
        // Probabilities 0.40 0.40 0.15 …: 0.5 needs two, a tiny share still keeps one.
        assert_eq!(ids(&Sampling { top_p: 0.5, ..s }), [1, 3]);
        assert_eq!(ids(&Sampling { top_p: 1e-9, ..s }), [1]);
    }

    #[test]
    fn keys_order_as_total_cmp() {
        let bits =
            [0, 1, 0x7f_ffff, 0x80_0000, 0x3f80_0000, 0x7f7f_ffff, 0x7f80_0000, 0x7fc0_0000, 0x7fff_ffff];
        let all = bits.iter().flat_map(|&bits| [f32::from_bits(bits), -f32::from_bits(bits)]);
        let all: Vec<f32> = all.collect();
        for (a, b) in all.iter().flat_map(|a| all.iter().map(move |b| (*a, *b))) {
            assert_eq!(descending(a).cmp(&descending(b)), b.total_cmp(&a), "{a} {b}");
        }
    }

    #[test]
    fn draws_follow_the_probabilities_and_repeat_with_the_seed() {
        let s = Sampling { temperature: 1.0, seed: 7, ..Sampling::GREEDY };
        let draw = || {
            let mut sampler = Sampler::new(s);
            (0..20_000).map(|_| sampler.next(&mut LOGITS.clone(), &[])).collect::<Vec<_>>()
        };
        let draws = draw();
        assert_eq!(draws, draw());
        let total: f64 = LOGITS.iter().map(|&l| f64::from(l).exp()).sum();
        for (id, &l) in LOGITS.iter().enumerate() {
            let want = f64::from(l).exp() / total;
            let got = draws.iter().filter(|&&d| d as usize == id).count() as f64 / 20_000.0;
            // Five standard deviations of a binomial share.
            assert!(
                (got - want).abs() <= 5.0 * (want * (1.0 - want) / 20_000.0).sqrt(),
                "{id}: {got} {want}"
            );
        }
    }
}
