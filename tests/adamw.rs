//! AdamW: each step against the formulas in f64, within a bound that counts the roundings; against torch; and the
//! same bits for any thread count and any neighbours.
#![expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the point")]

mod common;

use half::bf16;
use safetensors::SafeTensors;
use smolten::dtype::Element;
use smolten::ops::adamw::{self, AdamWConfig, AdamWScalars, Weight};
use smolten::ops::adamw_8bit::{self, BLOCK, State, ZERO_CODE_M};
use smolten::ops::codebook::{Codebook, SIGNED, UNSIGNED};

/// Half a unit in the last place of f32, relative; 1 % more for the products of roundings left out of the counts.
const U: f64 = 1.01 / (1u64 << 24) as f64;

const CONFIG: AdamWConfig = AdamWConfig { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };

/// Values over nine decades of magnitude, some of them zero.
fn gradients(n: usize, seed: u64) -> Vec<f32> {
    let exponents = common::uniform(n, seed ^ 0xabc);
    let g = common::uniform(n, seed).into_iter().zip(exponents);
    g.map(|(g, e)| if e > 0.95 { 0.0 } else { g * 10f32.powf(4.0 * e - 4.0) }).collect()
}

/// A tensor of 8-bit state.
#[derive(Clone, PartialEq, Debug)]
struct Tensor {
    p: Vec<f32>,
    m_codes: Vec<u8>,
    m_absmax: Vec<f32>,
    v_codes: Vec<u8>,
    v_absmax: Vec<f32>,
}

impl Tensor {
    fn new(p: Vec<f32>) -> Self {
        let (n, blocks) = (p.len(), p.len().div_ceil(BLOCK));
        Self {
            p,
            m_codes: vec![ZERO_CODE_M; n],
            m_absmax: vec![0.0; blocks],
            v_codes: vec![0; n],
            v_absmax: vec![0.0; blocks],
        }
    }

    fn step(&mut self, t: u64, scale: f32, decays: bool, g: &[f32]) {
        self.step_with::<f32>(t, scale, decays, g, &mut []);
    }

    fn step_with<A: Element>(&mut self, t: u64, scale: f32, decays: bool, g: &[f32], working: &mut [A]) {
        let state = State {
            m_codes: &mut self.m_codes,
            m_absmax: &mut self.m_absmax,
            v_codes: &mut self.v_codes,
            v_absmax: &mut self.v_absmax,
        };
        adamw_8bit::update(
            &AdamWScalars::adamw_8bit(&CONFIG, t),
            scale,
            decays,
            Weight { master: &mut self.p, working },
            g,
            state,
        )
        .unwrap();
    }
}

fn decode(book: &Codebook, codes: &[u8], absmax: &[f32]) -> Vec<f64> {
    let value = |(i, &c): (usize, &u8)| f64::from(book.values[usize::from(c)]) * f64::from(absmax[i / BLOCK]);
    codes.iter().enumerate().map(value).collect()
}

/// A number and how far f32 arithmetic may be from it.
#[derive(Clone, Copy)]
struct Bounded {
    value: f64,
    error: f64,
}

impl Bounded {
    fn check(self, got: f32, what: &str) {
        let difference = (f64::from(got) - self.value).abs();
        assert!(difference <= self.error, "{what}: got {got:e}, want {:e} ± {:e}", self.value, self.error);
    }
}

/// bitsandbytes' update of one element: new p, m, v.
///
/// Roundings: β1·m has three (decoding, β1, product), (1−β1)·g three (scaling g, 1−β1, product), their sum one.
/// β2·v three, (1−β2)·g·g five, their sum one; √v halves them and adds one; eps one, the sum one, so 5 in the
/// denominator; then the quotient, the step size, the product: 8. The sum, decay and its product: 3.
fn bitsandbytes(t: i32, p: f64, g: f64, m: f64, v: f64, decays: bool) -> [Bounded; 3] {
    let AdamWConfig { lr, beta1, beta2, eps, weight_decay } = CONFIG;
    let new_m = beta1 * m + (1.0 - beta1) * g;
    let m_error = 4.0 * U * (beta1 * m.abs() + (1.0 - beta1) * g.abs());
    let new_v = beta2 * v + (1.0 - beta2) * g * g;
    let correction1 = 1.0 - beta1.powi(t);
    let correction2 = (1.0 - beta2.powi(t)).sqrt();
    let denominator = new_v.sqrt() + eps * correction2;
    let step_size = lr * correction2 / correction1;
    let change = -step_size * new_m / denominator;
    let decay = if decays { 1.0 - lr * weight_decay } else { 1.0 };
    let p_error =
        step_size / denominator * m_error + 8.0 * U * change.abs() + 3.0 * U * (p.abs() + change.abs());
    [
        Bounded { value: (p + change) * decay, error: p_error },
        Bounded { value: new_m, error: m_error },
        Bounded { value: new_v, error: 6.0 * U * new_v },
    ]
}

/// The stored form of one block: its largest magnitude, and codes no further off than the nearest value, as far as
/// the bounds can tell.
fn check_codes(book: &Codebook, want: &[Bounded], absmax: f32, codes: &[u8]) {
    let largest = want.iter().fold(0f64, |a, w| a.max(w.value.abs()));
    let error = want.iter().fold(0f64, |a, w| a.max(w.error));
    Bounded { value: largest, error }.check(absmax, "absmax");
    for (w, &code) in want.iter().zip(codes) {
        let x = if largest == 0.0 { 0.0 } else { w.value / largest };
        let x_error = if largest == 0.0 { 0.0 } else { (w.error + x.abs() * error) / largest + U * x.abs() };
        let same_side = |value: f32| w.value >= -w.error || value < 0.0;
        let distances = book.values.iter().filter(|&&v| same_side(v)).map(|&v| (f64::from(v) - x).abs());
        let nearest = distances.fold(f64::INFINITY, f64::min);
        let value = book.values[usize::from(code)];
        assert!((f64::from(value) - x).abs() <= nearest + 2.0 * x_error, "code {code} = {value} for {x}");
        assert!(same_side(value), "code {code} = {value} for {x}: the sign is lost");
    }
}

#[test]
fn five_steps_follow_bitsandbytes_in_f64() {
    for decays in [true, false] {
        let n = 5000;
        let mut tensor = Tensor::new(common::uniform(n, 1));
        for t in 1..=5u8 {
            let scale = 1.0 / f32::from(t);
            let g = gradients(n, u64::from(t));
            let m = decode(&SIGNED, &tensor.m_codes, &tensor.m_absmax);
            let v = decode(&UNSIGNED, &tensor.v_codes, &tensor.v_absmax);
            let want: Vec<[Bounded; 3]> = (0..n)
                .map(|i| {
                    let g = f64::from(g[i]) * f64::from(scale);
                    bitsandbytes(i32::from(t), f64::from(tensor.p[i]), g, m[i], v[i], decays)
                })
                .collect();
            tensor.step(u64::from(t), scale, decays, &g);
            for (i, block) in want.chunks(BLOCK).enumerate() {
                let at = i * BLOCK..i * BLOCK + block.len();
                block.iter().zip(&tensor.p[at.clone()]).for_each(|(w, &p)| w[0].check(p, "p"));
                let column = |c: usize| block.iter().map(|w| w[c]).collect::<Vec<_>>();
                check_codes(&SIGNED, &column(1), tensor.m_absmax[i], &tensor.m_codes[at.clone()]);
                check_codes(&UNSIGNED, &column(2), tensor.v_absmax[i], &tensor.v_codes[at]);
            }
        }
    }
}

/// The rule once more, in f32 and with a search for the nearest code: not close but equal.
#[test]
fn same_bits_as_the_rule_written_plainly() {
    let nearest = |book: &Codebook, x: f32| {
        let codes = 0..book.values.len();
        let distance = |c: usize| (f64::from(book.values[c]) - f64::from(x)).abs();
        // Of two at the same distance the even one; of a negative x never the zero entry.
        let best = codes
            .filter(|&c| x >= 0.0 || book.values[c] < 0.0)
            .min_by(|&a, &b| distance(a).total_cmp(&distance(b)).then((a % 2).cmp(&(b % 2))));
        u8::try_from(best.unwrap()).unwrap()
    };
    let mut got = Tensor::new(common::uniform(1000, 5));
    let mut want = got.clone();
    for t in 1..=4 {
        let g = gradients(1000, t);
        got.step(t, 0.3, true, &g);
        let s = AdamWScalars::adamw_8bit(&CONFIG, t);
        for block in 0..want.m_absmax.len() {
            let range = block * BLOCK..(block * BLOCK + BLOCK).min(1000);
            let (mut m, mut v) = (Vec::new(), Vec::new());
            for i in range.clone() {
                let g = g[i] * 0.3;
                let m_term = s.beta1 * (SIGNED.values[usize::from(want.m_codes[i])] * want.m_absmax[block]);
                let v_term = s.beta2 * (UNSIGNED.values[usize::from(want.v_codes[i])] * want.v_absmax[block]);
                let (m_new, v_new) = (m_term + s.one_minus_beta1 * g, v_term + (s.one_minus_beta2 * g) * g);
                want.p[i] += s.step_size * (m_new / (v_new.sqrt() + s.eps));
                want.p[i] *= s.decay;
                m.push(m_new);
                v.push(v_new);
            }
            want.m_absmax[block] = common::max_abs(&m);
            want.v_absmax[block] = common::max_abs(&v);
            for (i, (m, v)) in range.zip(m.iter().zip(&v)) {
                want.m_codes[i] = nearest(&SIGNED, m / want.m_absmax[block]);
                want.v_codes[i] = nearest(&UNSIGNED, v / want.v_absmax[block]);
            }
        }
        assert_eq!(got, want, "step {t}");
    }
}

#[test]
fn fp32_state_follows_the_same_rule_without_codes() {
    let n = 4095;
    let (mut p, mut m, mut v) = (common::uniform(n, 1), vec![0f32; n], vec![0f32; n]);
    for t in 1..=5u8 {
        let g = gradients(n, u64::from(t));
        let before = (p.clone(), m.clone(), v.clone());
        let scalars = AdamWScalars::adamw_8bit(&CONFIG, u64::from(t));
        adamw_8bit::update_fp32_state(&scalars, 0.5, true, Weight::only(&mut p), &g, &mut m, &mut v).unwrap();
        for i in 0..n {
            let (g, p0) = (0.5 * f64::from(g[i]), f64::from(before.0[i]));
            let want =
                bitsandbytes(i32::from(t), p0, g, f64::from(before.1[i]), f64::from(before.2[i]), true);
            want.iter().zip([p[i], m[i], v[i]]).for_each(|(w, got)| w.check(got, "p, m, v"));
        }
    }
}

/// One step of torch's AdamW from torch's own state before it; both sides may be off the formula by the bound.
///
/// Roundings: in m the difference, 1−β1, the product, the sum; in v β2, product, 1−β2, two products, sum. The root
/// halves v's 5 and adds one, the correction and its quotient add 2, eps and the sum 2: at most 7.5; the quotient,
/// the step size and its product make 10.5. Decay, its product and the last sum: 3.
#[test]
fn each_step_is_that_of_torch() {
    let file =
        std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/adamw.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();
    let get = |name: &str, step: u8| -> Vec<f32> {
        let data = file.tensor(&format!("{name}.{step}")).unwrap().data();
        data.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
    };
    for step in 1..=5u8 {
        let config = AdamWConfig { lr: 1e-3 * f64::from(step), weight_decay: 0.01, ..CONFIG };
        let scalars = AdamWScalars::adamw(&config, u64::from(step));
        let (mut p, mut m, mut v) = (get("p", step - 1), get("m", step - 1), get("v", step - 1));
        let (g, before) = (get("g", step), (p.clone(), m.clone()));
        adamw::update(&scalars, 1.0, true, Weight::only(&mut p), &g, &mut m, &mut v).unwrap();
        let (p_torch, m_torch, v_torch) = (get("p", step), get("m", step), get("v", step));
        for i in 0..p.len() {
            let (g, m0) = (f64::from(g[i]), f64::from(before.1[i]));
            let m_error = 3.0 * U * 0.1 * (g - m0).abs() + U * f64::from(m[i]).abs();
            Bounded { value: f64::from(m_torch[i]), error: 2.0 * m_error }.check(m[i], "m");
            let v_torch = f64::from(v_torch[i]);
            Bounded { value: v_torch, error: 2.0 * 5.0 * U * v_torch }.check(v[i], "v");
            let t = i32::from(step);
            let denominator = v_torch.sqrt() / (1.0 - 0.999f64.powi(t)).sqrt() + 1e-8;
            let step_size = config.lr / (1.0 - 0.9f64.powi(t)) / denominator;
            let change = step_size * f64::from(m[i]).abs();
            let error =
                step_size * m_error + 10.5 * U * change + 3.0 * U * (f64::from(before.0[i]).abs() + change);
            Bounded { value: f64::from(p_torch[i]), error: 2.0 * error }.check(p[i], "p");
        }
    }
}

fn with_threads<R: Send>(n: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(f)
}

#[test]
fn thread_count_changes_no_bit() {
    let n = 100_003;
    let run = |threads| {
        with_threads(threads, || {
            let mut tensor = Tensor::new(common::uniform(n, 1));
            let (mut p, mut m, mut v) = (tensor.p.clone(), vec![0f32; n], vec![0f32; n]);
            for t in 1..=3 {
                let g = gradients(n, t);
                tensor.step(t, 0.7, true, &g);
                adamw::update(
                    &AdamWScalars::adamw(&CONFIG, t),
                    0.7,
                    true,
                    Weight::only(&mut p),
                    &g,
                    &mut m,
                    &mut v,
                )
                .unwrap();
            }
            (tensor, p, m, v)
        })
    };
    assert_eq!(run(1), run(2));
}

/// Blocks do not see each other, whatever the length of the tensor and of its last block.
#[test]
fn a_tensor_is_the_sum_of_its_blocks() {
    for n in [1, 255, 256, 257, 4095, 4096, 5000, 40_000] {
        let mut whole = Tensor::new(common::uniform(n, 3));
        let mut blocks: Vec<Tensor> = whole.p.chunks(BLOCK).map(|p| Tensor::new(p.to_vec())).collect();
        for t in 1..=3 {
            let g = gradients(n, t);
            whole.step(t, 1.0, true, &g);
            blocks.iter_mut().zip(g.chunks(BLOCK)).for_each(|(b, g)| b.step(t, 1.0, true, g));
        }
        for (i, block) in blocks.iter().enumerate() {
            let at = i * BLOCK..i * BLOCK + block.p.len();
            assert_eq!(whole.p[at.clone()], block.p, "n = {n}, block {i}");
            assert_eq!(whole.m_codes[at.clone()], block.m_codes, "n = {n}, block {i}");
            assert_eq!(whole.v_codes[at], block.v_codes, "n = {n}, block {i}");
            assert_eq!((whole.m_absmax[i], whole.v_absmax[i]), (block.m_absmax[0], block.v_absmax[0]));
        }
    }
}

#[test]
fn no_gradient_ever_means_no_change_but_decay() {
    let mut tensor = Tensor::new(vec![1.0; 300]);
    tensor.step(1, 1.0, false, &[0.0; 300]);
    assert_eq!(tensor, Tensor::new(vec![1.0; 300]));
    tensor.step(2, 1.0, true, &[0.0; 300]);
    assert_eq!(tensor, Tensor::new(vec![(1.0f64 - 1e-3 * 0.1) as f32; 300]));
}

/// Learning rate 0 (the first step of a warm-up) still moves the moments.
#[test]
fn learning_rate_zero_updates_the_moments_only() {
    let config = AdamWConfig { lr: 0.0, ..CONFIG };
    let (mut p, mut m, mut v) = ([1.5f32; 4], [0f32; 4], [0f32; 4]);
    let scalars = AdamWScalars::adamw_8bit(&config, 1);
    adamw_8bit::update_fp32_state(&scalars, 1.0, true, Weight::only(&mut p), &[2.0; 4], &mut m, &mut v)
        .unwrap();
    assert_eq!(p, [1.5; 4]);
    assert_eq!(m, [0.1f32 * 2.0; 4]);
}

#[test]
fn wrong_length_names_the_argument() {
    let scalars = AdamWScalars::adamw(&CONFIG, 1);
    let error = adamw::update(
        &scalars,
        1.0,
        true,
        Weight::only(&mut [0.0; 3]),
        &[0.0; 3],
        &mut [0.0; 2],
        &mut [0.0; 3],
    );
    assert_eq!(error.unwrap_err().to_string(), "adamw: `m` is [1, 2], expected [1, 3]");
    let state = State {
        m_codes: &mut [0; 257],
        m_absmax: &mut [0.0; 2],
        v_codes: &mut [0; 257],
        v_absmax: &mut [0.0; 1],
    };
    let error = adamw_8bit::update(&scalars, 1.0, true, Weight::only(&mut [0.0; 257]), &[0.0; 257], state);
    assert_eq!(error.unwrap_err().to_string(), "adamw_8bit: `v_absmax` is [1, 1], expected [1, 2]");
}

/// The working weight is the new master weight rounded, to the last element of a tensor of any length and wherever its
/// buffer begins, in each rule; and the master weight is that of an update without one.
#[test]
fn the_working_weight_is_the_master_weight_rounded() {
    for n in [1, 31, 32, 33, 255, 257, 1000, 16_384, 16_399, 40_007] {
        for first in [0, 1, 32] {
            let (p, g) = (common::uniform(n, 8), gradients(n, 9));
            let mut plain = Tensor::new(p.clone());
            plain.step(1, 0.7, true, &g);
            let mut room = vec![bf16::NAN; first + n + 1];
            let mut tensor = Tensor::new(p.clone());
            tensor.step_with(1, 0.7, true, &g, &mut room[first..first + n]);
            assert_eq!(tensor, plain, "n = {n}");
            check_working(&tensor.p, &room, first);

            let scalars = AdamWScalars::adamw(&CONFIG, 1);
            let (mut p, mut m, mut v) = (p.clone(), vec![0.0; n], vec![0.0; n]);
            let mut room = vec![bf16::NAN; first + n + 1];
            let weight = Weight { master: &mut p, working: &mut room[first..first + n] };
            adamw::update(&scalars, 0.7, true, weight, &g, &mut m, &mut v).unwrap();
            check_working(&p, &room, first);
        }
    }
}

fn check_working(master: &[f32], room: &[bf16], first: usize) {
    let (before, rest) = room.split_at(first);
    let (working, behind) = rest.split_at(master.len());
    assert!(before.iter().chain(behind).all(|x| x.is_nan()), "written outside");
    for (i, (w, &p)) in working.iter().zip(master).enumerate() {
        assert_eq!(w.to_bits(), bf16::from_f32(p).to_bits(), "{i} of {}", master.len());
    }
}
