//! Products of few rows, whose weight is not packed: against the definition, against the packed product, with everything
//! that is fused with them, and in bits for any number of rows and threads.

use crate::common::real::{Real, assert_allowed, reals, values};
use half::bf16;
use smolten::ops::attention::Heads;
use smolten::ops::convert::round;
use smolten::ops::linear::few::MOST_ROWS;
use smolten::ops::linear::{
    Operand, Rotation, Weight, forward, forward_f32, forward_residual, forward_rope, forward_swiglu,
};
use smolten::ops::math::dot;
use smolten::ops::rope::{self, Turn};
use smolten::ops::swiglu;
use smolten::ops::tile::Level;

/// Inputs and outputs: below, at and beyond the lanes of a sum; half a panel, whole ones, and parts.
const SHAPES: [(usize, usize); 6] = [(1, 1), (31, 15), (32, 16), (70, 33), (96, 64), (161, 100)];

fn level() -> Level {
    Level::best()
}

fn definition<E: Operand>(x: &[E], w: &[E], inputs: usize) -> Vec<Real> {
    let (x, w) = (reals(x), reals(w));
    x.chunks(inputs).flat_map(|x| w.chunks(inputs).map(|w| Real::dot(x, w))).collect()
}

fn bits<E: Operand>(x: &[E]) -> Vec<u32> {
    x.iter().map(|x| x.to_f32().to_bits()).collect()
}

fn is_the_definition<E: Operand>() {
    for (t, (inputs, outputs)) in (1..=MOST_ROWS).flat_map(|t| SHAPES.map(|shape| (t, shape))) {
        let (x, w) = (values::<E>(t * inputs, 1.0, 1), values::<E>(outputs * inputs, 0.5, 2));
        let (bias, residual) = (values::<f32>(outputs, 1.0, 3), values::<f32>(t * outputs, 2.0, 4));
        let want = definition(&x, &w, inputs);
        let mut sums = vec![f32::NAN; t * outputs];
        forward_f32(level(), &x, Weight::Plain(&w), &mut sums, inputs);
        assert_allowed("sums", &sums, &want);

        let biased: Vec<Real> =
            want.iter().zip(bias.iter().cycle()).map(|(&y, &b)| y + Real::of(b)).collect();
        let mut y = vec![E::from_f32(f32::NAN); t * outputs];
        forward(level(), &x, Weight::Plain(&w), Some(&bias), &mut y, inputs);
        assert_allowed("rounded", &y, &biased);

        let onto: Vec<Real> = biased.iter().zip(&residual).map(|(&y, &r)| Real::of(r) + y).collect();
        let mut y = vec![f32::NAN; t * outputs];
        forward_residual(level(), &x, Weight::Plain(&w), Some(&bias), &residual, &mut y, inputs);
        assert_allowed("onto the residual", &y, &onto);
    }
}

#[test]
fn few_rows_are_the_definition() {
    in_each_type!(is_the_definition);
}

/// Whatever unit computes them.
fn is_the_plain_loop<E: Operand>() {
    for (inputs, outputs) in SHAPES {
        let (x, w) = (values::<f32>(inputs, 1.0, 1), values::<E>(outputs * inputs, 0.5, 2));
        let rounded: Vec<E> = x.iter().map(|&x| E::from_f32(x)).collect();
        let x: Vec<f32> = rounded.iter().map(|x| x.to_f32()).collect();
        let want: Vec<f32> = w.chunks(inputs).map(|w| dot(w, &x, |_| ())).collect();
        let mut got = vec![f32::NAN; outputs];
        forward_f32(level(), &rounded, Weight::Plain(&w), &mut got, inputs);
        assert_eq!(bits(&got), bits(&want), "{inputs} inputs, {outputs} outputs");
    }
}

#[test]
fn sums_are_those_of_the_plain_loop_in_bits() {
    in_each_type!(is_the_plain_loop);
}

/// Both add the same exact products of bf16 in f32, so each lies within its own bound of the real sum.
#[test]
fn few_rows_are_those_of_the_packed_product() {
    let (t, inputs, outputs) = (MOST_ROWS + 1, 576, 600); // several tasks
    let (x, w) = (values::<bf16>(t * inputs, 1.0, 1), values::<bf16>(outputs * inputs, 0.5, 2));
    let want = definition(&x, &w, inputs);
    let (mut packed, mut few) = (vec![f32::NAN; t * outputs], vec![f32::NAN; t * outputs]);
    forward_f32(level(), &x, Weight::Plain(&w), &mut packed, inputs);
    for (x, y) in x.chunks(MOST_ROWS * inputs).zip(few.chunks_mut(MOST_ROWS * outputs)) {
        forward_f32(level(), x, Weight::Plain(&w), y, inputs);
    }
    for ((few, packed), want) in few.iter().zip(&packed).zip(want) {
        assert!(f64::from((few - packed).abs()) <= 2.0 * want.error, "{few} and {packed}");
    }
    assert!(bits(&few) != bits(&packed), "the same way of adding up, so this says nothing");
}

/// What is fused gives the bits of one operation after the other.
fn fused_is_in_turn<E: Operand>() {
    let heads = Heads { heads: 4, kv_heads: 2, head_dim: 32 };
    let (inputs, width, f) = (70, heads.qkv_width(), 48);
    let (cos, sin) = (values::<f32>(9 * 16, 1.0, 5), values::<f32>(9 * 16, 1.0, 6));
    let table = rope::Table { cos: &cos, sin: &sin };
    for t in 1..=MOST_ROWS {
        let x = values::<E>(t * inputs, 1.0, 1);
        let (w, bias) = (values::<E>(width * inputs, 0.5, 2), values::<f32>(width, 1.0, 3));
        let positions = [8, 0, 3, 5, 1, 7, 2, 8][..t].to_vec();
        let mut sums = vec![f32::NAN; t * width];
        forward_f32(level(), &x, Weight::Plain(&w), &mut sums, inputs);
        sums.chunks_mut(width).for_each(|row| row.iter_mut().zip(&bias).for_each(|(y, b)| *y += b));
        rope::rotate(&mut sums, heads, &positions, table, Turn::Forward);
        let (mut want, mut qkv) =
            (vec![E::from_f32(0.0); sums.len()], vec![E::from_f32(f32::NAN); sums.len()]);
        round(&sums, &mut want);
        let rotation = Rotation { heads, positions: &positions, table };
        forward_rope(level(), &x, Weight::Plain(&w), Some(&bias), rotation, &mut qkv, inputs);
        assert_eq!(bits(&qkv), bits(&want), "rotated, {t} rows");

        let (w, bias) = (values::<E>(2 * f * inputs, 0.5, 7), values::<f32>(2 * f, 1.0, 8));
        let nan = |n: usize| vec![E::from_f32(f32::NAN); n];
        let [mut want, mut gate_up] = [nan(t * 2 * f), nan(t * 2 * f)];
        let [mut want_act, mut act] = [nan(t * f), nan(t * f)];
        forward(level(), &x, Weight::Plain(&w), Some(&bias), &mut want, inputs);
        swiglu::forward(&want, &mut want_act, f);
        forward_swiglu(level(), &x, Weight::Plain(&w), Some(&bias), &mut gate_up, &mut act, inputs);
        assert_eq!(bits(&gate_up), bits(&want), "gate and up, {t} rows");
        assert_eq!(bits(&act), bits(&want_act), "their product, {t} rows");
    }
}

#[test]
fn fused_operations_are_those_in_turn() {
    in_each_type!(fused_is_in_turn);
}

fn threads_and_rows<E: Operand>() {
    // Large enough for several tasks.
    let (t, inputs, outputs) = (MOST_ROWS, 600, 2017);
    let (x, w) = (values::<E>(t * inputs, 1.0, 1), values::<E>(outputs * inputs, 0.5, 2));
    let run = |threads: usize, rows: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut y = vec![f32::NAN; t * outputs];
        pool.install(|| {
            for (x, y) in x.chunks(rows * inputs).zip(y.chunks_mut(rows * outputs)) {
                forward_f32(level(), x, Weight::Plain(&w), y, inputs);
            }
        });
        bits(&y)
    };
    let want = run(1, t);
    for (threads, rows) in [(1, 1), (2, t), (2, 1), (3, t), (3, 3), (1, 5), (1, 6)] {
        assert!(run(threads, rows) == want, "{threads} threads, {rows} rows at a time");
    }
}

#[test]
fn threads_and_rows_change_no_bit() {
    in_each_type!(threads_and_rows);
}
