//! The engine's kernels, and what they compute in plain Rust. Inputs are whole numbers, so that sums are exact in any
//! order; everything else is rounded as the kernels say they do.

use super::sample::Argument::{Buffer as At, F32, U32, U64};
use super::sample::{Argument, Buffer, Case, Launched, Sample};
use super::small::{bytes_bf16, bytes_f16, bytes_f32, noise, whole};

/// `StepParams` of `kernels/common.cuh`, up to the scalars of AdamW.
fn step_params(tokens: u32, supervised: u32, accumulate: bool) -> Vec<u8> {
    let mut bytes = [tokens, 1, supervised, 1, u32::from(accumulate)].map(u32::to_le_bytes).concat();
    bytes.extend(bytes_f32(&[1.0, LOSS_SCALE, MAX_GRAD_NORM]));
    bytes.resize(64, 0);
    bytes
}

const LOSS_SCALE: f32 = 2.0;
const MAX_GRAD_NORM: f32 = 1.5;

/// All of them.
pub fn samples() -> Vec<Sample> {
    let sample = |name, file, target, cases| Sample { name, file, target, stage: None, cases };
    // A turn of a warp is 256 columns, and four turns are unrolled: all remainders of both.
    let norms = |kernel, bf16| {
        [(6, 576), (5, 1288), (4, 1024), (4, 768), (3, 8)].map(|(t, c)| rmsnorm(kernel, 4, bf16, t, c)).into()
    };
    let naive = [(130, 7), (2, 1), (2, 2), (2, 3), (2, 4), (2, 5), (3, 8), (2, 577)]
        .map(|(t, c)| rmsnorm("rmsnorm_forward_naive_f32", 128, false, t, c));
    // The end falls on each of the four elements of a load, in each half of two rows.
    let ends = [0, 128, 256, 384].map(|half| [1, 2, 3, 4].map(|k| half + k)).concat();
    let sums = |kernel, per_block| {
        [9195, 8192].iter().chain(&ends).map(|&n| grad_norm(kernel, per_block, n)).collect()
    };
    let (norm, gradient, gemm) = ("kernels/rmsnorm.cu", "kernels/grad_norm.cu", "kernels/gemm.cu");
    vec![
        sample("rmsnorm f32", norm, 80, norms("rmsnorm_forward_f32", false)),
        sample("rmsnorm bf16", norm, 80, norms("rmsnorm_forward_bf16", true)),
        sample("rmsnorm naive", norm, 80, naive.into()),
        sample("grad_norm", gradient, 80, sums("grad_norm_partials", 8)),
        sample("grad_norm naive", gradient, 80, sums("grad_norm_partials_naive", 1)),
        sample("grad_norm finish", gradient, 80, [700, 256, 3].map(grad_norm_finish).into()),
        sample("gemm residual", gemm, 80, products(Product::Residual)),
        sample("gemm gradient", gemm, 80, products(Product::WeightGradient)),
        sample("gemm Turing", gemm, 75, products(Product::Linear)),
    ]
}

/// A whole tile, and more steps than stages; then all remainders of a tile, and several of them.
fn products(product: Product) -> Vec<Case> {
    let mut cases = vec![linear(product, 125, 128, 104, true, TOKENS)];
    let (outputs, inputs) = ([8, 16, 24, 32, 40, 48, 56, 64, 72, 104], [8, 40, 72, 104]);
    cases.extend((0..24).map(|j| {
        let t = u32::try_from(4 * j + 2).expect("small");
        linear(product, t, outputs[j % 10], inputs[(j + j / 4) % 4], j % 2 == 0, TOKENS)
    }));
    let others = [
        (122, 104, 40),
        (70, 72, 8),
        (74, 72, 40),
        (82, 104, 8),
        (100, 104, 72),
        (1, 8, 8),
        (0, 8, 8),
        (133, 136, 16),
    ];
    cases.extend(others.map(|(t, o, i)| linear(product, t, o, i, true, TOKENS)));
    // Rows of a chunk of the supervised ones, first and later chunks, none left; all rows of the plan; nothing to add.
    cases.push(linear(product, 0, 8, 8, false, TOKENS));
    cases.extend(
        [(6, 0), (0, 0), (6, 1), (0, 1), (7, 2), (6, PLANNED)]
            .map(|(t, first)| linear(product, t, 128, 104, false, first)),
    );
    cases
}

/// The buffers hold what the step's tokens need and no more.
fn rmsnorm(kernel: &'static str, rows: u32, bf16: bool, t: u32, c: u32) -> Case {
    let (x, w, eps) = (whole(1, 9, t * c), whole(2, 9, c), 1e-5_f32);
    let (mut y, mut rstd) = (Vec::new(), Vec::new());
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    for row in x.chunks_exact(c as usize) {
        let squares: f32 = row.iter().map(|x| x * x).sum();
        let r = 1.0 / (squares / c as f32 + eps).sqrt();
        y.extend(row.iter().zip(&w).map(|(x, w)| w * (x * r)));
        rstd.push(r);
    }
    let bytes = if bf16 { bytes_bf16 } else { bytes_f32 };
    let launched = Launched {
        kernel,
        grid: [t.div_ceil(rows) + 1, 1, 1],
        threads: 128,
        shared: 0,
        arguments: vec![At(0), At(1), At(2), F32(eps), At(3), At(4), U32(c)],
    };
    Case {
        buffers: vec![
            Buffer::input(step_params(t, 1, false)),
            Buffer::input(bytes_f32(&x)),
            Buffer::input(bytes(&w)),
            Buffer::output(bytes(&y)),
            Buffer::output(bytes_f32(&rstd)),
        ],
        launches: vec![launched],
    }
}

fn grad_norm(kernel: &'static str, chunks_per_block: u32, n: u32) -> Case {
    let g = whole(3, 9, n);
    let squares = |chunk: &[f32]| chunk.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>();
    let sums: Vec<u8> = g.chunks(4096).flat_map(|chunk| squares(chunk).to_le_bytes()).collect();
    let launched = Launched {
        kernel,
        grid: [n.div_ceil(4096 * chunks_per_block), 1, 1],
        threads: 256,
        shared: 0,
        arguments: vec![At(0), U64(u64::from(n)), At(1)],
    };
    Case { buffers: vec![Buffer::input(bytes_f32(&g)), Buffer::output(sums)], launches: vec![launched] }
}

fn grad_norm_finish(chunks: u32) -> Case {
    let sums: Vec<f64> = noise(7).take(chunks as usize).map(f64::from).collect();
    let norm = sums.iter().sum::<f64>().sqrt() / f64::from(LOSS_SCALE);
    #[expect(clippy::cast_possible_truncation, reason = "rounding is what the kernel does")]
    let clip = (f64::from(MAX_GRAD_NORM) / (norm + 1e-6)).min(1.0) as f32;
    let mut out = norm.to_le_bytes().to_vec();
    out.extend((clip * (1.0 / LOSS_SCALE)).to_le_bytes());
    out.extend(0_u32.to_le_bytes());
    let launched = Launched {
        kernel: "grad_norm_finish",
        grid: [1, 1, 1],
        threads: 256,
        shared: 0,
        arguments: vec![At(0), At(1), U32(chunks), At(2)],
    };
    let sums = sums.iter().flat_map(|sum| sum.to_le_bytes()).collect();
    Case {
        buffers: vec![Buffer::input(step_params(1, 1, false)), Buffer::input(sums), Buffer::output(out)],
        launches: vec![launched],
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Product {
    Linear,
    Residual,
    WeightGradient,
}

/// C [M, N] = A [M, K] B [K, N] by one of the kernels. The gradient is added to what is there, or nothing is there.
/// `LinearArgs` of `kernels/gemm.cu`: step, a, b, c, residual; positions, cosines, sines, gate and up, act, which these
/// products do not have; sizes, rows of the plan, where they begin, no heads; no partial sums; bias.
fn linear_args(inputs: u32, outputs: u32, rows: u32, first: i32, bias: Argument) -> Vec<Argument> {
    let mut arguments = vec![At(0), At(1), At(2), At(4), At(3)];
    arguments.extend([0; 5].map(U64));
    arguments.extend([inputs, outputs, rows, first.cast_unsigned(), 0, 0].map(U32));
    arguments.extend([U64(0), U32(1), U32(0), bias]);
    arguments
}

/// `first` of `LinearArgs` where all tokens count, and where all rows of the plan do.
const TOKENS: i32 = -1;
const PLANNED: i32 = -2;

/// A product over `t` rows.
fn linear(product: Product, t: u32, o: u32, i: u32, accumulate: bool, first: i32) -> Case {
    let ((m, n, k), kernel) = match product {
        Product::Linear => ((t, o, i), "linear_f16"),
        Product::Residual => ((t, o, i), "linear_residual_bf16"),
        Product::WeightGradient => ((o, i, t), "linear_weight_gradient_bf16"),
    };
    let (a, b, old) = (whole(4, 4, m * k), whole(5, 4, k * n), whole(6, 99, m * n));
    let bias = if product == Product::Residual { whole(7, 4, n) } else { vec![0.0; n as usize] };
    let gradient = product == Product::WeightGradient;
    let accumulates = gradient && (accumulate || first > 0);
    let adds = product == Product::Residual || accumulates;
    let place = |own, all, of_k| if gradient { of_k * all + own } else { own * k + of_k };
    let element = |at: u32| {
        let (row, column) = (at / n, at % n);
        let term = |of_k: u32| a[place(row, m, of_k) as usize] * b[place(column, n, of_k) as usize];
        let sum = (0..k).map(term).fold(0.0, |sum, x| sum + x); // `sum` of nothing would be -0
        let sum = sum + bias[column as usize];
        if adds { sum + old[at as usize] } else { sum }
    };
    let c: Vec<f32> = (0..m * n).map(element).collect();
    let elements = if product == Product::Linear { bytes_f16 } else { bytes_bf16 };
    let old = Buffer::input(bytes_f32(&old));
    let contents = old.contents.clone().filter(|_| accumulates);
    let c = if product == Product::Linear { bytes_f16(&c) } else { bytes_f32(&c) };
    let c = Buffer { contents, ..Buffer::output(c) };
    // The count that does not apply is another.
    let (tokens, supervised) = match first {
        TOKENS => (t, 1),
        PLANNED => (t + 1, 1),
        _ => (t + 3, t + first.unsigned_abs()),
    };
    let launched = Launched {
        kernel,
        grid: [n.div_ceil(128), m.div_ceil(128) + 1, 1],
        threads: 128,
        shared: 0,
        arguments: linear_args(i, o, t, first, if product == Product::Residual { At(5) } else { U64(0) }),
    };
    Case {
        buffers: vec![
            Buffer::input(step_params(tokens, supervised, accumulate)),
            Buffer::input(elements(&a)),
            Buffer::input(elements(&b)),
            old,
            c,
            Buffer::input(bytes_bf16(&bias)),
        ],
        launches: vec![launched],
    }
}
