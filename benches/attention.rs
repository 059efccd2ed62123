//! Attention at SmolLM2-135M's shape, in whole strips and in blocks, in turn:
//! `cargo bench --bench attention -- [ROWS] [LENGTH] [THREADS] [LEVEL]`

use half::bf16;
use smolten::ops::attention::{Heads, Saved, backward, forward, tiled};
use smolten::ops::rope::{Table, table};
use smolten::ops::tile::Level;
use std::time::Instant;

const HEADS: Heads = Heads { heads: 9, kv_heads: 3, head_dim: 64 };

/// Rounds of a measurement.
const ROUNDS: usize = 21;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let number = |i: usize, default| arguments.get(i).map_or(default, |a| a.parse().expect("a number"));
    let (rows, length, threads) = (number(0, 2), number(1, 512), number(2, 2));
    if let Some(name) = arguments.get(3) {
        let level = Level::ALL.into_iter().find(|l| l.name() == name).expect("a level");
        assert!(Level::limit(level), "the processor has no {name}");
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
    pool.install(|| {
        show("fp32", rows, length, times::<f32>(rows, length));
        show("bf16", rows, length, times::<bf16>(rows, length));
    });
}

fn show(dtype: &str, rows: usize, length: usize, times: [[f64; 2]; 2]) {
    let products = (rows * HEADS.heads * length * (length + 1) * HEADS.head_dim) as f64;
    for (pass, work, [strips, blocks]) in [("forward", 2.0, times[0]), ("backward", 5.0, times[1])] {
        let rate = |ms: f64| work * products / ms / 1e6;
        println!(
            "{dtype} {} {pass}: strips {strips:.3} ms ({:.0} GFLOP/s), blocks {blocks:.3} ms ({:.0} GFLOP/s)",
            Level::best().name(),
            rate(strips),
            rate(blocks)
        );
    }
}

/// Forward and backward of `rows` sequences, each in strips and in blocks, in milliseconds.
fn times<E: tiled::Operand>(rows: usize, length: usize) -> [[f64; 2]; 2] {
    let (tokens, level) = (rows * length, Level::best());
    let values = |n: usize, step: f32| -> Vec<E> {
        (0..n).map(move |i| E::from_f32((i as f32 * step).sin())).collect()
    };
    let (qkv, dout) = (values(tokens * HEADS.qkv_width(), 0.37), values(tokens * HEADS.width(), 0.73));
    let small = |n: usize| u32::try_from(n).expect("few tokens");
    let bounds: Vec<u32> = (0..=rows).map(|i| small(i * length)).collect();
    let positions: Vec<u32> = (0..rows).flat_map(|_| 0..small(length)).collect();
    let (cos, sin) = table(&[0.1; HEADS.head_dim / 2], length);
    let table = Table { cos: &cos, sin: &sin };
    let (mut out, mut dqkv) = (dout.clone(), qkv.clone());
    let (mut lse, mut delta) = (vec![0.0; tokens * HEADS.heads], vec![0.0; tokens * HEADS.heads]);
    let forwards = in_turn(|blocks| {
        if blocks {
            tiled::forward(level, &qkv, &bounds, HEADS, &mut out, &mut lse);
        } else {
            forward(&qkv, &bounds, HEADS, &mut out, &mut lse);
        }
    });
    let saved = Saved { qkv: &qkv, out: &out, lse: &lse, dout: &dout };
    let backwards = in_turn(|blocks| {
        if blocks {
            tiled::backward(level, &saved, &bounds, &positions, HEADS, table, &mut dqkv);
        } else {
            backward(&saved, &bounds, &positions, HEADS, table, &mut delta, &mut dqkv);
        }
    });
    [forwards, backwards]
}

/// Medians of both.
fn in_turn(mut f: impl FnMut(bool)) -> [f64; 2] {
    let mut times = [vec![], vec![]];
    for _ in 0..ROUNDS {
        for (blocks, times) in [false, true].into_iter().zip(&mut times) {
            let start = Instant::now();
            f(blocks);
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[ROUNDS / 2]
    })
}
