//! The transformer: where its weights and activations lie, the forward pass, and the backward pass by hand.
//!
//! Llama (Touvron et al. 2023): embedding; L blocks of `x += o(attention(rope(qkv(norm(x)))))`,
//! `x += down(silu(gate(norm(x)))·up(norm(x)))`; a last norm; a head, often the embedding again.
//! The model names no device: it holds handles and calls [`Backend`]. Kept for the backward pass are, per layer, the
//! two residual streams, the norms' scales, q k v, the attention output and its log-sum-exp, and gate and up; norm
//! outputs and the SwiGLU product are computed again.

mod adapter;
mod feed;
mod pass;
mod plan;

pub use adapter::{initial, is_adapter};
pub use feed::Feed;

use crate::arena::{Category, Plan, Tensor};
use crate::backend::{
    Backend, BatchBuffers, HeadGradients, KvCache, LinearCrossEntropy, LowRank, Projection, RopeTable,
};
use crate::config::{LoraConfig, ModelConfig, Parameter};
use crate::dtype::{DType, Element, Q8_0, with_element};
use crate::error::Result;
use crate::ops::attention::Heads;
use crate::ops::rope;
use crate::recipe::Recompute;
use adapter::{Adapter, Adapters};

/// The largest micro-batch that a plan has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Tokens of all its sequences together.
    pub tokens: usize,
    /// Sequences.
    pub sequences: usize,
    /// Length of the longest sequence, or of prompt and answer together when generating.
    pub positions: usize,
}

impl Capacity {
    /// Room for what either has room for.
    pub fn max(self, other: Self) -> Self {
        Self {
            tokens: self.tokens.max(other.tokens),
            sequences: self.sequences.max(other.sequences),
            positions: self.positions.max(other.positions),
        }
    }
}

/// One weight: its name, its values, its gradient.
#[derive(Clone, Debug)]
pub struct Weight {
    /// Name, shape and kind.
    pub parameter: Parameter,
    /// fp32 values; the only ones where A is f32.
    pub master: Tensor,
    /// What the model computes with; the same buffer as `master` where A is f32.
    pub working: Tensor,
    /// fp32 gradient, when the plan is for training.
    pub grad: Option<Tensor>,
}

/// A weight and its gradient, several Hugging Face tensors fused into one where they adjoin.
#[derive(Clone, Copy, Debug)]
struct Fused {
    w: Tensor,
    dw: Option<Tensor>,
    bias: Option<Tensor>,
    dbias: Option<Tensor>,
    adapter: Option<Adapter>,
}

impl Fused {
    /// The next `n` weights, then as many biases if they have some.
    fn next<'a>(weights: &mut impl Iterator<Item = &'a Weight>, n: usize, biased: bool) -> Self {
        let mut of: Vec<&Weight> = weights.take(if biased { 2 * n } else { n }).collect();
        let biases = of.split_off(n);
        let grads = |of: &[&Weight]| of.iter().filter_map(|w| w.grad).collect::<Vec<_>>();
        let trained = of[0].grad.is_some();
        Self {
            w: plan::fuse(of.iter().map(|w| w.working)),
            dw: trained.then(|| plan::fuse(grads(&of))),
            bias: biased.then(|| plan::span(biases.iter().map(|w| w.working))),
            dbias: (biased && trained).then(|| plan::span(grads(&biases))),
            adapter: None,
        }
    }

    fn with(self, adapter: Option<Adapter>) -> Self {
        Self { adapter, ..self }
    }

    /// As an input gradient goes through it, with the adapter's part.
    fn through(&self, adapter: Option<LowRank>) -> Projection {
        Projection { w: self.w, bias: None, adapter }
    }

    /// Without its adapter.
    fn alone(&self) -> Projection {
        Projection { w: self.w, bias: self.bias, adapter: None }
    }
}

/// Weights of one block and what its forward pass keeps.
#[derive(Clone, Copy, Debug)]
struct Layer {
    norm1: Fused,
    qkv: Fused,
    o: Fused,
    norm2: Fused,
    gate_up: Fused,
    down: Fused,
    kept: Kept,
}

/// What a plan is for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Purpose<'a> {
    /// Forward passes only.
    Inference,
    /// The same over matrices in blocks, [`DType::Q8_0`].
    InferenceQ8_0,
    /// Gradients too.
    Training(Recompute),
    /// Gradients of adapters beside weights that stay as they are.
    Adapters(Recompute, &'a LoraConfig),
}

impl Purpose<'_> {
    /// What the backward pass computes again, if there is one.
    fn recompute(self) -> Option<Recompute> {
        match self {
            Self::Inference | Self::InferenceQ8_0 => None,
            Self::Training(recompute) | Self::Adapters(recompute, _) => Some(recompute),
        }
    }
}

/// Activations that the backward pass of one block reads.
#[derive(Clone, Copy, Debug)]
struct Kept {
    x: Tensor,         // f32 [T, C]: residual stream on entry
    rstd1: Tensor,     // f32 [1, T]
    qkv: Tensor,       // A [T, (H + 2K)·D], rotated
    attention: Tensor, // A [T, H·D]
    lse: Tensor,       // f32 [T, H]
    mid: Tensor,       // f32 [T, C]: residual stream after attention
    rstd2: Tensor,     // f32 [1, T]
    gate_up: Tensor,   // A [T, 2F]
    norm1: Tensor,     // A [T, C]; where it is computed again, the scratch of all blocks
    norm2: Tensor,     // A [T, C]; likewise
    act: Tensor,       // A [T, F]; likewise
}

/// Buffers that every block uses in turn.
#[derive(Clone, Copy, Debug)]
struct Scratch {
    norm: Tensor,      // A [T, C]: output of a norm, then gradient of it
    act: Tensor,       // A [T, F]
    last: Tensor,      // f32 [T, C]: residual stream after the last block
    rstd: Tensor,      // f32 [1, T]: of the last norm
    losses: Tensor,    // f32 [1, T]
    entropies: Tensor, // f32 [1, T]
    x_chunk: Tensor,
    logits: Tensor,
    spare: Tensor, // what is left of the logits for buffers that are used only when they are not
}

/// Buffers that only the backward pass uses.
#[derive(Clone, Copy, Debug)]
struct Backward {
    dx: Tensor,       // f32 [T, C]: gradient of the residual stream
    dx_a: Tensor,     // A [T, C]: the same, rounded; dx itself in fp32
    dnorm: Tensor,    // A [T, C]
    dgate_up: Tensor, // A [T, 2F]
    dattention: Tensor,
    dqkv: Tensor,
    delta: Tensor,    // f32 [T, H]
    partials: Tensor, // f32 [.., C], or as wide as the widest bias
    head: HeadGradients,
}

impl Backward {
    /// Room for partial sums of `columns` columns.
    fn partials_of(&self, columns: usize) -> Tensor {
        Tensor { cols: columns, ..self.partials }
    }
}

/// Handles of one model in one arena.
#[derive(Clone, Debug)]
pub struct Model {
    /// Dimensions.
    pub config: ModelConfig,
    /// All weights, in the order of [`ModelConfig::parameters`]; then those of adapters, as [`ModelConfig::adapters`] has them.
    pub weights: Vec<Weight>,
    /// All gradients as one buffer, f32 `[1, n]`; the few bytes between them stay zero.
    pub grads: Option<Tensor>,
    /// Size of NEFTune's noise on the embeddings in training; 0 for none.
    pub neftune_alpha: f32,
    capacity: Capacity,
    batch: BatchBuffers,
    rope: RopeTable,
    embedding: Fused,
    layers: Vec<Layer>,
    norm: Fused,
    head: Fused,
    adapters: Option<Adapters>,
    scratch: Scratch,
    backward: Option<Backward>,
    /// Whether the backward pass runs the norms again, whose outputs the layers then share.
    recomputes: bool,
}

impl Model {
    /// Plans weights, activations and, for training, gradients. A is `dtype`.
    pub fn plan(
        plan: &mut Plan,
        config: &ModelConfig,
        dtype: DType,
        capacity: Capacity,
        purpose: Purpose<'_>,
    ) -> Self {
        let mut weights = plan::weights(plan, config, dtype, purpose);
        let adapters = match purpose {
            Purpose::Adapters(_, lora) => Some(Adapters::plan(plan, config, dtype, capacity.tokens, lora)),
            _ => None,
        };
        let mut rest = weights.iter();
        let mut fused = |n, biased| Fused::next(&mut rest, n, biased);
        let embedding = fused(1, false);
        let scratch = plan::scratch(plan, config, dtype, capacity);
        let kept = plan::kept(plan, config, dtype, capacity, purpose, &scratch);
        let layers = kept
            .into_iter()
            .enumerate()
            .map(|(l, kept)| {
                let [qkv, o, gate_up, down] = adapters.as_ref().map_or([None; 4], |all| all.layers[l]);
                Layer {
                    norm1: fused(1, false),
                    qkv: fused(3, config.attention_bias).with(qkv),
                    o: fused(1, config.attention_bias).with(o),
                    norm2: fused(1, false),
                    gate_up: fused(2, config.mlp_bias).with(gate_up),
                    down: fused(1, config.mlp_bias).with(down),
                    kept,
                }
            })
            .collect();
        let norm = fused(1, false);
        let head = if config.tie_word_embeddings { embedding } else { fused(1, false) };
        let half = config.head_dim / 2;
        let mut table = || plan.tensor(Category::Weights, capacity.positions, half, DType::F32);
        let rope = RopeTable { cos: table(), sin: table() };
        let backward =
            purpose.recompute().map(|_| plan::backward(plan, config, dtype, capacity, &scratch, head));
        let batch = feed::plan(plan, capacity);
        let config = config.clone();
        weights.extend(adapters.iter().flat_map(|all| all.weights.iter().cloned()));
        let grads: Vec<Tensor> = weights.iter().filter_map(|w| w.grad).collect();
        let grads = (!grads.is_empty()).then(|| plan::span(grads));
        Self {
            config,
            weights,
            grads,
            neftune_alpha: 0.0,
            adapters,
            capacity,
            batch,
            rope,
            embedding,
            layers,
            norm,
            head,
            scratch,
            backward,
            recomputes: purpose.recompute() == Some(Recompute::NormSwiglu),
        }
    }

    /// Fills in the weights, one after the other, and the rotary tables. `read` writes one weight as fp32; those in blocks
    /// are left to [`Model::load_q8_0`].
    ///
    /// # Errors
    /// Those of `read` and of the backend.
    pub fn load(
        &self,
        backend: &mut dyn Backend,
        mut read: impl FnMut(&Parameter, &mut [f32]) -> Result<()>,
    ) -> Result<()> {
        let mut values = Vec::new();
        for weight in self.weights.iter().filter(|w| w.working.dtype != DType::Q8_0) {
            values.resize(weight.working.len(), 0.0);
            read(&weight.parameter, &mut values)?;
            backend.upload(weight.master, bytes_of(&values, weight.master.dtype).as_ref())?;
            if weight.working != weight.master {
                backend.upload(weight.working, bytes_of(&values, weight.working.dtype).as_ref())?;
            }
        }
        let (cos, sin) = rope::table(&self.config.rope_frequencies(), self.capacity.positions);
        backend.upload(self.rope.cos, bytemuck::cast_slice(&cos))?;
        backend.upload(self.rope.sin, bytemuck::cast_slice(&sin))?;
        self.adapter_places().iter().try_for_each(|[value, _]| backend.spread(*value))
    }

    /// Fills in the weights that stay in blocks, which `read` writes.
    ///
    /// # Errors
    /// Those of `read` and of the backend.
    pub fn load_q8_0(
        &self,
        backend: &mut dyn Backend,
        mut read: impl FnMut(&Parameter, &mut [Q8_0]) -> Result<()>,
    ) -> Result<()> {
        let mut blocks = Vec::new();
        for weight in self.weights.iter().filter(|w| w.working.dtype == DType::Q8_0) {
            blocks.resize(weight.working.len() / Q8_0::LEN, bytemuck::Zeroable::zeroed());
            read(&weight.parameter, &mut blocks)?;
            backend.upload(weight.working, bytemuck::cast_slice(&blocks))?;
        }
        Ok(())
    }

    /// The values of a weight, fp32.
    ///
    /// # Errors
    /// Those of the backend.
    ///
    /// # Panics
    /// If this model has no such weight.
    pub fn read_weight(&self, backend: &mut dyn Backend, parameter: &Parameter) -> Result<Vec<f32>> {
        let weight = self.weights.iter().find(|w| w.parameter == *parameter);
        read_floats(backend, weight.expect("a weight of this model").master)
    }

    /// The gradient of weight `i`, fp32, loss scale included; empty when the plan is not for training.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn read_gradient(&self, backend: &mut dyn Backend, i: usize) -> Result<Vec<f32>> {
        self.weights[i].grad.map_or(Ok(Vec::new()), |grad| read_floats(backend, grad))
    }

    /// The largest micro-batch it was planned for.
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn heads(&self) -> Heads {
        Heads {
            heads: self.config.num_attention_heads,
            kv_heads: self.config.num_key_value_heads,
            head_dim: self.config.head_dim,
        }
    }

    /// Room for keys and values of every layer, for `slots` sequences of `positions` tokens each.
    pub fn plan_cache(&self, plan: &mut Plan, positions: usize, slots: usize) -> Vec<KvCache> {
        let width = self.config.num_key_value_heads * self.config.head_dim;
        let dtype = self.scratch.norm.dtype;
        let mut one = || plan.tensor(Category::KvCache, slots * positions, width, dtype);
        self.layers.iter().map(|_| KvCache { keys: one(), values: one(), slots }).collect()
    }

    fn cross_entropy(&self, training: bool) -> LinearCrossEntropy {
        LinearCrossEntropy {
            x: self.scratch.norm,
            w: self.head.w,
            losses: self.scratch.losses,
            entropies: self.scratch.entropies,
            gradients: self.backward.filter(|_| training).map(|b| b.head),
            x_chunk: self.scratch.x_chunk,
            logits: self.scratch.logits,
        }
    }
}

/// Values as the bytes of a buffer of type `dtype`.
fn bytes_of(values: &[f32], dtype: DType) -> std::borrow::Cow<'_, [u8]> {
    use rayon::prelude::*;
    if dtype == DType::F32 {
        return bytemuck::cast_slice(values).into();
    }
    with_element!(dtype, E => {
        let rounded: Vec<E> = values.par_iter().map(|&v| E::from_f32(v)).collect();
        bytemuck::cast_slice::<E, u8>(&rounded).to_vec().into()
    })
}

/// Downloads a floating-point buffer, widened.
pub fn read_floats(backend: &mut dyn Backend, t: Tensor) -> Result<Vec<f32>> {
    with_element!(t.dtype, E => {
        let mut values = vec![E::from_f32(0.0); t.len()];
        backend.download(t, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values.into_iter().map(Element::to_f32).collect())
    })
}
