//! Causal attention with grouped heads over sequences that lie end to end, forward and backward.
//!
//! Work goes in strips of 64 query rows against the keys before them, so no T × T matrix exists
//! (Dao et al. 2022, arXiv:2205.14135, with whole strips in place of tiles). The backward pass recomputes the
//! probabilities from `lse`. Every strip is one task and writes its own rows; gradients of keys and values are added
//! up by the one task that owns their head, strip after strip, so the number of threads changes nothing.
//! With A = bf16 or fp16 probabilities and their gradients are rounded to A before the products that use them,
//! as they are on tensor cores.

mod cached;
pub mod tiled;

pub use cached::{CachedSequence, cached};

use super::convert::{rounding, widen};
use super::math::{exp, max, rounded, simd, sum, sum_products};
use super::product::{Into, Output, Pairing, Sum, Threads, product};
use super::rope::{self, Table, Turn};
use super::tile::{Level, Matrix};
use crate::dtype::Element;
use rayon::prelude::*;

/// Heads of one attention call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads (H).
    pub heads: usize,
    /// Key and value heads (K).
    pub kv_heads: usize,
    /// Width of a head (D).
    pub head_dim: usize,
}

impl Heads {
    /// Columns of q, k and v together: `(H + 2K)·D`.
    pub fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }
    /// Query heads that share a key and value head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
    /// Columns of the attention output: `H·D`.
    pub fn width(&self) -> usize {
        self.heads * self.head_dim
    }
}

/// Query rows of a strip.
const QUERIES: usize = 64;

/// A strip of query rows of one sequence: rows `first..last`, all counted from the start of the micro-batch.
#[derive(Clone, Copy)]
struct Strip {
    start: usize,
    first: usize,
    last: usize,
}

impl Strip {
    fn rows(self) -> usize {
        self.last - self.first
    }
    /// Keys that some row of the strip sees.
    fn keys(self) -> usize {
        self.last - self.start
    }
    /// Keys that row `i` of the strip sees.
    fn visible(self, i: usize) -> usize {
        self.first + i + 1 - self.start
    }
}

fn strips(start: usize, end: usize) -> impl Iterator<Item = Strip> {
    (start..end).step_by(QUERIES).map(move |first| Strip { start, first, last: end.min(first + QUERIES) })
}

fn sequences(cu_seqlens: &[u32]) -> impl Iterator<Item = (usize, usize)> + '_ {
    cu_seqlens.windows(2).map(|w| (w[0] as usize, w[1] as usize))
}

/// Head `h` of rows `first..last`, as a matrix.
fn head(data: &[f32], width: usize, h: usize, d: usize, first: usize, last: usize) -> Matrix<'_, f32> {
    if first == last {
        return Matrix::new(&[], 0, d);
    }
    Matrix::strided(&data[first * width + h * d..], last - first, d, width)
}

/// `c = a·b`, or `c += a·b` with `add`, inside a task that is one of many.
fn multiply(a: Matrix<'_, f32>, b: Matrix<'_, f32>, c: &mut [f32], add: bool) {
    let (out, into) = (Output::new(c, b.shape()[1]), if add { Into::Sums } else { Into::Caches });
    product(Level::best(), a, b, None, Pairing::ADJOINING, Threads::One, &Sum { out, into });
}

/// `1/√D`, the scale of the scores.
fn scale(heads: Heads) -> f32 {
    1.0 / (heads.head_dim as f32).sqrt()
}

/// `out = softmax(q·kᵀ/√D + causal mask)·v`, `lse` the log-sum-exp of each row's scaled scores.
///
/// `qkv` A `[T, (H + 2K)·D]`, `out` A `[T, H·D]`, `lse` f32 `[T, H]`.
pub fn forward<E: Element>(qkv: &[E], cu_seqlens: &[u32], heads: Heads, out: &mut [E], lse: &mut [f32]) {
    let qkv = &*widen(qkv);
    rounding(out, |out| {
        let all: Vec<Strip> = sequences(cu_seqlens).flat_map(|(start, end)| strips(start, end)).collect();
        let width = heads.width();
        let (mut out_rest, mut lse_rest) = (out, lse);
        let mut tasks = Vec::with_capacity(all.len());
        for strip in all {
            let (out, next) = out_rest.split_at_mut(strip.rows() * width);
            let (lse, next_lse) = lse_rest.split_at_mut(strip.rows() * heads.heads);
            (out_rest, lse_rest) = (next, next_lse);
            tasks.push((strip, out, lse));
        }
        tasks.into_par_iter().with_max_len(1).for_each(|(strip, out, lse)| {
            let mut scores = vec![0.0; heads.group() * strip.rows() * strip.keys()];
            for kv in 0..heads.kv_heads {
                forward_strip::<E>(qkv, heads, strip, kv, &mut scores, out, lse);
            }
        });
    });
}

/// The query heads of one kv head, for one strip.
fn forward_strip<E: Element>(
    qkv: &[f32],
    heads: Heads,
    strip: Strip,
    kv: usize,
    scores: &mut [f32],
    out: &mut [f32],
    lse: &mut [f32],
) {
    let (d, width, rows, keys) = (heads.head_dim, heads.qkv_width(), strip.rows(), strip.keys());
    let stacked = heads.group() * rows;
    let q = stack(qkv, width, heads, kv, strip);
    let k = head(qkv, width, heads.heads + kv, d, strip.start, strip.last);
    let v = head(qkv, width, heads.heads + heads.kv_heads + kv, d, strip.start, strip.last);
    multiply(Matrix::new(&q, stacked, d), k.t(), scores, false);
    let scale = scale(heads);
    let mut inverse = vec![0.0f32; stacked];
    for (r, (row, inverse)) in scores.chunks_exact_mut(keys).zip(&mut inverse).enumerate() {
        let (i, h) = (r % rows, kv * heads.group() + r / rows);
        let (seen, hidden) = row.split_at_mut(strip.visible(i));
        let (highest, total) = simd(
            #[inline(always)]
            || exponentials::<E>(seen, scale),
        );
        hidden.fill(0.0);
        *inverse = 1.0 / total;
        lse[i * heads.heads + h] = highest + total.ln();
    }
    let mut weighed = q; // the queries are done with
    multiply(Matrix::new(scores, stacked, keys), v, &mut weighed, false);
    for (r, (row, inverse)) in weighed.chunks_exact(d).zip(&inverse).enumerate() {
        let (i, h) = (r % rows, kv * heads.group() + r / rows);
        let to = &mut out[i * heads.width() + h * d..][..d];
        to.iter_mut().zip(row).for_each(|(o, x)| *o = x * inverse);
    }
}

/// Scaled scores to exponentials under the largest of them, which is returned, and their sum before they are rounded.
#[inline(always)]
fn exponentials<E: Element>(scores: &mut [f32], scale: f32) -> (f32, f32) {
    let highest = max(scores) * scale;
    for s in scores.iter_mut() {
        *s = exp(*s * scale - highest);
    }
    let total = sum(
        scores.len(),
        #[inline(always)]
        |j| scores[j],
    );
    for s in scores.iter_mut() {
        *s = rounded::<E>(*s);
    }
    (highest, total)
}

/// The query heads of one kv head, one below the other: `[group·rows, D]`. They share their keys and values, so one
/// product serves them all. `width` is that of `data`'s rows, whose first columns are the query heads.
fn stack(data: &[f32], width: usize, heads: Heads, kv: usize, strip: Strip) -> Vec<f32> {
    let d = heads.head_dim;
    let mut stacked = Vec::with_capacity(heads.group() * strip.rows() * d);
    for h in kv * heads.group()..(kv + 1) * heads.group() {
        for t in strip.first..strip.last {
            stacked.extend_from_slice(&data[t * width + h * d..][..d]);
        }
    }
    stacked
}

/// What the backward pass reads; shapes as in [`forward`], `dout` A `[T, H·D]`.
pub struct Saved<'a, E> {
    /// Rotated q, k, v.
    pub qkv: &'a [E],
    /// Output of the forward pass.
    pub out: &'a [E],
    /// Log-sum-exp.
    pub lse: &'a [f32],
    /// Gradient of the output.
    pub dout: &'a [E],
}

/// `delta[t, h] = Σ_d dout·out`, f32 `[T, H]`; the mean that softmax's gradient subtracts.
fn row_dots(dout: &[f32], out: &[f32], heads: Heads, delta: &mut [f32]) {
    let (width, d) = (heads.width(), heads.head_dim);
    let rows = dout.par_chunks_exact(width).zip(out.par_chunks_exact(width));
    delta.par_chunks_exact_mut(heads.heads).zip(rows).for_each(|(delta, (dout, out))| {
        for (h, delta) in delta.iter_mut().enumerate() {
            let (a, b) = (&dout[h * d..][..d], &out[h * d..][..d]);
            *delta = simd(
                #[inline(always)]
                || sum_products(a, b),
            );
        }
    });
}

/// Gradient of q, k and v *before* rotation, A `[T, (H + 2K)·D]`.
pub fn backward<E: Element>(
    saved: &Saved<'_, E>,
    cu_seqlens: &[u32],
    positions: &[u32],
    heads: Heads,
    table: Table<'_>,
    delta: &mut [f32],
    dqkv: &mut [E],
) {
    let (qkv, out, dout) = (&*widen(saved.qkv), &*widen(saved.out), &*widen(saved.dout));
    row_dots(dout, out, heads, delta);
    let delta = &*delta;
    let tasks: Vec<_> = sequences(cu_seqlens)
        .filter(|(start, end)| start < end)
        .flat_map(|bounds| (0..heads.kv_heads).map(move |kv| (bounds, kv)))
        .collect();
    let groups: Vec<Group> = tasks
        .into_par_iter()
        .with_max_len(1)
        .map(|(bounds, kv)| backward_group::<E>(qkv, dout, saved.lse, delta, heads, bounds, kv))
        .collect();
    rounding(dqkv, |dqkv| {
        scatter(&groups, heads, cu_seqlens, dqkv);
        rope::rotate(dqkv, heads, positions, table, Turn::Backward);
    });
}

/// Gradients of one kv head of one sequence: its query heads side by side, then its key, then its value.
struct Group {
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

/// All query heads of one kv head, strip after strip.
fn backward_group<E: Element>(
    qkv: &[f32],
    dout: &[f32],
    lse: &[f32],
    delta: &[f32],
    heads: Heads,
    (start, end): (usize, usize),
    kv: usize,
) -> Group {
    let (d, width, group) = (heads.head_dim, heads.qkv_width(), heads.group());
    let n = end - start;
    let mut g = Group { dq: vec![0.0; n * group * d], dk: vec![0.0; n * d], dv: vec![0.0; n * d] };
    let mut p = vec![0.0; group * QUERIES.min(n) * n];
    let mut ds = vec![0.0; group * QUERIES.min(n) * n];
    let scale = scale(heads);
    for strip in strips(start, end) {
        let (rows, keys) = (strip.rows(), strip.keys());
        let stacked = group * rows;
        let k = head(qkv, width, heads.heads + kv, d, start, strip.last);
        let v = head(qkv, width, heads.heads + heads.kv_heads + kv, d, start, strip.last);
        let q = stack(qkv, width, heads, kv, strip);
        let mut dout = stack(dout, heads.width(), heads, kv, strip);
        let (p, ds) = (&mut p[..stacked * keys], &mut ds[..stacked * keys]);
        multiply(Matrix::new(&q, stacked, d), k.t(), p, false);
        multiply(Matrix::new(&dout, stacked, d), v.t(), ds, false);
        for (r, (p, ds)) in p.chunks_exact_mut(keys).zip(ds.chunks_exact_mut(keys)).enumerate() {
            let (i, h) = (r % rows, kv * group + r / rows);
            let at = (strip.first + i) * heads.heads + h;
            let (lse, delta, visible) = (lse[at], delta[at], strip.visible(i));
            simd(
                #[inline(always)]
                || {
                    for (p, ds) in p[..visible].iter_mut().zip(&mut ds[..visible]) {
                        let probability = exp(*p * scale - lse);
                        *ds = rounded::<E>(probability * (*ds - delta) * scale);
                        *p = rounded::<E>(probability);
                    }
                },
            );
            p[visible..].fill(0.0);
            ds[visible..].fill(0.0);
        }
        let (p, ds) = (Matrix::new(p, stacked, keys), Matrix::new(ds, stacked, keys));
        multiply(p.t(), Matrix::new(&dout, stacked, d), &mut g.dv, true);
        multiply(ds.t(), Matrix::new(&q, stacked, d), &mut g.dk, true);
        let dq = &mut dout; // the gradient of the output is done with
        multiply(ds, k, dq, false);
        for (r, row) in dq.chunks_exact(d).enumerate() {
            let (i, member) = (r % rows, r / rows);
            g.dq[(strip.first - start + i) * group * d + member * d..][..d].copy_from_slice(row);
        }
    }
    g
}

/// Lays the groups' gradients into rows of `[q heads, k heads, v heads]`.
fn scatter(groups: &[Group], heads: Heads, cu_seqlens: &[u32], dqkv: &mut [f32]) {
    let (d, per) = (heads.head_dim, heads.group() * heads.head_dim);
    let bounds: Vec<_> = sequences(cu_seqlens).filter(|(start, end)| start < end).collect();
    dqkv.par_chunks_exact_mut(heads.qkv_width()).enumerate().for_each(|(t, row)| {
        let sequence = bounds.partition_point(|&(_, end)| end <= t);
        let Some(&(start, _)) = bounds.get(sequence) else { return };
        let (q, rest) = row.split_at_mut(heads.width());
        let (k, v) = rest.split_at_mut(heads.kv_heads * d);
        for (kv, g) in groups[sequence * heads.kv_heads..][..heads.kv_heads].iter().enumerate() {
            let i = t - start;
            q[kv * per..][..per].copy_from_slice(&g.dq[i * per..][..per]);
            k[kv * d..][..d].copy_from_slice(&g.dk[i * d..][..d]);
            v[kv * d..][..d].copy_from_slice(&g.dv[i * d..][..d]);
        }
    });
}
