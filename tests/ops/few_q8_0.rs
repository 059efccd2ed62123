//! Products with a weight in blocks of Q8_0: against the definition, against the plain loop in bits, fused, with many
//! rows, with any number of rows and threads, and with blocks that hold no numbers.

use crate::common::real::{Real, assert_allowed, reals, values};
use half::{bf16, f16};
use smolten::dtype::{Element, Q8_0};
use smolten::gguf::{GgmlType, dequantise, quantise};
use smolten::ops::attention::Heads;
use smolten::ops::convert::round;
use smolten::ops::embedding;
use smolten::ops::linear::few::MOST_ROWS;
use smolten::ops::linear::{
    Operand, Rotation, Weight, forward, forward_f32, forward_residual, forward_rope, forward_swiglu,
};
use smolten::ops::math::dot_q8_0;
use smolten::ops::rope::{self, Turn};
use smolten::ops::swiglu;
use smolten::ops::tile::Level;

/// Blocks along a row, and outputs: parts of half a panel, whole halves and panels, and beyond.
const SHAPES: [(usize, usize); 6] = [(1, 1), (1, 15), (2, 16), (3, 33), (5, 64), (18, 100)];

fn level() -> Level {
    Level::best()
}

/// What the quantiser makes of noise; scales differ from block to block, and codes are of both signs.
fn blocks(n: usize, seed: u64) -> Vec<Q8_0> {
    let mut noise = values::<f32>(n * Q8_0::LEN, 0.5, seed);
    for (i, block) in noise.chunks_mut(Q8_0::LEN).enumerate() {
        block.iter_mut().for_each(|x| *x *= [1.0, 7.0, 1e-3][i % 3]);
    }
    let mut bytes = Vec::new();
    quantise(GgmlType::Q8_0, &noise, &mut bytes);
    bytemuck::pod_collect_to_vec(&bytes)
}

/// Scale times code, 11 and 8 bits: exact in f32.
fn widened(blocks: &[Q8_0]) -> Vec<f32> {
    let mut wide = vec![f32::NAN; blocks.len() * Q8_0::LEN];
    dequantise(GgmlType::Q8_0, bytemuck::cast_slice(blocks), &mut wide);
    wide
}

/// Each code's product with x is rounded, then the sum of two, and the scale's product with that; the rest is a sum.
fn definition<E: Element>(x: &[E], w: &[Q8_0], inputs: usize) -> Vec<Real> {
    let x = reals(x);
    let pairs = |block: &Q8_0, x: &[Real]| -> Vec<Real> {
        let product = |l: usize| Real::exact(f64::from(block.codes[l])) * x[l];
        let scale = Real::exact(f64::from(block.scale));
        (0..16).map(|l| scale * (product(l) + product(l + 16))).collect()
    };
    let row = |w: &[Q8_0], x: &[Real]| {
        Real::sum(w.iter().zip(x.chunks(Q8_0::LEN)).flat_map(|(block, x)| pairs(block, x)))
    };
    let rows = |x: &[Real]| w.chunks(inputs / Q8_0::LEN).map(|w| row(w, x)).collect::<Vec<_>>();
    x.chunks(inputs).flat_map(rows).collect()
}

fn bits<E: Element>(x: &[E]) -> Vec<u32> {
    x.iter().map(|x| x.to_f32().to_bits()).collect()
}

fn is_the_definition<E: Operand>() {
    for (t, (per_row, outputs)) in (1..=MOST_ROWS).flat_map(|t| SHAPES.map(|shape| (t, shape))) {
        let inputs = per_row * Q8_0::LEN;
        let (x, w) = (values::<E>(t * inputs, 1.0, 1), blocks(outputs * per_row, 2));
        let (bias, residual) = (values::<f32>(outputs, 1.0, 3), values::<f32>(t * outputs, 2.0, 4));
        let want = definition(&x, &w, inputs);
        let w = Weight::<E>::Q8_0(&w);
        let mut sums = vec![f32::NAN; t * outputs];
        forward_f32(level(), &x, w, &mut sums, inputs);
        assert_allowed("sums", &sums, &want);

        let biased: Vec<Real> =
            want.iter().zip(bias.iter().cycle()).map(|(&y, &b)| y + Real::of(b)).collect();
        let mut y = vec![E::from_f32(f32::NAN); t * outputs];
        forward(level(), &x, w, Some(&bias), &mut y, inputs);
        assert_allowed("rounded", &y, &biased);

        let onto: Vec<Real> = biased.iter().zip(&residual).map(|(&y, &r)| Real::of(r) + y).collect();
        let mut y = vec![f32::NAN; t * outputs];
        forward_residual(level(), &x, w, Some(&bias), &residual, &mut y, inputs);
        assert_allowed("onto the residual", &y, &onto);
    }
}

#[test]
fn few_rows_are_the_definition() {
    in_each_type!(is_the_definition);
}

/// The weights are exact either way, so each product lies within its own bound of the real sum.
#[test]
fn few_rows_are_those_of_the_widened_weight() {
    let (t, per_row, outputs) = (2, 18, 100);
    let inputs = per_row * Q8_0::LEN;
    let (x, w) = (values::<f32>(t * inputs, 1.0, 1), blocks(outputs * per_row, 2));
    let wide = widened(&w);
    let (x_real, wide_real) = (reals(&x), reals(&wide));
    let want_wide: Vec<Real> =
        x_real.chunks(inputs).flat_map(|x| wide_real.chunks(inputs).map(|w| Real::dot(x, w))).collect();
    let want = definition(&x, &w, inputs);
    let [mut got, mut got_wide] = [(); 2].map(|()| vec![f32::NAN; t * outputs]);
    forward_f32(level(), &x, Weight::Q8_0(&w), &mut got, inputs);
    forward_f32(level(), &x, Weight::Plain(&wide), &mut got_wide, inputs);
    for i in 0..got.len() {
        assert!(
            (want[i].value - want_wide[i].value).abs() <= 1e-12 * want[i].error / f64::from(f32::EPSILON)
        );
        let apart = f64::from((got[i] - got_wide[i]).abs());
        assert!(apart <= want[i].error + want_wide[i].error, "{} and {}", got[i], got_wide[i]);
    }
}

/// Whatever unit computes it, also for scales that are subnormal, zero, or no numbers.
#[test]
fn sums_are_those_of_the_plain_loop_in_bits() {
    let hostile =
        [0x0001, 0x03ff, 0x8001, 0x0000, 0x8000, 0x7bff, 0x7c00, 0xfc00, 0x7e00, 0x7c01].map(f16::from_bits);
    for (per_row, outputs) in SHAPES {
        let (inputs, mut w) = (per_row * Q8_0::LEN, blocks(outputs * per_row, 2));
        for scale in [None].into_iter().chain(hostile.map(Some)) {
            let (x, at) = (values::<f32>(inputs, 1.0, 1), outputs / 2 * per_row);
            w[at].scale = scale.unwrap_or(w[at].scale);
            w[at].codes[per_row % Q8_0::LEN] = i8::MIN;
            let mut got = vec![0.0; outputs];
            forward_f32(level(), &x, Weight::Q8_0(&w), &mut got, inputs);
            for (o, (got, w)) in got.iter().zip(w.chunks(per_row)).enumerate() {
                let want = dot_q8_0(w, &x, |_| ());
                assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{got} {want}");
                let is_number = o != outputs / 2 || scale.is_none_or(f16::is_finite);
                assert_eq!(got.is_finite(), is_number, "output {o} with a scale of {scale:?}");
            }
        }
    }
}

/// What is fused gives the bits of one operation after the other.
fn fused_is_in_turn<E: Operand>() {
    let heads = Heads { heads: 4, kv_heads: 2, head_dim: 32 };
    let (per_row, width, f) = (3, heads.qkv_width(), 48);
    let inputs = per_row * Q8_0::LEN;
    let (cos, sin) = (values::<f32>(9 * 16, 1.0, 5), values::<f32>(9 * 16, 1.0, 6));
    let table = rope::Table { cos: &cos, sin: &sin };
    for t in [1, MOST_ROWS] {
        let x = values::<E>(t * inputs, 1.0, 1);
        let (w, bias) = (blocks(width * per_row, 2), values::<f32>(width, 1.0, 3));
        let positions = [8, 0, 3, 5, 1, 7, 2, 8][..t].to_vec();
        let mut sums = vec![f32::NAN; t * width];
        forward_f32(level(), &x, Weight::Q8_0(&w), &mut sums, inputs);
        sums.chunks_mut(width).for_each(|row| row.iter_mut().zip(&bias).for_each(|(y, b)| *y += b));
        rope::rotate(&mut sums, heads, &positions, table, Turn::Forward);
        let nan = |n: usize| vec![E::from_f32(f32::NAN); n];
        let [mut want, mut qkv] = [nan(sums.len()), nan(sums.len())];
        round(&sums, &mut want);
        let rotation = Rotation { heads, positions: &positions, table };
        forward_rope(level(), &x, Weight::Q8_0(&w), Some(&bias), rotation, &mut qkv, inputs);
        assert_eq!(bits(&qkv), bits(&want), "rotated, {t} rows");

        let w = blocks(2 * f * per_row, 7);
        let [mut want, mut gate_up] = [nan(t * 2 * f), nan(t * 2 * f)];
        let [mut want_act, mut act] = [nan(t * f), nan(t * f)];
        forward(level(), &x, Weight::Q8_0(&w), None, &mut want, inputs);
        swiglu::forward(&want, &mut want_act, f);
        forward_swiglu(level(), &x, Weight::Q8_0(&w), None, &mut gate_up, &mut act, inputs);
        assert_eq!(bits(&gate_up), bits(&want), "gate and up, {t} rows");
        assert_eq!(bits(&act), bits(&want_act), "their product, {t} rows");
    }
}

#[test]
fn fused_operations_are_those_in_turn() {
    in_each_type!(fused_is_in_turn);
}

/// Many rows: the product with the elements, rounded to A once.
fn many_rows_round_the_elements<E: Operand>() {
    let (t, per_row, outputs) = (MOST_ROWS + 3, 18, 1100); // several tasks of blocks
    let inputs = per_row * Q8_0::LEN;
    let (x, w) = (values::<E>(t * inputs, 1.0, 1), blocks(outputs * per_row, 2));
    let elements: Vec<E> = widened(&w).into_iter().map(E::from_f32).collect();
    let [mut got, mut want] = [(); 2].map(|()| vec![f32::NAN; t * outputs]);
    forward_f32(level(), &x, Weight::Q8_0(&w), &mut got, inputs);
    forward_f32(level(), &x, Weight::Plain(&elements), &mut want, inputs);
    assert_eq!(bits(&got), bits(&want));
}

#[test]
fn many_rows_are_those_of_the_rounded_elements() {
    in_each_type!(many_rows_round_the_elements);
}

#[test]
fn threads_and_rows_change_no_bit() {
    // Large enough for several tasks.
    let (t, per_row, outputs) = (MOST_ROWS, 19, 2017);
    let inputs = per_row * Q8_0::LEN;
    let (x, w) = (values::<bf16>(t * inputs, 1.0, 1), blocks(outputs * per_row, 2));
    let run = |threads: usize, rows: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut y = vec![f32::NAN; t * outputs];
        pool.install(|| {
            for (x, y) in x.chunks(rows * inputs).zip(y.chunks_mut(rows * outputs)) {
                forward_f32(level(), x, Weight::Q8_0(&w), y, inputs);
            }
        });
        bits(&y)
    };
    let want = run(1, t);
    for (threads, rows) in [(1, 1), (2, t), (2, 1), (3, t), (3, 3)] {
        assert!(run(threads, rows) == want, "{threads} threads, {rows} rows at a time");
    }
}

#[test]
fn rows_of_an_embedding_are_widened() {
    let (per_row, rows) = (2, 9);
    let (w, ids, c) = (blocks(rows * per_row, 1), [8u32, 0, 3, 8], per_row * Q8_0::LEN);
    let (all, mut x) = (widened(&w), vec![f32::NAN; ids.len() * c]);
    embedding::forward_q8_0(&ids, &w, &mut x, c);
    let want: Vec<f32> = ids.iter().flat_map(|&id| all[id as usize * c..][..c].to_vec()).collect();
    assert_eq!(bits(&x), bits(&want));
}
