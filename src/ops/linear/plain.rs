//! The same through fp32 and the `gemm` crate: how fp32 is multiplied, and fp16, which is widened; what bf16 on the matrix
//! unit is held against.

use crate::dtype::Element;
use crate::ops::matmul::{Threads, View, multiply, rounding, widen};
use rayon::prelude::*;

/// Elements that one task copies.
const COPY: usize = 1 << 15;

/// `y[t] += bias`. `y` f32 `[T, out]`, `bias` `[out]`.
pub fn add_bias(y: &mut [f32], bias: &[f32]) {
    y.par_chunks_exact_mut(bias.len()).for_each(|row| row.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
}

/// `y = x·wᵀ`. `x` A `[T, in]`, `w` A `[out, in]`, `y` B `[T, out]`.
pub fn forward<A: Element, B: Element>(x: &[A], w: &[A], y: &mut [B], t: usize, inputs: usize) {
    let outputs = w.len() / inputs;
    let (x, w) = (widen(x), widen(w));
    rounding(y, |y| {
        multiply(
            View::new(&x, t, inputs),
            View::new(&w, outputs, inputs).t(),
            y,
            outputs,
            false,
            Threads::All,
        );
    });
}

/// `y = residual + x·wᵀ`. `residual`, `y` f32 `[T, out]`.
pub fn forward_residual<A: Element>(
    x: &[A],
    w: &[A],
    residual: &[f32],
    y: &mut [f32],
    t: usize,
    inputs: usize,
) {
    let outputs = w.len() / inputs;
    y.par_chunks_mut(COPY).zip(residual.par_chunks(COPY)).for_each(|(y, r)| y.copy_from_slice(r));
    let (x, w) = (widen(x), widen(w));
    multiply(View::new(&x, t, inputs), View::new(&w, outputs, inputs).t(), y, outputs, true, Threads::All);
}

/// `dx = dy·w`. `dy` A `[T, out]`, `dx` A `[T, in]`.
pub fn input_gradient<A: Element>(dy: &[A], w: &[A], dx: &mut [A], t: usize, inputs: usize) {
    let outputs = w.len() / inputs;
    let (dy, w) = (widen(dy), widen(w));
    rounding(dx, |dx| {
        multiply(View::new(&dy, t, outputs), View::new(&w, outputs, inputs), dx, inputs, false, Threads::All);
    });
}

/// `dw = dyᵀ·x`, overwritten or added to. `dw` f32 `[out, in]`.
pub fn weight_gradient<A: Element>(dy: &[A], x: &[A], dw: &mut [f32], t: usize, inputs: usize, add: bool) {
    let outputs = dw.len() / inputs;
    let (dy, x) = (widen(dy), widen(x));
    multiply(View::new(&dy, t, outputs).t(), View::new(&x, t, inputs), dw, inputs, add, Threads::All);
}
