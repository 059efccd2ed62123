//! Attention in real numbers that carry the bounds of the kernels.

use super::super::common::real::{Real, reals};
use super::host::{Forward, Host, POSITIONS};
use smolten::dtype::Element;
use smolten::ops::attention::Heads;

/// Unit roundoff of f32, with the thousandth for terms of second order.
const U: f64 = 1.001 / 16_777_216.0;

/// Keys that the production kernels take at once.
const TILE: usize = 64;

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
pub fn reference<E: Element>(host: &Host<E>) -> (Vec<Real>, Vec<Real>) {
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
pub fn reference_gradient<E: Element>(host: &Host<E>, from: &Forward<E>) -> (Vec<Real>, Vec<Real>) {
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
