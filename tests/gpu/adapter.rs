//! Products with an adapter beside the weight, and with its dropout, within counted roundings of what they are in real
//! numbers; every tile has the same bits.

mod engine;

use super::common::real::{Real, assert_allowed, values};
use super::linear::{unsplit, versions};
use super::{bits, filled, open, params, set_params, widen, write};
use half::f16;
use smolten::arena::{Category, Plan, Tensor};
use smolten::backend::{Dropout, LowRank, Projection, StepParams};
use smolten::cuda::{Cuda, Rung};
use smolten::dtype::{DType, Element};
use smolten::error::Error;
use smolten::ops::attention::Heads;
use smolten::ops::linear_launch::{self, Rotation, Rows};
use smolten::ops::noise::row_key;

/// Rows planned, rows in use, inputs, outputs, rank: less than a stage; odd numbers of tokens; tails in each direction; a
/// rank of more than a stage; no row at all.
const SHAPES: [[usize; 5]; 5] =
    [[1, 1, 8, 8, 8], [5, 3, 64, 24, 16], [131, 129, 72, 136, 40], [68, 67, 136, 72, 8], [3, 0, 16, 16, 16]];

/// What only the naive version takes.
const ODD_SHAPES: [[usize; 5]; 2] = [[4, 3, 7, 10, 3], [34, 33, 20, 14, 5]];

const KEY: [u32; 2] = [0x0123_4567, 0x89ab_cdef];

fn dropout() -> Dropout {
    Dropout::new(0.3, 5)
}

/// A buffer and what is in its rows in use.
struct Operand<E> {
    at: Tensor,
    values: Vec<E>,
}

impl<E: Element> Operand<E> {
    fn new(plan: &mut Plan, rows: usize, cols: usize, used: usize, seed: u64) -> Self {
        let at = plan.tensor(Category::Activations, rows, cols, E::DTYPE);
        Self { at, values: values(used * cols, 1.0, seed) }
    }

    fn upload(&self, cuda: &mut Cuda) {
        write(cuda, self.at, &filled(self.at, &self.values, E::from_f32(f32::NAN)));
    }

    fn get(&self, row: usize, column: usize) -> Real {
        Real::of(self.values[row * self.at.cols + column])
    }
}

/// The operands of both products.
struct Pairs<E> {
    a: Operand<E>,
    b: Operand<E>,
    left: Operand<E>,
    right: Operand<E>,
    is_gradient: bool,
}

impl<E: Element> Pairs<E> {
    fn new(plan: &mut Plan, [rows, t, inputs, outputs, rank]: [usize; 5], is_gradient: bool) -> Self {
        let depth = if is_gradient { outputs } else { inputs };
        let right = if is_gradient { [rank, inputs] } else { [outputs, rank] };
        Self {
            a: Operand::new(plan, rows, depth, t, 1),
            b: Operand::new(plan, outputs, inputs, outputs, 2),
            left: Operand::new(plan, rows, rank, t, 3),
            right: Operand::new(plan, right[0], right[1], right[0], 4),
            is_gradient,
        }
    }

    fn upload(&self, cuda: &mut Cuda) {
        [&self.a, &self.b, &self.left, &self.right].into_iter().for_each(|operand| operand.upload(cuda));
    }

    fn projection(&self, bias: Option<Tensor>, dropout: Option<Dropout>) -> Projection {
        let adapter = LowRank { left: self.left.at, right: self.right.at, dropout };
        Projection { w: self.b.at, bias, adapter: Some(adapter) }
    }

    /// One element. A mask's rounding of a sum is no larger than those of its terms; the eights begin anew at both pairs.
    fn sum(&self, row: usize, column: usize, dropout: Option<Dropout>) -> Real {
        let of = |operand: &Operand<E>, k| {
            if self.is_gradient { operand.get(k, column) } else { operand.get(column, k) }
        };
        let number = |i| u32::try_from(i).unwrap();
        let mask = dropout.map_or(1.0, |d| d.at(row_key(KEY, d.site, number(row)), number(column)));
        let adapter =
            (0..self.left.at.cols).map(|k| self.left.get(row, k) * of(&self.right, k) * Real::of(mask));
        let main = (0..self.a.at.cols).map(|k| self.a.get(row, k) * of(&self.b, k));
        Real::sum_of_eights(adapter.chain(main), 2)
    }

    fn sums(&self, [t, columns]: [usize; 2], dropout: Option<Dropout>) -> Vec<Real> {
        (0..t * columns).map(|i| self.sum(i / columns, i % columns, dropout)).collect()
    }
}

fn tokens(cuda: &mut Cuda, t: usize) {
    let step = params(u32::try_from(t).unwrap(), bytemuck::Zeroable::zeroed());
    set_params(cuda, &StepParams { noise_key: KEY, ..step });
}

fn clear<E: Element>(cuda: &mut Cuda, t: Tensor) {
    write(cuda, t, &vec![E::from_f32(f32::NAN); t.len()]);
}

/// The rows in use; checks that the others are as they were.
fn used<E: Element>(cuda: &Cuda, at: Tensor, t: usize) -> Vec<E> {
    let mut all = super::read::<E>(cuda, at);
    let unused = all.split_off(t * at.cols);
    assert!(unused.iter().all(|x| x.to_f32().is_nan()), "a row that is not in use was written");
    all
}

/// Runs all versions; the results of tiles have the same bits.
fn in_all_versions<E: Element>(
    cuda: &mut Cuda,
    shape: [usize; 5],
    what: &str,
    mut run: impl FnMut(&mut Cuda, Rung, &str) -> Vec<f32>,
) {
    let (mut of_tiles, is_odd) = (Vec::new(), shape.iter().skip(2).any(|n| n % 8 != 0));
    tokens(cuda, shape[1]);
    for (rung, tile) in versions(E::DTYPE).take(if is_odd { 1 } else { 4 }) {
        cuda.cut = tile.map(unsplit);
        let result = run(cuda, rung, &format!("{what} of {shape:?}, {rung:?}, {tile:?}"));
        of_tiles.extend(tile.map(|_| bits(&result)));
    }
    assert!(of_tiles.windows(2).all(|w| w[0] == w[1]), "{what} of {shape:?}, {:?}: tiles differ", E::DTYPE);
}

fn shapes() -> impl Iterator<Item = [usize; 5]> {
    SHAPES.into_iter().chain(ODD_SHAPES)
}

fn residual_matches<E: Element>() {
    for shape @ [rows, t, _, outputs, _] in shapes() {
        let mut plan = Plan::default();
        let pairs = Pairs::<E>::new(&mut plan, shape, false);
        let bias = Operand::<E>::new(&mut plan, 1, outputs, 1, 5);
        let residual = Operand::<f32>::new(&mut plan, rows, outputs, t, 6);
        let y = plan.tensor(Category::Activations, rows, outputs, DType::F32);
        let mut cuda = open(&plan, E::DTYPE);
        pairs.upload(&mut cuda);
        bias.upload(&mut cuda);
        residual.upload(&mut cuda);
        let sums = pairs.sums([t, outputs], None);
        let want = |i: usize| residual.get(i / outputs, i % outputs) + (sums[i] + bias.get(0, i % outputs));
        let want: Vec<Real> = (0..t * outputs).map(want).collect();
        in_all_versions::<E>(&mut cuda, shape, "residual", |cuda, rung, name| {
            clear::<f32>(cuda, y);
            let w = pairs.projection(Some(bias.at), None);
            linear_launch::linear_residual(cuda, rung, pairs.a.at, w, residual.at, y).unwrap();
            let got = used::<f32>(cuda, y, t);
            assert_allowed(name, &got, &want);
            got
        });
    }
}

fn rope_matches<E: Element>() {
    for (heads, kv_heads, head_dim, rank) in [(1, 1, 64, 16), (2, 1, 32, 40), (3, 1, 16, 8)] {
        let heads = Heads { heads, kv_heads, head_dim };
        let (width, half, rows, t) = (heads.qkv_width(), head_dim / 2, 70, 69);
        let shape = [rows, t, 40, width, rank];
        let mut plan = Plan::default();
        let pairs = Pairs::<E>::new(&mut plan, shape, false);
        let bias = Operand::<E>::new(&mut plan, 1, width, 1, 5);
        let [cos, sin] = [6, 7].map(|seed| Operand::<f32>::new(&mut plan, 50, half, 50, seed));
        let mut of = |rows, cols, dtype| plan.tensor(Category::Activations, rows, cols, dtype);
        let (positions, qkv) = (of(1, rows, DType::U32), of(rows, width, E::DTYPE));
        let mut cuda = open(&plan, E::DTYPE);
        let at: Vec<u32> = (0..).map(|i| i * 7 % 50).take(rows).collect();
        write(&mut cuda, positions, &at);
        pairs.upload(&mut cuda);
        bias.upload(&mut cuda);
        [&cos, &sin].into_iter().for_each(|table| table.upload(&mut cuda));
        let sums = pairs.sums([t, width], None);
        let turned = (heads.heads + kv_heads) * head_dim;
        let want = |i: usize| {
            let of = |i: usize| sums[i] + bias.get(0, i % width);
            let (row, column) = (at[i / width] as usize, i % width % half);
            let (c, s) = (cos.get(row, column), sin.get(row, column));
            match i % width {
                n if n >= turned => of(i),
                n if n % head_dim < half => of(i) * c - of(i + half) * s,
                _ => of(i) * c + of(i - half) * s,
            }
        };
        let want: Vec<Real> = (0..t * width).map(want).collect();
        let rotation = Rotation { heads, positions, cos: cos.at, sin: sin.at };
        in_all_versions::<E>(&mut cuda, shape, "rope", |cuda, rung, name| {
            clear::<E>(cuda, qkv);
            let w = pairs.projection(Some(bias.at), None);
            linear_launch::linear_rope(cuda, rung, rotation, pairs.a.at, w, qkv).unwrap();
            let got = used::<E>(cuda, qkv, t);
            assert_allowed(name, &got, &want);
            widen(&got)
        });
    }
}

fn swiglu_matches<E: Element>() {
    for [rows, t, inputs, f, rank] in shapes() {
        let shape = [rows, t, inputs, 2 * f, rank];
        let mut plan = Plan::default();
        let pairs = Pairs::<E>::new(&mut plan, shape, false);
        let bias = Operand::<E>::new(&mut plan, 1, 2 * f, 1, 5);
        let mut of = |cols| plan.tensor(Category::Activations, rows, cols, E::DTYPE);
        let (gate_up, act) = (of(2 * f), of(f));
        let mut cuda = open(&plan, E::DTYPE);
        pairs.upload(&mut cuda);
        bias.upload(&mut cuda);
        let sums = pairs.sums([t, 2 * f], None);
        let want: Vec<Real> =
            sums.iter().enumerate().map(|(i, &sum)| sum + bias.get(0, i % (2 * f))).collect();
        in_all_versions::<E>(&mut cuda, shape, "swiglu", |cuda, rung, name| {
            cuda.cut = None; // it has only the largest
            [gate_up, act].into_iter().for_each(|t| clear::<E>(cuda, t));
            let w = pairs.projection(Some(bias.at), None);
            linear_launch::linear_swiglu(cuda, rung, pairs.a.at, w, gate_up, act).unwrap();
            let (both, act) = (used::<E>(cuda, gate_up, t), used::<E>(cuda, act, t));
            assert_allowed(name, &both, &want);
            let of_stored = |i: usize| {
                let at = i / f * 2 * f + i % f;
                let (gate, up) = (Real::of(both[at]), Real::of(both[at + f]));
                gate * gate.sigmoid() * up
            };
            assert_allowed(name, &act, &(0..t * f).map(of_stored).collect::<Vec<_>>());
            widen(&act)
        });
    }
}

fn input_gradient_matches<E: Element>() {
    for shape @ [rows, t, inputs, ..] in shapes() {
        for dropout in [None, Some(dropout())] {
            let mut plan = Plan::default();
            let pairs = Pairs::<E>::new(&mut plan, shape, true);
            let dx = plan.tensor(Category::Activations, rows, inputs, E::DTYPE);
            let mut cuda = open(&plan, E::DTYPE);
            pairs.upload(&mut cuda);
            let want = pairs.sums([t, inputs], dropout);
            in_all_versions::<E>(&mut cuda, shape, &format!("gradient, {dropout:?}"), |cuda, rung, name| {
                clear::<E>(cuda, dx);
                let w = pairs.projection(None, dropout);
                linear_launch::input_gradient(cuda, rung, Rows::Tokens, pairs.a.at, w, dx).unwrap();
                let got = used::<E>(cuda, dx, t);
                assert_allowed(name, &got, &want);
                widen(&got)
            });
        }
    }
}

fn swiglu_gradient_matches<E: Element>() {
    for (shape @ [rows, t, f, ..], dropout) in
        shapes().flat_map(|shape| [None, Some(dropout())].map(|dropout| (shape, dropout)))
    {
        let mut plan = Plan::default();
        let pairs = Pairs::<E>::new(&mut plan, shape, true);
        let gate_up = Operand::<E>::new(&mut plan, rows, 2 * f, t, 5);
        let mut of = |cols| plan.tensor(Category::Activations, rows, cols, E::DTYPE);
        let (act, dgate_up) = (of(f), of(2 * f));
        let mut cuda = open(&plan, E::DTYPE);
        pairs.upload(&mut cuda);
        gate_up.upload(&mut cuda);
        let d: Vec<Real> = pairs.sums([t, f], dropout).into_iter().map(Real::rounded::<E>).collect();
        let want = |i: usize| {
            let (row, column) = (i / (2 * f), i % f);
            let (gate, up) = (gate_up.get(row, column), gate_up.get(row, f + column));
            let (d, s) = (d[row * f + column], gate.sigmoid());
            let silu = gate * s;
            if i % (2 * f) < f { d * up * (s + silu * (Real::exact(1.0) - s)) } else { d * silu }
        };
        let want: Vec<Real> = (0..2 * t * f).map(want).collect();
        in_all_versions::<E>(&mut cuda, shape, &format!("swiglu's, {dropout:?}"), |cuda, rung, name| {
            [act, dgate_up].into_iter().for_each(|t| clear::<E>(cuda, t));
            let w = pairs.projection(None, dropout);
            linear_launch::swiglu_backward(cuda, rung, pairs.a.at, w, gate_up.at, Some(act), dgate_up)
                .unwrap();
            let got = used::<E>(cuda, dgate_up, t);
            assert_allowed(name, &got, &want);
            widen(&[got, used::<E>(cuda, act, t)].concat())
        });
    }
}

/// An adapter of zeros, masked or not, leaves the bits that there are without one.
fn zeros_change_nothing<E: Element>() {
    let shape @ [rows, t, inputs, outputs, _] = SHAPES[2];
    let mut plan = Plan::default();
    let [mut forward, mut backward] =
        [false, true].map(|is_gradient| Pairs::<E>::new(&mut plan, shape, is_gradient));
    let residual = Operand::<f32>::new(&mut plan, rows, outputs, t, 6);
    let y = plan.tensor(Category::Activations, rows, outputs, DType::F32);
    let dx = plan.tensor(Category::Activations, rows, inputs, E::DTYPE);
    let mut cuda = open(&plan, E::DTYPE);
    for pairs in [&mut forward, &mut backward] {
        pairs.left.values.fill(E::from_f32(0.0));
        pairs.upload(&mut cuda);
    }
    residual.upload(&mut cuda);
    in_all_versions::<E>(&mut cuda, shape, "nothing", |cuda, rung, name| {
        let mut run = |with: bool| {
            let adapted = |pairs: &Pairs<E>, dropout| {
                if with { pairs.projection(None, dropout) } else { pairs.b.at.into() }
            };
            clear::<f32>(cuda, y);
            clear::<E>(cuda, dx);
            let w = adapted(&forward, None);
            linear_launch::linear_residual(cuda, rung, forward.a.at, w, residual.at, y).unwrap();
            let w = adapted(&backward, Some(dropout()));
            linear_launch::input_gradient(cuda, rung, Rows::Tokens, backward.a.at, w, dx).unwrap();
            [used::<f32>(cuda, y, t), widen(&used::<E>(cuda, dx, t))].concat()
        };
        let [with, without] = [true, false].map(&mut run);
        assert_eq!(bits(&with), bits(&without), "{name}");
        with
    });
}

#[test]
fn forward_products_with_an_adapter() {
    in_each_type!(residual_matches);
    in_each_type!(rope_matches);
    in_each_type!(swiglu_matches);
}

#[test]
fn gradients_with_an_adapter() {
    in_each_type!(input_gradient_matches);
    in_each_type!(swiglu_gradient_matches);
}

#[test]
fn an_adapter_of_zeros_changes_no_bit() {
    in_each_type!(zeros_change_nothing);
}

#[test]
fn adapters_that_do_not_fit_are_refused() {
    let mut plan = Plan::default();
    let mut of = |rows, cols| plan.tensor(Category::Activations, rows, cols, DType::F16);
    let (x, w, left, right, dx) = (of(4, 16), of(24, 16), of(4, 12), of(24, 12), of(4, 16));
    let (dy, back) = (of(4, 24), of(12, 16));
    let (gate_up, act) = (dy, Tensor { cols: 12, ..dy });
    let cuda = open(&plan, DType::F16);
    let name = |result: smolten::error::Result<()>| match result {
        Err(Error::Unsupported { dim, .. }) => dim,
        Err(Error::Shape { arg, .. }) => arg,
        other => panic!("{other:?}"),
    };
    let adapted =
        |left, right, dropout| Projection { w, bias: None, adapter: Some(LowRank { left, right, dropout }) };
    let forward = |rung, w| name(linear_launch::linear_swiglu(&cuda, rung, x, w, gate_up, act));
    let gradient = |rung, w| name(linear_launch::input_gradient(&cuda, rung, Rows::Tokens, dy, w, dx));
    assert_eq!(forward(Rung::Naive, adapted(left.head(3), right, None)), "left");
    assert_eq!(forward(Rung::Naive, adapted(left, back, None)), "right");
    assert_eq!(forward(Rung::Naive, adapted(left, right, Some(dropout()))), "dropout");
    assert_eq!(forward(Rung::Naive, adapted(Tensor { dtype: DType::BF16, ..left }, right, None)), "left");
    assert_eq!(gradient(Rung::Naive, adapted(left, right, None)), "right");
    assert_eq!(gradient(Rung::Production, adapted(left, back, None)), "rank");
    let shifted = Tensor { offset: left.offset + 2, rows: 4, ..left };
    assert_eq!(gradient(Rung::Naive, adapted(shifted, back, None)), "left");
    assert_eq!(
        bits(&widen(&super::read::<f16>(&cuda, dx))),
        bits(&vec![0.0; dx.len()]),
        "something was launched"
    );
}
