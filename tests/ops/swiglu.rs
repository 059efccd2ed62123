//! SwiGLU: forward, and backward with the product computed again.

use crate::common::real::{Real, assert_allowed, values};
use smolten::dtype::Element;
use smolten::ops::swiglu::{backward, forward};

const SHAPES: [(usize, usize); 6] = [(1, 1), (1, 16), (2, 17), (5, 64), (3, 100), (64, 33)];

/// Gates from moderate to where the sigmoid is 0 or 1 in f32; the last column of each row takes the extremes.
fn gate_up<E: Element>(t: usize, f: usize) -> Vec<E> {
    let mut x = values::<E>(t * 2 * f, 6.0, 1);
    let extremes = [0.0, -20.0, 20.0, -88.5, 88.5, -100.0, 100.0, -1e4];
    for row in 0..t {
        x[row * 2 * f + f - 1] = E::from_f32(extremes[row % extremes.len()]);
    }
    x
}

/// Gate, up, sigmoid and silu of element `i` of `[T, F]`.
fn parts<E: Element>(gate_up: &[E], f: usize, i: usize) -> [Real; 4] {
    let (row, column) = (i / f * 2 * f, i % f);
    let (gate, up) = (Real::of(gate_up[row + column]), Real::of(gate_up[row + f + column]));
    [gate, up, gate.sigmoid(), gate * gate.sigmoid()]
}

fn check<E: Element>() {
    for (t, f) in SHAPES {
        let x = gate_up::<E>(t, f);
        let nan = |n: usize| vec![E::from_f32(f32::NAN); n];
        let (mut act, mut again, mut dx) = (nan(t * f), nan(t * f), nan(2 * t * f));
        forward(&x, &mut act, f);
        let want = |g: &dyn Fn([Real; 4], usize) -> Real| -> Vec<Real> {
            (0..t * f).map(|i| g(parts(&x, f, i), i)).collect()
        };
        assert_allowed("act", &act, &want(&|[_, up, _, silu], _| silu * up));

        let dact = values::<E>(t * f, 2.0, 2);
        backward(&x, &dact, &mut again, &mut dx, f);
        assert!(act.iter().zip(&again).all(|(a, b)| a.to_f32() == b.to_f32()), "act again");
        let half = |which: usize| -> Vec<E> {
            dx.chunks(2 * f).flat_map(|row| row[which * f..][..f].to_vec()).collect()
        };
        let d = |i: usize| Real::of(dact[i]);
        let one = Real::exact(1.0);
        let dgate = want(&|[_, up, s, silu], i| d(i) * up * (s + silu * (one - s)));
        assert_allowed("dgate", &half(0), &dgate);
        assert_allowed("dup", &half(1), &want(&|[_, _, _, silu], i| d(i) * silu));
    }
}

#[test]
fn forward_and_backward() {
    in_each_type!(check);
}
