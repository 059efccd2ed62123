//! The optimizer step on one thread: nanoseconds per element, and the bytes it moves per second.

use smolten::ops::adamw::{self, AdamWConfig, AdamWScalars, Weight};
use smolten::ops::{adamw_8bit, grad_norm};
use std::hint::black_box;
use std::time::Instant;

const N: usize = 1 << 24;
const REPEATS: usize = 7;

fn main() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("one thread");
    pool.install(|| {
        let config = AdamWConfig { lr: 1e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
        let (mut p, g) = (values(1), values(2));
        let (mut m, mut v) = (vec![0.0; N], vec![0.0; N]);
        report("grad_norm", 4, || {
            black_box(grad_norm::sum_of_squares(&g));
        });
        let scalars = AdamWScalars::adamw(&config, 10);
        report("adamw", 28, || {
            adamw::update(&scalars, 0.5, true, Weight::only(&mut p), &g, &mut m, &mut v)
                .expect("equal lengths")
        });
        let scalars = AdamWScalars::adamw_8bit(&config, 10);
        let (mut mc, mut vc) = (vec![adamw_8bit::ZERO_CODE_M; N], vec![0; N]);
        let (mut ma, mut va) = (vec![0.0; N / adamw_8bit::BLOCK], vec![0.0; N / adamw_8bit::BLOCK]);
        report("adamw_8bit", 16, || {
            let state = adamw_8bit::State {
                m_codes: &mut mc,
                m_absmax: &mut ma,
                v_codes: &mut vc,
                v_absmax: &mut va,
            };
            adamw_8bit::update(&scalars, 0.5, true, Weight::only(&mut p), &g, state).expect("equal lengths");
        });
    });
}

/// Bytes per element: read and written, absmax left out.
fn report(name: &str, bytes: usize, mut step: impl FnMut()) {
    step();
    let mut ns: Vec<f64> = (0..REPEATS)
        .map(|_| {
            let start = Instant::now();
            step();
            start.elapsed().as_secs_f64() * 1e9 / N as f64
        })
        .collect();
    ns.sort_by(f64::total_cmp);
    let median = ns[REPEATS / 2];
    println!(
        "{name} cpu 1 thread N={N}: median {median:.2} ns, min {:.2} ns per element, {:.1} GB/s",
        ns[0],
        bytes as f64 / median
    );
}

/// Uniform in [-1, 1), from a linear congruential generator.
fn values(mut seed: u64) -> Vec<f32> {
    let next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(N).collect()
}
