//! The engine's kernels, and what they compute in plain Rust. Inputs are whole numbers, so that sums are exact in any
//! order; everything else is rounded as the kernels say they do.

use super::sample::Argument::{Buffer as At, F32, U32, U64};
use super::sample::{Buffer, Case, Launched, Sample};
use super::small::{bytes_bf16, bytes_f32, whole};

/// `StepParams` of `kernels/common.cuh`, up to the scalars of AdamW.
fn step_params(tokens: u32, accumulate: bool) -> Vec<u8> {
    let mut bytes = [tokens, 1, 1, 1, u32::from(accumulate)].map(u32::to_le_bytes).concat();
    bytes.extend(bytes_f32(&[1.0, LOSS_SCALE, MAX_GRAD_NORM]));
    bytes.resize(64, 0);
    bytes
}

const LOSS_SCALE: f32 = 2.0;
const MAX_GRAD_NORM: f32 = 1.5;

/// All of them.
pub fn samples() -> Vec<Sample> {
    let sample = |name, file, target, cases| Sample { name, file, target, stage: None, cases };
    let norms = |kernel, threads, rows, bf16| {
        [(6, 576), (5, 1288), (3, 8)].map(|(t, c)| rmsnorm(kernel, threads, rows, bf16, t, c)).into()
    };
    let norm = "kernels/rmsnorm.cu";
    let sums = |kernel, threads, chunks| {
        [4096 * 2 + 1003, 4096 * 9, 1].map(|n| grad_norm(kernel, threads, chunks, n)).into()
    };
    let gradient = "kernels/grad_norm.cu";
    let products = |product| [(133, 72, 104), (8, 16, 40), (128, 8, 32)].map(|(t, o, i)| linear(product, t, o, i));
    let gemm = "kernels/gemm.cu";
    vec![
        sample("rmsnorm f32", norm, 80, norms("rmsnorm_forward_f32", 128, 4, false)),
        sample("rmsnorm bf16", norm, 80, norms("rmsnorm_forward_bf16", 128, 4, true)),
        sample("rmsnorm naive", norm, 80, norms("rmsnorm_forward_naive_f32", 128, 128, false)),
        sample("grad_norm", gradient, 80, sums("grad_norm_partials", 256, 8)),
        sample("grad_norm naive", gradient, 80, sums("grad_norm_partials_naive", 256, 1)),
        sample("gemm residual", gemm, 80, products(Product::Residual).into()),
        sample("gemm gradient", gemm, 80, products(Product::WeightGradient).into()),
        sample("gemm Turing", gemm, 75, products(Product::Linear).into()),
    ]
}

/// The buffers hold what the step's tokens need and no more.
fn rmsnorm(kernel: &'static str, threads: u32, rows: u32, bf16: bool, t: u32, c: u32) -> Case {
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
        threads,
        shared: 0,
        arguments: vec![At(0), At(1), At(2), F32(eps), At(3), At(4), U32(c)],
    };
    Case {
        buffers: vec![
            Buffer::input(step_params(t, false)),
            Buffer::input(bytes_f32(&x)),
            Buffer::input(bytes(&w)),
            Buffer::output(bytes(&y)),
            Buffer::output(bytes_f32(&rstd)),
        ],
        launches: vec![launched],
    }
}

fn grad_norm(kernel: &'static str, threads: u32, chunks_per_block: u32, n: u32) -> Case {
    let g = whole(3, 9, n);
    let norm = g.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>().sqrt() / f64::from(LOSS_SCALE);
    #[expect(clippy::cast_possible_truncation, reason = "rounding is what the kernel does")]
    let clip = (f64::from(MAX_GRAD_NORM) / (norm + 1e-6)).min(1.0) as f32;
    let mut out = norm.to_le_bytes().to_vec();
    out.extend((clip * (1.0 / LOSS_SCALE)).to_le_bytes());
    out.extend(0_u32.to_le_bytes());
    let chunks = n.div_ceil(4096);
    let partials = Launched {
        kernel,
        grid: [chunks.div_ceil(chunks_per_block), 1, 1],
        threads,
        shared: 0,
        arguments: vec![At(0), U64(u64::from(n)), At(1)],
    };
    let finish = Launched {
        kernel: "grad_norm_finish",
        grid: [1, 1, 1],
        threads: 256,
        shared: 0,
        arguments: vec![At(2), At(1), U32(chunks), At(3)],
    };
    Case {
        buffers: vec![
            Buffer::input(bytes_f32(&g)),
            Buffer { bytes: 8 * chunks as usize, ..Buffer::default() },
            Buffer::input(step_params(1, false)),
            Buffer::output(out),
        ],
        launches: vec![partials, finish],
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Product {
    Linear,
    Residual,
    WeightGradient,
}

fn bytes_f16(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect()
}

/// C [M, N] = A [M, K] B [K, N] by one of the kernels. The gradient accumulates into what is there.
fn linear(product: Product, t: u32, o: u32, i: u32) -> Case {
    let ((m, n, k), kernel) = match product {
        Product::Linear => ((t, o, i), "linear_f16"),
        Product::Residual => ((t, o, i), "linear_residual_bf16"),
        Product::WeightGradient => ((o, i, t), "linear_weight_gradient_bf16"),
    };
    let (a, b, old) = (whole(4, 4, m * k), whole(5, 4, k * n), whole(6, 99, m * n));
    let gradient = product == Product::WeightGradient;
    let place = |own, all, of_k| if gradient { of_k * all + own } else { own * k + of_k };
    let element = |at: u32| {
        let (row, column) = (at / n, at % n);
        let term = |of_k: u32| a[place(row, m, of_k) as usize] * b[place(column, n, of_k) as usize];
        let sum: f32 = (0..k).map(term).sum();
        if product == Product::Linear { sum } else { sum + old[at as usize] }
    };
    let c: Vec<f32> = (0..m * n).map(element).collect();
    let elements = if product == Product::Linear { bytes_f16 } else { bytes_bf16 };
    let old = Buffer::input(bytes_f32(&old));
    let c = match product {
        Product::Linear => Buffer::output(bytes_f16(&c)),
        Product::Residual => Buffer::output(bytes_f32(&c)),
        Product::WeightGradient => Buffer { contents: old.contents.clone(), ..Buffer::output(bytes_f32(&c)) },
    };
    let launched = Launched {
        kernel,
        grid: [n.div_ceil(128), m.div_ceil(128) + 1, 1],
        threads: 128,
        shared: 0,
        arguments: vec![At(0), At(1), At(2), At(3), At(4), U32(i), U32(o)],
    };
    Case {
        buffers: vec![
            Buffer::input(step_params(t, true)),
            Buffer::input(elements(&a)),
            Buffer::input(elements(&b)),
            old,
            c,
        ],
        launches: vec![launched],
    }
}
