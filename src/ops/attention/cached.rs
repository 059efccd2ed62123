//! Attention of new tokens over cached keys and values: one row at a time, against what is in memory as it is.

use super::{Heads, scale};
use crate::dtype::Element;
use crate::ops::math::{dot, exp, max, rounded, simd, sum};
use rayon::prelude::*;

/// Multiplications of queries and keys below which another thread is not worth calling.
const MIN_SHARED: usize = 1 << 15;

/// A sequence whose keys and values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedSequence {
    /// Which of the places for a sequence that the cache has.
    pub slot: usize,
    /// Its tokens that are in the cache.
    pub past: usize,
}

/// Attention of new tokens, as many of each sequence in turn, over what is cached of their sequence and themselves. The
/// new keys and values are appended. A token's arithmetic is the same whatever other sequences there are.
///
/// `qkv` A `[t, (H + 2K)·D]`, rotated; `keys`, `values` A `[slots · positions, K·D]`; `out` A `[t, H·D]`.
pub fn cached<E: Element>(
    qkv: &[E],
    heads: Heads,
    sequences: &[CachedSequence],
    positions: usize,
    keys: &mut [E],
    values: &mut [E],
    out: &mut [E],
) {
    let (d, width, kv_width) = (heads.head_dim, heads.qkv_width(), heads.kv_heads * heads.head_dim);
    let tokens = qkv.len() / width;
    let each = tokens / sequences.len();
    // First row of its sequence in the cache, and its own place in the sequence.
    let place = |t: usize| {
        let CachedSequence { slot, past } = sequences[t / each];
        (slot * positions, past + t % each)
    };
    for (t, row) in qkv.chunks_exact(width).enumerate() {
        let (first, position) = place(t);
        let at = (first + position) * kv_width;
        let (k, v) = row[heads.width()..].split_at(kv_width);
        keys[at..][..kv_width].copy_from_slice(k);
        values[at..][..kv_width].copy_from_slice(v);
    }
    let (keys, values): (&[E], &[E]) = (keys, values);
    let (scale, group) = (scale(heads), heads.group());
    let head = |(task, out): (usize, &mut [E])| {
        let (t, h) = (task / heads.heads, task % heads.heads);
        let q = &qkv[t * width + h * d..][..d];
        let (first, position) = place(t);
        let from = first * kv_width;
        let past_rows = Cached { keys: &keys[from..], values: &values[from..], kv_width, d };
        simd(
            #[inline(always)]
            || past_rows.attend(q, position + 1, h / group * d, scale, out),
        );
    };
    let seen: usize = sequences.iter().map(|s| each * (s.past + each)).sum();
    if seen * heads.width() < MIN_SHARED {
        out.chunks_exact_mut(d).enumerate().for_each(head);
    } else {
        out.par_chunks_exact_mut(d).enumerate().for_each(head);
    }
}

/// Keys and values of all positions, A `[positions, K·D]`.
struct Cached<'a, E> {
    keys: &'a [E],
    values: &'a [E],
    kv_width: usize,
    d: usize,
}

impl<E: Element> Cached<'_, E> {
    /// One query head over the first `seen` positions of the kv head that begins at `column`.
    #[inline(always)]
    fn attend(&self, q: &[E], seen: usize, column: usize, scale: f32, out: &mut [E]) {
        let mut q_wide = vec![0.0f32; self.d];
        for i in 0..self.d {
            q_wide[i] = q[i].to_f32();
        }
        let mut p = vec![0.0f32; seen];
        for (j, p) in p.iter_mut().enumerate() {
            let k = &self.keys[j * self.kv_width + column..][..self.d];
            *p = scale
                * dot(
                    k,
                    &q_wide,
                    #[inline(always)]
                    |_| (),
                );
        }
        let highest = max(&p);
        for p in &mut p {
            *p = exp(*p - highest);
        }
        let inverse = 1.0
            / sum(
                seen,
                #[inline(always)]
                |j| p[j],
            );
        let mut row = q_wide; // the query is done with
        row.fill(0.0);
        for (j, &p) in p.iter().enumerate() {
            let (p, v) = (rounded::<E>(p), &self.values[j * self.kv_width + column..][..self.d]);
            for (sum, v) in row.iter_mut().zip(v) {
                *sum += p * v.to_f32();
            }
        }
        for (out, x) in out.iter_mut().zip(&row) {
            *out = E::from_f32(x * inverse);
        }
    }
}
