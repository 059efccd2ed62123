//! Buffers of an operation, what is in them, and its launch: on a GPU by rung, elsewhere through [`Backend`].

mod attention;
mod products;
mod update;

use super::fill::{self, Fill, Random};
use super::operation::Operation;
use super::suite::Case;
use crate::arena::{Category, Plan, Tensor};
use crate::backend::{Backend, BatchBuffers, RmsNormBackward, StepParams, UpdateRule};
use crate::cuda::{Cuda, LOSS_SCALE_AT, Rung};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::adamw::{AdamWConfig, AdamWScalars};
use crate::ops::loss_scale::LossScale;
use crate::ops::{embedding, rmsnorm, rows};

/// Submits the operation once to a GPU.
type OnGpu = Box<dyn FnMut(&Cuda, Rung) -> Result<()>>;

/// Runs it once on a backend.
type OnBackend = Box<dyn FnMut(&mut dyn Backend) -> Result<()>>;

/// The operation, both ways.
pub(super) struct Launch {
    pub(super) gpu: OnGpu,
    /// Absent where the seam has it as a part of another operation only.
    pub(super) backend: Option<OnBackend>,
}

impl Launch {
    fn new(
        gpu: impl FnMut(&Cuda, Rung) -> Result<()> + 'static,
        backend: impl FnMut(&mut dyn Backend) -> Result<()> + 'static,
    ) -> Self {
        Self { gpu: Box::new(gpu), backend: Some(Box::new(backend)) }
    }

    fn of_gpu(gpu: impl FnMut(&Cuda, Rung) -> Result<()> + 'static) -> Self {
        Self { gpu: Box::new(gpu), backend: None }
    }
}

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
            Operation::Head { t, c, vocab } => b.head(*t, *c, *vocab),
            Operation::GradNorm { weights } => b.grad_norm(weights.iter().sum()),
            Operation::AdamW { weights } => b.adamw(UpdateRule::Torch, weights),
            Operation::AdamW8bit { weights } => b.adamw(UpdateRule::Blockwise, weights),
        };
        Self { plan: b.plan, launch, fills: b.fills, params: b.params }
    }

    /// Fills its buffers and sets the step's parameters.
    pub(super) fn fill(&self, cuda: &mut Cuda) -> Result<()> {
        for (seed, (tensor, contents)) in (1..).zip(&self.fills) {
            fill::fill(&mut |part, bytes| cuda.upload(part, bytes), *tensor, contents, seed)?;
        }
        cuda.write_step(0, bytemuck::bytes_of(&self.params))?;
        cuda.write_step(LOSS_SCALE_AT, bytemuck::bytes_of(&LossScale::fixed(1.0)))
    }

    /// The same on a backend.
    pub(super) fn fill_backend(&self, backend: &mut dyn Backend) -> Result<()> {
        for (seed, (tensor, contents)) in (1..).zip(&self.fills) {
            fill::fill(&mut |part, bytes| backend.upload(part, bytes), *tensor, contents, seed)?;
        }
        backend.set_params(&self.params)?;
        backend.set_loss_scale(LossScale::fixed(1.0))
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
        Launch::new(move |cuda, rung| rows::zero(cuda, rung, x), move |b| b.zero(x))
    }

    fn gather(&mut self, t: usize, c: usize) -> Launch {
        let (list, from, to) = (self.ascending(t), self.activation(t, c), self.out(t, c, self.a));
        Launch::of_gpu(move |cuda, rung| rows::gather(cuda, rung, list, 0, from, to))
    }

    fn scatter(&mut self, t: usize, c: usize) -> Launch {
        let (list, from, to) = (self.ascending(t), self.activation(t, c), self.out(t, c, self.a));
        Launch::of_gpu(move |cuda, rung| rows::scatter(cuda, rung, list, 0, from, to))
    }

    fn embedding_forward(&mut self, t: usize, c: usize, vocab: usize) -> Launch {
        let (ids, w) = (self.list(below(vocab, t)), self.weight(vocab, c));
        let (x, batch) = (self.out(t, c, DType::F32), BatchBuffers { ids, ..self.batch() });
        Launch::new(
            move |cuda, rung| embedding::launch_forward(cuda, rung, ids, w, x),
            move |b| b.embedding_forward(&batch, w, x),
        )
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
        let [ids, by_id, id_starts] = lists;
        let batch = BatchBuffers { ids, by_id, id_starts, ..self.batch() };
        Launch::new(
            move |cuda, rung| embedding::launch_backward(cuda, rung, lists, dx, dw, true),
            move |b| b.embedding_backward(&batch, dx, dw, true),
        )
    }

    fn norm_forward(&mut self, t: usize, c: usize) -> Launch {
        let (x, w) = (self.wide(t, c), self.weight(1, c));
        let (y, rstd) = (self.out(t, c, self.a), self.out(1, t, DType::F32));
        Launch::new(
            move |cuda, rung| rmsnorm::launch_forward(cuda, rung, x, w, 1e-5, y, rstd),
            move |b| b.rmsnorm_forward(x, w, 1e-5, y, rstd),
        )
    }

    fn norm_backward(&mut self, t: usize, c: usize) -> Launch {
        let of = RmsNormBackward {
            x: self.wide(t, c),
            w: self.weight(1, c),
            rstd: self.filled(1, t, DType::F32, Fill::Positive(1.0)),
            dy: self.activation(t, c),
            dx: self.wide(t, c),
            dx_rounded: (self.a != DType::F32).then(|| self.out(t, c, self.a)),
            dw: Some(self.out(1, c, DType::F32)),
            partials: self.out(t.div_ceil(rmsnorm::ROWS_PER_PARTIAL), c, DType::F32),
        };
        Launch::new(
            move |cuda, rung| rmsnorm::launch_backward(cuda, rung, &of),
            move |b| b.rmsnorm_backward(of),
        )
    }

    /// A batch of nothing, to be completed with what the operation reads.
    fn batch(&mut self) -> BatchBuffers {
        let none = self.out(1, 0, DType::U32);
        BatchBuffers {
            ids: none,
            positions: none,
            cu_seqlens: none,
            targets: none,
            loss_rows: none,
            by_id: none,
            id_starts: none,
        }
    }
}

/// `n` numbers below `end`.
fn below(end: usize, n: usize) -> Vec<u32> {
    let mut random = Random(7);
    (0..n).map(|_| u32::try_from(random.next() % end as u64).expect("below the vocabulary")).collect()
}
