//! Attention at SmolLM2-135M's shape, bf16 in blocks against fp32: `cargo bench --bench attention -- [ROWS] [LENGTH] [THREADS]`

use half::bf16;
use smolten::dtype::Element;
use smolten::ops::attention::{Heads, Saved, backward, forward, tiled};
use smolten::ops::rope::{Table, table};
use smolten::ops::tile::Level;
use std::time::Instant;

const HEADS: Heads = Heads { heads: 9, kv_heads: 3, head_dim: 64 };

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let number = |i: usize, default| arguments.get(i).map_or(default, |a| a.parse().expect("a number"));
    let (rows, length, threads) = (number(0, 2), number(1, 512), number(2, 2));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
    pool.install(|| {
        let products = (rows * HEADS.heads * length * (length + 1) * HEADS.head_dim) as f64;
        let levels = Level::ALL.into_iter().filter(|level| level.is_available());
        let mut all = vec![("fp32".to_owned(), times::<f32>(rows, length, None))];
        all.extend(levels.map(|l| (format!("bf16 {l:?}"), times::<bf16>(rows, length, Some(l)))));
        for (name, [forward, backward]) in all {
            let rate = |products: f64, ms: f64| products / ms / 1e6;
            println!(
                "{name}: forward {forward:.3} ms ({:.0} GFLOP/s), backward {backward:.3} ms ({:.0} GFLOP/s)",
                rate(2.0 * products, forward),
                rate(5.0 * products, backward)
            );
        }
    });
}

/// Forward and backward of `rows` sequences, in blocks if a level is given, in milliseconds.
fn times<E: Element>(rows: usize, length: usize, level: Option<Level>) -> [f64; 2] {
    let tokens = rows * length;
    let values = |n: usize, step: f32| (0..n).map(move |i| E::from_f32((i as f32 * step).sin())).collect();
    let qkv: Vec<E> = values(tokens * HEADS.qkv_width(), 0.37);
    let dout: Vec<E> = values(tokens * HEADS.width(), 0.73);
    let bounds: Vec<u32> = (0..=rows).map(|i| u32::try_from(i * length).expect("few tokens")).collect();
    let positions: Vec<u32> = (0..rows).flat_map(|_| 0..u32::try_from(length).expect("few tokens")).collect();
    let (cos, sin) = table(&[0.1; HEADS.head_dim / 2], length);
    let table = Table { cos: &cos, sin: &sin };
    let mut out: Vec<E> = vec![E::from_f32(0.0); dout.len()];
    let mut dqkv: Vec<E> = vec![E::from_f32(0.0); qkv.len()];
    let (mut lse, mut delta) = (vec![0.0; tokens * HEADS.heads], vec![0.0; tokens * HEADS.heads]);
    let forward = time(|| match level {
        Some(level) => {
            let (qkv, out) = (bytemuck::cast_slice(&qkv), bytemuck::cast_slice_mut(&mut out));
            tiled::forward(level, qkv, &bounds, HEADS, out, &mut lse);
        }
        None => forward(&qkv, &bounds, HEADS, &mut out, &mut lse),
    });
    let backward = time(|| match level {
        Some(level) => {
            let [qkv, out, dout] = [&qkv, &out, &dout].map(|x| bytemuck::cast_slice(x));
            let saved = Saved { qkv, out, lse: &lse, dout };
            let dqkv = bytemuck::cast_slice_mut(&mut dqkv);
            tiled::backward(level, &saved, &bounds, &positions, HEADS, table, dqkv);
        }
        None => {
            let saved = Saved { qkv: &qkv, out: &out, lse: &lse, dout: &dout };
            backward(&saved, &bounds, &positions, HEADS, table, &mut delta, &mut dqkv);
        }
    });
    [forward, backward]
}

/// The median of fifteen.
fn time(mut f: impl FnMut()) -> f64 {
    f();
    let mut times: Vec<f64> = (0..15)
        .map(|_| {
            let start = Instant::now();
            f();
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[7]
}
