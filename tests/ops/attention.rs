//! Attention over packed sequences: output, log-sum-exp, gradients before the rotation.

use crate::common::real::{Real, assert_allowed, reals, values};
use smolten::dtype::Element;
use smolten::ops::attention::{Heads, Saved, backward, forward};
use smolten::ops::rope::{Table, table};

/// Sequences around the strips of 64 queries, of very different lengths.
const LENGTHS: [usize; 7] = [1, 2, 63, 64, 65, 130, 1];

/// A shape and the inputs to try it on.
pub struct Case<E> {
    pub heads: Heads,
    pub lengths: Vec<usize>,
    pub qkv: Vec<E>,
}

impl<E: Element> Case<E> {
    /// Queries are large, so that probabilities differ.
    pub fn new(group: usize, kv_heads: usize, head_dim: usize, lengths: &[usize]) -> Self {
        let heads = Heads { heads: group * kv_heads, kv_heads, head_dim };
        let n: usize = lengths.iter().sum();
        let qkv = values::<E>(n * heads.qkv_width(), 1.0, 1);
        let mut case = Self { heads, lengths: lengths.to_vec(), qkv };
        case.sharpen(4.0);
        case
    }
    /// Multiplies the queries.
    pub fn sharpen(&mut self, factor: f32) {
        for row in self.qkv.chunks_mut(self.heads.qkv_width()) {
            row[..self.heads.width()].iter_mut().for_each(|q| *q = E::from_f32(factor * q.to_f32()));
        }
    }
    pub fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }
    pub fn cu_seqlens(&self) -> Vec<u32> {
        let mut end = 0;
        let ends = self.lengths.iter().map(|n| {
            end += u32::try_from(*n).unwrap();
            end
        });
        std::iter::once(0).chain(ends).collect()
    }
    pub fn positions(&self) -> Vec<u32> {
        self.lengths.iter().flat_map(|&n| 0..u32::try_from(n).unwrap()).collect()
    }
    /// For each token the first token of its sequence.
    pub fn starts(&self) -> Vec<usize> {
        let bounds = self.cu_seqlens();
        bounds.windows(2).flat_map(|w| vec![w[0] as usize; (w[1] - w[0]) as usize]).collect()
    }
    pub fn rows(&self) -> Rows {
        Rows { heads: self.heads, data: reals(&self.qkv) }
    }
}

/// Heads of q, k and v by row.
pub struct Rows {
    heads: Heads,
    data: Vec<Real>,
}

impl Rows {
    fn head(&self, t: usize, column: usize) -> &[Real] {
        &self.data[t * self.heads.qkv_width() + column * self.heads.head_dim..][..self.heads.head_dim]
    }
    pub fn q(&self, t: usize, h: usize) -> &[Real] {
        self.head(t, h)
    }
    /// Query heads share keys and values in runs: heads 0..g the first, g..2g the second.
    pub fn k(&self, t: usize, h: usize) -> &[Real] {
        self.head(t, self.heads.heads + h * self.heads.kv_heads / self.heads.heads)
    }
    pub fn v(&self, t: usize, h: usize) -> &[Real] {
        self.head(t, self.heads.heads + self.heads.kv_heads + h * self.heads.kv_heads / self.heads.heads)
    }
    /// A square root and a division, each rounded.
    pub fn scale(&self) -> Real {
        Real::exact(1.0) / Real::rounded_once((self.heads.head_dim as f64).sqrt())
    }
    /// Scaled score of query `t` with key `j`.
    pub fn score(&self, t: usize, j: usize, h: usize) -> Real {
        Real::dot(self.q(t, h), self.k(j, h)) * self.scale()
    }
}

/// Output `[T, H·D]` and log-sum-exp `[T, H]`.
pub fn reference<E: Element>(case: &Case<E>) -> (Vec<Real>, Vec<Real>) {
    let (rows, starts) = (case.rows(), case.starts());
    let (mut out, mut lse) = (Vec::new(), Vec::new());
    for (t, &start) in starts.iter().enumerate() {
        for h in 0..case.heads.heads {
            let scores: Vec<Real> = (start..=t).map(|j| rows.score(t, j, h)).collect();
            // Any shift gives the same quotient and the same log-sum-exp, so this one may be taken as exact.
            let highest = Real::exact(scores.iter().fold(f64::NEG_INFINITY, |m, s| m.max(s.value)));
            let weights: Vec<Real> = scores.iter().map(|&s| (s - highest).exp()).collect();
            let total = Real::sum(weights.iter().copied());
            let weights: Vec<Real> = weights.into_iter().map(Real::rounded::<E>).collect();
            for c in 0..case.heads.head_dim {
                let terms = weights.iter().zip(start..).map(|(&w, j)| w * rows.v(j, h)[c]);
                out.push(Real::sum(terms) * (Real::exact(1.0) / total));
            }
            lse.push(highest + total.ln());
        }
    }
    (out, lse)
}

/// What the engine makes of it.
fn run<E: Element>(case: &Case<E>) -> (Vec<E>, Vec<f32>) {
    let t = case.tokens();
    let mut out = vec![E::from_f32(f32::NAN); t * case.heads.width()];
    let mut lse = vec![f32::NAN; t * case.heads.heads];
    forward(&case.qkv, &case.cu_seqlens(), case.heads, &mut out, &mut lse);
    (out, lse)
}

fn forward_in<E: Element>(case: &Case<E>) {
    let ((out, lse), (want_out, want_lse)) = (run(case), reference(case));
    assert_allowed("out", &out, &want_out);
    assert_allowed("lse", &lse, &want_lse);
}

/// What a gradient comes from besides q, k and v.
struct Incoming<E> {
    out: Vec<E>,
    lse: Vec<f32>,
    dout: Vec<E>,
}

/// `p`, and the gradient of the scaled score, of query `t` and key `j`, as they enter the products.
fn p_and_ds<E: Element>(rows: &Rows, saved: &Incoming<E>, t: usize, j: usize, h: usize) -> (Real, Real) {
    let heads = rows.heads;
    let at = t * heads.width() + h * heads.head_dim..t * heads.width() + (h + 1) * heads.head_dim;
    let (dout, out) = (reals(&saved.dout[at.clone()]), reals(&saved.out[at]));
    let p = (rows.score(t, j, h) - Real::of(saved.lse[t * heads.heads + h])).exp();
    let ds = p * (Real::dot(&dout, rows.v(j, h)) - Real::dot(&dout, &out)) * rows.scale();
    (p.rounded::<E>(), ds.rounded::<E>())
}

/// Adds up terms per element, to be summed at the end.
pub struct Terms(pub Vec<Vec<Real>>);

impl Terms {
    pub fn add(&mut self, at: usize, factor: Real, row: &[Real]) {
        self.0[at..][..row.len()].iter_mut().zip(row).for_each(|(terms, &x)| terms.push(factor * x));
    }
}

/// Gradient of q, k and v before rotation.
fn reference_gradient<E: Element>(case: &Case<E>, saved: &Incoming<E>, rope: Table<'_>) -> Vec<Real> {
    let (rows, starts, heads) = (case.rows(), case.starts(), case.heads);
    let (d, width, group) = (heads.head_dim, heads.qkv_width(), heads.heads / heads.kv_heads);
    let mut terms = Terms(vec![Vec::new(); case.tokens() * width]);
    for (t, &start) in starts.iter().enumerate() {
        for h in 0..heads.heads {
            let dout = reals(&saved.dout[t * heads.width() + h * d..][..d]);
            let (k, v) = (heads.heads + h / group, heads.heads + heads.kv_heads + h / group);
            for j in start..=t {
                let (p, ds) = p_and_ds(&rows, saved, t, j, h);
                terms.add(t * width + h * d, ds, rows.k(j, h));
                terms.add(j * width + k * d, ds, rows.q(t, h));
                terms.add(j * width + v * d, p, &dout);
            }
        }
    }
    let mut gradient: Vec<Real> = terms.0.into_iter().map(Real::sum).collect();
    rotate_back(&mut gradient, heads, &case.positions(), rope);
    gradient
}

/// Queries and keys of every row, rotated back by its position.
pub fn rotate_back(gradient: &mut [Real], heads: Heads, positions: &[u32], rope: Table<'_>) {
    let d = heads.head_dim;
    for (row, &position) in gradient.chunks_mut(heads.qkv_width()).zip(positions) {
        for head in row[..(heads.heads + heads.kv_heads) * d].chunks_mut(d) {
            for i in 0..d / 2 {
                let at = position as usize * d / 2 + i;
                let (cos, sin) = (Real::of(rope.cos[at]), Real::of(rope.sin[at]));
                let (x, y) = (head[i], head[i + d / 2]);
                (head[i], head[i + d / 2]) = (x * cos + y * sin, y * cos - x * sin);
            }
        }
    }
}

fn backward_in<E: Element>(case: &Case<E>) {
    let (out, lse) = run(case);
    let saved = Incoming { out, lse, dout: values::<E>(case.tokens() * case.heads.width(), 1.0, 2) };
    let d = case.heads.head_dim;
    let frequencies: Vec<f64> = (0..d / 2).map(|i| 100f64.powf(-((2 * i) as f64) / d as f64)).collect();
    let (cos, sin) = table(&frequencies, 130);
    let rope = Table { cos: &cos, sin: &sin };
    let mut delta = vec![f32::NAN; case.tokens() * case.heads.heads];
    let mut got = vec![E::from_f32(f32::NAN); case.qkv.len()];
    let arguments = Saved { qkv: &case.qkv, out: &saved.out, lse: &saved.lse, dout: &saved.dout };
    let (bounds, positions) = (case.cu_seqlens(), case.positions());
    backward(&arguments, &bounds, &positions, case.heads, rope, &mut delta, &mut got);
    let want = reference_gradient(case, &saved, rope);
    let (q, k) = (case.heads.width(), case.heads.kv_heads * d);
    for (name, from, to) in [("dq", 0, q), ("dk", q, q + k), ("dv", q + k, q + 2 * k)] {
        let part = |x: usize| (from..to).contains(&(x % case.heads.qkv_width()));
        let got: Vec<E> = got.iter().zip(0..).filter(|(_, i)| part(*i)).map(|(&x, _)| x).collect();
        let want: Vec<Real> = want.iter().zip(0..).filter(|(_, i)| part(*i)).map(|(&x, _)| x).collect();
        assert_allowed(name, &got, &want);
    }
}

fn both<E: Element>(group: usize, kv_heads: usize, head_dim: usize, lengths: &[usize]) {
    let case = Case::<E>::new(group, kv_heads, head_dim, lengths);
    forward_in(&case);
    backward_in(&case);
}

#[test]
fn every_group_size_and_head_width() {
    for group in 1..=4 {
        for head_dim in [16, 32, 64, 128] {
            in_each_type!(both, group, 2, head_dim, &[3, 1, 18]);
        }
    }
}

#[test]
fn sequences_of_very_different_lengths() {
    in_each_type!(both, 3, 1, 16, &LENGTHS);
    in_each_type!(both, 1, 1, 64, &[65]);
    in_each_type!(both, 3, 1, 64, &[66, 1]);
    in_each_type!(both, 2, 1, 16, &[0, 3, 0, 2, 0]);
    in_each_type!(both, 2, 2, 6, &[1]);
}

pub fn bits<E: Element>(x: &[E]) -> Vec<u32> {
    x.iter().map(|x| x.to_f32().to_bits()).collect()
}

/// Output and gradient of `case` with so many threads, in bits.
fn all_bits<E: Element>(case: &Case<E>, threads: usize) -> [Vec<u32>; 3] {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        let (out, lse) = run(case);
        let dout = values::<E>(out.len(), 1.0, 2);
        let (cos, sin) = table(&vec![0.1; case.heads.head_dim / 2], 130);
        let rope = Table { cos: &cos, sin: &sin };
        let mut delta = vec![0.0; lse.len()];
        let mut gradient = vec![E::from_f32(f32::NAN); case.qkv.len()];
        let saved = Saved { qkv: &case.qkv, out: &out, lse: &lse, dout: &dout };
        let (bounds, positions) = (case.cu_seqlens(), case.positions());
        backward(&saved, &bounds, &positions, case.heads, rope, &mut delta, &mut gradient);
        [bits(&out), bits(&lse), bits(&gradient)]
    })
}

/// A sequence sees nothing of its neighbours, so packing changes no bit of it; nor do threads.
#[test]
fn packing_and_threads_change_no_bit() {
    let together = Case::<f32>::new(3, 2, 32, &LENGTHS);
    let one = all_bits(&together, 1);
    for threads in [2, 3] {
        assert!(all_bits(&together, threads) == one, "{threads} threads");
    }
    let (out, lse) = run(&together);
    let mut first = 0;
    for n in LENGTHS {
        let rows = |width: usize| first * width..(first + n) * width;
        let qkv = together.qkv[rows(together.heads.qkv_width())].to_vec();
        let alone = Case { heads: together.heads, lengths: vec![n], qkv };
        let (alone_out, alone_lse) = run(&alone);
        assert_eq!(bits(&alone_out), bits(&out[rows(together.heads.width())]));
        assert_eq!(bits(&alone_lse), bits(&lse[rows(together.heads.heads)]));
        first += n;
    }
}

/// Scores far beyond what `exp` holds: the softmax subtracts the largest first.
#[test]
fn large_scores() {
    let mut case = Case::<f32>::new(1, 1, 16, &[70]);
    case.sharpen(100.0);
    forward_in(&case);
    backward_in(&case);
}
