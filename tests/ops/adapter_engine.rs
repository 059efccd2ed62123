//! Adapters through the CPU engine: that each operation hands its own on, of the rows in use, with the micro-batch's key;
//! and what it refuses.

use crate::arena::{Arena, arena};
use crate::common::real::values;
use smolten::arena::Tensor;
use smolten::backend::{Backend, Dropout, LowRank, Projection, RopeTable, SwigluBackward};
use smolten::dtype::{DType, Element};
use smolten::error::Error;
use smolten::ops::attention::Heads;
use smolten::ops::linear::{
    Adapted, Narrow, Operand, Rotation, SwigluBuffers, Weight, forward_residual, forward_rope,
    forward_swiglu, input_gradient, swiglu_backward,
};
use smolten::ops::product::Mask;
use smolten::ops::rope::Table;
use smolten::ops::tile::Level;

/// Room for T rows, of which N are in use.
const T: usize = 40;
const N: usize = 37;
const C: usize = 20;
const RANK: usize = 6;
const KEY: [u32; 2] = [3, 4];
const HEADS: Heads = Heads { heads: 2, kv_heads: 1, head_dim: 32 };

fn bits<E: Element>(x: &[E]) -> Vec<u32> {
    x.iter().map(|x| x.to_f32().to_bits()).collect()
}

fn level() -> Level {
    Level::best()
}

/// Fills the rows in use of a tensor.
fn fill<E: Element>(a: &mut Arena<E>, t: Tensor, seed: u64) -> Vec<E> {
    let values = values::<E>(t.rows.min(N) * t.cols, 1.0, seed);
    a.put(t, &values);
    values
}

/// Both sides, filled.
fn low_rank<E: Element>(
    a: &mut Arena<E>,
    of: [Tensor; 2],
    dropout: Option<Dropout>,
) -> (LowRank, [Vec<E>; 2]) {
    let [left, right] = of;
    let filled = [fill(a, left, 11), fill_all(a, right, 12)];
    (LowRank { left, right, dropout }, filled)
}

fn fill_all<E: Element>(a: &mut Arena<E>, t: Tensor, seed: u64) -> Vec<E> {
    let values = values::<E>(t.len(), 1.0, seed);
    a.put(t, &values);
    values
}

fn narrow<E>(sides: &[Vec<E>; 2], dropout: Option<Dropout>) -> Option<Narrow<'_, E>> {
    let mask = dropout.map(|dropout| Mask { dropout, key: KEY });
    Some(Narrow { left: &sides[0], right: &sides[1], rank: RANK, mask })
}

fn begin<E: Element>(a: &mut Arena<E>) {
    a.params.noise_key = KEY;
    a.tokens(N);
}

fn forward_in<E: Operand>() {
    let (width, f) = (HEADS.qkv_width(), 48);
    let (mut a, (batch, [x, w, out], [w2, gate_up, act], [res, y], tables, adapters)) = arena::<E, _>(|l| {
        (
            l.batch(),
            [l.narrow(T, C), l.narrow(width, C), l.narrow(T, width)],
            [l.narrow(2 * f, C), l.narrow(T, 2 * f), l.narrow(T, f)],
            [l.wide(T, width), l.wide(T, width)],
            [l.wide(T, 16), l.wide(T, 16)],
            [l.narrow(T, RANK), l.narrow(width, RANK), l.narrow(2 * f, RANK)],
        )
    });
    begin(&mut a);
    let (vx, vw, vw2) = (fill(&mut a, x, 1), fill_all(&mut a, w, 2), fill_all(&mut a, w2, 3));
    let residual = values::<f32>(N * width, 1.0, 4);
    a.put(res, &residual);
    let (cos, sin) = (values::<f32>(T * 16, 1.0, 5), values::<f32>(T * 16, 1.0, 6));
    a.put(tables[0], &cos);
    a.put(tables[1], &sin);
    let positions: Vec<u32> = (0..u32::try_from(N).unwrap()).rev().collect();
    a.put(batch.positions, &positions);

    let (adapter, sides) = low_rank(&mut a, [adapters[0], adapters[1]], None);
    let of = Projection { w, bias: None, adapter: Some(adapter) };
    let adapted = Adapted { w: Weight::Plain(&vw), adapter: narrow(&sides, None) };
    a.cpu.linear_residual(x, of, res, y).unwrap();
    let mut want = vec![f32::NAN; N * width];
    forward_residual(level(), &vx, adapted, None, &residual, &mut want, C);
    assert_eq!(bits(&a.get::<f32>(y)[..want.len()]), bits(&want), "residual");

    a.cpu.linear_rope(&batch, HEADS, RopeTable { cos: tables[0], sin: tables[1] }, x, of, out).unwrap();
    let mut want = vec![E::from_f32(f32::NAN); N * width];
    let table = Table { cos: &cos, sin: &sin };
    let rotation = Rotation { heads: HEADS, positions: &positions, table };
    forward_rope(level(), &vx, adapted, None, rotation, &mut want, C);
    assert_eq!(bits(&a.get::<E>(out)[..want.len()]), bits(&want), "rope");

    let (adapter, sides) = low_rank(&mut a, [adapters[0], adapters[2]], None);
    let adapted = Adapted { w: Weight::Plain(&vw2), adapter: narrow(&sides, None) };
    let of = Projection { w: w2, bias: None, adapter: Some(adapter) };
    a.cpu.linear_swiglu(x, of, gate_up, act).unwrap();
    let (mut want, mut want_act) = (vec![E::from_f32(0.0); N * 2 * f], vec![E::from_f32(0.0); N * f]);
    forward_swiglu(level(), &vx, adapted, None, &mut want, &mut want_act, C);
    assert_eq!(bits(&a.get::<E>(gate_up)[..want.len()]), bits(&want), "gate_up");
    assert_eq!(bits(&a.get::<E>(act)[..want_act.len()]), bits(&want_act), "act");
    assert!([out, y, gate_up, act].into_iter().all(|t| a.untouched_behind(t, N)));
}

#[test]
fn forward_products_have_their_adapters() {
    in_each_type!(forward_in);
}

fn backward_in<E: Operand>(dropout: Option<Dropout>) {
    let f = 48;
    let (mut a, (dx, mut args, sides)) = arena::<E, _>(|l| {
        let args = SwigluBackward {
            dy: l.narrow(T, C),
            w: l.narrow(C, f),
            adapter: None,
            gate_up: l.narrow(T, 2 * f),
            act: l.narrow(T, f),
            act_is_kept: false,
            dgate_up: l.narrow(T, 2 * f),
        };
        (l.narrow(T, f), args, [l.narrow(T, RANK), l.narrow(RANK, f)])
    });
    begin(&mut a);
    let (dy, w) = (fill(&mut a, args.dy, 1), fill_all(&mut a, args.w, 2));
    let gate_up = fill(&mut a, args.gate_up, 3);
    let (adapter, sides) = low_rank(&mut a, sides, dropout);
    let mut want = vec![E::from_f32(f32::NAN); N * f];
    input_gradient(level(), &dy, &w, narrow(&sides, dropout), &mut want, f);
    let of = Projection { w: args.w, bias: None, adapter: Some(adapter) };
    a.cpu.linear_input_gradient(args.dy, of, dx).unwrap();
    assert_eq!(bits(&a.get::<E>(dx)[..want.len()]), bits(&want), "dx");

    let (mut act, mut dgate_up) = (vec![E::from_f32(0.0); N * f], vec![E::from_f32(0.0); N * 2 * f]);
    let buffers = SwigluBuffers { gate_up: &gate_up, act: &mut act, dgate_up: &mut dgate_up };
    swiglu_backward(level(), &dy, &w, narrow(&sides, dropout), buffers, f);
    args.adapter = Some(adapter);
    a.cpu.linear_swiglu_backward(args).unwrap();
    assert_eq!(bits(&a.get::<E>(args.dgate_up)[..dgate_up.len()]), bits(&dgate_up), "dgate_up");
    assert_eq!(bits(&a.get::<E>(args.act)[..act.len()]), bits(&act), "act");
    assert!([dx, args.act, args.dgate_up].into_iter().all(|t| a.untouched_behind(t, N)));
}

#[test]
fn backward_products_have_their_adapters_and_masks() {
    for dropout in [None, Some(Dropout::new(0.25, 9))] {
        in_each_type!(backward_in, dropout);
    }
}

#[test]
fn adapters_that_do_not_fit_are_refused() {
    let (mut a, (x, w, y, sides)) = arena::<f32, _>(|l| {
        let sides = [l.narrow(T, RANK), l.narrow(16, RANK), l.narrow(RANK, C), l.narrow(T, 0)];
        (l.narrow(T, C), l.narrow(16, C), l.narrow(T, 16), sides)
    });
    a.tokens(N);
    let [left, right, across, none] = sides;
    let short = |t: Tensor| Tensor { cols: t.cols - 1, ..t };
    let low =
        |left, right, dropout| Projection { w, bias: None, adapter: Some(LowRank { left, right, dropout }) };
    let narrow = |t: Tensor| Tensor { dtype: DType::BF16, ..t };
    let dropout = Some(Dropout::new(0.5, 1));
    for (left, right) in
        [(short(left), right), (left, short(right)), (left, right.head(15)), (left, across), (none, right)]
    {
        let got = a.cpu.linear_residual(x, low(left, right, None), y, y);
        assert!(matches!(got, Err(Error::Shape { .. })), "{left:?} {right:?}: {got:?}");
    }
    for of in [low(narrow(left), right, None), low(left, narrow(right), None), low(left, right, dropout)] {
        let got = a.cpu.linear_residual(x, of, y, y);
        assert!(matches!(got, Err(Error::Unsupported { .. })), "{of:?}: {got:?}");
    }
    for (left, right) in [(short(left), across), (left, short(across)), (left, across.head(2)), (left, right)]
    {
        let got = a.cpu.linear_input_gradient(y, low(left, right, dropout), x);
        assert!(matches!(got, Err(Error::Shape { .. })), "{left:?} {right:?}: {got:?}");
    }
    assert!(a.cpu.linear_input_gradient(y, low(left, across, dropout), x).is_ok());
}
