//! What a backend fuses, through the CPU engine: one rounding where one is promised, and only rows in use written.

use crate::arena::arena;
use crate::common::real::{Real, assert_allowed, reals, values};
use smolten::arena::Tensor;
use smolten::backend::{Backend, Projection, RmsNormBackward, RopeTable, SwigluBackward};
use smolten::dtype::{DType, Element};
use smolten::ops::attention::Heads;
use smolten::ops::{rmsnorm, rope, swiglu};

/// Room for T rows, of which N are in use.
const T: usize = 40;
const N: usize = 37;

/// `x·wᵀ`.
fn products<E: Element>(x: &[E], w: &[E], inputs: usize) -> Vec<Real> {
    let (x, w) = (reals(x), reals(w));
    x.chunks(inputs).flat_map(|x| w.chunks(inputs).map(|w| Real::dot(x, w))).collect()
}

/// `x·wᵀ + bias`.
fn affine<E: Element>(x: &[E], w: &[E], bias: &[E], inputs: usize) -> Vec<Real> {
    let bias = reals(bias).into_iter().cycle();
    products(x, w, inputs).into_iter().zip(bias).map(|(y, b)| y + b).collect()
}

fn qkv_projection<E: Element>(d: usize) {
    let (heads, half) = (Heads { heads: 4, kv_heads: 2, head_dim: d }, d / 2);
    let (c, width) = (20, heads.qkv_width());
    let (mut a, (batch, x, w, bias, out, cos, sin)) = arena::<E, _>(|l| {
        let (x, w, out) = (l.narrow(T, c), l.narrow(width, c), l.narrow(T, width));
        (l.batch(), x, w, l.narrow(1, width), out, l.wide(9, half), l.wide(9, half))
    });
    let vb = values::<E>(width, 1.0, 3);
    a.put(bias, &vb);
    let (vx, vw) = (values::<E>(N * c, 1.0, 1), values::<E>(width * c, 1.0, 2));
    let positions: Vec<u32> = (0..u32::try_from(N).unwrap()).map(|t| t % 9).collect();
    let frequencies: Vec<f64> = (0..half).map(|i| 0.7f64.powi(i32::try_from(i).unwrap())).collect();
    let (vcos, vsin) = rope::table(&frequencies, 9);
    a.put(x, &vx);
    a.put(w, &vw);
    a.put(batch.positions, &positions);
    a.put(cos, &vcos);
    a.put(sin, &vsin);
    a.tokens(N);
    let projection = Projection { w, bias: Some(bias), adapter: None };
    a.cpu.linear_rope(&batch, heads, RopeTable { cos, sin }, x, projection, out).unwrap();
    let mut want = affine(&vx, &vw, &vb, c);
    for (row, &p) in want.chunks_mut(width).zip(&positions) {
        for head in row[..(heads.heads + heads.kv_heads) * d].chunks_mut(d) {
            for i in 0..half {
                let at = p as usize * half + i;
                let (c, s, x, y) = (Real::of(vcos[at]), Real::of(vsin[at]), head[i], head[i + half]);
                (head[i], head[i + half]) = (x * c - y * s, y * c + x * s);
            }
        }
    }
    assert_allowed("qkv", &a.get::<E>(out)[..N * width], &want);
    assert!(a.untouched_behind(out, N));
}

#[test]
fn qkv_projection_rounds_once_after_the_rotation() {
    // The matrix unit finds both coordinates of a pair in one block where a head has whole blocks.
    for head_dim in [6, 16, 32, 64, 96] {
        in_each_type!(qkv_projection, head_dim);
    }
}

fn bits<E: Element>(x: &[E]) -> Vec<u32> {
    x.iter().map(|x| x.to_f32().to_bits()).collect()
}

fn mlp<E: Element>(f: usize) {
    let c = 20;
    let (mut a, (x, w, bias, gate_up, act)) = arena::<E, _>(|l| {
        (l.narrow(T, c), l.narrow(2 * f, c), l.narrow(1, 2 * f), l.narrow(T, 2 * f), l.narrow(T, f))
    });
    let vb = values::<E>(2 * f, 1.0, 3);
    a.put(bias, &vb);
    let (vx, vw) = (values::<E>(N * c, 1.0, 1), values::<E>(2 * f * c, 1.0, 2));
    a.put(x, &vx);
    a.put(w, &vw);
    a.tokens(N);
    a.cpu.linear_swiglu(x, Projection { w, bias: Some(bias), adapter: None }, gate_up, act).unwrap();
    let rows = a.get::<E>(gate_up)[..N * 2 * f].to_vec();
    assert_allowed("gate_up", &rows, &affine(&vx, &vw, &vb, c));
    let mut want = vec![E::from_f32(0.0); N * f];
    swiglu::forward(&rows, &mut want, f);
    assert_eq!(bits(&a.get::<E>(act)[..N * f]), bits(&want));
    assert!(a.untouched_behind(gate_up, N) && a.untouched_behind(act, N));
}

#[test]
fn mlp_is_linear_then_swiglu() {
    for f in [18, 16, 48, 64] {
        in_each_type!(mlp, f);
    }
}

fn mlp_backward<E: Element>() {
    let (c, f) = (20, 18);
    let (mut a, (args, dx)) = arena::<E, _>(|l| {
        let args = SwigluBackward {
            adapter: None,
            dy: l.narrow(T, c),
            w: l.narrow(c, f),
            gate_up: l.narrow(T, 2 * f),
            act: l.narrow(T, f),
            act_is_kept: false,
            dgate_up: l.narrow(T, 2 * f),
        };
        (args, l.narrow(T, f))
    });
    let (dy, w) = (values::<E>(N * c, 1.0, 1), values::<E>(c * f, 1.0, 2));
    let gate_up = values::<E>(N * 2 * f, 3.0, 3);
    a.put(args.dy, &dy);
    a.put(args.w, &w);
    a.put(args.gate_up, &gate_up);
    a.tokens(N);
    a.cpu.linear_swiglu_backward(args).unwrap();
    let columns: Vec<E> = (0..f).flat_map(|j| w.iter().skip(j).step_by(f).copied()).collect();
    a.cpu.linear_input_gradient(args.dy, args.w.into(), dx).unwrap();
    let dact = a.get::<E>(dx)[..N * f].to_vec();
    assert_allowed("dact", &dact, &products(&dy, &columns, c));
    let (mut act, mut want) = (vec![E::from_f32(0.0); N * f], vec![E::from_f32(0.0); 2 * N * f]);
    swiglu::backward(&gate_up, &dact, &mut act, &mut want, f);
    assert_eq!(bits(&a.get::<E>(args.dgate_up)[..2 * N * f]), bits(&want));
    assert_eq!(bits(&a.get::<E>(args.act)[..N * f]), bits(&act));
    assert!([args.act, args.dgate_up].into_iter().all(|t| a.untouched_behind(t, N)));
}

#[test]
fn mlp_backward_is_input_gradient_then_swiglu_backward() {
    in_each_type!(mlp_backward);
}

fn norm_backward<E: Element>(accumulate: u32) {
    let c = 20;
    let (mut a, args) = arena::<E, _>(|l| RmsNormBackward {
        x: l.wide(T, c),
        w: l.narrow(1, c),
        rstd: l.wide(1, T),
        dy: l.narrow(T, c),
        dx: l.wide(T, c),
        dx_rounded: (E::DTYPE != DType::F32).then(|| l.narrow(T, c)),
        dw: Some(l.wide(1, c)),
        partials: l.wide(2, c),
    });
    let (x, w) = (values::<f32>(N * c, 1.0, 1), values::<E>(c, 1.0, 2));
    let (rstd, dy) = (values::<f32>(N, 1.0, 3), values::<E>(N * c, 1.0, 4));
    let (mut dx, mut dw) = (values::<f32>(N * c, 1.0, 5), values::<f32>(c, 1.0, 6));
    a.put(args.x, &x);
    a.put(args.w, &w);
    a.put(args.rstd, &rstd);
    a.put(args.dy, &dy);
    a.put(args.dx, &dx);
    a.put(args.dw.unwrap(), &dw);
    a.params.accumulate = accumulate;
    a.tokens(N);
    a.cpu.rmsnorm_backward(args).unwrap();
    rmsnorm::backward_input(&x, &w, &rstd, &dy, &mut dx);
    rmsnorm::backward_weight(&x, &rstd, &dy, &mut dw, &mut vec![0.0; 2 * c], accumulate == 1);
    assert_eq!(bits(&a.get::<f32>(args.dx)[..N * c]), bits(&dx));
    assert_eq!(bits(&a.get::<f32>(args.dw.unwrap())), bits(&dw));
    if let Some(rounded) = args.dx_rounded {
        let want: Vec<E> = dx.iter().map(|&x| E::from_f32(x)).collect();
        assert_eq!(bits(&a.get::<E>(rounded)[..N * c]), bits(&want));
        assert!(a.untouched_behind(rounded, N));
    }
    assert!(a.untouched_behind(args.dx, N));
}

#[test]
fn norm_backward_leaves_dx_in_both_types() {
    in_each_type!(norm_backward, 0);
    in_each_type!(norm_backward, 1);
}

fn last_logits<E: Element>() {
    let (c, v) = (20, 33);
    let (mut a, (x, w, logits)) = arena::<E, _>(|l| (l.narrow(T, c), l.narrow(v, c), l.wide(5, v)));
    let (vx, vw) = (values::<E>(N * c, 1.0, 1), values::<E>(v * c, 1.0, 2));
    a.put(x, &vx);
    a.put(w, &vw);
    for (tokens, rows) in [(N, 5), (N, 1), (3, 5), (5, 5)] {
        a.tokens(tokens);
        a.cpu.logits(x, w, logits.head(rows)).unwrap();
        let n = rows.min(tokens);
        let want = products(&vx[(tokens - n) * c..tokens * c], &vw, c);
        assert_allowed("logits", &a.get::<f32>(logits)[..n * v], &want);
    }
}

#[test]
fn logits_are_those_of_the_last_tokens() {
    in_each_type!(last_logits);
}

#[test]
fn zero_and_residual_write_rows_in_use() {
    let (mut a, (x, w, residual, y)) =
        arena::<f32, _>(|l| (l.narrow(T, 4), l.narrow(3, 4), l.wide(T, 3), l.wide(T, 3)));
    a.put(x, &values::<f32>(N * 4, 1.0, 1));
    a.put(w, &values::<f32>(12, 1.0, 2));
    a.put(residual, &values::<f32>(N * 3, 1.0, 3));
    a.tokens(N);
    a.cpu.linear_residual(x, w.into(), residual, y).unwrap();
    assert!(a.untouched_behind(y, N) && a.get::<f32>(y)[..N * 3].iter().all(|x| x.is_finite()));
    a.cpu.zero(y).unwrap();
    assert!(a.untouched_behind(y, N));
    assert_eq!(a.get::<f32>(y)[..N * 3], [0.0; N * 3]);
}

fn residual_with_bias<E: Element>() {
    let (mut a, (x, w, bias, residual, y)) =
        arena::<E, _>(|l| (l.narrow(T, 20), l.narrow(7, 20), l.narrow(1, 7), l.wide(T, 7), l.wide(T, 7)));
    let (vx, vw, vb) = (values::<E>(N * 20, 1.0, 1), values::<E>(7 * 20, 1.0, 2), values::<E>(7, 1.0, 3));
    let before = values::<f32>(N * 7, 1.0, 4);
    a.put(x, &vx);
    a.put(w, &vw);
    a.put(bias, &vb);
    a.put(residual, &before);
    a.tokens(N);
    a.cpu.linear_residual(x, Projection { w, bias: Some(bias), adapter: None }, residual, y).unwrap();
    // Adding the residual first changes the order of the sum only.
    let terms = |i: usize| {
        let (x, w) = (reals(&vx[i / 7 * 20..][..20]), reals(&vw[i % 7 * 20..][..20]));
        let products = x.into_iter().zip(w).map(|(x, w)| x * w).collect::<Vec<_>>();
        Real::sum(products.into_iter().chain([Real::of(before[i]), Real::of(vb[i % 7])]))
    };
    let want: Vec<Real> = (0..N * 7).map(terms).collect();
    assert_allowed("y", &a.get::<f32>(y)[..N * 7], &want);
}

#[test]
fn residual_and_bias_are_added() {
    in_each_type!(residual_with_bias);
}

#[test]
fn buffers_that_do_not_fit_are_refused() {
    let (mut a, (x, w, y)) = arena::<f32, _>(|l| (l.narrow(T, 20), l.narrow(16, 20), l.narrow(T, 16)));
    a.tokens(N);
    let wrong = |t: Tensor| Tensor { cols: t.cols - 1, ..t };
    assert!(a.cpu.linear(wrong(x), w, y).is_err());
    assert!(a.cpu.linear(x, w, wrong(y)).is_err());
    assert!(a.cpu.linear_input_gradient(y, w.into(), wrong(x)).is_err());
    assert!(a.cpu.linear_weight_gradient(y, x, wrong(w)).is_err());
    assert!(a.cpu.logits(x, w, wrong(y)).is_err());
    let unfit = Projection { w, bias: Some(wrong(w.head(1))), adapter: None };
    assert!(a.cpu.linear_residual(x, unfit, y, y).is_err());
    assert!(a.cpu.linear(x, w, y).is_ok());
}
