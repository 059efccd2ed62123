//! Products with a weight: forward, onto a residual, gradients of input and weight.

use crate::common::real::{Real, assert_allowed, reals, values};
use smolten::ops::linear::{
    Operand, Weight, forward, forward_f32, forward_residual, input_gradient, weight_gradient,
};
use smolten::ops::tile::Level;

/// Tokens, inputs, outputs.
const SHAPES: [(usize, usize, usize); 9] = [
    (1, 1, 1),
    (1, 16, 8),
    (2, 64, 33),
    (3, 5, 7),
    (17, 33, 20),
    (63, 64, 48),
    (64, 16, 65),
    (65, 130, 96),
    (130, 40, 17),
];

/// Column `j` of a row-major matrix of `cols` columns.
fn column(m: &[Real], cols: usize, j: usize) -> Vec<Real> {
    m.iter().skip(j).step_by(cols).copied().collect()
}

fn forward_in<E: Operand>() {
    for (t, inputs, outputs) in SHAPES {
        let (x, w) = (values::<E>(t * inputs, 1.0, 1), values::<E>(outputs * inputs, 0.5, 2));
        let (rx, rw) = (reals(&x), reals(&w));
        let row = |m: &[Real], i: usize| m[i * inputs..(i + 1) * inputs].to_vec();
        let want: Vec<Real> =
            (0..t * outputs).map(|i| Real::dot(&row(&rx, i / outputs), &row(&rw, i % outputs))).collect();
        let mut y = vec![E::from_f32(f32::NAN); t * outputs];
        forward(Level::best(), &x, Weight::Plain(&w), None, &mut y, inputs);
        assert_allowed("y", &y, &want);
        let mut wide = vec![f32::NAN; t * outputs];
        forward_f32(Level::best(), &x, Weight::Plain(&w), &mut wide, inputs);
        assert_allowed("y in f32", &wide, &want);

        let residual = values::<f32>(t * outputs, 2.0, 3);
        let mut y = vec![f32::NAN; t * outputs];
        forward_residual(Level::best(), &x, Weight::Plain(&w), None, &residual, &mut y, inputs);
        let products = |i: usize| row(&rx, i / outputs).into_iter().zip(row(&rw, i % outputs));
        let want: Vec<Real> = (0..t * outputs)
            .map(|i| Real::sum(products(i).map(|(x, w)| x * w).chain([Real::of(residual[i])])))
            .collect();
        assert_allowed("y onto the residual", &y, &want);
    }
}

#[test]
fn forward_and_residual() {
    in_each_type!(forward_in);
}

fn gradients_in<E: Operand>() {
    for (t, inputs, outputs) in SHAPES {
        let (dy, w) = (values::<E>(t * outputs, 1.0, 4), values::<E>(outputs * inputs, 0.5, 2));
        let x = values::<E>(t * inputs, 1.0, 1);
        let (rdy, rw, rx) = (reals(&dy), reals(&w), reals(&x));
        let mut dx = vec![E::from_f32(f32::NAN); t * inputs];
        input_gradient(Level::best(), &dy, &w, None, &mut dx, inputs);
        let columns: Vec<Vec<Real>> = (0..inputs).map(|j| column(&rw, inputs, j)).collect();
        let want: Vec<Real> = (0..t * inputs)
            .map(|i| Real::dot(&rdy[i / inputs * outputs..][..outputs], &columns[i % inputs]))
            .collect();
        assert_allowed("dx", &dx, &want);

        let before = values::<f32>(outputs * inputs, 3.0, 5);
        let columns: Vec<Vec<Real>> = (0..inputs).map(|j| column(&rx, inputs, j)).collect();
        for add in [false, true] {
            let mut dw = if add { before.clone() } else { vec![f32::NAN; outputs * inputs] };
            weight_gradient(Level::best(), &dy, &x, &mut dw, inputs, add);
            let want: Vec<Real> = (0..outputs * inputs)
                .map(|i| {
                    let products = column(&rdy, outputs, i / inputs).into_iter().zip(&columns[i % inputs]);
                    let products = products.map(|(dy, &x)| dy * x);
                    Real::sum(products.chain(add.then(|| Real::of(before[i]))))
                })
                .collect();
            assert_allowed("dw", &dw, &want);
        }
    }
}

#[test]
fn gradients_of_input_and_weight() {
    in_each_type!(gradients_in);
}

/// Large enough that the product is shared among threads.
#[test]
fn threads_change_no_bit() {
    let (t, inputs, outputs) = (300, 200, 601);
    let (x, w) = (values::<f32>(t * inputs, 1.0, 1), values::<f32>(outputs * inputs, 0.5, 2));
    let dy = values::<f32>(t * outputs, 1.0, 3);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let (mut y, mut dx) = (vec![f32::NAN; t * outputs], vec![f32::NAN; t * inputs]);
            let mut dw = vec![f32::NAN; outputs * inputs];
            forward_f32(Level::best(), &x, Weight::Plain(&w), &mut y, inputs);
            input_gradient(Level::best(), &dy, &w, None, &mut dx, inputs);
            weight_gradient(Level::best(), &dy, &x, &mut dw, inputs, false);
            [y, dx, dw].map(|v| v.into_iter().map(f32::to_bits).collect::<Vec<_>>())
        })
    };
    let one = run(1);
    for threads in [2, 3, 4, 7] {
        assert!(run(threads) == one, "{threads} threads");
    }
}
