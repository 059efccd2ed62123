//! Products at SmolLM2-135M's and 360M's shapes, by layout: `cargo bench --bench product -- [bf16|fp32] [TOKENS] [THREADS]`

use half::bf16;
use smolten::dtype::Element;
use smolten::ops::linear::{self, Operand, Weight};
use smolten::ops::tile::Level;
use std::time::Instant;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let number = |i: usize, default| arguments.get(i).map_or(default, |a| a.parse().expect("a number"));
    let (t, threads) = (number(1, 1024), number(2, 2));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
    let fp32 = arguments.first().is_some_and(|a| a == "fp32");
    pool.install(|| if fp32 { products::<f32>(t) } else { products::<bf16>(t) });
}

fn products<E: Operand>(t: usize) {
    for (inputs, outputs) in [(576, 960), (576, 576), (576, 3072), (1536, 576), (960, 2560), (2560, 960)] {
        let x = values::<E>(t * inputs);
        let w = values::<E>(inputs * outputs);
        let dy = values::<E>(t * outputs);
        let y = zeros::<E>(t * outputs);
        let wide = zeros::<f32>(t * outputs);
        let dx = zeros::<E>(t * inputs);
        let dw = zeros::<f32>(inputs * outputs);
        let level = Level::best();
        let flops = 2.0 * (t * inputs * outputs) as f64;
        let act = zeros::<E>(t * outputs / 2);
        let rates = [
            rate(flops, || linear::forward(level, x, Weight::Plain(w), None, y, inputs)),
            rate(flops, || linear::forward_f32(level, x, Weight::Plain(w), wide, inputs)),
            rate(flops, || linear::forward_swiglu(level, x, Weight::Plain(w), None, y, act, inputs)),
            rate(flops, || linear::input_gradient(level, dy, w, None, dx, inputs)),
            rate(flops, || linear::weight_gradient(level, dy, x, dw, inputs, false)),
            rate(flops, || linear::weight_gradient(level, dy, x, dw, inputs, true)),
        ];
        println!(
            "{inputs}->{outputs}: x.wT {:.0}, f32 {:.0}, swiglu {:.0}; dy.w {:.0}; dyT.x {:.0}, += {:.0} GFLOP/s",
            rates[0], rates[1], rates[2], rates[3], rates[4], rates[5]
        );
    }
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

fn values<E: Element>(n: usize) -> &'static mut [E] {
    let all = zeros(n);
    all.iter_mut().enumerate().for_each(|(i, x)| *x = E::from_f32((i as f32 * 0.37).sin() * 0.2));
    all
}
