//! Products of few rows at SmolLM2-135M's shapes, each with weights that are not in cache: `cargo bench --bench few -- [ROWS] [THREADS]`

use half::bf16;
use smolten::ops::linear::{self, Weight};
use smolten::ops::tile::Level;
use std::time::Instant;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let number = |i: usize, default| arguments.get(i).map_or(default, |a| a.parse().expect("a number"));
    let (t, threads) = (number(0, 1), number(1, 2));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
    pool.install(|| {
        for (inputs, outputs) in [(576, 960), (576, 576), (576, 3072), (1536, 576), (576, 49152)] {
            let layers = (300 << 20) / (2 * inputs * outputs);
            let all: Vec<bf16> =
                (0..layers * inputs * outputs).map(|i| bf16::from_f32((i % 509) as f32 / 509.0)).collect();
            let x = vec![bf16::from_f32(0.5); t * inputs];
            let mut y = vec![0.0f32; t * outputs];
            let mut times: Vec<f64> = (0..7)
                .map(|_| {
                    let start = Instant::now();
                    for w in all.chunks_exact(inputs * outputs) {
                        linear::forward_f32(Level::best(), &x, Weight::Plain(w), &mut y, inputs);
                    }
                    start.elapsed().as_secs_f64() / layers as f64
                })
                .collect();
            times.sort_by(f64::total_cmp);
            let bytes = 2.0 * (inputs * outputs) as f64;
            println!(
                "{t} x {inputs}->{outputs}: {:.1} us, {:.1} GB/s",
                times[3] * 1e6,
                bytes / times[3] / 1e9
            );
        }
    });
}
