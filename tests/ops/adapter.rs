//! Products with an adapter, which is summed before the main product, and masked in an input gradient: against the
//! definition on every level, across every edge, in each type, and in bits for any number of threads.

use crate::common::real::{Real, assert_allowed, reals, values};
use half::bf16;
use smolten::ops::attention::Heads;
use smolten::ops::linear::{
    Adapted, Narrow, Operand, Rotation, SwigluBuffers, Weight, forward, forward_residual, forward_rope,
    forward_swiglu, input_gradient, swiglu_backward,
};
use smolten::ops::noise::{Dropout, number, row_key};
use smolten::ops::product::Mask;
use smolten::ops::tile::Level;
use smolten::ops::{rope, swiglu};

/// Few rows, whose weight is not packed; a part of a panel, a panel and one, several.
const TOKENS: [usize; 5] = [1, 5, 9, 33, 100];
/// A step of fp32 and half of one, half of bf16's; one and a bit; less than any.
const RANKS: [usize; 4] = [8, 16, 40, 3];

const KEY: [u32; 2] = [17, 29];
const RATES: [Option<f64>; 3] = [None, Some(0.5), Some(0.05)];

fn levels() -> impl Iterator<Item = Level> {
    Level::ALL.into_iter().filter(|level| level.is_available())
}

fn mask(rate: f64) -> Mask {
    Mask { dropout: Dropout::new(rate, 5), key: KEY }
}

/// What a mask has in a place, plainly.
#[expect(clippy::cast_possible_truncation, reason = "small numbers, and fp32 is meant")]
pub fn kept(rate: f64, site: u32, key: [u32; 2], row: usize, column: usize) -> f32 {
    let number = number(row_key(key, site, row as u32), column as u32);
    if f64::from(number) < (rate * 4_294_967_296.0).floor() { 0.0 } else { (1.0 / (1.0 - rate)) as f32 }
}

fn bits<E: Operand>(x: &[E]) -> Vec<u32> {
    x.iter().map(|x| x.to_f32().to_bits()).collect()
}

fn nan<E: Operand>(n: usize) -> Vec<E> {
    vec![E::from_f32(f32::NAN); n]
}

fn transposed<E: Operand>(m: &[E], cols: usize) -> Vec<E> {
    (0..cols).flat_map(|j| m.iter().skip(j).step_by(cols).copied()).collect()
}

/// `mask∘(left·rightᵀ) + x·wᵀ` with `right` `[out, R]` and `w` `[out, in]`.
fn definition<E: Operand>(
    main: [&[E]; 2],
    inputs: usize,
    adapter: Narrow<'_, E>,
    rate: Option<f64>,
) -> Vec<Real> {
    let ([x, w], [left, right]) = (main.map(reals), [adapter.left, adapter.right].map(reals));
    let (rank, outputs) = (adapter.rank, w.len() / inputs);
    let element = |i: usize| {
        let (row, column) = (i / outputs, i % outputs);
        let terms = |a: &[Real], b: &[Real], k: usize| {
            let (a, b) = (&a[row * k..][..k], &b[column * k..][..k]);
            a.iter().zip(b).map(|(&a, &b)| a * b).collect::<Vec<_>>()
        };
        let (addend, main) = (terms(&left, &right, rank), terms(&x, &w, inputs));
        let Some(rate) = rate else { return Real::sum(addend.into_iter().chain(main)) };
        let masked = Real::sum(addend) * Real::of(kept(rate, 5, KEY, row, column));
        Real::sum([masked].into_iter().chain(main))
    };
    (0..x.len() / inputs * outputs).map(element).collect()
}

/// Operands of a product with `outputs` columns.
struct Case<E> {
    x: Vec<E>,
    w: Vec<E>,
    left: Vec<E>,
    right: Vec<E>,
    rank: usize,
    inputs: usize,
}

impl<E: Operand> Case<E> {
    fn new(t: usize, inputs: usize, outputs: usize, rank: usize) -> Self {
        Self::of(t, inputs, outputs, rank, |n, seed| values(n, 1.0, seed))
    }

    fn of(t: usize, inputs: usize, outputs: usize, rank: usize, of: impl Fn(usize, u64) -> Vec<E>) -> Self {
        let (x, w) = (of(t * inputs, 1), of(outputs * inputs, 2));
        Self { x, w, left: of(t * rank, 3), right: of(outputs * rank, 4), rank, inputs }
    }

    fn narrow(&self) -> Narrow<'_, E> {
        Narrow { left: &self.left, right: &self.right, rank: self.rank, mask: None }
    }

    fn adapted(&self) -> Adapted<'_, E> {
        Adapted { w: Weight::Plain(&self.w), adapter: Some(self.narrow()) }
    }

    fn definition(&self, rate: Option<f64>) -> Vec<Real> {
        definition([&self.x, &self.w], self.inputs, self.narrow(), rate)
    }

    fn outputs(&self) -> usize {
        self.w.len() / self.inputs
    }

    /// The same as an input gradient: `w` and `right` the other way round.
    fn gradient(&self, level: Level, rate: Option<f64>) -> Vec<E> {
        let (w, right) = (transposed(&self.w, self.inputs), transposed(&self.right, self.rank));
        let adapter = Narrow { right: &right, mask: rate.map(mask), ..self.narrow() };
        let mut dx = nan(self.x.len() / self.inputs * self.outputs());
        input_gradient(level, &self.x, &w, Some(adapter), &mut dx, self.outputs());
        dx
    }

    fn residual(&self, level: Level, bias: Option<&[f32]>, residual: &[f32]) -> Vec<f32> {
        let mut y = nan(residual.len());
        forward_residual(level, &self.x, self.adapted(), bias, residual, &mut y, self.inputs);
        y
    }
}

fn products_in<E: Operand>() {
    for (t, rank) in TOKENS.into_iter().flat_map(|t| RANKS.map(|rank| (t, rank))) {
        for (inputs, outputs) in [(40, 70), (33, 32)] {
            let case = Case::<E>::new(t, inputs, outputs, rank);
            let (bias, residual) = (values::<f32>(outputs, 1.0, 6), values::<f32>(t * outputs, 2.0, 7));
            let want = case.definition(None);
            let biased: Vec<Real> =
                want.iter().zip(bias.iter().cycle()).map(|(&y, &b)| y + Real::of(b)).collect();
            let onto: Vec<Real> = biased.iter().zip(&residual).map(|(&y, &r)| y + Real::of(r)).collect();
            for level in levels() {
                let name = |what| format!("{what}, {level:?}, {t} tokens, rank {rank}");
                let mut y = nan::<E>(want.len());
                forward(level, &case.x, case.adapted(), Some(&bias), &mut y, inputs);
                assert_allowed(&name("rounded"), &y, &biased);
                assert_allowed(&name("residual"), &case.residual(level, Some(&bias), &residual), &onto);
            }
            for rate in RATES {
                let want = case.definition(rate);
                for level in levels() {
                    let name = format!("gradient, {level:?}, {t} tokens, rank {rank}, {rate:?}");
                    assert_allowed(&name, &case.gradient(level, rate), &want);
                }
            }
        }
    }
}

#[test]
fn products_are_the_definition() {
    in_each_type!(products_in);
}

/// Pairs of heads' coordinates, in blocks and not.
fn rotated_in<E: Operand>(head_dim: usize) {
    let heads = Heads { heads: 3, kv_heads: 1, head_dim };
    let (inputs, width, half) = (40, heads.qkv_width(), head_dim / 2);
    let (cos, sin) = (values::<f32>(9 * half, 1.0, 5), values::<f32>(9 * half, 1.0, 6));
    let table = rope::Table { cos: &cos, sin: &sin };
    for (t, rank) in TOKENS.into_iter().flat_map(|t| RANKS.map(|rank| (t, rank))) {
        let (case, bias) = (Case::<E>::new(t, inputs, width, rank), values::<f32>(width, 1.0, 7));
        let positions: Vec<u32> = (0..9).cycle().take(t).collect();
        let mut want: Vec<Real> = case.definition(None);
        for (row, &p) in want.chunks_mut(width).zip(&positions) {
            row.iter_mut().zip(&bias).for_each(|(y, &b)| *y = *y + Real::of(b));
            for head in row[..(heads.heads + heads.kv_heads) * head_dim].chunks_mut(head_dim) {
                for i in 0..half {
                    let at = p as usize * half + i;
                    let (c, s, x, y) = (Real::of(cos[at]), Real::of(sin[at]), head[i], head[i + half]);
                    (head[i], head[i + half]) = (x * c - y * s, y * c + x * s);
                }
            }
        }
        let rotation = Rotation { heads, positions: &positions, table };
        for level in levels() {
            let mut qkv = nan::<E>(want.len());
            forward_rope(level, &case.x, case.adapted(), Some(&bias), rotation, &mut qkv, inputs);
            assert_allowed(&format!("rotated, {level:?}, {t} tokens, rank {rank}"), &qkv, &want);
        }
    }
}

#[test]
fn heads_are_rotated_after_the_adapter() {
    for head_dim in [6, 32, 64] {
        in_each_type!(rotated_in, head_dim);
    }
}

/// Gates with their ups, in blocks and not; and backwards.
fn gated_in<E: Operand>(f: usize) {
    let inputs = 40;
    for (t, rank) in TOKENS.into_iter().flat_map(|t| RANKS.map(|rank| (t, rank))) {
        let case = Case::<E>::new(t, inputs, 2 * f, rank);
        let want = case.definition(None);
        for level in levels() {
            let (mut gate_up, mut act, mut want_act) =
                (nan::<E>(2 * t * f), nan::<E>(t * f), nan::<E>(t * f));
            forward_swiglu(level, &case.x, case.adapted(), None, &mut gate_up, &mut act, inputs);
            assert_allowed(&format!("gate_up, {level:?}, {t} tokens, rank {rank}"), &gate_up, &want);
            swiglu::forward(&gate_up, &mut want_act, f);
            assert_eq!(bits(&act), bits(&want_act), "{level:?}, {t} tokens, rank {rank}");
        }
        let (case, gate_up) = (Case::<E>::new(t, inputs, f, rank), values::<E>(2 * t * f, 3.0, 8));
        let (w, right) = (transposed(&case.w, inputs), transposed(&case.right, rank));
        for (level, rate) in levels().flat_map(|level| RATES.map(|rate| (level, rate))) {
            let [mut act, mut want_act] = [(); 2].map(|()| nan::<E>(t * f));
            let [mut dgate_up, mut want] = [(); 2].map(|()| nan::<E>(2 * t * f));
            // Compared with the definition above.
            let dact = case.gradient(level, rate);
            swiglu::backward(&gate_up, &dact, &mut want_act, &mut want, f);
            let adapter = Narrow { right: &right, mask: rate.map(mask), ..case.narrow() };
            let buffers = SwigluBuffers { gate_up: &gate_up, act: &mut act, dgate_up: &mut dgate_up };
            swiglu_backward(level, &case.x, &w, Some(adapter), buffers, f);
            assert_eq!(bits(&dgate_up), bits(&want), "{level:?}, {t} tokens, rank {rank}, {rate:?}");
            assert_eq!(bits(&act), bits(&want_act), "{level:?}, {t} tokens, rank {rank}, {rate:?}");
        }
    }
}

#[test]
fn gates_and_their_ups_have_the_adapter() {
    for f in [18, 48] {
        in_each_type!(gated_in, f);
    }
}

/// An inner dimension of several chunks: the adapter is in the first alone.
fn long_in<E: Operand>() {
    let (t, inputs, outputs) = (37, 1700, 40);
    for rank in [16, 40, 3] {
        let case = Case::<E>::new(t, inputs, outputs, rank);
        let residual = vec![0.0; t * outputs];
        for rate in RATES {
            let want = case.definition(rate);
            for level in levels() {
                let name = format!("{level:?}, rank {rank}, {rate:?}");
                assert_allowed(&name, &case.gradient(level, rate), &want);
                if rate.is_none() {
                    assert_allowed(&name, &case.residual(level, None, &residual), &want);
                }
            }
        }
    }
}

#[test]
fn several_chunks_have_one_adapter() {
    in_each_type!(long_in);
}

/// Tokens, inputs, outputs: several groups of columns, several pieces and chunks of k, several panels of each thread.
const LARGE: [(usize, usize, usize); 4] = [(70, 608, 1100), (40, 1700, 300), (35, 3200, 700), (1100, 64, 96)];

/// Both products as bits.
fn run<E: Operand>(case: &Case<E>, level: Level, threads: usize, rate: Option<f64>) -> [Vec<u32>; 2] {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let residual = vec![0.0; case.x.len() / case.inputs * case.outputs()];
    pool.install(|| [bits(&case.residual(level, None, &residual)), bits(&case.gradient(level, rate))])
}

fn threads_in<E: Operand>() {
    for level in levels().filter(|&level| level > Level::Portable) {
        for ((t, inputs, outputs), rank) in LARGE.into_iter().zip([16, 40, 8, 3]) {
            let case = Case::<E>::new(t, inputs, outputs, rank);
            for rate in [None, Some(0.05)] {
                let one = run(&case, level, 1, rate);
                for threads in [2, 3, 7] {
                    let name = format!("{:?} {level:?}, {t} tokens, {threads} threads", E::DTYPE);
                    assert!(run(&case, level, threads, rate) == one, "{name}");
                }
            }
        }
    }
}

#[test]
fn threads_change_no_bit() {
    threads_in::<bf16>();
    threads_in::<f32>();
}

/// Whole numbers from -4 to 4 and a mask of zeros and twos: every sum is exact in any order.
#[expect(clippy::cast_possible_truncation, reason = "whole numbers below 2^24")]
fn whole_in<E: Operand>() {
    let whole = |n, seed| values::<E>(n, 4.0, seed).iter().map(|x| E::from_f32(x.to_f32().round())).collect();
    for ((t, inputs, outputs), rank) in LARGE.into_iter().zip([40, 16, 3, 8]) {
        let case = Case::<E>::of(t, inputs, outputs, rank, whole);
        let of = |x: &[E]| x.iter().map(|x| x.to_f32() as i32).collect::<Vec<_>>();
        let [x, w, left, right] = [&case.x, &case.w, &case.left, &case.right].map(|x| of(x));
        let dot = |a: &[i32], b: &[i32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<i32>();
        let (mut want, mut want_dx) = (Vec::new(), Vec::new());
        for (row, column) in (0..t).flat_map(|row| (0..outputs).map(move |column| (row, column))) {
            let addend = dot(&left[row * rank..][..rank], &right[column * rank..][..rank]);
            let main = dot(&x[row * inputs..][..inputs], &w[column * inputs..][..inputs]);
            want.push(((addend + main) as f32).to_bits());
            let masked = addend * kept(0.5, 5, KEY, row, column) as i32;
            want_dx.push(E::from_f32((masked + main) as f32).to_f32().to_bits());
        }
        let want = [want, want_dx];
        for level in levels() {
            assert!(run(&case, level, 2, Some(0.5)) == want, "{:?} {level:?} {t} tokens", E::DTYPE);
        }
    }
}

#[test]
fn large_products_of_whole_numbers_are_exact() {
    whole_in::<bf16>();
    whole_in::<f32>();
}
