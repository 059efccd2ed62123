//! A tiny model in a backend, the CPU's unless said otherwise, and the safetensors fixtures that PyTorch wrote for it.

use super::U_F32;
use safetensors::SafeTensors;
use smolten::arena::{Category, Plan, Tensor};
use smolten::backend::{Backend, Cpu, Part, StepOutput, StepParams, UpdateRule};
use smolten::batch::{Example, Examples, MicroBatch};
use smolten::config::ModelConfig;
use smolten::dtype::DType;
use smolten::model::{Capacity, Feed, Model, Purpose, read_floats};
use smolten::ops::adamw::AdamWConfig;
use smolten::optimizer::Optimizer;
use smolten::recipe::Recompute;
use std::path::{Path, PathBuf};

/// Bytes of a safetensors file, read tensor by tensor.
pub struct Fixture(Vec<u8>);

impl Fixture {
    pub fn open(path: &Path) -> Self {
        Self(std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    }
    fn tensor<T: bytemuck::Pod>(&self, name: &str) -> Vec<T> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let view = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        bytemuck::allocation::pod_collect_to_vec(view.data())
    }
    /// Widened, where the file holds a narrower type.
    pub fn f32(&self, name: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        match file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}")).dtype() {
            safetensors::Dtype::BF16 => self.tensor(name).into_iter().map(half::bf16::to_f32).collect(),
            safetensors::Dtype::F16 => self.tensor(name).into_iter().map(half::f16::to_f32).collect(),
            _ => self.tensor(name),
        }
    }
    pub fn f64(&self, name: &str) -> Vec<f64> {
        self.tensor(name)
    }
    pub fn u8(&self, name: &str) -> Vec<u8> {
        self.tensor(name)
    }
    pub fn u32(&self, name: &str) -> Vec<u32> {
        self.tensor(name)
    }
    /// The micro-batch whose lists begin with `prefix`.
    pub fn batch(&self, prefix: &str) -> MicroBatch {
        let list = |name: &str| self.u32(&format!("{prefix}{name}"));
        let cu_seqlens = list("cu_seqlens");
        let positions = cu_seqlens.windows(2).flat_map(|w| 0..w[1] - w[0]).collect();
        MicroBatch { ids: list("ids"), positions, cu_seqlens, targets: list("targets") }
    }
}

/// Rounding of a value that went through `depth` products and sums in f32, each with relative error `U_F32`; errors
/// of independent sign add up as the root, and 4 of those deviations are allowed.
pub fn bound(depth: f32) -> f32 {
    4.0 * depth.sqrt() * U_F32
}

/// Products and sums on the longest path through the tiny models, forward: per layer two norms (64 terms), q·k (32),
/// softmax and values (24 keys), o (128), gate/up (64), down (96); a head (64). About 1,000.
pub const FORWARD: f32 = 1000.0;

/// The folder of one of the tiny models.
pub fn tiny(name: &str) -> PathBuf {
    super::root().join("tests/fixtures").join(format!("tiny-llama-{name}"))
}

/// A model, its optimizer and the backend that holds them.
pub struct Engine<B = Cpu> {
    pub model: Model,
    pub optimizer: Optimizer,
    pub backend: B,
    pub params: StepParams,
    logits: Tensor,
    /// All optimizer state, as bytes.
    state: Tensor,
    /// Optimizer steps so far, skipped ones included.
    pub steps: u64,
}

/// Configuration and weights of the tiny model `name`.
pub fn tiny_parts(name: &str) -> (ModelConfig, Fixture) {
    let path = tiny(name).join("config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let config = ModelConfig::from_json(&serde_json::from_str(&text).unwrap(), &path).unwrap();
    (config, Fixture::open(&tiny(name).join("model.safetensors")))
}

/// A sequence of `n` random tokens of which about five in six are learnt, alone in a micro-batch.
#[expect(clippy::cast_possible_truncation, reason = "a float below the vocabulary's size")]
pub fn sequence(n: usize, vocab: usize, seed: u64) -> MicroBatch {
    let random = super::uniform(2 * n, seed);
    let ids: Vec<u32> = random[..n].iter().map(|x| ((x + 1.0) / 2.0 * vocab as f32) as u32).collect();
    let supervised = random[n..].iter().map(|&x| x > -2.0 / 3.0).collect();
    MicroBatch::from_examples(&Examples::from_examples([Example { ids, supervised }]), [0])
}

/// The sequences of several micro-batches in one.
pub fn join(batches: &[MicroBatch]) -> MicroBatch {
    let mut all = MicroBatch { cu_seqlens: vec![0], ..MicroBatch::default() };
    for batch in batches {
        let before = *all.cu_seqlens.last().unwrap();
        all.ids.extend(&batch.ids);
        all.positions.extend(&batch.positions);
        all.targets.extend(&batch.targets);
        all.cu_seqlens.extend(batch.cu_seqlens[1..].iter().map(|end| before + end));
    }
    all
}

impl Engine {
    /// The tiny model `name` with its weights, in precision `dtype`, with room for 64 tokens.
    pub fn tiny(name: &str, dtype: DType, rule: UpdateRule) -> Self {
        Self::tiny_with_room(name, dtype, rule, 64)
    }

    /// The same with room for `tokens` in up to eight sequences.
    pub fn tiny_with_room(name: &str, dtype: DType, rule: UpdateRule, tokens: usize) -> Self {
        let (config, weights) = tiny_parts(name);
        let capacity = Capacity { tokens, sequences: 8, positions: tokens.min(256) };
        Self::new(&config, dtype, rule, capacity, |name| weights.f32(name))
    }

    pub fn new(
        config: &ModelConfig,
        dtype: DType,
        rule: UpdateRule,
        capacity: Capacity,
        weights: impl Fn(&str) -> Vec<f32>,
    ) -> Self {
        let purpose = Purpose::Training(Recompute::NormSwiglu);
        Self::open(config, dtype, rule, capacity, purpose, weights, |plan| Cpu::new(plan, dtype).unwrap())
    }
}

impl<B: Backend> Engine<B> {
    /// The same in another backend.
    pub fn open(
        config: &ModelConfig,
        dtype: DType,
        rule: UpdateRule,
        capacity: Capacity,
        purpose: Purpose<'_>,
        weights: impl Fn(&str) -> Vec<f32>,
        open: impl FnOnce(&Plan) -> B,
    ) -> Self {
        let mut plan = Plan::default();
        let model = Model::plan(&mut plan, config, dtype, capacity, purpose);
        let before = plan.bytes();
        let optimizer = Optimizer::plan(&mut plan, &model, rule, false);
        let state = Tensor { offset: before, rows: 1, cols: plan.bytes() - before, dtype: DType::U8 };
        let logits = plan.tensor(Category::Scratch, capacity.tokens, config.vocab_size, DType::F32);
        let mut backend = open(&plan);
        optimizer.reset(&mut backend).unwrap();
        let read = |p: &smolten::config::Parameter, out: &mut [f32]| {
            out.copy_from_slice(&weights(&p.name));
            Ok(())
        };
        model.load(&mut backend, read).unwrap();
        let params = StepParams { max_grad_norm: 1.0, ..bytemuck::Zeroable::zeroed() };
        Self { model, optimizer, backend, params, logits, state, steps: 0 }
    }

    /// Gradients of a whole window, one denominator; the sums of its losses.
    pub fn gradients(&mut self, window: &[MicroBatch]) -> StepOutput {
        let supervised: usize = window.iter().map(MicroBatch::supervised).sum();
        self.params.inverse_denominator = 1.0 / supervised as f32;
        for (i, batch) in window.iter().enumerate() {
            self.params.accumulate = u32::from(i > 0);
            self.model.feed(&mut self.backend, &Feed::new(batch), &mut self.params).unwrap();
            self.backend.run(Part::Train, &mut |b| self.model.train(b)).unwrap();
        }
        self.backend.take_output().unwrap()
    }

    /// One optimizer step; mean loss and gradient norm.
    pub fn step(&mut self, window: &[MicroBatch], config: &AdamWConfig) -> (f64, f64) {
        let supervised: usize = window.iter().map(MicroBatch::supervised).sum();
        let loss = self.gradients(window).loss_sum / supervised as f64;
        (loss, self.update(config).grad_norm)
    }

    /// The second half of a step: the gradients there are become an update.
    pub fn update(&mut self, config: &AdamWConfig) -> StepOutput {
        self.steps += 1;
        self.params.adamw = self.optimizer.scalars(config, self.steps);
        self.backend.set_params(&self.params).unwrap();
        self.backend.run(Part::Update, &mut |b| self.optimizer.step(b)).unwrap();
        self.backend.take_output().unwrap()
    }

    /// Gradients of a window whose parameters are set, by calls that no backend records.
    pub fn direct(&mut self, window: &[MicroBatch]) {
        for (i, batch) in window.iter().enumerate() {
            self.params.accumulate = u32::from(i > 0);
            self.model.feed(&mut self.backend, &Feed::new(batch), &mut self.params).unwrap();
            self.model.train(&mut self.backend).unwrap();
        }
    }

    /// The update likewise.
    pub fn update_directly(&mut self) {
        self.backend.set_params(&self.params).unwrap();
        self.optimizer.step(&mut self.backend).unwrap();
        self.backend.take_output().unwrap();
    }

    /// Logits of every token of the micro-batch, and the sum of its losses.
    pub fn evaluate(&mut self, batch: &MicroBatch) -> (Vec<f32>, StepOutput) {
        self.model.feed(&mut self.backend, &Feed::new(batch), &mut self.params).unwrap();
        self.backend.run(Part::Evaluate, &mut |b| self.model.evaluate(b)).unwrap();
        self.model.logits(&mut self.backend, self.logits).unwrap();
        let logits = read_floats(&mut self.backend, self.logits.head(batch.tokens())).unwrap();
        (logits, self.backend.take_output().unwrap())
    }

    /// The gradient of every weight, in order; of adapters, where there are some, besides.
    pub fn all_gradients(&mut self) -> Vec<Vec<f32>> {
        for [_, gradient] in self.model.adapter_places() {
            self.backend.gather(*gradient).unwrap();
        }
        let weights = 0..self.model.weights.len();
        weights.map(|i| self.model.read_gradient(&mut self.backend, i).unwrap()).collect()
    }

    /// The bits of every weight, master and working copy, and of the optimizer's state.
    pub fn bytes(&mut self) -> Vec<u8> {
        let weights: Vec<Tensor> = self.model.weights.iter().flat_map(|w| [w.master, w.working]).collect();
        let mut all = Vec::new();
        for t in weights.into_iter().chain([self.state]) {
            let start = all.len();
            all.resize(start + t.bytes(), 0);
            self.backend.download(t, &mut all[start..]).unwrap();
        }
        all
    }

    /// Every weight, in order.
    pub fn weights(&mut self) -> Vec<Vec<f32>> {
        let parameters = self.model.config.parameters();
        parameters.iter().map(|p| self.model.read_weight(&mut self.backend, p).unwrap()).collect()
    }
}
