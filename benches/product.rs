//! bf16 products at SmolLM2-135M's shapes, by layout: `cargo bench --bench product -- [TOKENS] [THREADS]`

use half::bf16;
use smolten::ops::linear::{self, Weight};
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
            let y = zeros::<bf16>(t * outputs);
            let wide = zeros::<f32>(t * outputs);
            let dx = zeros::<bf16>(t * inputs);
            let dw = zeros::<f32>(inputs * outputs);
            if let Some(only) = arguments.get(2) {
                if *only != format!("{inputs}->{outputs}") {
                    continue;
                }
                let which = arguments.get(3).map_or("f", |a| a.as_str());
                let start = Instant::now();
                let mut n = 0;
                while start.elapsed().as_secs() < 4 {
                    match which {
                        "f" => linear::forward(Level::best(), x, Weight::Plain(w), None, y, inputs),
                        "d" => linear::input_gradient(Level::best(), dy, w, dx, inputs),
                        _ => linear::weight_gradient(Level::best(), dy, x, dw, inputs, true),
                    }
                    n += 1;
                }
                println!("{:.0} GFLOP/s", 2.0 * (t * inputs * outputs) as f64 * n as f64 / start.elapsed().as_secs_f64() / 1e9);
                continue;
            }
            let level = Level::best();
            let flops = 2.0 * (t * inputs * outputs) as f64;
            let act = zeros::<bf16>(t * outputs / 2);
            let rates = [
                rate(flops, || linear::forward(level, x, Weight::Plain(w), None, y, inputs)),
                rate(flops, || linear::forward_f32(level, x, Weight::Plain(w), wide, inputs)),
                rate(flops, || linear::forward_swiglu(level, x, Weight::Plain(w), None, y, act, inputs)),
                rate(flops, || linear::input_gradient(level, dy, w, dx, inputs)),
                rate(flops, || linear::weight_gradient(level, dy, x, dw, inputs, false)),
                rate(flops, || linear::weight_gradient(level, dy, x, dw, inputs, true)),
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

/// In large pages, as the engine has its buffers.
fn zeros<T: bytemuck::Pod>(n: usize) -> &'static mut [T] {
    let map = memmap2::MmapMut::map_anon((n * size_of::<T>()).next_multiple_of(2 << 20)).expect("memory");
    let _ = map.advise(memmap2::Advice::HugePage);
    let bytes: &'static mut [u8] = &mut Box::leak(Box::new(map))[..];
    &mut bytemuck::cast_slice_mut(bytes)[..n]
}

fn values(n: usize) -> &'static mut [bf16] {
    let all = zeros(n);
    all.iter_mut().enumerate().for_each(|(i, x)| *x = bf16::from_f32((i as f32 * 0.37).sin() * 0.2));
    all
}
