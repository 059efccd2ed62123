//! The transformer: where its weights and activations lie, the forward pass, and the backward pass by hand.
//!
//! Llama (Touvron et al. 2023): embedding; L blocks of `x += o(attention(rope(qkv(norm(x)))))`,
//! `x += down(silu(gate(norm(x)))·up(norm(x)))`; a last norm; a head, often the embedding again.
//! The model names no device: it holds handles and calls [`Backend`]. Kept for the backward pass are, per layer, the
//! two residual streams, the norms' scales, q k v, the attention output and its log-sum-exp, and gate and up; norm
//! outputs and the SwiGLU product are computed again.

mod feed;
mod pass;

pub use feed::Feed;

use crate::arena::{Category, Plan, Tensor};
use crate::backend::{Backend, BatchBuffers, HeadGradients, KvCache, LinearCrossEntropy, RopeTable};
use crate::config::{ModelConfig, Parameter};
use crate::dtype::{DType, Element, with_element};
use crate::error::Result;
use crate::ops::attention::Heads;
use crate::ops::{rmsnorm, rope};

/// Rows of logits that exist at a time: with 256 the products with the head lose a tenth of their speed, and 1024 rows
/// of SmolLM2's vocabulary are 192 MiB.
const LOGIT_ROWS: usize = 1024;

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
}

/// Buffers that every block uses in turn.
#[derive(Clone, Copy, Debug)]
struct Scratch {
    norm: Tensor,   // A [T, C]: output of a norm, then gradient of it
    act: Tensor,    // A [T, F]
    last: Tensor,   // f32 [T, C]: residual stream after the last block
    rstd: Tensor,   // f32 [1, T]: of the last norm
    losses: Tensor, // f32 [1, T]
    x_chunk: Tensor,
    logits: Tensor,
}

/// Buffers that only the backward pass uses.
#[derive(Clone, Copy, Debug)]
struct Backward {
    dx: Tensor,       // f32 [T, C]: gradient of the residual stream
    dx_a: Tensor,     // A [T, C]: the same, rounded; dx itself in fp32
    dnorm: Tensor,    // A [T, C]
    dact: Tensor,     // A [T, F]
    dgate_up: Tensor, // A [T, 2F]
    dattention: Tensor,
    dqkv: Tensor,
    delta: Tensor,    // f32 [T, H]
    partials: Tensor, // f32 [.., C]
    head: HeadGradients,
}

/// Handles of one model in one arena.
#[derive(Clone, Debug)]
pub struct Model {
    /// Dimensions.
    pub config: ModelConfig,
    /// All weights, in the order of [`ModelConfig::parameters`].
    pub weights: Vec<Weight>,
    /// All gradients as one buffer, f32 `[1, n]`; the few bytes between them stay zero.
    pub grads: Option<Tensor>,
    capacity: Capacity,
    batch: BatchBuffers,
    rope: RopeTable,
    embedding: Fused,
    layers: Vec<Layer>,
    norm: Fused,
    head: Fused,
    scratch: Scratch,
    backward: Option<Backward>,
}

impl Model {
    /// Plans weights, activations and, for `training`, gradients. A is `dtype`.
    pub fn plan(
        plan: &mut Plan,
        config: &ModelConfig,
        dtype: DType,
        capacity: Capacity,
        training: bool,
    ) -> Self {
        let weights = plan_weights(plan, config, dtype, training);
        let grads = training.then(|| span(weights.iter().filter_map(|w| w.grad)));
        let fused = |names: &[usize]| Fused {
            w: fuse(names.iter().map(|&i| weights[i].working)),
            dw: training.then(|| fuse(names.iter().filter_map(|&i| weights[i].grad))),
        };
        let kept = plan_kept(plan, config, dtype, capacity, training);
        let layers = kept
            .into_iter()
            .enumerate()
            .map(|(l, kept)| {
                let at = 1 + 9 * l;
                Layer {
                    norm1: fused(&[at]),
                    qkv: fused(&[at + 1, at + 2, at + 3]),
                    o: fused(&[at + 4]),
                    norm2: fused(&[at + 5]),
                    gate_up: fused(&[at + 6, at + 7]),
                    down: fused(&[at + 8]),
                    kept,
                }
            })
            .collect();
        let norm = 1 + 9 * config.num_hidden_layers;
        let embedding = fused(&[0]);
        let head = if config.tie_word_embeddings { embedding } else { fused(&[norm + 1]) };
        let norm = fused(&[norm]);
        let scratch = plan_scratch(plan, config, dtype, capacity);
        let half = config.head_dim / 2;
        let mut table = || plan.tensor(Category::Weights, capacity.positions, half, DType::F32);
        let rope = RopeTable { cos: table(), sin: table() };
        let backward = training.then(|| plan_backward(plan, config, dtype, capacity, &scratch, head));
        let batch = feed::plan(plan, capacity);
        let config = config.clone();
        Self {
            config,
            weights,
            grads,
            capacity,
            batch,
            rope,
            embedding,
            layers,
            norm,
            head,
            scratch,
            backward,
        }
    }

    /// Fills in the weights, one after the other, and the rotary tables. `read` writes one weight as fp32.
    ///
    /// # Errors
    /// Those of `read` and of the backend.
    pub fn load(
        &self,
        backend: &mut dyn Backend,
        mut read: impl FnMut(&Parameter, &mut [f32]) -> Result<()>,
    ) -> Result<()> {
        let mut values = Vec::new();
        for weight in &self.weights {
            values.resize(weight.working.len(), 0.0);
            read(&weight.parameter, &mut values)?;
            backend.upload(weight.master, bytes_of(&values, weight.master.dtype).as_ref())?;
            if weight.working != weight.master {
                backend.upload(weight.working, bytes_of(&values, weight.working.dtype).as_ref())?;
            }
        }
        let (cos, sin) = rope::table(&self.config.rope_frequencies(), self.capacity.positions);
        backend.upload(self.rope.cos, bytemuck::cast_slice(&cos))?;
        backend.upload(self.rope.sin, bytemuck::cast_slice(&sin))
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

    fn heads(&self) -> Heads {
        Heads {
            heads: self.config.num_attention_heads,
            kv_heads: self.config.num_key_value_heads,
            head_dim: self.config.head_dim,
        }
    }

    /// Room for keys and values of every layer, for `positions` tokens.
    pub fn plan_cache(&self, plan: &mut Plan, positions: usize) -> Vec<KvCache> {
        let width = self.config.num_key_value_heads * self.config.head_dim;
        let dtype = self.embedding.w.dtype;
        let mut one = || plan.tensor(Category::KvCache, positions, width, dtype);
        self.layers.iter().map(|_| KvCache { keys: one(), values: one() }).collect()
    }

    fn cross_entropy(&self, training: bool) -> LinearCrossEntropy {
        LinearCrossEntropy {
            x: self.scratch.norm,
            w: self.head.w,
            losses: self.scratch.losses,
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

/// Lays the weights out in the order of their names; q k v of a layer adjoin, and gate and up.
fn plan_weights(plan: &mut Plan, config: &ModelConfig, dtype: DType, training: bool) -> Vec<Weight> {
    let parameters = config.parameters();
    let mut lay_out = |category, dtype| -> Vec<Tensor> {
        let place = |p: &Parameter| {
            let [rows, cols] = p.shape;
            let follows =
                ["k_proj.weight", "v_proj.weight", "up_proj.weight"].iter().any(|end| p.name.ends_with(end));
            if follows {
                plan.adjoining(category, rows, cols, dtype)
            } else {
                plan.tensor(category, rows, cols, dtype)
            }
        };
        parameters.iter().map(place).collect()
    };
    let working = lay_out(Category::Weights, dtype);
    let master = if training && dtype != DType::F32 {
        lay_out(Category::Weights, DType::F32)
    } else {
        working.clone()
    };
    let grads = training.then(|| lay_out(Category::Gradients, DType::F32));
    parameters
        .into_iter()
        .enumerate()
        .map(|(i, parameter)| Weight {
            parameter,
            master: master[i],
            working: working[i],
            grad: grads.as_ref().map(|g| g[i]),
        })
        .collect()
}

/// Adjoining matrices of one width as one.
fn fuse(tensors: impl IntoIterator<Item = Tensor>) -> Tensor {
    tensors
        .into_iter()
        .reduce(|a, b| {
            assert!(a.offset + a.bytes() == b.offset && a.cols == b.cols, "fused weights must adjoin");
            Tensor { rows: a.rows + b.rows, ..a }
        })
        .expect("at least one weight")
}

/// From the first of the tensors to the end of the last, as one row.
fn span(tensors: impl IntoIterator<Item = Tensor>) -> Tensor {
    let all: Vec<Tensor> = tensors.into_iter().collect();
    let (first, last) = (all[0], all[all.len() - 1]);
    let bytes = last.offset + last.bytes() - first.offset;
    Tensor { rows: 1, cols: bytes / first.dtype.size(), ..first }
}

/// One set of kept activations per layer for training; otherwise all layers share one, the residual stream
/// alternating between two buffers.
fn plan_kept(
    plan: &mut Plan,
    n: &ModelConfig,
    dtype: DType,
    capacity: Capacity,
    training: bool,
) -> Vec<Kept> {
    let (t, c) = (capacity.tokens, n.hidden_size);
    let mut new = |_: usize| {
        let mut of = |rows, cols, dtype| plan.tensor(Category::Activations, rows, cols, dtype);
        Kept {
            x: of(t, c, DType::F32),
            rstd1: of(1, t, DType::F32),
            qkv: of(t, n.qkv_width(), dtype),
            attention: of(t, n.attention_width(), dtype),
            lse: of(t, n.num_attention_heads, DType::F32),
            mid: of(t, c, DType::F32),
            rstd2: of(1, t, DType::F32),
            gate_up: of(t, 2 * n.intermediate_size, dtype),
        }
    };
    if training {
        return (0..n.num_hidden_layers).map(new).collect();
    }
    let shared = new(0);
    let other = plan.tensor(Category::Activations, t, c, DType::F32);
    let odd = Kept { x: other, ..shared };
    (0..n.num_hidden_layers).map(|l| if l % 2 == 0 { shared } else { odd }).collect()
}

fn plan_scratch(plan: &mut Plan, n: &ModelConfig, dtype: DType, capacity: Capacity) -> Scratch {
    let (t, c) = (capacity.tokens, n.hidden_size);
    let rows = LOGIT_ROWS.min(t);
    let mut of = |rows, cols, dtype| plan.tensor(Category::Scratch, rows, cols, dtype);
    Scratch {
        norm: of(t, c, dtype),
        act: of(t, n.intermediate_size, dtype),
        last: of(t, c, DType::F32),
        rstd: of(1, t, DType::F32),
        losses: of(1, t, DType::F32),
        x_chunk: of(rows, c, dtype),
        logits: of(rows, n.vocab_size, DType::F32),
    }
}

fn plan_backward(
    plan: &mut Plan,
    n: &ModelConfig,
    dtype: DType,
    capacity: Capacity,
    scratch: &Scratch,
    head: Fused,
) -> Backward {
    let (t, c, f) = (capacity.tokens, n.hidden_size, n.intermediate_size);
    let same = dtype == DType::F32;
    let mut of = |rows, cols, dtype| plan.tensor(Category::Scratch, rows, cols, dtype);
    let dx = of(t, c, DType::F32);
    let dnorm = of(t, c, dtype);
    let rows = scratch.logits.rows;
    Backward {
        dx,
        dx_a: if same { dx } else { of(t, c, dtype) },
        dnorm,
        dact: of(t, f, dtype),
        dgate_up: of(t, 2 * f, dtype),
        dattention: of(t, n.attention_width(), dtype),
        dqkv: of(t, n.qkv_width(), dtype),
        delta: of(t, n.num_attention_heads, DType::F32),
        partials: of(t.div_ceil(rmsnorm::ROWS_PER_PARTIAL), c, DType::F32),
        head: HeadGradients {
            dx: dnorm,
            dw: head.dw.expect("planned for training"),
            dlogits: if same { scratch.logits } else { of(rows, n.vocab_size, dtype) },
            dx_chunk: of(rows, c, dtype),
        },
    }
}
