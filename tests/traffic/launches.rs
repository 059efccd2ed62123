//! Every production kernel at the widths of SmolLM2-135M, with all planned tokens in use.

use crate::stated::Dims;
use smolten::arena::{Category, Plan, Tensor};
use smolten::backend::{
    HeadGradients, LinearCrossEntropy, Moments, RmsNormBackward, StepParams, Trainable, UpdateRule,
};
use smolten::cuda::{Cuda, Device, Rung};
use smolten::dtype::DType;
use smolten::ops::adamw_launch::DeviceWeights;
use smolten::ops::attention::Heads;
use smolten::ops::attention_launch::{self as attention, AttentionBackward};
use smolten::ops::cross_entropy_launch::{DeviceLoss, HeadRungs};
use smolten::ops::grad_norm::DeviceNorm;
use smolten::ops::linear_launch::{self as linear, Rotation, Rows};
use smolten::ops::rmsnorm::ROWS_PER_PARTIAL;
use smolten::ops::{embedding, rmsnorm};

const RUNG: Rung = Rung::Production;
const HEADS: Heads = Heads { heads: 9, kv_heads: 3, head_dim: 64 };
const WIDTH: usize = 576;
const HIDDEN: usize = 1536;
const VOCABULARY: usize = 49_152;
const SUPERVISED: usize = 64;
/// Positions in the cache before the tokens.
const PAST: usize = 200;
/// Weights of the optimizer, each a matrix of a layer.
const WEIGHTS: usize = 2;

/// Lengths of the sequences of a batch: whole tiles; tails in each direction.
pub const BATCHES: [&[usize]; 2] = [&[192, 64], &[100]];

/// A launch, in the order of [`Model::run`], and the dimensions of its header's formulas.
pub struct Expected {
    pub kernel: &'static str,
    pub dims: Vec<(&'static str, usize)>,
}

fn expected(kernel: &'static str, dims: &Dims) -> Expected {
    Expected { kernel, dims: dims.to_vec() }
}

/// Lists of a batch, and the buffers of a layer, the head and the optimizer.
struct Buffers {
    lists: [(Tensor, Vec<u32>); 6],
    wide: [Tensor; 3],
    norm: [Tensor; 2],
    narrow: [Tensor; 2],
    rows: [Tensor; 3],
    qkv: [Tensor; 2],
    attended: [Tensor; 2],
    of_heads: [Tensor; 2],
    rope: [Tensor; 2],
    cache: [Tensor; 2],
    gate_up: [Tensor; 2],
    act: [Tensor; 2],
    weights: [Tensor; 5],
    gradient: Tensor,
    partials: Tensor,
    logits: [Tensor; 2],
    chunks: [Tensor; 2],
    grads: Tensor,
}

/// Number of entries, and these.
fn list(plan: &mut Plan, entries: impl Iterator<Item = usize>) -> (Tensor, Vec<u32>) {
    let entries: Vec<u32> = entries.map(|x| u32::try_from(x).unwrap()).collect();
    (plan.tensor(Category::Batch, 1, entries.len(), DType::U32), entries)
}

impl Buffers {
    fn new(plan: &mut Plan, lengths: &[usize], a: DType) -> Self {
        let (t, c, wide) = (lengths.iter().sum::<usize>(), WIDTH, DType::F32);
        let starts = lengths.iter().scan(0, |start, n| {
            *start += n;
            Some(*start)
        });
        let lists = [
            list(plan, (0..t).map(|t| t / 2)),                      // ids: each twice
            list(plan, 0..t),                                       // by id
            list(plan, (0..=t).map(|i| (2 * i).min(t))),            // where an id begins
            list(plan, std::iter::once(0).chain(starts)),           // where a sequence begins
            list(plan, lengths.iter().flat_map(|&length| 0..length)), // positions
            list(plan, (0..t).map(|t| t % VOCABULARY)),             // targets, and the rows in the loss
        ];
        let mut of = |rows, cols, dtype| plan.tensor(Category::Scratch, rows, cols, dtype);
        Self {
            lists,
            wide: [(); 3].map(|()| of(t, c, wide)),
            norm: [of(1, t, wide), of(1, c, wide)],
            narrow: [(); 2].map(|()| of(t, c, a)),
            rows: [(); 3].map(|()| of(t, c, a)),
            qkv: [(); 2].map(|()| of(t, HEADS.qkv_width(), a)),
            attended: [(); 2].map(|()| of(t, HEADS.width(), a)),
            of_heads: [(); 2].map(|()| of(t, HEADS.heads, wide)),
            rope: [(); 2].map(|()| of(t, HEADS.head_dim / 2, wide)),
            cache: [(); 2].map(|()| of(PAST + t, HEADS.kv_heads * HEADS.head_dim, a)),
            gate_up: [(); 2].map(|()| of(t, 2 * HIDDEN, a)),
            act: [(); 2].map(|()| of(t, HIDDEN, a)),
            weights: [
                of(1, c, a),
                of(HEADS.qkv_width(), c, a),
                of(2 * HIDDEN, c, a),
                of(c, HIDDEN, a),
                of(VOCABULARY, c, a),
            ],
            gradient: of(VOCABULARY, c, wide),
            partials: of(t.div_ceil(ROWS_PER_PARTIAL), c, wide),
            logits: [of(SUPERVISED, VOCABULARY, wide), of(SUPERVISED, VOCABULARY, a)],
            chunks: [(); 2].map(|()| of(SUPERVISED, c, a)),
            grads: of(1, WEIGHTS * WIDTH * HIDDEN, wide),
        }
    }
}
