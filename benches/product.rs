//! bf16 products at SmolLM2-135M's shapes, by layout: `cargo bench --bench product -- [TOKENS] [THREADS]`

use half::bf16;
use smolten::ops::linear;
use smolten::ops::tile::Level;
use std::time::Instant;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let number = |i: usize, default| arguments.get(i).map_or(default, |a| a.parse().expect("a number"));
    let (t, threads) = (number(0, 1024), number(1, 2));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
    pool.install(|| {
        for (inputs, outputs) in [(576, 960), (576, 576), (576, 3072), (1536, 576), (960, 2560), (2560, 960)] {
            let x = values(t * inputs);
            let w = values(inputs * outputs);
            let dy = values(t * outputs);
            let mut y = vec![bf16::ZERO; t * outputs];
            let mut wide = vec![0.0f32; t * outputs];
            let mut dx = vec![bf16::ZERO; t * inputs];
            let mut dw = vec![0.0f32; inputs * outputs];
            if let Some(only) = arguments.get(2) {
                if *only != format!("{inputs}->{outputs}") {
                    continue;
                }
                let which = arguments.get(3).map_or("f", |a| a.as_str());
                let start = Instant::now();
                let mut n = 0;
                while start.elapsed().as_secs() < 4 {
                    match which {
                        "f" => linear::forward(Level::best(), &x, &w, None, &mut y, inputs),
                        "d" => linear::input_gradient(Level::best(), &dy, &w, &mut dx, inputs),
                        _ => linear::weight_gradient(Level::best(), &dy, &x, &mut dw, inputs, true),
                    }
                    n += 1;
                }
                println!("{:.0} GFLOP/s", 2.0 * (t * inputs * outputs) as f64 * n as f64 / start.elapsed().as_secs_f64() / 1e9);
                continue;
            }
            let level = Level::best();
            let flops = 2.0 * (t * inputs * outputs) as f64;
            let mut act = vec![bf16::ZERO; t * outputs / 2];
            let rates = [
                rate(flops, || linear::forward(level, &x, &w, None, &mut y, inputs)),
                rate(flops, || linear::forward_f32(level, &x, &w, &mut wide, inputs)),
                rate(flops, || linear::forward_swiglu(level, &x, &w, None, &mut y, &mut act, inputs)),
                rate(flops, || linear::input_gradient(level, &dy, &w, &mut dx, inputs)),
                rate(flops, || linear::weight_gradient(level, &dy, &x, &mut dw, inputs, false)),
                rate(flops, || linear::weight_gradient(level, &dy, &x, &mut dw, inputs, true)),
            ];
            println!("{inputs}->{outputs}: x.wT {:.0}, f32 {:.0}, swiglu {:.0}; dy.w {:.0}; dyT.x {:.0}, += {:.0} GFLOP/s",
                rates[0], rates[1], rates[2], rates[3], rates[4], rates[5]);
        }
    });
}

fn rate(flops: f64, mut f: impl FnMut()) -> f64 {
    f();
    let mut times: Vec<f64> = (0..15)
        .map(|_| {
            let start = Instant::now();
            f();
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    flops / times[7] / 1e9
}

fn values(n: usize) -> Vec<bf16> {
    (0..n).map(|i| bf16::from_f32((i as f32 * 0.37).sin() * 0.2)).collect()
}
