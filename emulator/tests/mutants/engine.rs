//! The engine's kernels, and what they compute in plain Rust. Inputs are whole numbers, so that sums are exact in any
//! order; everything else is rounded as the kernels say they do.

use super::sample::Argument::{Buffer as At, F32, U32, U64};
use super::sample::{Buffer, Case, Launched, Sample};
use super::small::{bytes_bf16, bytes_f32, bytes_u32, noise, whole};

/// What changes of `StepParams` of `kernels/common.cuh`.
#[derive(Clone, Copy)]
pub struct Step {
    /// Of the micro-batch.
    pub tokens: usize,
    /// Of the micro-batch.
    pub sequences: usize,
    /// Of the micro-batch.
    pub supervised: usize,
    /// Of the micro-batch.
    pub distinct_ids: usize,
    /// Gradients are added to what is there.
    pub accumulate: bool,
    /// Steps since the loss scale changed, and after how many it grows.
    pub growth: [u32; 2],
}

impl Default for Step {
    fn default() -> Self {
        Self { tokens: 1, sequences: 1, supervised: 1, distinct_ids: 1, accumulate: false, growth: [0; 2] }
    }
}

impl Step {
    /// As it lies in memory.
    pub fn input(self) -> Buffer {
        let counts = [self.tokens, self.sequences, self.supervised, self.distinct_ids];
        let mut bytes = counts.map(|n| word(n).to_le_bytes()).concat();
        bytes.extend(u32::from(self.accumulate).to_le_bytes());
        bytes.extend(bytes_f32(&[INVERSE_DENOMINATOR, MAX_GRAD_NORM]));
        bytes.resize(NOISE_KEY_AT, 0);
        bytes.extend(bytes_u32(&NOISE_KEY));
        bytes.extend(bytes_f32(&[LOSS_SCALE]));
        bytes.extend(bytes_u32(&self.growth));
        Buffer::input(bytes)
    }
}

/// Behind the scalars of AdamW.
const NOISE_KEY_AT: usize = 60;
const LOSS_SCALE_AT: usize = NOISE_KEY_AT + 8;

/// What random numbers follow from.
const NOISE_KEY: [u32; 2] = [0x0123_4567, 0x89ab_cdef];

/// The number of a place, as `kernels/noise.cuh` has it.
pub fn number(site: u32, row: u32, column: u32) -> u32 {
    let mix = |mut x: u32| {
        x ^= x >> 16;
        x = x.wrapping_mul(0x7feb_352d);
        x ^= x >> 15;
        x = x.wrapping_mul(0x846c_a68b);
        x ^ x >> 16
    };
    let place = mix(NOISE_KEY[0] ^ site.wrapping_mul(0x9e37_79b9));
    let of_row = mix(place ^ NOISE_KEY[1] ^ row.wrapping_mul(0x85eb_ca6b));
    mix(of_row.wrapping_add(column.wrapping_mul(0x9e37_79b9)))
}

/// A small number.
pub fn word(n: usize) -> u32 {
    u32::try_from(n).expect("small")
}

fn step_params(tokens: u32, supervised: u32, accumulate: bool) -> Buffer {
    Step { tokens: tokens as usize, supervised: supervised as usize, accumulate, ..Step::default() }.input()
}

/// One over the number of positions in the loss.
pub const INVERSE_DENOMINATOR: f32 = 0.375;
/// Of all losses.
pub const LOSS_SCALE: f32 = 2.0;
const MAX_GRAD_NORM: f32 = 1.5;

/// All of them.
pub fn samples() -> Vec<Sample> {
    let sample = Sample::new;
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
    let (infinite, nan) = (Some(f64::INFINITY), Some(f64::NAN));
    let finishes = vec![
        grad_norm_finish(700, None, [0, 0]),
        grad_norm_finish(256, None, [5, 7]),
        grad_norm_finish(3, None, [6, 7]),
        grad_norm_finish(0, Some(1.0), [7, 7]),
        grad_norm_finish(3, infinite, [6, 7]),
        grad_norm_finish(3, infinite, [6, 0]),
        grad_norm_finish(3, nan, [1, 7]),
    ];
    let (norm, gradient) = ("kernels/rmsnorm.cu", "kernels/grad_norm.cu");
    vec![
        sample("rmsnorm f32", norm, 80, norms("rmsnorm_forward_f32", false)),
        sample("rmsnorm bf16", norm, 80, norms("rmsnorm_forward_bf16", true)),
        sample("rmsnorm naive", norm, 80, naive.into()),
        sample("grad_norm", gradient, 80, sums("grad_norm_partials", 8)),
        sample("grad_norm naive", gradient, 80, sums("grad_norm_partials_naive", 1)),
        sample("grad_norm finish", gradient, 80, finishes),
    ]
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
            step_params(t, 1, false),
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

/// The last sum may be infinite, or no number; then the step is skipped.
fn grad_norm_finish(chunks: u32, last: Option<f64>, growth: [u32; 2]) -> Case {
    let mut sums: Vec<f64> = noise(7).take(chunks as usize).map(f64::from).collect();
    sums.extend(last);
    let norm = sums.iter().sum::<f64>().sqrt() / f64::from(LOSS_SCALE);
    #[expect(clippy::cast_possible_truncation, reason = "rounding is what the kernel does")]
    let clip = (f64::from(MAX_GRAD_NORM) / (norm + 1e-6)).min(1.0) as f32;
    let mut out = norm.to_le_bytes().to_vec();
    out.extend((clip * (1.0 / LOSS_SCALE)).to_le_bytes());
    out.extend(u32::from(!norm.is_finite()).to_le_bytes());
    let [good, interval] = growth;
    let (factor, good) = match interval {
        0 => (1.0, good),
        _ if !norm.is_finite() => (0.5, 0),
        _ if good + 1 >= interval => (2.0, 0),
        _ => (1.0, good + 1),
    };
    let step = Step { growth, ..Step::default() }.input();
    let mut left = step.contents.clone().expect("it is an input");
    left.truncate(LOSS_SCALE_AT);
    left.extend(bytes_f32(&[LOSS_SCALE * factor]));
    left.extend(bytes_u32(&[good, interval]));
    let launched = Launched {
        kernel: "grad_norm_finish",
        grid: [1, 1, 1],
        threads: 256,
        shared: 0,
        arguments: vec![At(0), At(1), U32(word(sums.len())), At(2)],
    };
    let sums = sums.iter().flat_map(|sum| sum.to_le_bytes()).collect();
    Case {
        buffers: vec![Buffer { expected: Some(left), ..step }, Buffer::input(sums), Buffer::output(out)],
        launches: vec![launched],
    }
}
