//! SwiGLU (Shazeer 2020, arXiv:2002.05202): `silu(gate)·up`, with gate and up side by side in one row.

use super::math::{sigmoid, simd};
use crate::dtype::Element;
use rayon::prelude::*;

/// `act[f] = silu(gate_up[f])·gate_up[F + f]`. `gate_up` A `[T, 2F]`, `act` A `[T, F]`.
pub fn forward<E: Element>(gate_up: &[E], act: &mut [E], f: usize) {
    act.par_chunks_exact_mut(f).zip(gate_up.par_chunks_exact(2 * f)).for_each(|(act, row)| {
        let (gate, up) = row.split_at(f);
        simd(
            #[inline(always)]
            || {
                for ((act, gate), up) in act.iter_mut().zip(gate).zip(up) {
                    let g = gate.to_f32();
                    *act = E::from_f32(g * sigmoid(g) * up.to_f32());
                }
            },
        );
    });
}

/// From `dact` A `[T, F]` the gradient of `gate_up`, A `[T, 2F]`, and `act` once more.
pub fn backward<E: Element>(gate_up: &[E], dact: &[E], act: &mut [E], dgate_up: &mut [E], f: usize) {
    let rows = gate_up.par_chunks_exact(2 * f).zip(dact.par_chunks_exact(f));
    let outputs = act.par_chunks_exact_mut(f).zip(dgate_up.par_chunks_exact_mut(2 * f));
    rows.zip(outputs).for_each(|((row, dact), (act, drow))| {
        let (gate, up) = row.split_at(f);
        let (dgate, dup) = drow.split_at_mut(f);
        simd(
            #[inline(always)]
            || {
                for i in 0..f {
                    let (g, u, d) = (gate[i].to_f32(), up[i].to_f32(), dact[i].to_f32());
                    let s = sigmoid(g);
                    let silu = g * s;
                    act[i] = E::from_f32(silu * u);
                    dgate[i] = E::from_f32(d * u * (s + silu * (1.0 - s)));
                    dup[i] = E::from_f32(d * silu);
                }
            },
        );
    });
}
