//! What adapters need besides their products, and noise on the embedding, against plain Rust.

use super::engine::{Step, number, word};
use super::sample::Argument::{Buffer as At, F32, U32};
use super::sample::{Argument, Buffer, Case, Launched, Sample};
use super::small::{bytes_bf16, bytes_f32, bytes_u32, whole};

/// Rows that are planned and not in use.
const SPARE: usize = 5;

/// All of them.
pub fn samples() -> Vec<Sample> {
    let file = "kernels/adapter.cu";
    // A turn of a warp is 256 columns in a mask, and 128 in noise.
    let sizes = [(7, 264), (1, 8), (6, 1288), (0, 8), (2, 1024), (2, 768)];
    let masked = sizes.map(|(t, n)| dropout(t, n, 1 << 31)).into_iter();
    // A number is the very threshold, or the one below it, for each of a lane's columns.
    let edges = (0..8).flat_map(|k| [0, 1].map(|above| dropout(1, 8, number(SITE, 0, k) + above)));
    let noisy = [
        (7, 264, &[0, 3, 3, 4, 7][..]),
        (9, 136, &[0, 0, 1, 4, 4, 9, 9]),
        (1, 8, &[0, 1]),
        (6, 1288, &[0, 2, 6]),
        (0, 8, &[0]),
        (0, 8, &[0, 0]),
        (2, 512, &[0, 1, 2]),
        (2, 384, &[0, 2, 2]),
    ];
    let places = [(9, 16, 40, 8), (1, 1, 1, 0), (128, 1, 3, 2), (43, 3, 5, 1), (32, 8, 8, 0)];
    vec![
        Sample::new("dropout", file, 80, masked.chain(edges).collect()),
        Sample::new("embedding noise", file, 80, noisy.map(|(t, c, seqlens)| noise(t, c, seqlens)).into()),
        Sample::new("spread", file, 80, places.map(|(o, r, of, at)| spread([o, r, of, at])).into()),
        Sample::new("gather", file, 80, places.map(|(o, r, of, at)| gather([o, r, of, at])).into()),
    ]
}

fn launched(kernel: &'static str, blocks: usize, arguments: Vec<Argument>) -> Launched {
    Launched { kernel, grid: [word(blocks), 1, 1], threads: 128, shared: 0, arguments }
}

const SITE: u32 = 5;
/// Of what a mask keeps; products with it are exact.
const FACTOR: f32 = 1.25;

fn dropout(t: usize, n: usize, threshold: u32) -> Case {
    let x = whole(1, 9, word(t * n));
    let kept = |i: usize| number(SITE, word(i / n), word(i % n)) >= threshold;
    let y: Vec<f32> = x.iter().enumerate().map(|(i, x)| x * if kept(i) { FACTOR } else { 0.0 }).collect();
    let arguments = vec![At(0), At(1), At(2), U32(word(n)), U32(SITE), U32(threshold), F32(FACTOR)];
    Case {
        buffers: vec![
            Step { tokens: t, ..Step::default() }.input(),
            Buffer::input(bytes_bf16(&x)),
            Buffer::output(bytes_bf16(&y)),
        ],
        launches: vec![launched("dropout_bf16", (t + SPARE).div_ceil(4), arguments)],
    }
}

const ALPHA: f32 = 5.0;

/// Some sequences may be empty.
#[expect(clippy::cast_precision_loss, reason = "small numbers")]
fn noise(t: usize, c: usize, seqlens: &[u32]) -> Case {
    let old = whole(2, 9, word(t * c));
    let noisy = |(i, x): (usize, &f32)| {
        let (row, column) = (word(i / c), word(i % c));
        let sequence = seqlens.windows(2).find(|ends| row < ends[1]).expect("all tokens are in one");
        let scale = ALPHA / ((sequence[1] - sequence[0]) as f32 * c as f32).sqrt();
        let u = (number(u32::MAX, row, column) >> 8) as f32 * (2.0 / 16_777_216.0) - 1.0;
        x + u * scale
    };
    let x: Vec<f32> = old.iter().enumerate().map(noisy).collect();
    Case {
        buffers: vec![
            Step { tokens: t, sequences: seqlens.len() - 1, ..Step::default() }.input(),
            Buffer::input(bytes_u32(seqlens)),
            Buffer { contents: Some(bytes_f32(&old)), ..Buffer::output(bytes_f32(&x)) },
        ],
        launches: vec![launched(
            "embedding_noise",
            (t + SPARE).div_ceil(4),
            vec![At(0), At(1), F32(ALPHA), At(2), U32(word(c))],
        )],
    }
}

/// Of narrow's elements, their places in wide: `rank` of `ranks` columns, from `column` on.
fn places([outputs, rank, ranks, column]: [usize; 4]) -> impl Iterator<Item = usize> {
    (0..outputs * rank).map(move |i| i / rank * ranks + column + i % rank)
}

fn moved(kernel: &'static str, size: [usize; 4], buffers: Vec<Buffer>) -> Case {
    let [outputs, rank, ranks, column] = size;
    let elements = outputs * rank;
    let mut arguments = vec![At(0), At(1)];
    arguments.extend([elements, rank, ranks, column].map(|n| U32(word(n))));
    arguments.push(F32(FACTOR));
    Case { buffers, launches: vec![launched(kernel, elements.div_ceil(128), arguments)] }
}

fn spread(size: [usize; 4]) -> Case {
    let [outputs, rank, ranks, _] = size;
    let (narrow, old) = (whole(3, 99, word(outputs * rank)), whole(4, 99, word(outputs * ranks)));
    let mut wide = old.clone();
    places(size).zip(&narrow).for_each(|(at, x)| wide[at] = FACTOR * x);
    let wide = Buffer { contents: Some(bytes_bf16(&old)), ..Buffer::output(bytes_bf16(&wide)) };
    moved("spread_bf16", size, vec![Buffer::input(bytes_f32(&narrow)), wide])
}

fn gather(size: [usize; 4]) -> Case {
    let [outputs, _, ranks, _] = size;
    let wide = whole(4, 99, word(outputs * ranks));
    let narrow: Vec<f32> = places(size).map(|at| FACTOR * wide[at]).collect();
    moved("gather", size, vec![Buffer::input(bytes_f32(&wide)), Buffer::output(bytes_f32(&narrow))])
}
