//! Buffers of an operation, what is in them, and its launch.

use super::fill::{self, Fill, Random};
use super::operation::{MIN_8BIT_ELEMENTS, Operation, Product};
use super::suite::Case;
use crate::arena::{Category, Plan, Tensor};
use crate::backend::{AttentionBackward, Moments, RmsNormBackward, StepParams, Trainable, UpdateRule};
use crate::backend::{HeadGradients, LinearCrossEntropy};
use crate::cuda::{Cuda, LOSS_SCALE_AT, Rung};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::adamw::{AdamWConfig, AdamWScalars};
use crate::ops::adamw_8bit::BLOCK;
use crate::ops::adamw_launch::DeviceWeights;
use crate::ops::attention::Heads;
use crate::ops::grad_norm::DeviceNorm;
use crate::ops::linear_launch::{self, Rotation, Rows, WORKSPACE_BYTES};
use crate::ops::loss_scale::LossScale;
use crate::ops::{attention_launch, cross_entropy_launch, embedding, rmsnorm, rows};

/// Submits the operation once.
type Launch = Box<dyn FnMut(&Cuda, Rung) -> Result<()>>;

/// An operation ready to be launched, in an arena of its own that begins at 0.
pub(super) struct Setup {
    pub(super) plan: Plan,
    pub(super) launch: Launch,
    fills: Vec<(Tensor, Fill)>,
    params: StepParams,
}

/// Deviation of weights, so that products with normal activations are of size 1 or so.
const WEIGHT: f32 = 0.03;

impl Setup {
    pub(super) fn new(case: &Case, dtype: DType) -> Self {
        let mut b = Buffers { plan: Plan::default(), fills: Vec::new(), a: dtype, params: params(case) };
        let launch = match &case.operation {
            Operation::Zero { t, c } => b.zero(*t, *c),
            Operation::Gather { t, c } => b.gather(*t, *c),
            Operation::Scatter { t, c } => b.scatter(*t, *c),
            Operation::EmbeddingForward { t, c, vocab } => b.embedding_forward(*t, *c, *vocab),
            Operation::EmbeddingBackward { t, c, vocab } => b.embedding_backward(*t, *c, *vocab),
            Operation::NormForward { t, c } => b.norm_forward(*t, *c),
            Operation::NormBackward { t, c } => b.norm_backward(*t, *c),
            Operation::Linear { product, t, inputs, outputs } => b.linear(*product, *t, *inputs, *outputs),
            Operation::AttentionForward { heads, t, length } => b.attention_forward(*heads, *t, *length),
            Operation::AttentionBackward { heads, t, length } => b.attention_backward(*heads, *t, *length),
            Operation::CrossEntropy { t, vocab } => b.cross_entropy(*t, *vocab),
            Operation::GradNorm { weights } => b.grad_norm(weights.iter().sum()),
            Operation::AdamW { weights } => b.adamw(UpdateRule::Torch, weights),
            Operation::AdamW8bit { weights } => b.adamw(UpdateRule::Blockwise, weights),
        };
        Self { plan: b.plan, launch, fills: b.fills, params: b.params }
    }

    /// Fills its buffers and sets the step's parameters.
    pub(super) fn fill(&self, cuda: &mut Cuda) -> Result<()> {
        for (seed, (tensor, contents)) in (1..).zip(&self.fills) {
            fill::fill(cuda, *tensor, contents, seed)?;
        }
        cuda.write_step(0, bytemuck::bytes_of(&self.params))?;
        cuda.write_step(LOSS_SCALE_AT, bytemuck::bytes_of(&LossScale::fixed(1.0)))
    }
}

/// Of a first micro-batch whose every position is in the loss.
fn params(case: &Case) -> StepParams {
    let zero: StepParams = bytemuck::Zeroable::zeroed();
    let tokens = u32::try_from(case.tokens).expect("the command line's range");
    let config = AdamWConfig { lr: 1e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
    let adamw = match case.operation {
        Operation::AdamW { .. } => AdamWScalars::adamw(&config, 10),
        _ => AdamWScalars::adamw_8bit(&config, 10),
    };
    #[expect(clippy::cast_precision_loss, reason = "of a count below 2^24")]
    let inverse_denominator = 1.0 / tokens as f32;
    StepParams { tokens, supervised: tokens, inverse_denominator, max_grad_norm: 1.0, adamw, ..zero }
}

struct Buffers {
    plan: Plan,
    fills: Vec<(Tensor, Fill)>,
    a: DType,
    params: StepParams,
}

impl Buffers {
    /// Room for results.
    fn out(&mut self, rows: usize, cols: usize, dtype: DType) -> Tensor {
        self.plan.tensor(Category::Scratch, rows, cols, dtype)
    }

    fn filled(&mut self, rows: usize, cols: usize, dtype: DType, fill: Fill) -> Tensor {
        let tensor = self.out(rows, cols, dtype);
        self.fills.push((tensor, fill));
        tensor
    }

    fn activation(&mut self, rows: usize, cols: usize) -> Tensor {
        self.filled(rows, cols, self.a, Fill::Normal(1.0))
    }

    fn weight(&mut self, rows: usize, cols: usize) -> Tensor {
        self.filled(rows, cols, self.a, Fill::Normal(WEIGHT))
    }

    fn wide(&mut self, rows: usize, cols: usize) -> Tensor {
        self.filled(rows, cols, DType::F32, Fill::Normal(1.0))
    }

    fn list(&mut self, values: Vec<u32>) -> Tensor {
        self.filled(1, values.len(), DType::U32, Fill::Numbers(values))
    }

    /// 0, 1, .. n − 1.
    fn ascending(&mut self, n: usize) -> Tensor {
        self.list((0..).take(n).collect())
    }

    fn zero(&mut self, t: usize, c: usize) -> Launch {
        let x = self.wide(t, c);
        Box::new(move |cuda, rung| rows::zero(cuda, rung, x))
    }

    fn gather(&mut self, t: usize, c: usize) -> Launch {
        let (list, from, to) = (self.ascending(t), self.activation(t, c), self.out(t, c, self.a));
        Box::new(move |cuda, rung| rows::gather(cuda, rung, list, 0, from, to))
    }

    fn scatter(&mut self, t: usize, c: usize) -> Launch {
        let (list, from, to) = (self.ascending(t), self.activation(t, c), self.out(t, c, self.a));
        Box::new(move |cuda, rung| rows::scatter(cuda, rung, list, 0, from, to))
    }

    fn embedding_forward(&mut self, t: usize, c: usize, vocab: usize) -> Launch {
        let (ids, w) = (self.list(below(vocab, t)), self.weight(vocab, c));
        let x = self.out(t, c, DType::F32);
        Box::new(move |cuda, rung| embedding::launch_forward(cuda, rung, ids, w, x))
    }

    fn embedding_backward(&mut self, t: usize, c: usize, vocab: usize) -> Launch {
        let ids = below(vocab, t);
        let mut by_id: Vec<u32> = (0..).take(t).collect();
        by_id.sort_by_key(|&token| (ids[token as usize], token));
        let begins = |&i: &usize| i == 0 || ids[by_id[i] as usize] != ids[by_id[i - 1] as usize];
        let mut starts: Vec<u32> =
            (0..t).filter(begins).map(|i| u32::try_from(i).expect("below t")).collect();
        self.params.distinct_ids = u32::try_from(starts.len()).expect("at most t");
        starts.resize(t + 1, self.params.tokens);
        let lists = [self.list(ids), self.list(by_id), self.list(starts)];
        let (dx, dw) = (self.wide(t, c), self.wide(vocab, c));
        Box::new(move |cuda, rung| embedding::launch_backward(cuda, rung, lists, dx, dw, true))
    }

    fn norm_forward(&mut self, t: usize, c: usize) -> Launch {
        let (x, w) = (self.wide(t, c), self.weight(1, c));
        let (y, rstd) = (self.out(t, c, self.a), self.out(1, t, DType::F32));
        Box::new(move |cuda, rung| rmsnorm::launch_forward(cuda, rung, x, w, 1e-5, y, rstd))
    }

    fn norm_backward(&mut self, t: usize, c: usize) -> Launch {
        let of = RmsNormBackward {
            x: self.wide(t, c),
            w: self.weight(1, c),
            rstd: self.filled(1, t, DType::F32, Fill::Positive(1.0)),
            dy: self.activation(t, c),
            dx: self.wide(t, c),
            dx_rounded: Some(self.out(t, c, self.a)),
            dw: self.out(1, c, DType::F32),
            partials: self.out(t.div_ceil(rmsnorm::ROWS_PER_PARTIAL), c, DType::F32),
        };
        Box::new(move |cuda, rung| rmsnorm::launch_backward(cuda, rung, &of))
    }

    fn linear(&mut self, product: Product, t: usize, inputs: usize, outputs: usize) -> Launch {
        let (a, rows) = (self.a, Rows::Tokens);
        let w = match product {
            Product::WeightGradient => self.out(outputs, inputs, DType::F32),
            _ => self.weight(outputs, inputs),
        };
        // Rows of the head are the positions in the loss, here as many as there are.
        self.params.tokens = u32::try_from(t).expect("at most the tokens");
        match product {
            Product::Wide => {
                let (x, y) = (self.activation(t, inputs), self.out(t, outputs, DType::F32));
                Box::new(move |cuda, rung| linear_launch::linear_wide(cuda, rung, rows, x, w, y))
            }
            Product::Residual => {
                let (x, residual) = (self.activation(t, inputs), self.wide(t, outputs));
                let y = self.out(t, outputs, DType::F32);
                Box::new(move |cuda, rung| linear_launch::linear_residual(cuda, rung, x, w, residual, y))
            }
            Product::Rope(heads) => {
                let (x, y) = (self.activation(t, inputs), self.out(t, outputs, a));
                let [positions, cos, sin] = self.rotation(t, heads.head_dim / 2);
                let rotation = Rotation { heads, positions, cos, sin };
                Box::new(move |cuda, rung| linear_launch::linear_rope(cuda, rung, rotation, x, w, y))
            }
            Product::Swiglu => {
                let (x, y) = (self.activation(t, inputs), self.out(t, outputs, a));
                let act = self.out(t, outputs / 2, a);
                Box::new(move |cuda, rung| linear_launch::linear_swiglu(cuda, rung, x, w, y, act))
            }
            Product::InputGradient => {
                let (dy, dx) = (self.activation(t, outputs), self.out(t, inputs, a));
                Box::new(move |cuda, rung| linear_launch::input_gradient(cuda, rung, rows, dy, w, dx))
            }
            Product::SwigluBackward => {
                let (dy, gate_up) = (self.activation(t, outputs), self.activation(t, 2 * inputs));
                let (act, dgate_up) = (self.out(t, inputs, a), self.out(t, 2 * inputs, a));
                Box::new(move |cuda, rung| {
                    linear_launch::swiglu_backward(cuda, rung, dy, w, gate_up, Some(act), dgate_up)
                })
            }
            Product::WeightGradient => {
                self.plan.reserve_workspace(WORKSPACE_BYTES);
                let (dy, x) = (self.activation(t, outputs), self.activation(t, inputs));
                Box::new(move |cuda, rung| linear_launch::weight_gradient(cuda, rung, rows, dy, x, w))
            }
        }
    }

    /// Positions, and numbers in place of cosines and sines.
    fn rotation(&mut self, t: usize, half: usize) -> [Tensor; 3] {
        [self.ascending(t), self.wide(t, half), self.wide(t, half)]
    }

    /// Bounds of sequences of `length` tokens, the last of which may be shorter.
    fn sequences(&mut self, t: usize, length: usize) -> Tensor {
        let bounds = (0..t).step_by(length).chain([t]);
        let bounds: Vec<u32> = bounds.map(|i| u32::try_from(i).expect("at most the tokens")).collect();
        self.params.tokens = *bounds.last().expect("the end");
        self.params.sequences = u32::try_from(bounds.len() - 1).expect("at most the tokens");
        self.list(bounds)
    }

    fn attention_forward(&mut self, heads: Heads, t: usize, length: usize) -> Launch {
        let (sequences, qkv) = (self.sequences(t, length), self.activation(t, heads.qkv_width()));
        let (out, lse) = (self.out(t, heads.width(), self.a), self.out(t, heads.heads, DType::F32));
        Box::new(move |cuda, rung| attention_launch::forward(cuda, rung, heads, sequences, qkv, out, lse))
    }

    fn attention_backward(&mut self, heads: Heads, t: usize, length: usize) -> Launch {
        let sequences = self.sequences(t, length);
        let [positions, cos, sin] = self.rotation(t, heads.head_dim / 2);
        let of = AttentionBackward {
            qkv: self.activation(t, heads.qkv_width()),
            out: self.out(t, heads.width(), self.a),
            lse: self.out(t, heads.heads, DType::F32),
            dout: self.activation(t, heads.width()),
            dqkv: self.out(t, heads.qkv_width(), self.a),
            delta: self.out(t, heads.heads, DType::F32),
        };
        let mut is_first = true;
        Box::new(move |cuda, rung| {
            // Output and log-sum-exp that belong to the scores; in the first warm-up.
            if std::mem::take(&mut is_first) {
                attention_launch::forward(cuda, Rung::Production, heads, sequences, of.qkv, of.out, of.lse)?;
            }
            attention_launch::backward(cuda, rung, heads, sequences, positions, [cos, sin], of)
        })
    }

    fn cross_entropy(&mut self, t: usize, vocab: usize) -> Launch {
        const UNREAD: usize = 8; // columns of buffers that only the products of the head read
        let lists = [self.list(below(vocab, t)), self.ascending(t)];
        let (x, logits) = (self.out(t, UNREAD, self.a), self.wide(t, vocab));
        let args = LinearCrossEntropy {
            x,
            w: self.out(vocab, UNREAD, self.a),
            losses: self.out(1, t, DType::F32),
            entropies: self.out(1, t, DType::F32),
            gradients: Some(HeadGradients { dx: x, dw: x, dlogits: self.out(t, vocab, self.a), dx_chunk: x }),
            x_chunk: x,
            logits,
        };
        Box::new(move |cuda, rung| cross_entropy_launch::launch_first_rows(cuda, rung, lists, &args))
    }

    fn grad_norm(&mut self, n: usize) -> Launch {
        let grads = self.filled(1, n, DType::F32, Fill::Normal(1e-3));
        let mut norm = None;
        Box::new(move |cuda, rung| {
            let norm = match &mut norm {
                Some(norm) => norm,
                none => none.insert(DeviceNorm::new(cuda, n)?),
            };
            norm.launch(cuda, rung, grads)
        })
    }

    fn adamw(&mut self, rule: UpdateRule, weights: &[usize]) -> Launch {
        let grads = self.filled(1, weights.iter().sum(), DType::F32, Fill::Normal(1e-3));
        let mut offset = grads.offset;
        let mut one = |n: usize| {
            let grad = Tensor { offset, cols: n, ..grads };
            offset += grad.bytes();
            let master = self.filled(1, n, DType::F32, Fill::Normal(WEIGHT));
            let (working, moments) = (self.out(1, n, self.a), self.moments(rule, n));
            Trainable { master, working, grad, moments, decays: true }
        };
        let weights: Vec<Trainable> = weights.iter().map(|&n| one(n)).collect();
        let mut table = None;
        Box::new(move |cuda, rung| {
            let table = match &mut table {
                Some(table) => table,
                none => {
                    // Without its norm a step may count as one to skip; in the first warm-up.
                    DeviceNorm::new(cuda, grads.len())?.launch(cuda, Rung::Production, grads)?;
                    none.insert(DeviceWeights::new(cuda, rule, &weights)?)
                }
            };
            table.launch(cuda, rung)
        })
    }

    fn moments(&mut self, rule: UpdateRule, n: usize) -> Moments {
        let (small, smaller) = (Fill::Normal(1e-4), Fill::Positive(1e-8));
        if rule == UpdateRule::Torch || n < MIN_8BIT_ELEMENTS {
            let m = self.filled(1, n, DType::F32, small);
            return Moments::Full { m, v: self.filled(1, n, DType::F32, smaller) };
        }
        let blocks = n.div_ceil(BLOCK);
        Moments::Blockwise {
            m: self.filled(1, n, DType::U8, Fill::Normal(1.0)),
            v: self.filled(1, n, DType::U8, Fill::Normal(1.0)),
            m_absmax: self.filled(1, blocks, DType::F32, Fill::Positive(1e-4)),
            v_absmax: self.filled(1, blocks, DType::F32, smaller),
        }
    }
}

/// `n` numbers below `end`.
fn below(end: usize, n: usize) -> Vec<u32> {
    let mut random = Random(7);
    (0..n).map(|_| u32::try_from(random.next() % end as u64).expect("below the vocabulary")).collect()
}
