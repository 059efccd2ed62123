//! Attention in blocks: the same formulas in the order of its arithmetic, on every level that this processor has.

use crate::attention::{Case, Rows, Terms, bits, rotate_back};
use crate::common::real::{Real, assert_allowed, reals, values};
use half::bf16;
use smolten::ops::attention::tiled::Operand;
use smolten::ops::attention::{self, Saved, tiled};
use smolten::ops::rope::{Table, table};
use smolten::ops::tile::Level;
use std::f64::consts::{LN_2, LOG2_E};

/// Unit roundoff of f32.
const U: f64 = 1.0 / 16_777_216.0;
/// The smallest normal number. Levels that multiply pairs take what is below it for zero.
const SMALLEST: f64 = 1.2e-38;
/// Positions that the table of angles has.
const POSITIONS: usize = 8192;

fn levels() -> impl Iterator<Item = Level> {
    Level::ALL.into_iter().filter(|level| level.is_available())
}

/// `2^x` as computed, relative error 2·2⁻²³: the bound of `math::exp`.
fn exp2(x: Real) -> Real {
    Real { value: x.value * LN_2, error: x.error * LN_2 }.exp()
}

/// The exponent, to base 2, of query `t` and key `j`, before anything is subtracted.
fn exponent(rows: &Rows, t: usize, j: usize, h: usize) -> Real {
    Real::dot(rows.q(t, h), rows.k(j, h)) * (rows.scale() * Real::rounded_once(LOG2_E))
}

/// Output and log-sum-exp.
fn reference<E: Operand>(case: &Case<E>) -> (Vec<Real>, Vec<Real>) {
    let (rows, starts) = (case.rows(), case.starts());
    let (mut out, mut lse) = (Vec::new(), Vec::new());
    for (t, &start) in starts.iter().enumerate() {
        for h in 0..case.heads.heads {
            let x: Vec<Real> = (start..=t).map(|j| exponent(&rows, t, j, h)).collect();
            let highest = x.iter().fold(f64::NEG_INFINITY, |m, x| m.max(x.value));
            let lowest = x.iter().fold(f64::INFINITY, |m, x| m.min(x.value));
            // Whatever was subtracted cancels, but for what each of the changes of it, one a block at most, adds: the
            // difference, the power of two and the product are rounded.
            let changes = U * (6.0 * x.len().div_ceil(32) as f64 + (highest - lowest));
            let weight = |&x: &Real| {
                let w = exp2(x - Real::exact(highest));
                Real { error: w.error + changes * w.value, ..w }
            };
            let weights: Vec<Real> = x.iter().map(weight).collect();
            let total = Real::sum(weights.iter().copied());
            let weights: Vec<Real> = weights.into_iter().map(Real::rounded::<E>).collect();
            for c in 0..case.heads.head_dim {
                let terms = weights.iter().zip(start..).map(|(&w, j)| w * rows.v(j, h)[c]);
                out.push(Real::sum(terms) * (Real::exact(1.0) / total));
            }
            // What is subtracted may lie 8 below the highest, and the logarithm be that much larger: ln 2 and the
            // product with it are rounded, the logarithm is within a unit.
            let shift = Real { value: highest * LN_2, error: 2.0 * U * (highest.abs() + 8.0) * LN_2 };
            let more = Real { value: 0.0, error: 2.0 * U * 8.0 * LN_2 };
            lse.push(shift + total.ln() + more);
        }
    }
    (out, lse)
}

/// A gradient of the output.
fn dout<E: Operand>(case: &Case<E>) -> Vec<E> {
    values(case.tokens() * case.heads.width(), 1.0, 2)
}

/// What the engine makes of it.
fn forward<E: Operand>(level: Level, case: &Case<E>) -> (Vec<E>, Vec<f32>) {
    let t = case.tokens();
    let mut out = vec![E::from_f32(f32::NAN); t * case.heads.width()];
    let mut lse = vec![f32::NAN; t * case.heads.heads];
    tiled::forward(level, &case.qkv, &case.cu_seqlens(), case.heads, &mut out, &mut lse);
    (out, lse)
}

/// A gradient to propagate, with positions and angles.
struct Incoming<E> {
    out: Vec<E>,
    lse: Vec<f32>,
    dout: Vec<E>,
    positions: Vec<u32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl<E: Operand> Incoming<E> {
    /// Every sequence begins at position `first`.
    fn new(level: Level, case: &Case<E>, dout: &[E], first: u32) -> Self {
        let (out, lse) = forward(level, case);
        let d = case.heads.head_dim;
        let frequencies: Vec<f64> = (0..d / 2).map(|i| 100f64.powf(-((2 * i) as f64) / d as f64)).collect();
        let (cos, sin) = table(&frequencies, POSITIONS);
        let positions = case.positions().into_iter().map(|p| p + first).collect();
        Self { out, lse, dout: dout.to_vec(), positions, cos, sin }
    }
    fn table(&self) -> Table<'_> {
        Table { cos: &self.cos, sin: &self.sin }
    }
}

/// Gradient of q, k and v before rotation.
fn reference_gradient<E: Operand>(case: &Case<E>, from: &Incoming<E>) -> Vec<Real> {
    let (rows, starts, heads) = (case.rows(), case.starts(), case.heads);
    let (d, width) = (heads.head_dim, heads.qkv_width());
    let mut terms = Terms(vec![Vec::new(); case.tokens() * width]);
    for (t, &start) in starts.iter().enumerate() {
        for h in 0..heads.heads {
            let at = t * heads.width() + h * d..t * heads.width() + (h + 1) * d;
            let (dout, out) = (reals(&from.dout[at.clone()]), reals(&from.out[at]));
            let delta = Real::dot(&dout, &out);
            let lse = Real::of(from.lse[t * heads.heads + h]) * Real::rounded_once(LOG2_E);
            let (k, v) = (heads.heads + h / heads.group(), heads.heads + heads.kv_heads + h / heads.group());
            for j in start..=t {
                let p = exp2(exponent(&rows, t, j, h) - lse);
                let ds = (p * (Real::dot(&dout, rows.v(j, h)) - delta)).rounded::<E>();
                let ds = Real { error: ds.error + SMALLEST, ..ds };
                terms.add(t * width + h * d, ds, rows.k(j, h));
                terms.add(j * width + k * d, ds, rows.q(t, h));
                terms.add(j * width + v * d, p.rounded::<E>(), &dout);
            }
        }
    }
    let mut gradient: Vec<Real> = terms.0.into_iter().map(Real::sum).collect();
    for row in gradient.chunks_mut(width) {
        let turned = (heads.heads + heads.kv_heads) * d;
        row[..turned].iter_mut().for_each(|x| *x = *x * rows.scale());
    }
    rotate_back(&mut gradient, heads, &from.positions, from.table());
    gradient
}

fn backward<E: Operand>(level: Level, case: &Case<E>, from: &Incoming<E>) -> Vec<E> {
    let mut gradient = vec![E::from_f32(f32::NAN); case.qkv.len()];
    let saved = Saved { qkv: &case.qkv, out: &from.out, lse: &from.lse, dout: &from.dout };
    let (bounds, heads) = (case.cu_seqlens(), case.heads);
    tiled::backward(level, &saved, &bounds, &from.positions, heads, from.table(), &mut gradient);
    gradient
}

fn both<E: Operand>(case: &Case<E>, first_position: u32) {
    let (want_out, want_lse) = reference(case);
    let from = Incoming::new(Level::Portable, case, &dout(case), first_position);
    let want = reference_gradient(case, &from);
    let width = case.heads.qkv_width();
    let (q, k) = (case.heads.width(), case.heads.kv_heads * case.heads.head_dim);
    for level in levels() {
        let (out, lse) = forward(level, case);
        assert_allowed(&format!("out, {level:?}"), &out, &want_out);
        assert_allowed(&format!("lse, {level:?}"), &lse, &want_lse);
        let got = backward(level, case, &from);
        for (name, columns) in [("dq", 0..q), ("dk", q..q + k), ("dv", q + k..q + 2 * k)] {
            let got: Vec<E> = got.chunks(width).flat_map(|row| row[columns.clone()].to_vec()).collect();
            let want: Vec<Real> = want.chunks(width).flat_map(|row| row[columns.clone()].to_vec()).collect();
            assert_allowed(&format!("{name}, {level:?}"), &got, &want);
        }
    }
}

/// In both types.
fn of_both_types(group: usize, kv_heads: usize, head_dim: usize, lengths: &[usize], first_position: u32) {
    both(&Case::<bf16>::new(group, kv_heads, head_dim, lengths), first_position);
    both(&Case::<f32>::new(group, kv_heads, head_dim, lengths), first_position);
}

#[test]
fn every_group_size_and_head_width() {
    for group in [1, 3] {
        for head_dim in [6, 16, 32, 64, 96, 128] {
            of_both_types(group, 2, head_dim, &[3, 1, 40], 0);
        }
    }
}

#[test]
fn sequences_of_very_different_lengths() {
    of_both_types(3, 1, 16, &[1, 2, 31, 33, 64, 65, 130], 0);
    of_both_types(1, 1, 64, &[0, 97, 0, 1, 0], 0);
    of_both_types(1, 1, 16, &[600], 0);
}

#[test]
fn positions_far_from_the_start() {
    of_both_types(2, 1, 32, &[70, 5], 8000);
}

/// Scores far beyond what powers of two hold, that grow along the keys, so that what is subtracted changes often.
#[test]
fn large_scores() {
    large_scores_of::<bf16>();
    large_scores_of::<f32>();
}

fn large_scores_of<E: Operand>() {
    let mut case = Case::<E>::new(1, 1, 16, &[200]);
    let width = case.heads.qkv_width();
    for (t, row) in case.qkv.chunks_mut(width).enumerate() {
        row[..16].fill(E::from_f32(1.0 + (t % 3) as f32));
        row[16..32].iter_mut().for_each(|k| *k = E::from_f32(k.to_f32() + 0.1 * t as f32));
    }
    for sharper in [1.0, 30.0] {
        case.sharpen(sharper);
        let (want_out, want_lse) = reference(&case);
        for level in levels() {
            let (out, lse) = forward(level, &case);
            assert_allowed("out", &out, &want_out);
            assert_allowed("lse", &lse, &want_lse);
        }
    }
    let mut case = Case::<E>::new(1, 1, 16, &[70]);
    case.sharpen(10.0);
    both(&case, 0);
}

/// Bits of everything, with so many threads.
fn all_bits<E: Operand>(level: Level, case: &Case<E>, dout: &[E], threads: usize) -> [Vec<u32>; 3] {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        let from = Incoming::new(level, case, dout, 0);
        [bits(&from.out), bits(&from.lse), bits(&backward(level, case, &from))]
    })
}

/// Work is cut in other ways for each number of threads and each company.
#[test]
fn threads_change_no_bit() {
    threads_change_no_bit_of::<bf16>();
    threads_change_no_bit_of::<f32>();
}

fn threads_change_no_bit_of<E: Operand>() {
    for lengths in [vec![600], vec![1, 300, 33, 64, 128, 31]] {
        let case = Case::<E>::new(3, 1, 64, &lengths);
        for level in [Level::best(), Level::Portable] {
            let dout = dout(&case);
            let one = all_bits(level, &case, &dout, 1);
            for threads in [2, 3, 5, 16] {
                assert!(
                    all_bits(level, &case, &dout, threads) == one,
                    "{lengths:?}, {threads} threads, {level:?}"
                );
            }
        }
    }
}

/// The rows of sequence `i` of a case.
fn alone<E: Operand>(case: &Case<E>, i: usize) -> (Case<E>, std::ops::Range<usize>) {
    let first: usize = case.lengths[..i].iter().sum();
    let rows = first..first + case.lengths[i];
    let width = case.heads.qkv_width();
    let qkv = case.qkv[rows.start * width..rows.end * width].to_vec();
    (Case { heads: case.heads, lengths: vec![case.lengths[i]], qkv }, rows)
}

/// In bits, even if the neighbours are not finite.
#[test]
fn neighbours_are_invisible() {
    neighbours_are_invisible_to::<bf16>();
    neighbours_are_invisible_to::<f32>();
}

fn neighbours_are_invisible_to<E: Operand>() {
    let lengths = [40, 1, 65, 200, 2, 33];
    let mut case = Case::<E>::new(3, 2, 64, &lengths);
    let (_, spoiled) = alone(&case, 2);
    let width = case.heads.qkv_width();
    case.qkv[spoiled.start * width..spoiled.end * width].fill(E::from_f32(f32::NAN));
    let dout = dout(&case);
    for threads in [1, 3] {
        let together = all_bits(Level::best(), &case, &dout, threads);
        for i in 0..lengths.len() {
            let (one, rows) = alone(&case, i);
            let part = |width: usize| rows.start * width..rows.end * width;
            let alone = all_bits(Level::best(), &one, &dout[part(case.heads.width())], 1);
            for (which, width) in [case.heads.width(), case.heads.heads, width].into_iter().enumerate() {
                let part = &together[which][part(width)];
                let finite = part.iter().all(|&x| f32::from_bits(x).is_finite());
                assert!(finite == (i != 2) && (i == 2 || part == alone[which]), "sequence {i}, {which}");
            }
        }
    }
}

/// Both are within the roundings of the weights, 2⁻⁸ of each, and of the store, of the exact output.
#[test]
fn agrees_with_whole_strips() {
    let case = Case::<bf16>::new(3, 1, 64, &[1100, 130]);
    let (out, lse) = forward(Level::best(), &case);
    let (mut want, mut want_lse) = (vec![bf16::NAN; out.len()], vec![f32::NAN; lse.len()]);
    attention::forward(&case.qkv, &case.cu_seqlens(), case.heads, &mut want, &mut want_lse);
    for (got, want) in out.iter().zip(&want) {
        // Values are below 1, and so is their mean.
        let difference = (got.to_f32() - want.to_f32()).abs();
        assert!(difference <= 2.0 * (2.0 + 0.01) / 256.0, "{got} {want}");
    }
    let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * (1.0 + b.abs());
    assert!(lse.iter().zip(&want_lse).all(close));
}
