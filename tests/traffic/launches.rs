//! Every production kernel at the widths of SmolLM2-135M, with all planned tokens in use.

mod products;

use crate::stated::Dims;
use smolten::arena::{Category, Plan, Tensor};
use smolten::backend::{
    HeadGradients, LinearCrossEntropy, Moments, RmsNormBackward, StepParams, Trainable, UpdateRule,
};
use smolten::cuda::{Cuda, Cut, Device, LOSS_SCALE_AT, Rung, Tile};
use smolten::dtype::DType;
use smolten::error::Result;
use smolten::ops::adamw_launch::DeviceWeights;
use smolten::ops::attention::Heads;
use smolten::ops::attention_launch::{self as attention, AttentionBackward};
use smolten::ops::cross_entropy_launch::{self as cross_entropy, HeadRungs};
use smolten::ops::grad_norm::DeviceNorm;
use smolten::ops::loss_scale::LossScale;
use smolten::ops::rmsnorm::ROWS_PER_PARTIAL;
use smolten::ops::{bias, embedding, rmsnorm};

const RUNG: Rung = Rung::Production;
const HEADS: Heads = Heads { heads: 9, kv_heads: 3, head_dim: 64 };
const WIDTH: usize = 576;
const HIDDEN: usize = 1536;
const VOCABULARY: usize = 49_152;
const SUPERVISED: usize = 64;
/// Positions in the cache before the tokens.
const PAST: usize = 200;

/// Columns of an adapter's operands.
const RANK: usize = 32;

/// Parts of a weight gradient.
const SPLITS: usize = 3;

/// Lengths of the sequences of a batch: whole tiles; tails in each direction, and gradients that are added to.
pub const BATCHES: [&[usize]; 2] = [&[192, 64], &[100]];

/// A launch, and the dimensions of its header's formulas.
pub struct Expected {
    /// Without the suffix of its type.
    pub kernel: String,
    pub dims: Vec<(&'static str, usize)>,
}

/// What was launched, or would have been without a GPU.
struct Launches {
    cuda: Option<Cuda>,
    /// 1 where gradients are added to.
    adds: usize,
    expected: Vec<Expected>,
}

impl Launches {
    fn add(&mut self, kernels: &[(&str, &Dims)], run: impl FnOnce(&Cuda) -> Result<()>) {
        let expected =
            kernels.iter().map(|&(kernel, dims)| Expected { kernel: kernel.to_owned(), dims: dims.to_vec() });
        self.expected.extend(expected);
        if let Some(cuda) = &self.cuda {
            run(cuda).unwrap();
        }
    }

    /// How products are cut from now on.
    fn cut(&mut self, tile: Tile, splits: u32) {
        if let Some(cuda) = &mut self.cuda {
            cuda.cut = Some(Cut { tile, splits });
        }
    }
}

/// Token by token and sequence by sequence.
struct Batch {
    ids: Tensor,
    by_id: Tensor,
    id_starts: Tensor,
    cu_seqlens: Tensor,
    positions: Tensor,
    /// Also the rows in the loss.
    targets: Tensor,
    entries: Vec<(Tensor, Vec<u32>)>,
}

impl Batch {
    fn new(plan: &mut Plan, lengths: &[usize]) -> Self {
        let t: usize = lengths.iter().sum();
        let mut entries = Vec::new();
        let mut list = |list: Vec<usize>| {
            let tensor = plan.tensor(Category::Batch, 1, list.len(), DType::U32);
            entries.push((tensor, list.into_iter().map(|x| u32::try_from(x).unwrap()).collect()));
            tensor
        };
        let starts = (0..=lengths.len()).map(|n| lengths[..n].iter().sum()).collect();
        Self {
            ids: list((0..t).map(|t| t / 2).collect()), // each twice
            by_id: list((0..t).collect()),
            id_starts: list((0..=t).map(|i| (2 * i).min(t)).collect()),
            cu_seqlens: list(starts),
            positions: list(lengths.iter().flat_map(|&length| 0..length).collect()),
            targets: list((0..t).collect()),
            entries,
        }
    }
}

/// Runs all kernels on a GPU, if there is one, and says what that should be.
pub fn all(device: Option<&Device>) -> Vec<Expected> {
    let has_bf16 = device.is_none_or(|device| device.compute_capability() >= (8, 0));
    let a = if has_bf16 { DType::BF16 } else { DType::F16 };
    let batches = BATCHES.into_iter().flat_map(|lengths| {
        let mut plan = Plan::default();
        let (batch, b) = (Batch::new(&mut plan, lengths), Buffers::new(&mut plan, lengths.iter().sum(), a));
        let adds = usize::from(lengths.len() == 1);
        let mut cuda = device.map(|device| open(device, &plan, a, lengths, &batch));
        if let Some(cuda) = &mut cuda {
            cuda.workspace = Some(b.workspace);
        }
        let mut launches = Launches { cuda, adds, expected: Vec::new() };
        ends_of_a_layer(&mut launches, &batch, &b);
        products::products(&mut launches, &batch, &b);
        products::adapters(&mut launches, &batch, &b);
        attend(&mut launches, &batch, &b, lengths);
        head(&mut launches, &batch, &b);
        optimizer(&mut launches, &b, a);
        launches.expected
    });
    batches.collect()
}

fn open(device: &Device, plan: &Plan, a: DType, lengths: &[usize], batch: &Batch) -> Cuda {
    let mut cuda = Cuda::new(device, plan.bytes(), a).unwrap();
    let number = |n: usize| u32::try_from(n).unwrap();
    let tokens = number(lengths.iter().sum());
    let step = StepParams {
        tokens,
        sequences: number(lengths.len()),
        supervised: number(SUPERVISED),
        distinct_ids: tokens.div_ceil(2),
        accumulate: u32::from(lengths.len() == 1),
        ..bytemuck::Zeroable::zeroed()
    };
    cuda.write_step(0, bytemuck::bytes_of(&step)).unwrap();
    cuda.write_step(LOSS_SCALE_AT, bytemuck::bytes_of(&LossScale::fixed(1.0))).unwrap();
    for (list, entries) in &batch.entries {
        cuda.upload(*list, bytemuck::cast_slice(entries)).unwrap();
    }
    cuda
}

/// Whatever the operations take, all zero.
struct Buffers {
    wide: [Tensor; 2],
    rstd: Tensor,
    narrow: [Tensor; 2],
    qkv: [Tensor; 2],
    attended: [Tensor; 2],
    of_heads: [Tensor; 2],
    rope: [Tensor; 2],
    cache: [Tensor; 2],
    gate_up: [Tensor; 2],
    act: [Tensor; 2],
    left: Tensor,
    /// In products with 2·HIDDEN columns and fewer.
    right: Tensor,
    w_norm: Tensor,
    w_qkv: Tensor,
    w_gate_up: Tensor,
    w_down: Tensor,
    w_head: Tensor,
    gradient: Tensor,
    partials: Tensor,
    logits: Tensor,
    dlogits: Tensor,
    chunks: [Tensor; 2],
    workspace: Tensor,
    weights: [Trainable; 2],
}

impl Buffers {
    fn new(plan: &mut Plan, t: usize, a: DType) -> Self {
        let (c, f32) = (WIDTH, DType::F32);
        let weights = [true, false].map(|blockwise| trainable(plan, a, blockwise));
        let mut of = |rows, cols, dtype| plan.tensor(Category::Scratch, rows, cols, dtype);
        Self {
            wide: [(); 2].map(|()| of(t, c, f32)),
            rstd: of(1, t, f32),
            narrow: [(); 2].map(|()| of(t, c, a)),
            qkv: [(); 2].map(|()| of(t, HEADS.qkv_width(), a)),
            attended: [(); 2].map(|()| of(t, HEADS.width(), a)),
            of_heads: [(); 2].map(|()| of(t, HEADS.heads, f32)),
            rope: [(); 2].map(|()| of(t, HEADS.head_dim / 2, f32)),
            cache: [(); 2].map(|()| of(PAST + t, HEADS.kv_heads * HEADS.head_dim, a)),
            gate_up: [(); 2].map(|()| of(t, 2 * HIDDEN, a)),
            act: [(); 2].map(|()| of(t, HIDDEN, a)),
            left: of(t, RANK, a),
            right: of(2 * HIDDEN, RANK, a),
            w_norm: of(1, c, a),
            w_qkv: of(HEADS.qkv_width(), c, a),
            w_gate_up: of(2 * HIDDEN, c, a),
            w_down: of(c, HIDDEN, a),
            w_head: of(VOCABULARY, c, a),
            gradient: of(VOCABULARY, c, f32),
            partials: of(t.div_ceil(ROWS_PER_PARTIAL), c, f32),
            logits: of(SUPERVISED, VOCABULARY, f32),
            dlogits: of(SUPERVISED, VOCABULARY, a),
            chunks: [(); 2].map(|()| of(SUPERVISED, c, a)),
            workspace: of(SPLITS, HEADS.qkv_width() * c, f32),
            weights,
        }
    }
}

/// A matrix as large as that of a layer.
fn trainable(plan: &mut Plan, a: DType, blockwise: bool) -> Trainable {
    let n = WIDTH * HIDDEN;
    let mut of = |n, dtype| plan.tensor(Category::OptimizerState, 1, n, dtype);
    let moments = if blockwise {
        let (m, v) = (of(n, DType::U8), of(n, DType::U8));
        Moments::Blockwise { m, v, m_absmax: of(n / 256, DType::F32), v_absmax: of(n / 256, DType::F32) }
    } else {
        Moments::Full { m: of(n, DType::F32), v: of(n, DType::F32) }
    };
    let (master, grad) = (of(n, DType::F32), of(n, DType::F32));
    Trainable { master, working: of(n, a), grad, moments, decays: true }
}

/// Embedding and norms.
fn ends_of_a_layer(launches: &mut Launches, batch: &Batch, b: &Buffers) {
    let ([x, dx], [y, dy], t) = (b.wide, b.narrow, b.wide[0].rows);
    let (adds, cleared) = (launches.adds, VOCABULARY * (1 - launches.adds));
    let dims: &Dims = &[("A", 2), ("T", t), ("C", WIDTH), ("V", cleared), ("U", t.div_ceil(2)), ("G", adds)];
    launches.add(&[("embedding_forward", dims)], |cuda| {
        embedding::launch_forward(cuda, RUNG, batch.ids, b.w_head, x)
    });
    let lists = [batch.ids, batch.by_id, batch.id_starts];
    launches.add(&[("embedding_clear", dims), ("embedding_backward", dims)], |cuda| {
        embedding::launch_backward(cuda, RUNG, lists, dx, b.gradient, false)
    });
    launches.add(&[("rmsnorm_forward", dims)], |cuda| {
        rmsnorm::launch_forward(cuda, RUNG, x, b.w_norm, 1e-5, y, b.rstd)
    });
    let backward = RmsNormBackward {
        x,
        w: b.w_norm,
        rstd: b.rstd,
        dy,
        dx,
        dx_rounded: Some(y),
        dw: Some(b.gradient.head(1)),
        partials: b.partials,
    };
    launches.add(&[("rmsnorm_backward", dims), ("rmsnorm_backward_finish", dims)], |cuda| {
        rmsnorm::launch_backward(cuda, RUNG, &backward)
    });
    let of_bias = [("A", 2), ("T", x.rows), ("N", WIDTH)];
    launches.add(&[("bias_gradient", &of_bias), ("rmsnorm_backward_finish", dims)], |cuda| {
        bias::launch(cuda, RUNG, dy, b.gradient.head(1), b.partials)
    });
}

/// Attention both ways, and over a cache.
fn attend(launches: &mut Launches, batch: &Batch, b: &Buffers, lengths: &[usize]) {
    let ([qkv, dqkv], [out, dout], [lse, delta], t) = (b.qkv, b.attended, b.of_heads, b.wide[0].rows);
    let tiles = |length: usize| (0..length).step_by(64);
    let keys = lengths.iter().flat_map(|&n| tiles(n).map(move |first| n.min(first + 64))).sum();
    let queries = lengths.iter().flat_map(|&n| tiles(n).map(move |first| n - first)).sum();
    let seen = (0..t).map(|t| PAST + t + 1).sum();
    let Heads { heads, kv_heads, head_dim } = HEADS;
    let dims: &Dims = &[
        ("A", 2),
        ("T", t),
        ("H", heads),
        ("K", kv_heads),
        ("D", head_dim),
        ("keys", keys),
        ("queries", queries),
        ("seen", seen),
    ];
    launches.add(&[("attention_forward", dims)], |cuda| {
        attention::forward(cuda, RUNG, HEADS, batch.cu_seqlens, qkv, out, lse)
    });
    let backward = AttentionBackward { qkv, out, lse, dout, dqkv, delta };
    launches.add(&[("attention_backward_query", dims), ("attention_backward_keys", dims)], |cuda| {
        attention::backward(cuda, RUNG, HEADS, batch.cu_seqlens, batch.positions, b.rope, backward)
    });
    launches.add(&[("attention_append", dims), ("attention_cached", dims)], |cuda| {
        attention::cached(cuda, RUNG, HEADS, PAST, qkv, b.cache, out)
    });
}

/// Logits, loss and gradients of the head: a chunk of rows in use, and of the others one or more that end early.
fn head(launches: &mut Launches, batch: &Batch, b: &Buffers) {
    let ([x, dx], [x_chunk, dx_chunk], r) = (b.narrow, b.chunks, SUPERVISED);
    let rows: &Dims = &[("T", x.rows), ("R", r), ("n", 2 * WIDTH), ("A", 2), ("V", VOCABULARY)];
    let product: &Dims =
        &[("A", 2), ("T", r), ("I", WIDTH), ("O", VOCABULARY), ("G", launches.adds), ("S", 1), ("K", 0)];
    let nothing: &Dims = &["A", "T", "R", "n", "I", "O", "V", "G", "S", "K"].map(|name| (name, 0));
    let chunk = |rows, product| {
        [
            ("rows_gather", rows),
            ("linear_wide", product),
            ("cross_entropy", rows),
            ("linear_input_gradient", product),
            ("linear_weight_gradient", product),
            ("rows_scatter", rows),
        ]
    };
    let mut kernels = vec![("rows_zero", rows)];
    kernels.extend(chunk(rows, product));
    for _ in 1..x.rows.div_ceil(r) {
        kernels.extend(chunk(nothing, nothing));
    }
    kernels.push(("cross_entropy_finish", rows));
    let gradients = HeadGradients { dx, dw: Some(b.gradient), dlogits: b.dlogits, dx_chunk };
    let [losses, entropies] = [b.rstd, b.of_heads[0].reshape(1, x.rows * HEADS.heads)];
    let args = LinearCrossEntropy {
        x,
        w: b.w_head,
        losses,
        entropies,
        gradients: Some(gradients),
        x_chunk,
        logits: b.logits,
    };
    launches.add(&kernels, |cuda| {
        cross_entropy::launch(cuda, HeadRungs { rows: RUNG, products: RUNG }, [batch.targets; 2], &args)
    });
}

/// The norm of the gradients and both rules of the optimizer.
fn optimizer(launches: &mut Launches, b: &Buffers, a: DType) {
    let dims: &Dims = &[("A", a.size()), ("n", WIDTH * HIDDEN)];
    let [blockwise, full] = b.weights;
    launches.add(&[("grad_norm_partials", dims), ("grad_norm_finish", dims)], |cuda| {
        DeviceNorm::new(cuda, blockwise.grad.len())?.launch(cuda, RUNG, blockwise.grad)
    });
    for (kernel, rule, weight) in
        [("adamw_8bit", UpdateRule::Blockwise, blockwise), ("adamw", UpdateRule::Torch, full)]
    {
        launches.add(&[(kernel, dims)], |cuda| DeviceWeights::new(cuda, rule, &[weight])?.launch(cuda, RUNG));
    }
}
