//! RMSNorm: forward, gradient of the input on top of what is there, gradient of the weight.

use crate::common::real::{Real, assert_allowed, values};
use half::bf16;
use smolten::dtype::Element;
use smolten::ops::rmsnorm::{ROWS_PER_PARTIAL, backward_input, backward_weight, forward};

/// Tokens and columns: one of each, tails of 16, and rows around the length of a partial sum.
const SHAPES: [(usize, usize); 8] =
    [(1, 1), (1, 16), (2, 17), (31, 5), (32, 64), (33, 64), (65, 100), (130, 33)];

fn exact_rstd(x: &[f32], eps: f32) -> f64 {
    let squares: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    1.0 / (squares / x.len() as f64 + f64::from(eps)).sqrt()
}

fn forward_in<E: Element>(scale: f32) {
    for (t, c) in SHAPES {
        let eps = 1e-5;
        let (x, w) = (values::<f32>(t * c, scale, 1), values::<E>(c, 2.0, 2));
        let (mut y, mut rstd) = (vec![E::from_f32(f32::NAN); t * c], vec![f32::NAN; t]);
        forward(&x, &w, eps, &mut y, &mut rstd);
        let want: Vec<Real> = x.chunks(c).map(|x| Real::rounded_once(exact_rstd(x, eps))).collect();
        assert_allowed("rstd", &rstd, &want);
        let y_of = |i: usize| Real::of(w[i % c]) * (Real::of(x[i]) * want[i / c]);
        assert_allowed("y", &y, &(0..t * c).map(y_of).collect::<Vec<_>>());
    }
}

#[test]
fn forward_is_its_formula() {
    in_each_type!(forward_in, 3.0);
}

/// Where the mean square is smaller than eps, eps decides.
#[test]
fn forward_of_small_values_needs_eps() {
    in_each_type!(forward_in, 1e-3);
    let (mut y, mut rstd) = ([f32::NAN; 4], [f32::NAN]);
    forward(&[0.0; 4], &[1.0f32; 4], 1e-5, &mut y, &mut rstd);
    assert_eq!(y, [0.0; 4]);
    assert_allowed("rstd", &rstd, &[Real::rounded_once(1.0 / f64::from(1e-5f32).sqrt())]);
}

fn input_gradient_in<E: Element>() {
    for (t, c) in SHAPES {
        let (x, w) = (values::<f32>(t * c, 3.0, 1), values::<E>(c, 2.0, 2));
        let (dy, rstd) = (values::<E>(t * c, 1.0, 3), values::<f32>(t, 1.0, 4));
        let before = values::<f32>(t * c, 1.0, 5);
        let mut dx = before.clone();
        backward_input(&x, &w, &rstd, &dy, &mut dx);
        let mut want = Vec::new();
        for (row, &r) in rstd.iter().enumerate() {
            let at = row * c..(row + 1) * c;
            let r = Real::of(r);
            let normal: Vec<Real> = x[at.clone()].iter().map(|&x| Real::of(x) * r).collect();
            let wdy: Vec<Real> =
                dy[at.clone()].iter().zip(&w).map(|(&dy, &w)| Real::of(w) * Real::of(dy)).collect();
            let mean = Real::dot(&wdy, &normal) / Real::exact(c as f64);
            want.extend((0..c).map(|i| Real::of(before[at.start + i]) + r * (wdy[i] - normal[i] * mean)));
        }
        assert_allowed("dx", &dx, &want);
    }
}

#[test]
fn input_gradient_is_added() {
    in_each_type!(input_gradient_in);
}

fn weight_gradient_in<E: Element>() {
    for (t, c) in SHAPES {
        let (x, rstd) = (values::<f32>(t * c, 3.0, 1), values::<f32>(t, 1.0, 4));
        let dy = values::<E>(t * c, 1.0, 3);
        let before = values::<f32>(c, 1.0, 6);
        let term =
            |t: usize, i: usize| Real::of(dy[t * c + i]) * (Real::of(x[t * c + i]) * Real::of(rstd[t]));
        let fresh: Vec<Real> = (0..c).map(|i| Real::sum((0..t).map(|t| term(t, i)))).collect();
        let added: Vec<Real> =
            (0..c).map(|i| Real::sum((0..t).map(|t| term(t, i)).chain([Real::of(before[i])]))).collect();
        for (add, want) in [(false, fresh), (true, added)] {
            let mut dw = if add { before.clone() } else { vec![f32::NAN; c] };
            let mut partials = vec![f32::NAN; (t.div_ceil(ROWS_PER_PARTIAL) + 1) * c];
            backward_weight(&x, &rstd, &dy, &mut dw, &mut partials, add);
            assert_allowed("dw", &dw, &want);
        }
    }
}

#[test]
fn weight_gradient_overwrites_or_adds() {
    in_each_type!(weight_gradient_in);
}

#[test]
fn no_tokens_leave_a_zero_weight_gradient() {
    let mut dw = [f32::NAN; 3];
    backward_weight::<bf16>(&[], &[], &[], &mut dw, &mut [], false);
    assert_eq!(dw, [0.0; 3]);
    backward_weight::<bf16>(&[], &[], &[], &mut dw, &mut [], true);
    assert_eq!(dw, [0.0; 3]);
}
