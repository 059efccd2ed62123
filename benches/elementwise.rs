//! What is neither a matrix product nor attention, at SmolLM2-135M's shapes, in GB/s of necessary traffic beside a copy:
//! `cargo bench --bench elementwise -- [THREADS] [NAME]`
//!
//! Activations come from a ring of buffers larger than any cache near a core, as a step finds them.

use half::bf16;
use rayon::prelude::*;
use smolten::dtype::Element;
use smolten::ops::adamw::{self, AdamWConfig, AdamWScalars, Weight};
use smolten::ops::attention::Heads;
use smolten::ops::rope::{self, Table, Turn};
use smolten::ops::{adamw_8bit, bias, convert, cross_entropy, embedding, grad_norm, rmsnorm, swiglu};
use std::hint::black_box;
use std::time::Instant;

const T: usize = 1024;
const C: usize = 576;
const F: usize = 1536;
const V: usize = 49152;
/// Logits of one chunk of the head.
const CHUNK: usize = 128;
/// Weights of the optimizer's benchmarks.
const N: usize = 1 << 25;
/// Buffers of a ring.
const RING: usize = 12;
const REPEATS: usize = 7;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let threads = arguments.first().map_or(2, |a| a.parse().expect("a number of threads"));
    let only = arguments.get(1).cloned().unwrap_or_default();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
    let bench = Bench { threads, only };
    pool.install(|| {
        bench.memory();
        bench.activations::<f32>("fp32");
        bench.activations::<bf16>("bf16");
        bench.rope();
        bench.head();
        bench.embedding();
        bench.optimizer();
    });
}

struct Bench {
    threads: usize,
    only: String,
}

impl Bench {
    /// `step(i)` is the i-th of the ring; `bytes` are read and written by one of them.
    fn report(&self, name: &str, ring: usize, bytes: usize, mut step: impl FnMut(usize)) {
        if !name.contains(&self.only) {
            return;
        }
        (0..ring).for_each(&mut step);
        let mut seconds: Vec<f64> = (0..REPEATS)
            .map(|_| {
                let start = Instant::now();
                (0..ring).for_each(&mut step);
                start.elapsed().as_secs_f64() / ring as f64
            })
            .collect();
        seconds.sort_by(f64::total_cmp);
        let (median, least) = (seconds[REPEATS / 2], seconds[0]);
        println!(
            "{name:28} {} threads: median {:9.3} ms, least {:9.3} ms, {:6.1} GB/s",
            self.threads,
            median * 1e3,
            least * 1e3,
            bytes as f64 / median / 1e9
        );
    }

    fn memory(&self) {
        let (from, to, narrow) = (values::<f32>(N, 1), zeros::<f32>(N), zeros::<bf16>(N));
        self.report("copy", 1, 8 * N, |_| {
            let pieces = to.par_chunks_mut(1 << 16).zip(from.par_chunks(1 << 16));
            pieces.for_each(|(to, from)| to.copy_from_slice(from));
        });
        self.report("fill", 1, 4 * N, |_| to.par_chunks_mut(1 << 16).for_each(|to| to.fill(0.0)));
        self.report("round", 1, 6 * N, |_| convert::round(from, narrow));
        self.report("widen", 1, 6 * N, |_| drop(black_box(convert::widen(&*narrow))));
    }

    fn activations<A: Element>(&self, name: &str) {
        let (a, name) = (size_of::<A>(), |operation: &str| format!("{operation} {name}"));
        let x = ring(|i| values::<f32>(T * C, i));
        let (mut y, mut dx) = (ring(|_| zeros::<A>(T * C)), ring(|_| zeros::<f32>(T * C)));
        let (w, rstd) = (values::<A>(C, 3), zeros::<f32>(T));
        self.report(&name("rmsnorm_forward"), RING, (4 + a) * T * C, |i| {
            rmsnorm::forward(x[i], w, 1e-5, y[i], rstd);
        });
        self.report(&name("rmsnorm_backward_input"), RING, (4 + a + 8) * T * C, |i| {
            rmsnorm::backward_input(x[i], w, rstd, y[i], dx[i]);
        });
        let (dw, partials) = (zeros::<f32>(2 * F), zeros::<f32>(T / rmsnorm::ROWS_PER_PARTIAL * 2 * F));
        self.report(&name("rmsnorm_backward_weight"), RING, (4 + a) * T * C, |i| {
            rmsnorm::backward_weight(x[i], rstd, y[i], &mut dw[..C], partials, false);
        });
        let gate_up = ring(|i| values::<A>(T * 2 * F, i));
        let (mut act, mut dgate_up) = (ring(|_| zeros::<A>(T * F)), ring(|_| zeros::<A>(T * 2 * F)));
        let dact = ring(|i| values::<A>(T * F, i));
        self.report(&name("swiglu_forward"), RING, 3 * a * T * F, |i| swiglu::forward(gate_up[i], act[i], F));
        self.report(&name("swiglu_backward"), RING, 6 * a * T * F, |i| {
            swiglu::backward(gate_up[i], dact[i], act[i], dgate_up[i], F);
        });
        self.report(&name("bias_gradient"), RING, a * T * 2 * F, |i| {
            bias::gradient(gate_up[i], dw, partials, false);
        });
    }

    fn rope(&self) {
        let heads = Heads { heads: 9, kv_heads: 3, head_dim: 64 };
        let mut qkv = ring(|i| values::<f32>(T * heads.qkv_width(), i));
        let positions: Vec<u32> = (0..512).chain(0..512).collect();
        let frequencies: Vec<f64> = (0..32).map(|i| 1e5f64.powf(f64::from(i) / -32.0)).collect();
        let (cos, sin) = rope::table(&frequencies, 512);
        self.report("rope fp32", RING, 8 * T * 12 * 64, |i| {
            rope::rotate(qkv[i], heads, &positions, Table { cos: &cos, sin: &sin }, Turn::Forward);
        });
    }

    fn head(&self) {
        let mut logits: Vec<_> = (0..4).map(|i| values::<f32>(CHUNK * V, i)).collect();
        let targets: Vec<u32> = (0..128).map(|i| i * 377).collect();
        self.report("cross_entropy loss", 4, 4 * CHUNK * V, |i| {
            black_box(cross_entropy::rows(logits[i], V, &targets, None));
        });
        self.report("cross_entropy fp32", 4, 8 * CHUNK * V, |i| {
            black_box(cross_entropy::rows(logits[i], V, &targets, Some(1e-3)));
        });
        let mut narrow: Vec<_> = (0..4).map(|_| zeros::<bf16>(CHUNK * V)).collect();
        self.report("cross_entropy bf16", 4, 6 * CHUNK * V, |i| {
            black_box(cross_entropy::rows_into(logits[i], narrow[i], V, &targets, 1e-3));
        });
    }

    fn embedding(&self) {
        let (w, mut x, dw) = (values::<bf16>(V * C, 1), ring(|_| zeros::<f32>(T * C)), zeros::<f32>(V * C));
        let ids: Vec<u32> = (0..1024).map(|i| i * 40_503 % 49_152).collect();
        self.report("embedding_forward bf16", RING, 6 * T * C, |i| embedding::forward(&ids, w, x[i], C));
        let mut by_id: Vec<u32> = (0..1024).collect();
        by_id.sort_by_key(|&t| ids[t as usize]);
        let starts: Vec<u32> = (0..=1024).collect();
        for (name, add, bytes) in [("add", true, 12 * T * C), ("overwrite", false, 4 * V * C)] {
            self.report(&format!("embedding_backward {name}"), RING, bytes, |i| {
                embedding::backward(&ids, &by_id, &starts, x[i], dw, C, add);
            });
        }
    }

    fn optimizer(&self) {
        let config = AdamWConfig { lr: 1e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
        let (p, g, working) = (values::<f32>(N, 1), values::<f32>(N, 2), zeros::<bf16>(N));
        self.report("grad_norm", 1, 4 * N, |_| {
            black_box(grad_norm::sum_of_squares(g));
        });
        let (m, v) = (zeros::<f32>(N), zeros::<f32>(N));
        let scalars = AdamWScalars::adamw(&config, 10);
        self.report("adamw", 1, 28 * N, |_| {
            adamw::update(&scalars, 0.5, true, Weight::only(p), g, m, v).expect("equal lengths");
        });
        self.report("adamw, bf16 weight", 1, 30 * N, |_| {
            let weight = Weight { master: p, working };
            adamw::update(&scalars, 0.5, true, weight, g, m, v).expect("equal lengths");
        });
        let scalars = AdamWScalars::adamw_8bit(&config, 10);
        let (m_codes, v_codes) = (zeros::<u8>(N), zeros::<u8>(N));
        m_codes.fill(adamw_8bit::ZERO_CODE_M);
        let blocks = N / adamw_8bit::BLOCK;
        let (m_absmax, v_absmax) = (zeros::<f32>(blocks), zeros::<f32>(blocks));
        self.report("adamw_8bit", 1, 16 * N, |_| {
            let state = adamw_8bit::State { m_codes, m_absmax, v_codes, v_absmax };
            adamw_8bit::update(&scalars, 0.5, true, Weight::only(p), g, state).expect("equal lengths");
        });
        self.report("adamw_8bit, bf16 weight", 1, 18 * N, |_| {
            let state = adamw_8bit::State { m_codes, m_absmax, v_codes, v_absmax };
            let weight = Weight { master: p, working };
            adamw_8bit::update(&scalars, 0.5, true, weight, g, state).expect("equal lengths");
        });
    }
}

fn ring<T>(buffer: impl FnMut(u64) -> T) -> Vec<T> {
    (0..RING as u64).map(buffer).collect()
}

/// In large pages, as the engine has its buffers.
fn zeros<T: bytemuck::Pod>(n: usize) -> &'static mut [T] {
    let map = memmap2::MmapMut::map_anon((n * size_of::<T>()).next_multiple_of(2 << 20)).expect("memory");
    let _ = map.advise(memmap2::Advice::HugePage);
    let bytes: &'static mut [u8] = &mut Box::leak(Box::new(map))[..];
    &mut bytemuck::cast_slice_mut(bytes)[..n]
}

/// Uniform in [-1, 1), from a linear congruential generator.
fn values<A: Element>(n: usize, mut seed: u64) -> &'static mut [A] {
    let all = zeros(n);
    all.iter_mut().for_each(|x| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *x = A::from_f32((seed >> 40) as f32 / (1u32 << 23) as f32 - 1.0);
    });
    all
}
