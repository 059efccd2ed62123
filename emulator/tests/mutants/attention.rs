//! Attention, forward, backward and over a cache, against its formulas in f64.

use super::engine::{Step, word};
use super::near::{Element, Near, TINY};
use super::sample::Argument::{Buffer as At, U32};
use super::sample::{Argument, Buffer, Case, Launched, Sample};
use super::small::{bytes_f32, bytes_u32, noise, whole};
use std::ops::Range;

/// Bounds the relative error of what is done in f32: exponents, which are below 2^8 and off by four roundings, and sums of
/// at most 400 numbers.
pub const F32: f64 = 1.0 / (1 << 14) as f64;

/// The same for the logarithm of a sum, which grows with it.
const OF_LOG: f64 = 1.0 / (1 << 17) as f64;

/// What nobody writes over.
pub const OLD: f32 = 77.0;

/// Pointers of `AttentionArgs` of `kernels/attention.cuh`, each to the buffer of its number.
const POINTERS: usize = 13;
const QKV: usize = 5;
const OUT: usize = 6;
const LSE: usize = 7;
const KEYS: usize = 11;
const VALUES: usize = 12;

/// A problem's size, and how large the largest elements of q and k are.
#[derive(Clone, Copy)]
pub struct Shape {
    pub element: Element,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub lengths: &'static [usize],
    pub loud: f32,
}

/// A kernel over tiles, of which the instantiation for heads of 64 is mutated. Three tiles; grouped heads; scores so far
/// apart that only the very maximum keeps their exponentials finite; ends in each part of a tile; nothing at all; and a
/// head of another width.
pub fn over_tiles(name: &'static str, kernel: &'static str, element: Element, of: OfShape) -> Sample {
    let one = [1, 1, 64];
    let sizes: [([usize; 3], &[usize], f32); 13] = [
        (one, &[130, 0, 1], 4.0),
        ([4, 2, 64], &[6, 1], 4.0),
        (one, &[21], 4.0),
        (one, &[41], 4.0),
        (one, &[61], 4.0),
        (one, &[], 4.0),
        ([1, 1, 32], &[3], 4.0),
        (one, &[70], 4.0),
        (one, &[85], 4.0),
        (one, &[105], 4.0),
        (one, &[125], 4.0),
        ([2, 1, 64], &[128], 32.0),
        ([2, 1, 64], &[61], 32.0),
    ];
    let case = |([heads, kv_heads, head_dim], lengths, loud): ([usize; 3], _, _)| {
        of(kernel, &Shape { element, heads, kv_heads, head_dim, lengths, loud })
    };
    let backwards = kernel.contains("backward");
    let file = if backwards { "kernels/attention_backward.cu" } else { "kernels/attention.cu" };
    let target = if element == Element::F16 { 75 } else { 80 };
    Sample { kept: Some(["_of<E, ", "64>"]), ..Sample::new(name, file, target, sizes.map(case).into()) }
}

/// A kernel's case.
type OfShape = fn(&'static str, &Shape) -> Case;

/// All of them but those of the backward pass.
pub fn samples() -> Vec<Sample> {
    let cache =
        |(head_dim, kv_heads, past, new, places)| cached(head_dim, kv_heads, [past, new, places], 4.0);
    let caches = [
        (64, 2, 127, 3, 130),
        (24, 1, 200, 1, 201),
        (128, 4, 0, 2, 3),
        (8, 2, 300, 3, 302),
        (72, 2, 5, 1, 5),
        (48, 2, 6, 1, 7),
        (128, 16, 1, 1, 3), // more elements of a row than threads take at once
    ];
    let mut caches: Vec<Case> = caches.map(cache).into();
    caches.push(cached(128, 2, [130, 9, 139], 48.0));
    vec![
        over_tiles("attention", "attention_forward_bf16", Element::Bf16, forward),
        over_tiles("attention Turing", "attention_forward_f16", Element::F16, forward),
        Sample::new("attention cached", "kernels/attention.cu", 80, caches),
    ]
}

/// What the elements of a head are like.
#[derive(Clone, Copy)]
pub struct Loudness {
    /// Largest of the others, in eighths.
    pub others: u32,
    /// How many of eight others are zero.
    pub zeros: u32,
    /// One element of each row: in the first 32 rows, and by how much it grows every 32 rows, over and over up to 160.
    pub loud: [f32; 2],
    /// How many columns further the next row has it.
    pub step: usize,
}

/// Multiples of an eighth, `[rows, heads, head_dim]`. Each row is loud in a column of its own, which a sum with a row too
/// many or too few shows.
pub fn activations(seed: u32, size: [usize; 3], of: impl Fn(usize) -> Loudness) -> Vec<f32> {
    let [rows, heads, head_dim] = size;
    let element = |(i, n): (usize, u32)| {
        let (row, head, column) = (i / head_dim / heads, i / head_dim % heads, i % head_dim);
        let Loudness { others, zeros, loud, step } = of(head);
        if column == (row * step + 5 * head) % head_dim {
            return loud[0] + loud[1] * [0.0, 1.0, 2.0, 3.0, 4.0][row / 32 % 5];
        }
        let (sign, is_zero) = (n % 2 == 0, n / 2 % 8 < zeros);
        let magnitude = if is_zero { 0 } else { n / 16 % others + 1 };
        if sign { EIGHTHS[magnitude as usize] } else { -EIGHTHS[magnitude as usize] }
    };
    noise(seed).take(rows * heads * head_dim).enumerate().map(element).collect()
}

const EIGHTHS: [f32; 9] = [0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0];

pub fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// q, k and v of all tokens.
pub struct Problem {
    pub shape: Shape,
    starts: Vec<usize>,
    /// `[T, H + 2K, D]`.
    pub qkv: Vec<f32>,
}

impl Problem {
    pub fn new(shape: &Shape) -> Self {
        let starts: Vec<usize> = (0..=shape.lengths.len()).map(|s| shape.lengths[..s].iter().sum()).collect();
        let (queries, keys) = (shape.heads, shape.heads + shape.kv_heads);
        let scored = |loud, step| Loudness { others: 8, zeros: 0, loud, step };
        let of = |head| match head {
            _ if head < queries => scored([shape.loud, 0.0], 5),
            _ if head < keys => scored([shape.loud, 1.0], 3),
            _ => Loudness { others: 3, zeros: 6, loud: [8.0, 0.0], step: 3 },
        };
        let size = [starts[shape.lengths.len()], keys + shape.kv_heads, shape.head_dim];
        Self { shape: *shape, starts, qkv: activations(1, size, of) }
    }

    pub fn tokens(&self) -> usize {
        self.starts[self.shape.lengths.len()]
    }

    /// Heads of q, of k and of v.
    pub fn slots(&self) -> usize {
        self.shape.heads + 2 * self.shape.kv_heads
    }

    pub fn head(&self, t: usize, slot: usize) -> &[f32] {
        let d = self.shape.head_dim;
        &self.qkv[(t * self.slots() + slot) * d..][..d]
    }

    /// Among the heads of q, k and v, those of k and v that go with head h of q.
    pub fn key_and_value(&self, h: usize) -> [usize; 2] {
        let Shape { heads, kv_heads, .. } = self.shape;
        let kv = h / (heads / kv_heads);
        [heads + kv, heads + kv_heads + kv]
    }

    pub fn first_of(&self, t: usize) -> usize {
        self.starts.iter().copied().filter(|&start| start <= t).max().expect("0 is among them")
    }

    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    pub fn scale(&self) -> f64 {
        1.0 / (self.shape.head_dim as f64).sqrt()
    }

    fn scores(&self, t: usize, h: usize) -> Vec<f64> {
        let [key, _] = self.key_and_value(h);
        let score = |j| dot(self.head(t, h), self.head(j, key)) * self.scale();
        (self.first_of(t)..=t).map(score).collect()
    }

    /// `out` and `lse` of some tokens. The weights are rounded, and the quotient.
    pub fn forward(&self, rows: Range<usize>) -> [Near; 2] {
        let Shape { element, heads, head_dim, .. } = self.shape;
        let [mut out, mut lse] = [element, Element::F32].map(Near::empty);
        for (t, h) in rows.flat_map(|t| (0..heads).map(move |h| (t, h))) {
            let (scores, [_, value]) = (self.scores(t, h), self.key_and_value(h));
            let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|s| (s - highest).exp()).sum();
            let exact = highest + total.ln();
            lse.push(exact, OF_LOG * (1.0 + exact.abs()));
            for c in 0..head_dim {
                let (mut sum, mut loud, mut all) = (0.0, 0.0, 0.0);
                for (j, score) in (self.first_of(t)..).zip(&scores) {
                    let (p, v) = ((score - highest).exp() / total, f64::from(self.head(j, value)[c]));
                    (sum, loud, all) = (sum + p * v, loud + p * v.abs(), all + v.abs());
                }
                out.push(sum, loud * (2.0 * element.unit() + F32) + (all + 1.0) * TINY);
            }
        }
        [out, lse]
    }

    /// What stands for cosines and sines, by position.
    pub fn angles(&self) -> [Vec<f32>; 2] {
        let longest = self.shape.lengths.iter().copied().max().unwrap_or(0);
        [2, 3].map(|seed| {
            let numbers = whole(seed, 4, word(longest * self.shape.head_dim / 2));
            numbers.iter().map(|x| x / 4.0).collect()
        })
    }

    /// Buffers that all kernels have.
    pub fn buffers(&self, tokens: usize) -> Vec<Buffer> {
        let positions: Vec<u32> = (0..self.tokens()).map(|t| word(t - self.first_of(t))).collect();
        let [cos, sin] = self.angles().map(|numbers| Buffer::input(bytes_f32(&numbers)));
        let starts: Vec<u32> = self.starts.iter().map(|&start| word(start)).collect();
        let step = Step { tokens, sequences: self.shape.lengths.len(), ..Step::default() };
        let mut buffers = vec![
            step.input(),
            Buffer::input(bytes_u32(&starts)),
            Buffer::input(bytes_u32(&positions)),
            cos,
            sin,
            Buffer::input(self.shape.element.bytes(&self.qkv)),
        ];
        buffers.resize_with(POINTERS, Buffer::default);
        buffers
    }

    /// `past` and `capacity` of the cache.
    pub fn launched(&self, kernel: &'static str, grid: [usize; 2], cache: [usize; 2]) -> Launched {
        let Shape { heads, kv_heads, head_dim, .. } = self.shape;
        let mut arguments: Vec<Argument> = (0..POINTERS).map(At).collect();
        arguments.extend([heads, kv_heads, head_dim, cache[0], cache[1], 0].map(|n| U32(word(n))));
        Launched { kernel, grid: [word(grid[0]), word(grid[1]), 1], threads: 128, shared: 0, arguments }
    }
}

/// Rows that are planned and not in use.
const SPARE: usize = 70;

/// Blocks for so many heads, as the engine launches them.
pub fn grid(problem: &Problem, heads: usize) -> [usize; 2] {
    [(problem.tokens() + SPARE) / 64 + problem.shape.lengths.len() + 1, heads]
}

fn forward(kernel: &'static str, shape: &Shape) -> Case {
    let problem = Problem::new(shape);
    let mut buffers = problem.buffers(problem.tokens());
    let [out, lse] = problem.forward(0..problem.tokens());
    buffers[OUT] = Buffer::output_near(out);
    buffers[LSE] = Buffer::output_near(lse);
    let launched = problem.launched(kernel, grid(&problem, shape.heads), [0, 0]);
    Case { buffers, launches: vec![launched] }
}

/// `new` tokens behind `past` ones in a cache of `places`, which may be too few.
fn cached(head_dim: usize, kv_heads: usize, [past, new, places]: [usize; 3], loud: f32) -> Case {
    let element = Element::F16;
    let lengths: &'static [usize] = vec![past + new].leak();
    let heads = kv_heads.max(4);
    let shape = Shape { element, heads, kv_heads, head_dim, lengths, loud };
    let problem = Problem::new(&shape);
    let mut buffers = problem.buffers(new);
    let (width, end) = (problem.slots() * head_dim, places.min(past + new));
    buffers[QKV] = Buffer::input(element.bytes(&problem.qkv[past * width..]));
    for (slot, of) in [(heads, KEYS), (heads + kv_heads, VALUES)] {
        let row = |t| &problem.qkv[t * width + slot * head_dim..][..kv_heads * head_dim];
        let mut all: Vec<f32> = (0..end).flat_map(row).copied().collect();
        all.resize(places * kv_heads * head_dim, f32::NAN);
        let mut old = all.clone();
        old[past * kv_heads * head_dim..].fill(f32::NAN);
        let contents = Some(element.bytes(&old));
        buffers[of] = Buffer { contents, ..Buffer::output(element.bytes(&all)) };
    }
    let [mut out, _] = problem.forward(past..end);
    let untouched = vec![OLD; new * heads * head_dim];
    out.values.resize(untouched.len(), f64::from(OLD));
    out.within.resize(untouched.len(), 0.0);
    buffers[OUT] = Buffer { contents: Some(element.bytes(&untouched)), ..Buffer::output_near(out) };
    let launched = |kernel, y| problem.launched(kernel, [new + 2, y], [past, places]);
    let launches = vec![launched("attention_append_f16", 1), launched("attention_cached_f16", heads)];
    Case { buffers, launches }
}
