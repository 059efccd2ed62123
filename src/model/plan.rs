//! Where everything lies: weights, gradients, activations, scratch.

use super::{Backward, Capacity, Fused, Kept, Purpose, Scratch, Weight};
use crate::arena::{Category, Plan, Tensor};
use crate::backend::HeadGradients;
use crate::config::{ModelConfig, Parameter};
use crate::dtype::DType;
use crate::ops::rmsnorm;
use crate::recipe::Recompute;

/// Rows of logits that exist at a time: with 256 the step takes 4 % longer, and with 1024 no less, while they take twice
/// the 144 MiB of SmolLM2's vocabulary.
const LOGIT_ROWS: usize = 512;

/// Lays the weights out in the order of their names; q k v of a layer adjoin, and gate and up, and so their biases.
pub(super) fn weights(
    plan: &mut Plan,
    config: &ModelConfig,
    dtype: DType,
    purpose: Purpose<'_>,
) -> Vec<Weight> {
    let parameters = config.parameters();
    let training = matches!(purpose, Purpose::Training(_));
    let mut lay_out = |category, dtype| -> Vec<Tensor> {
        let place = |p: &Parameter| {
            let [rows, cols] = p.shape;
            let in_blocks = purpose == Purpose::InferenceQ8_0 && !p.is_vector();
            let dtype = if in_blocks { DType::Q8_0 } else { dtype };
            let follows = [".k_proj.", ".v_proj.", ".up_proj."].iter().any(|part| p.name.contains(part));
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
pub(super) fn fuse(tensors: impl IntoIterator<Item = Tensor>) -> Tensor {
    tensors
        .into_iter()
        .reduce(|a, b| {
            assert!(a.offset + a.bytes() == b.offset && a.cols == b.cols, "fused weights must adjoin");
            Tensor { rows: a.rows + b.rows, ..a }
        })
        .expect("at least one weight")
}

/// From the first of the tensors in memory to the end of the last, as one row.
pub(super) fn span(tensors: impl IntoIterator<Item = Tensor>) -> Tensor {
    let mut all: Vec<Tensor> = tensors.into_iter().collect();
    all.sort_by_key(|t| t.offset);
    let (first, last) = (all[0], all[all.len() - 1]);
    let bytes = last.offset + last.bytes() - first.offset;
    Tensor { rows: 1, cols: bytes / first.dtype.size(), ..first }
}

/// One set of kept activations per layer for training; otherwise all layers share one.
pub(super) fn kept(
    plan: &mut Plan,
    n: &ModelConfig,
    dtype: DType,
    capacity: Capacity,
    purpose: Purpose<'_>,
    scratch: &Scratch,
) -> Vec<Kept> {
    let (t, c) = (capacity.tokens, n.hidden_size);
    let mut new = || {
        let mut of = |rows, cols, dtype| plan.tensor(Category::Activations, rows, cols, dtype);
        let (norm1, norm2, act) = if purpose.recompute() == Some(Recompute::None) {
            (of(t, c, dtype), of(t, c, dtype), of(t, n.intermediate_size, dtype))
        } else {
            (scratch.norm, scratch.norm, scratch.act)
        };
        Kept {
            norm1,
            norm2,
            act,
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
    if purpose.recompute().is_some() {
        (0..n.num_hidden_layers).map(|_| new()).collect()
    } else {
        vec![new(); n.num_hidden_layers]
    }
}

pub(super) fn scratch(plan: &mut Plan, n: &ModelConfig, dtype: DType, capacity: Capacity) -> Scratch {
    let (t, c) = (capacity.tokens, n.hidden_size);
    let rows = LOGIT_ROWS.min(t);
    let logits = plan.tensor(Category::Scratch, rows, n.vocab_size, DType::F32);
    // No layer is at work while there are logits.
    let mut spare = logits;
    let act = plan.sharing(&mut spare, t, n.intermediate_size, dtype);
    let mut of = |rows, cols, dtype| plan.tensor(Category::Scratch, rows, cols, dtype);
    Scratch {
        norm: of(t, c, dtype),
        act,
        last: of(t, c, DType::F32),
        rstd: of(1, t, DType::F32),
        losses: of(1, t, DType::F32),
        entropies: of(1, t, DType::F32),
        x_chunk: of(rows, c, dtype),
        logits,
        spare,
    }
}

pub(super) fn backward(
    plan: &mut Plan,
    n: &ModelConfig,
    dtype: DType,
    capacity: Capacity,
    scratch: &Scratch,
    head: Fused,
) -> Backward {
    let (t, c, f) = (capacity.tokens, n.hidden_size, n.intermediate_size);
    let same = dtype == DType::F32;
    let of_attention = if n.attention_bias { n.qkv_width() } else { 0 };
    let of_mlp = if n.mlp_bias { 2 * f } else { 0 };
    let widest = c.max(of_attention).max(of_mlp);
    // The layers go backward when the logits have done their part.
    let mut spare = scratch.spare;
    let mut shared = |rows, cols, dtype| plan.sharing(&mut spare, rows, cols, dtype);
    let dgate_up = shared(t, 2 * f, dtype);
    let (dattention, dqkv) = (shared(t, n.attention_width(), dtype), shared(t, n.qkv_width(), dtype));
    let dx = shared(t, c, DType::F32);
    let dx_a = if same { dx } else { shared(t, c, dtype) };
    let delta = shared(t, n.num_attention_heads, DType::F32);
    let partials = shared(t.div_ceil(rmsnorm::ROWS_PER_PARTIAL), widest, DType::F32);
    let mut of = |rows, cols, dtype| plan.tensor(Category::Scratch, rows, cols, dtype);
    let dnorm = of(t, c, dtype);
    let rows = scratch.logits.rows;
    Backward {
        dx,
        dx_a,
        dnorm,
        dgate_up,
        dattention,
        dqkv,
        delta,
        partials,
        head: HeadGradients {
            dx: dnorm,
            dw: head.dw,
            dlogits: if same { scratch.logits } else { of(rows, n.vocab_size, dtype) },
            dx_chunk: of(rows, c, dtype),
        },
    }
}
