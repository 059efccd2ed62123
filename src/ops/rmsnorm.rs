//! RMSNorm over the last axis (Zhang & Sennrich 2019, arXiv:1910.07467), of the fp32 residual stream.

use super::math::{simd, sum, sum_squares};
use crate::dtype::Element;
use rayon::prelude::*;

/// Rows whose weight gradient is added up together; the partial sums are then added in order.
pub const ROWS_PER_PARTIAL: usize = 32;

/// `rstd[t] = 1/√(mean_c x² + eps)`, `y = w·x·rstd`. `x` f32 `[T, C]`, `w` A `[C]`, `y` A `[T, C]`, `rstd` f32 `[T]`.
///
/// The sum of squares is in f64 and everything after it in f32 with one rounding to A at the store, so this is also
/// the reference for the CUDA kernel.
#[allow(clippy::cast_possible_truncation, reason = "f64 to f32: the rounding is meant")]
pub fn forward<E: Element>(x: &[f32], w: &[E], eps: f32, y: &mut [E], rstd: &mut [f32]) {
    let c = w.len();
    x.par_chunks_exact(c).zip(y.par_chunks_exact_mut(c)).zip(rstd).for_each(|((x, y), rstd)| {
        simd(|| {
            let mean = sum_squares(x) / c as f64;
            let r = (mean + f64::from(eps)).sqrt().recip() as f32;
            for ((y, &x), w) in y.iter_mut().zip(x).zip(w) {
                *y = E::from_f32(w.to_f32() * (x * r));
            }
            *rstd = r;
        });
    });
}

/// `dx += rstd·(w·dy − x̂·mean_c(w·dy·x̂))` with `x̂ = x·rstd`. `x`, `dx` f32 `[T, C]`, `dy` A `[T, C]`.
pub fn backward_input<E: Element>(x: &[f32], w: &[E], rstd: &[f32], dy: &[E], dx: &mut [f32]) {
    let c = w.len();
    let rows = x.par_chunks_exact(c).zip(dy.par_chunks_exact(c)).zip(rstd);
    dx.par_chunks_exact_mut(c).zip(rows).for_each(|(dx, ((x, dy), &r))| {
        simd(|| {
            let dot = sum(c, |i| w[i].to_f32() * dy[i].to_f32() * x[i]);
            let along = dot * r * r / c as f32;
            for (((dx, &x), dy), w) in dx.iter_mut().zip(x).zip(dy).zip(w) {
                *dx += r * (w.to_f32() * dy.to_f32() - x * along);
            }
        });
    });
}

/// `dw[c] = Σ_t dy·x·rstd`, overwritten or added to; `partials` f32 `[ceil(T / ROWS_PER_PARTIAL), C]`.
pub fn backward_weight<E: Element>(
    x: &[f32],
    rstd: &[f32],
    dy: &[E],
    dw: &mut [f32],
    partials: &mut [f32],
    add: bool,
) {
    let c = dw.len();
    let blocks = rstd.len().div_ceil(ROWS_PER_PARTIAL);
    let partials = &mut partials[..blocks * c];
    partials.par_chunks_exact_mut(c).enumerate().for_each(|(block, partial)| {
        partial.fill(0.0);
        let first = block * ROWS_PER_PARTIAL;
        for t in first..rstd.len().min(first + ROWS_PER_PARTIAL) {
            let (x, dy, r) = (&x[t * c..][..c], &dy[t * c..][..c], rstd[t]);
            simd(|| {
                for ((p, &x), dy) in partial.iter_mut().zip(x).zip(dy) {
                    *p += dy.to_f32() * (x * r);
                }
            });
        }
    });
    if !add {
        dw.fill(0.0);
    }
    for partial in partials.chunks_exact(c) {
        dw.iter_mut().zip(partial).for_each(|(dw, p)| *dw += p);
    }
}
