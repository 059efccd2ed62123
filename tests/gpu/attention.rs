//! Attention: forward, backward and over a cache, against real numbers with counted roundings.
//!
//! Both rungs are held to the bounds of the production rung: its sums go in steps of eight terms (tensor cores), its
//! softmax runs along the keys in tiles and its exponentials are powers of two. The CPU code's plain sums and exact
//! shift lose less everywhere.

use super::linear::has_tensor_cores;
use super::{common, open, params, read, set_params, write};
use common::real::{Real, assert_allowed, reals, values};
use half::{bf16, f16};
use smolten::arena::{Category, Plan, Tensor};
use smolten::backend::StepParams;
use smolten::cuda::{Cuda, Rung};
use smolten::dtype::{DType, Element};
use smolten::ops::attention::{self, Heads};
use smolten::ops::attention_launch::{self, AttentionBackward};
use smolten::ops::rope;

/// Unit roundoff of f32, with the thousandth for terms of second order.
const U: f64 = 1.001 / 16_777_216.0;

/// Keys that the production kernels take at once.
const TILE: usize = 64;

/// Positions of the rotary tables, and of the caches.
const POSITIONS: usize = 200;

/// Query heads per kv head, kv heads, head_dim, lengths of the sequences.
type Shape = (usize, usize, usize, &'static [usize]);

/// One token; lengths around the edges of tiles; many tiny sequences and empty ones.
const SHAPES: [Shape; 7] = [
    (3, 3, 64, &[1]),
    (3, 3, 64, &[65, 1, 3]),
    (3, 1, 64, &[130]),
    (4, 1, 16, &[63, 1, 64, 65, 130, 2]),
    (1, 4, 32, &[64, 0, 65]),
    (4, 1, 16, &[1, 2, 1, 0, 3, 1, 1, 2, 1, 5, 0, 1, 1, 1, 7, 1, 2, 3, 1, 1, 1, 2, 9, 1, 1, 2, 1, 17, 1, 0]),
    (2, 1, 32, &[]),
];

/// Inputs on the host, of the rows in use.
struct Host<E> {
    heads: Heads,
    lengths: Vec<usize>,
    qkv: Vec<E>,
    dout: Vec<E>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl<E: Element> Host<E> {
    fn new((group, kv_heads, head_dim, lengths): Shape) -> Self {
        let heads = Heads { heads: group * kv_heads, kv_heads, head_dim };
        let t: usize = lengths.iter().sum();
        let frequencies: Vec<f64> =
            (0..head_dim / 2).map(|i| 100f64.powf(-((2 * i) as f64) / head_dim as f64)).collect();
        let (cos, sin) = rope::table(&frequencies, POSITIONS);
        let mut qkv = values::<E>(t * heads.qkv_width(), 1.0, 1);
        for row in qkv.chunks_mut(heads.qkv_width()) {
            // Queries are large, so that probabilities differ.
            row[..heads.width()].iter_mut().for_each(|q| *q = E::from_f32(4.0 * q.to_f32()));
        }
        let dout = values::<E>(t * heads.width(), 1.0, 2);
        Self { heads, lengths: lengths.to_vec(), qkv, dout, cos, sin }
    }
    fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }
    fn cu_seqlens(&self) -> Vec<u32> {
        let ends = self.lengths.iter().scan(0, |end, n| {
            *end += u32::try_from(*n).unwrap();
            Some(*end)
        });
        std::iter::once(0).chain(ends).collect()
    }
    fn positions(&self) -> Vec<u32> {
        self.lengths.iter().flat_map(|&n| 0..u32::try_from(n).unwrap()).collect()
    }
    /// For each token the first token of its sequence.
    fn starts(&self) -> Vec<usize> {
        self.cu_seqlens().windows(2).flat_map(|w| vec![w[0] as usize; (w[1] - w[0]) as usize]).collect()
    }
    fn scale(&self) -> Real {
        Real::exact(1.0) / Real::rounded_once((self.heads.head_dim as f64).sqrt())
    }
}

/// The buffers; one row and one sequence more than are in use.
struct Buffers {
    cu_seqlens: Tensor,
    positions: Tensor,
    rope: [Tensor; 2],
    of: AttentionBackward,
    cache: [Tensor; 2],
}

impl Buffers {
    fn new<E: Element>(plan: &mut Plan, host: &Host<E>) -> Self {
        let mut of = |rows, cols, dtype| plan.tensor(Category::Activations, rows, cols, dtype);
        let (t, a, heads) = (host.tokens() + 1, E::DTYPE, host.heads);
        let (wide, half, kv) = (heads.qkv_width(), heads.head_dim / 2, heads.kv_heads * heads.head_dim);
        Self {
            cu_seqlens: of(1, host.lengths.len() + 2, DType::U32),
            positions: of(1, t, DType::U32),
            rope: [of(POSITIONS, half, DType::F32), of(POSITIONS, half, DType::F32)],
            of: AttentionBackward {
                qkv: of(t, wide, a),
                out: of(t, heads.width(), a),
                lse: of(t, heads.heads, DType::F32),
                dout: of(t, heads.width(), a),
                dqkv: of(t, wide, a),
                delta: of(t, heads.heads, DType::F32),
            },
            cache: [of(POSITIONS, kv, a), of(POSITIONS, kv, a)],
        }
    }
}

fn step(tokens: usize, sequences: usize) -> StepParams {
    let step = params(u32::try_from(tokens).unwrap(), bytemuck::Zeroable::zeroed());
    StepParams { sequences: u32::try_from(sequences).unwrap(), ..step }
}

/// `values` in front; NaN in the rest, which no kernel may read.
fn write_used<E: Element>(cuda: &mut Cuda, t: Tensor, values: &[E]) {
    let mut all = vec![E::from_f32(f32::NAN); t.len()];
    all[..values.len()].copy_from_slice(values);
    write(cuda, t, &all);
}

/// What no kernel computes; so a row that should not be written is seen to be, and one that should be not to be.
const SENTINEL: f32 = 12345.0;

fn sentinels<E: Element>(cuda: &mut Cuda, t: Tensor) {
    write(cuda, t, &vec![E::from_f32(SENTINEL); t.len()]);
}

/// The rows in use; the others are as they were.
fn read_used<E: Element>(cuda: &Cuda, t: Tensor, rows: usize) -> Vec<E> {
    let mut all = read::<E>(cuda, t);
    let sentinel = E::from_f32(SENTINEL).to_f32();
    assert!(all[rows * t.cols..].iter().all(|x| x.to_f32() == sentinel), "an unused row was written");
    all.truncate(rows * t.cols);
    all
}

impl<E: Element> Host<E> {
    fn upload(&self, cuda: &mut Cuda, b: &Buffers) {
        // After the sequences in use a bound that would be believed.
        let bounds: Vec<u32> =
            self.cu_seqlens().into_iter().chain([u32::try_from(self.tokens()).unwrap() + 1]).collect();
        write(cuda, b.cu_seqlens, &bounds);
        write(cuda, b.positions, &self.positions());
        write(cuda, b.rope[0], &self.cos);
        write(cuda, b.rope[1], &self.sin);
        write_used(cuda, b.of.qkv, &self.qkv);
        write_used(cuda, b.of.dout, &self.dout);
        set_params(cuda, &step(self.tokens(), self.lengths.len()));
    }

    fn forward(&self, cuda: &mut Cuda, rung: Rung, b: &Buffers) -> (Vec<E>, Vec<f32>) {
        sentinels::<E>(cuda, b.of.out);
        sentinels::<f32>(cuda, b.of.lse);
        attention_launch::forward(cuda, rung, self.heads, b.cu_seqlens, b.of.qkv, b.of.out, b.of.lse)
            .unwrap();
        let t = self.tokens();
        (read_used(cuda, b.of.out, t), read_used(cuda, b.of.lse, t))
    }

    /// From the CPU's output, so that forward and backward are tested apart.
    fn backward(&self, cuda: &mut Cuda, rung: Rung, b: &Buffers, from: &Forward<E>) -> (Vec<f32>, Vec<E>) {
        write_used(cuda, b.of.out, &from.out);
        write_used(cuda, b.of.lse, &from.lse);
        sentinels::<E>(cuda, b.of.dqkv);
        sentinels::<f32>(cuda, b.of.delta);
        let (heads, bounds, positions) = (self.heads, b.cu_seqlens, b.positions);
        attention_launch::backward(cuda, rung, heads, bounds, positions, b.rope, b.of).unwrap();
        (read_used(cuda, b.of.delta, self.tokens()), read_used(cuda, b.of.dqkv, self.tokens()))
    }
}

/// The CPU's output.
struct Forward<E> {
    out: Vec<E>,
    lse: Vec<f32>,
}

impl<E: Element> Forward<E> {
    fn on_the_cpu(host: &Host<E>) -> Self {
        let (t, heads) = (host.tokens(), host.heads);
        let (mut out, mut lse) = (vec![E::from_f32(0.0); t * heads.width()], vec![0.0; t * heads.heads]);
        attention::forward(&host.qkv, &host.cu_seqlens(), heads, &mut out, &mut lse);
        Self { out, lse }
    }
}

/// Heads of q, k and v by row.
struct Rows {
    heads: Heads,
    data: Vec<Real>,
    scale: Real,
}

impl Rows {
    fn new<E: Element>(host: &Host<E>) -> Self {
        Self { heads: host.heads, data: reals(&host.qkv), scale: host.scale() }
    }
    fn head(&self, t: usize, column: usize) -> &[Real] {
        &self.data[t * self.heads.qkv_width() + column * self.heads.head_dim..][..self.heads.head_dim]
    }
    fn k(&self, j: usize, h: usize) -> &[Real] {
        self.head(j, self.heads.heads + h / self.heads.group())
    }
    fn v(&self, j: usize, h: usize) -> &[Real] {
        self.head(j, self.heads.heads + self.heads.kv_heads + h / self.heads.group())
    }
    /// Scaled score of query `t` with key `j`.
    fn score(&self, t: usize, j: usize, h: usize) -> Real {
        product(self.head(t, h), self.k(j, h)) * self.scale
    }
}

fn product(a: &[Real], b: &[Real]) -> Real {
    Real::sum_of_eights(a.iter().zip(b).map(|(&a, &b)| a * b), 1)
}

/// Output of query `t` of head `h` over keys `start..=t`, and log-sum-exp.
///
/// A weight is 2^(s·c − m·c), times one power of two for every later tile that raised the maximum m. The factor c from
/// scores to exponents carries four roundings, the product m·c one of up to |s|max, the fused difference one of up to
/// 2|s|max: together 11 |s|max per power, in natural units. The power itself has two ulp (four roundings), and
/// multiplying by it is one.
fn reference_row<E: Element>(rows: &Rows, start: usize, t: usize, h: usize) -> (Vec<Real>, Real) {
    let scores: Vec<Real> = (start..=t).map(|j| rows.score(t, j, h)).collect();
    let most = scores.iter().fold(0.0, |most: f64, s| most.max(s.value.abs() + s.error));
    // Any shift gives the same quotient and the same log-sum-exp, so this one may be taken as exact.
    let highest = scores.iter().fold(f64::NEG_INFINITY, |m, s| m.max(s.value));
    let powers = scores.len().div_ceil(TILE) as f64;
    let inexact =
        |s: Real| Real { value: s.value - highest, error: s.error + powers * (11.0 * most + 5.0) * U };
    let weights: Vec<Real> = scores.iter().map(|&s| inexact(s).exp()).collect();
    let total = Real::sum(weights.iter().copied());
    let weights: Vec<Real> = weights.into_iter().map(Real::rounded::<E>).collect();
    let out = (0..rows.heads.head_dim).map(|c| {
        let terms = weights.iter().zip(start..).map(|(&w, j)| w * rows.v(j, h)[c]);
        Real::sum_of_eights(terms, weights.len().div_ceil(TILE)) * (Real::exact(1.0) / total)
    });
    // The shift that was used is that of the largest score, which may be another than the true one's.
    let shift = Real { value: highest, error: 2.0 * U * most };
    (out.collect(), shift + total.ln())
}

/// Output `[T, H·D]` and log-sum-exp `[T, H]`.
fn reference<E: Element>(host: &Host<E>) -> (Vec<Real>, Vec<Real>) {
    let rows = Rows::new(host);
    let (mut out, mut lse) = (Vec::new(), Vec::new());
    for (t, start) in host.starts().into_iter().enumerate() {
        for h in 0..host.heads.heads {
            let (row, sum) = reference_row::<E>(&rows, start, t, h);
            out.extend(row);
            lse.push(sum);
        }
    }
    (out, lse)
}

/// Sums by element, each [`Real::sum_of_eights`] of its terms.
struct Sums {
    terms: Vec<Vec<Real>>,
}

impl Sums {
    fn add(&mut self, at: usize, factor: Real, row: &[Real]) {
        self.terms[at..][..row.len()].iter_mut().zip(row).for_each(|(terms, &x)| terms.push(factor * x));
    }
}

/// `delta`, and gradient of q, k and v before rotation.
///
/// p is 2^(s·c − lse·log2 e): the factor's four roundings of |s|, three of |lse|, the difference's own.
fn reference_gradient<E: Element>(host: &Host<E>, from: &Forward<E>) -> (Vec<Real>, Vec<Real>) {
    let (rows, heads) = (Rows::new(host), host.heads);
    let (d, width, group) = (heads.head_dim, heads.qkv_width(), heads.group());
    let mut sums = Sums { terms: vec![Vec::new(); host.tokens() * width] };
    let mut delta = Vec::new();
    for (t, start) in host.starts().into_iter().enumerate() {
        for h in 0..heads.heads {
            let at = (t * heads.heads + h) * d..(t * heads.heads + h + 1) * d;
            let (dout, out) = (reals(&host.dout[at.clone()]), reals(&from.out[at]));
            let mean = Real::dot(&dout, &out);
            delta.push(mean);
            let lse = f64::from(from.lse[t * heads.heads + h]);
            let (k, v) = (heads.heads + h / group, heads.heads + heads.kv_heads + h / group);
            for j in start..=t {
                let s = rows.score(t, j, h);
                let inexact = s.error + U * (5.0 * s.value.abs() + 4.0 * lse.abs());
                let p = Real { value: s.value - lse, error: inexact }.exp();
                let ds = p * (product(&dout, rows.v(j, h)) - mean) * rows.scale;
                let (p, ds) = (p.rounded::<E>(), ds.rounded::<E>());
                sums.add(t * width + h * d, ds, rows.k(j, h));
                sums.add(j * width + k * d, ds, rows.head(t, h));
                sums.add(j * width + v * d, p, &dout);
            }
        }
    }
    let runs = group * (POSITIONS / TILE + 1);
    let mut gradient: Vec<Real> = sums.terms.into_iter().map(|t| Real::sum_of_eights(t, runs)).collect();
    for (row, position) in gradient.chunks_mut(width).zip(host.positions()) {
        for head in row[..(heads.heads + heads.kv_heads) * d].chunks_mut(d) {
            for i in 0..d / 2 {
                let at = position as usize * d / 2 + i;
                let (cos, sin) = (Real::of(host.cos[at]), Real::of(host.sin[at]));
                let (x, y) = (head[i], head[i + d / 2]);
                (head[i], head[i + d / 2]) = (x * cos + y * sin, y * cos - x * sin);
            }
        }
    }
    (delta, gradient)
}

fn rungs(dtype: DType) -> &'static [Rung] {
    if has_tensor_cores(dtype) { &super::RUNGS } else { &super::RUNGS[..1] }
}

fn check<E: Element>() {
    for shape in SHAPES {
        let host = Host::<E>::new(shape);
        let mut plan = Plan::default();
        let buffers = Buffers::new(&mut plan, &host);
        let mut cuda = open(&plan, E::DTYPE);
        host.upload(&mut cuda, &buffers);
        let (want_out, want_lse) = reference(&host);
        let on_the_cpu = Forward::on_the_cpu(&host);
        let (want_delta, want_gradient) = reference_gradient(&host, &on_the_cpu);
        for &rung in rungs(E::DTYPE) {
            let name = |what| format!("{what} of {shape:?}, {rung:?}");
            let (out, lse) = host.forward(&mut cuda, rung, &buffers);
            assert_allowed(&name("out"), &out, &want_out);
            assert_allowed(&name("lse"), &lse, &want_lse);
            let (delta, gradient) = host.backward(&mut cuda, rung, &buffers, &on_the_cpu);
            assert_allowed(&name("delta"), &delta, &want_delta);
            let width = host.heads.qkv_width();
            let (q, k) = (host.heads.width(), host.heads.kv_heads * host.heads.head_dim);
            for (part, columns) in [("dq", 0..q), ("dk", q..q + k), ("dv", q + k..width)] {
                let of = |i: &usize| columns.contains(&(i % width));
                let got: Vec<E> = (0..gradient.len()).filter(of).map(|i| gradient[i]).collect();
                let want: Vec<Real> = (0..gradient.len()).filter(of).map(|i| want_gradient[i]).collect();
                assert_allowed(&name(part), &got, &want);
            }
        }
    }
}

#[test]
fn attention_in_f32() {
    check::<f32>();
}

#[test]
fn attention_in_bf16() {
    check::<bf16>();
}

#[test]
fn attention_in_f16() {
    check::<f16>();
}
