//! Products in bf16 and fp32 on every level of the matrix unit that this processor has: against the definition, across every edge of
//! blocks, panels, chunks and groups, and in bits for any number of threads.

use crate::common::real::{Real, assert_allowed, reals, values};
use half::bf16;
use smolten::ops::linear::{
    Operand, Weight, forward, forward_f32, forward_residual, input_gradient, weight_gradient,
};
use smolten::ops::tile::{Level, Line};

/// Tokens, inputs, outputs: within one block and just beyond, one to three steps, odd and even.
const SHAPES: [(usize, usize, usize); 8] = [
    (1, 1, 1),
    (2, 64, 33),
    (17, 33, 20),
    (31, 16, 65),
    (32, 32, 32),
    (33, 65, 31),
    (65, 130, 96),
    (130, 40, 17),
];

fn levels() -> impl Iterator<Item = Level> {
    Level::ALL.into_iter().filter(|level| level.is_available())
}

fn column(m: &[Real], cols: usize, j: usize) -> Vec<Real> {
    m.iter().skip(j).step_by(cols).copied().collect()
}

/// Normal numbers: AMX and AVX-512 BF16 take subnormal ones for zero.
fn normal<E: Operand>(n: usize, scale: f32, seed: u64) -> Vec<E> {
    values::<E>(n, scale, seed)
}

#[test]
fn every_level_is_the_definition_rounded_once() {
    definition_in::<bf16>();
    definition_in::<f32>();
}

fn definition_in<E: Operand>() {
    for (level, (t, inputs, outputs)) in levels().flat_map(|level| SHAPES.map(|shape| (level, shape))) {
        let (x, w) = (normal::<E>(t * inputs, 1.0, 1), normal::<E>(outputs * inputs, 0.5, 2));
        let (dy, bias) = (normal::<E>(t * outputs, 1.0, 4), values::<f32>(outputs, 1.0, 6));
        let residual = values::<f32>(t * outputs, 2.0, 3);
        let (rx, rw, rdy) = (reals(&x), reals(&w), reals(&dy));
        let products = |i: usize| {
            let (x, w) = (&rx[i / outputs * inputs..][..inputs], &rw[i % outputs * inputs..][..inputs]);
            x.iter().zip(w).map(|(&x, &w)| x * w)
        };
        let all = 0..t * outputs;
        let want: Vec<Real> = all.clone().map(|i| Real::sum(products(i))).collect();
        let mut wide = vec![f32::NAN; t * outputs];
        forward_f32(level, &x, Weight::Plain(&w), &mut wide, inputs);
        assert_allowed(&format!("{:?} {level:?} f32", E::DTYPE), &wide, &want);

        let with_bias: Vec<Real> =
            want.iter().zip(bias.iter().cycle()).map(|(&y, &b)| y + Real::of(b)).collect();
        for (bias, want) in [(None, &want), (Some(&bias[..]), &with_bias)] {
            let mut y = vec![E::from_f32(f32::NAN); t * outputs];
            forward(level, &x, Weight::Plain(&w), bias, &mut y, inputs);
            assert_allowed(&format!("{:?} {level:?} y", E::DTYPE), &y, want);
        }
        let want: Vec<Real> = all
            .map(|i| Real::sum(products(i)) + Real::of(residual[i]) + Real::of(bias[i % outputs]))
            .collect();
        let mut y = vec![f32::NAN; t * outputs];
        forward_residual(level, &x, Weight::Plain(&w), Some(&bias), &residual, &mut y, inputs);
        assert_allowed(&format!("{:?} {level:?} onto the residual", E::DTYPE), &y, &want);

        let mut dx = vec![E::from_f32(f32::NAN); t * inputs];
        input_gradient(level, &dy, &w, None, &mut dx, inputs);
        let columns: Vec<Vec<Real>> = (0..inputs).map(|j| column(&rw, inputs, j)).collect();
        let dots = |i: usize| Real::dot(&rdy[i / inputs * outputs..][..outputs], &columns[i % inputs]);
        assert_allowed(
            &format!("{:?} {level:?} dx", E::DTYPE),
            &dx,
            &(0..t * inputs).map(dots).collect::<Vec<_>>(),
        );

        let before = values::<f32>(outputs * inputs, 3.0, 5);
        for add in [false, true] {
            let mut dw = if add { before.clone() } else { vec![f32::NAN; outputs * inputs] };
            weight_gradient(level, &dy, &x, &mut dw, inputs, add);
            let want: Vec<Real> = (0..outputs * inputs)
                .map(|i| {
                    let (dy, x) = (column(&rdy, outputs, i / inputs), column(&rx, inputs, i % inputs));
                    let dot = Real::dot(&dy, &x);
                    if add { dot + Real::of(before[i]) } else { dot }
                })
                .collect();
            assert_allowed(&format!("{:?} {level:?} dw", E::DTYPE), &dw, &want);
        }
    }
}

/// Tokens, inputs, outputs: several groups of columns, several pieces of k, several chunks of k, alone and together; and
/// left operands that two threads would pack four times, so that they are packed as a whole; and one whose input gradient
/// has parts of 512 in bf16 where a thread has more than 18 panels of columns, else of 1024.
const LARGE: [(usize, usize, usize); 7] = [
    (70, 608, 1100),
    (40, 1700, 300),
    (35, 3200, 700),
    (2100, 64, 96),
    (70, 1700, 1500),
    (600, 1700, 160),
    (35, 1200, 1700),
];

/// The three products of these, as bits.
fn run<E: Operand>(
    level: Level,
    (t, inputs, outputs): (usize, usize, usize),
    threads: usize,
    numbers: impl Fn(usize, u64) -> Vec<E>,
) -> [Vec<u32>; 3] {
    let (x, w, dy) = (numbers(t * inputs, 1), numbers(outputs * inputs, 2), numbers(t * outputs, 3));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        let (mut y, mut dx) = (vec![f32::NAN; t * outputs], vec![E::from_f32(f32::NAN); t * inputs]);
        let mut dw = vec![1.0; outputs * inputs];
        forward_f32(level, &x, Weight::Plain(&w), &mut y, inputs);
        input_gradient(level, &dy, &w, None, &mut dx, inputs);
        weight_gradient(level, &dy, &x, &mut dw, inputs, true);
        let dx = dx.iter().map(|x| x.to_f32().to_bits()).collect();
        [y.into_iter().map(f32::to_bits).collect(), dx, dw.into_iter().map(f32::to_bits).collect()]
    })
}

#[test]
fn threads_change_no_bit() {
    threads_in::<bf16>();
    threads_in::<f32>();
}

fn threads_in<E: Operand>() {
    for level in levels().filter(|&level| level > Level::Portable) {
        for shape in LARGE {
            let one = run(level, shape, 1, |n, seed| normal::<E>(n, 1.0, seed));
            for threads in [2, 3, 7] {
                let got = run(level, shape, threads, |n, seed| normal::<E>(n, 1.0, seed));
                assert!(got == one, "{:?} {level:?}, {shape:?}, {threads} threads", E::DTYPE);
            }
        }
    }
}

/// Whole numbers from -4 to 4: every sum of fewer than 2^20 products is exact in any order.
fn whole<E: Operand>(n: usize, seed: u64) -> Vec<E> {
    normal::<E>(n, 4.0, seed).into_iter().map(|x| E::from_f32(x.to_f32().round())).collect()
}

#[test]
fn large_products_of_whole_numbers_are_exact() {
    whole_in::<bf16>();
    whole_in::<f32>();
}

#[expect(clippy::cast_possible_truncation, reason = "whole numbers below 2^24")]
fn whole_in<E: Operand>() {
    for shape in LARGE {
        let (t, inputs, outputs) = shape;
        let of = |n, seed| whole::<E>(n, seed).into_iter().map(|x| x.to_f32() as i32).collect::<Vec<_>>();
        let (x, w, dy) = (of(t * inputs, 1), of(outputs * inputs, 2), of(t * outputs, 3));
        let (mut y, mut dx) = (vec![0; t * outputs], vec![0; t * inputs]);
        let mut dw = vec![1; outputs * inputs];
        for i in 0..t {
            for o in 0..outputs {
                let (x, w, dy) =
                    (&x[i * inputs..][..inputs], &w[o * inputs..][..inputs], dy[i * outputs + o]);
                y[i * outputs + o] = x.iter().zip(w).map(|(x, w)| x * w).sum::<i32>();
                dx[i * inputs..][..inputs].iter_mut().zip(w).for_each(|(dx, w)| *dx += dy * w);
                dw[o * inputs..][..inputs].iter_mut().zip(x).for_each(|(dw, x)| *dw += dy * x);
            }
        }
        let bits = |sums: Vec<i32>| sums.into_iter().map(|s| (s as f32).to_bits()).collect::<Vec<_>>();
        let dx = dx.into_iter().map(|s| E::from_f32(s as f32).to_f32().to_bits()).collect();
        let want = [bits(y), dx, bits(dw)];
        for level in levels() {
            assert!(run(level, shape, 2, whole::<E>) == want, "{level:?} {shape:?}");
        }
    }
}

/// Tokens, inputs, outputs: whole and partial panels of rows, one and several pieces and chunks of k, and rows so far apart
/// that they share their places in a cache.
const IN_LINES: [(usize, usize, usize); 4] =
    [(32, 32, 64), (70, 608, 1120), (100, 3200, 96), (64, 1024, 2048)];

/// Rows that begin with a line of memory may be read where they lie, others are packed.
#[test]
fn where_rows_lie_changes_no_bit() {
    where_rows_lie_in::<bf16>();
    where_rows_lie_in::<f32>();
}

fn where_rows_lie_in<E: Operand>() {
    for (level, (t, inputs, outputs)) in levels().flat_map(|level| IN_LINES.map(|shape| (level, shape))) {
        let w = whole::<E>(outputs * inputs, 2);
        let [near, far] = [0, 1].map(|beyond| {
            let placed = |numbers: Vec<E>| {
                let mut lines = vec![Line::ZERO; numbers.len() * size_of::<E>() / size_of::<Line>() + 1];
                bytemuck::cast_slice_mut(&mut lines)[beyond..][..numbers.len()].copy_from_slice(&numbers);
                lines
            };
            let (x, dy) = (placed(normal::<E>(t * inputs, 1.0, 1)), placed(normal::<E>(t * outputs, 1.0, 3)));
            let x = &bytemuck::cast_slice(&x)[beyond..][..t * inputs];
            let dy = &bytemuck::cast_slice(&dy)[beyond..][..t * outputs];
            let (mut y, mut dx) = (vec![f32::NAN; t * outputs], vec![E::from_f32(f32::NAN); t * inputs]);
            forward_f32(level, x, Weight::Plain(&w), &mut y, inputs);
            input_gradient(level, dy, &w, None, &mut dx, inputs);
            [y, dx.iter().map(|x| x.to_f32()).collect()]
        });
        assert!(near.iter().flatten().all(|x| x.is_finite()));
        assert!(near == far, "{:?} {level:?} {t} {inputs} {outputs}", E::DTYPE);
    }
}

/// Of no tokens at all, in several blocks.
#[test]
fn a_weight_gradient_of_nothing_is_zero() {
    for level in levels() {
        let mut dw = vec![f32::NAN; 70 * 100];
        weight_gradient::<bf16>(level, &[], &[], &mut dw, 100, false);
        assert!(dw.iter().all(|&x| x == 0.0), "{level:?}");
    }
}
