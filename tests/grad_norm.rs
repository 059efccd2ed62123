//! The gradient norm: bits against its definition written plainly, the clip factor, the skipped step.
#![expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the point")]

mod common;

use smolten::ops::grad_norm::{GradNorm, sum_of_squares};

/// The definition, one lane at a time: 256 lanes over what `term` gives, then halving.
fn by_lanes(n: usize, term: impl Fn(usize) -> f64) -> f64 {
    let mut lanes: Vec<f64> =
        (0..256).map(|l| (l..n).step_by(256).fold(0.0, |sum, i| sum + term(i))).collect();
    for s in [128, 64, 32, 16, 8, 4, 2, 1] {
        for l in 0..s {
            lanes[l] += lanes[l + s];
        }
    }
    lanes[0]
}

fn definition(g: &[f32]) -> f64 {
    let sums: Vec<f64> =
        g.chunks(4096).map(|c| by_lanes(c.len(), |i| f64::from(c[i]) * f64::from(c[i]))).collect();
    by_lanes(sums.len(), |i| sums[i])
}

fn with_threads<R: Send>(n: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(f)
}

#[test]
fn same_bits_as_the_definition_at_any_thread_count() {
    for n in [0, 1, 2, 255, 256, 257, 4095, 4096, 4097, 5000, 300 * 4096 + 3] {
        let g: Vec<f32> = common::uniform(n, 7).iter().map(|x| x * x * x * 1e3).collect();
        let want = definition(&g);
        for threads in [1, 2, 3] {
            let got = with_threads(threads, || sum_of_squares(&g));
            assert_eq!(got.to_bits(), want.to_bits(), "n = {n}, {threads} threads");
        }
        // Non-negative terms in any order of summation: n roundings at most.
        let plain: f64 = g.iter().map(|&g| f64::from(g) * f64::from(g)).sum();
        assert!((want - plain).abs() <= n as f64 * f64::EPSILON * plain);
    }
}

#[test]
fn clips_and_unscales() {
    let clip = |norm: f64| (1.0 / (norm + 1e-6)) as f32;
    assert_eq!(GradNorm::new(16.0, 1.0, 1.0), GradNorm { norm: 4.0, scale: clip(4.0), skip: 0 });
    assert_eq!(GradNorm::new(0.25, 1.0, 1.0), GradNorm { norm: 0.5, scale: 1.0, skip: 0 });
    assert_eq!(GradNorm::new(0.0, 1.0, 1.0), GradNorm { norm: 0.0, scale: 1.0, skip: 0 });
    let scale = 1024.0;
    let scaled = GradNorm::new(16.0 * f64::from(scale).powi(2), scale, 1.0);
    assert_eq!(scaled, GradNorm { norm: 4.0, scale: clip(4.0) / scale, skip: 0 });
    assert_eq!(GradNorm::new(16.0, 1.0, f64::INFINITY).scale, 1.0);
}

#[test]
fn a_gradient_that_is_not_finite_skips_the_step() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [0, 4095, 4096, 9999] {
            let mut g = vec![1.0; 10_000];
            g[at] = bad;
            assert_eq!(GradNorm::new(sum_of_squares(&g), 1.0, 1.0).skip, 1, "{bad} at {at}");
        }
    }
    let g = vec![f32::MAX; 10_000]; // the squares overflow f32 but not f64
    assert_eq!(GradNorm::new(sum_of_squares(&g), 1.0, 1.0).skip, 0);
}
