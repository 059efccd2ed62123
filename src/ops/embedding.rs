//! Token embedding: rows of a table, and the sum of gradients back into those rows in a fixed order.

use super::math::simd;
use crate::dtype::Element;
use rayon::prelude::*;

/// `x[t] = w[ids[t]]`, widened. `w` A `[V, C]`, `x` f32 `[T, C]`.
///
/// # Panics
/// If an id is not below V: the tokenizer and the model were checked against each other when they were loaded.
pub fn forward<E: Element>(ids: &[u32], w: &[E], x: &mut [f32], c: usize) {
    x.par_chunks_exact_mut(c).zip(ids).for_each(|(x, &id)| {
        let row = &w[id as usize * c..][..c];
        for (x, w) in x.iter_mut().zip(row) {
            *x = w.to_f32();
        }
    });
}

/// `dw[id] += Σ dx[t]` over the tokens with that id. `dx` f32 `[T, C]`, `dw` f32 `[V, C]`.
///
/// `by_id` lists the tokens sorted by id, equal ids by position; `id_starts` where each distinct id begins, and the
/// end. The tokens of one row are added in that order, whatever the number of threads. Without `add`, rows without
/// a token become zero.
pub fn backward(
    ids: &[u32],
    by_id: &[u32],
    id_starts: &[u32],
    dx: &[f32],
    dw: &mut [f32],
    c: usize,
    add: bool,
) {
    const ROWS: usize = 256;
    let distinct = id_starts.len().saturating_sub(1);
    let id_of = |segment: usize| ids[by_id[id_starts[segment] as usize] as usize] as usize;
    dw.par_chunks_mut(ROWS * c).enumerate().for_each(|(block, dw)| {
        if !add {
            dw.fill(0.0);
        }
        let first = block * ROWS;
        let mut segment = partition(distinct, |s| id_of(s) < first);
        while segment < distinct && id_of(segment) < first + dw.len() / c {
            let row = &mut dw[(id_of(segment) - first) * c..][..c];
            for &t in &by_id[id_starts[segment] as usize..id_starts[segment + 1] as usize] {
                let dx = &dx[t as usize * c..][..c];
                simd(|| row.iter_mut().zip(dx).for_each(|(w, x)| *w += x));
            }
            segment += 1;
        }
    });
}

/// The first of `0..n` for which `before` is false, `before` being true and then false.
fn partition(n: usize, before: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, n);
    while low < high {
        let middle = low.midpoint(high);
        if before(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}
