//! bf16 and fp16 training: how close to fp32, what the loss scale may change, what an overflow must not.
#![expect(clippy::cast_possible_truncation, reason = "bounds are compared in f32")]

mod common;

use common::engine::{Engine, join, sequence};
use common::{U_BF16, U_F16};
use smolten::arena::Tensor;
use smolten::backend::{Backend, UpdateRule};
use smolten::batch::MicroBatch;
use smolten::dtype::DType;
use smolten::model::read_floats;
use smolten::ops::adamw::AdamWConfig;
use smolten::ops::loss_scale::LossScale;

const RULES: [UpdateRule; 2] = [UpdateRule::Torch, UpdateRule::Blockwise];
const CONFIG: AdamWConfig = AdamWConfig { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };

/// Roundings to A on the way to a logit: per layer two norms, q k v, p, attention, gate and up, their product, and
/// seven weights, in two layers; the embedding, the last norm and the head.
const FORWARD: f32 = 31.0;

/// Rounding of a value after `n` stores in a type of unit roundoff `u`: of independent sign, four deviations.
fn bound(n: f32, u: f32) -> f32 {
    4.0 * n.sqrt() * u
}

fn window(seed: u64) -> Vec<MicroBatch> {
    let rows: Vec<MicroBatch> =
        [1, 20, 65, 7, 40, 2].into_iter().zip(10 * seed..).map(|(n, seed)| sequence(n, 320, seed)).collect();
    vec![join(&rows[..3]), join(&rows[3..])]
}

fn engine(name: &str, dtype: DType, rule: UpdateRule) -> Engine {
    Engine::tiny_with_room(name, dtype, rule, 100)
}

/// `‖a − b‖ / ‖b‖`.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let norm = |f: &dyn Fn(usize) -> f32| (0..a.len()).map(|i| f64::from(f(i)).powi(2)).sum::<f64>().sqrt();
    (norm(&|i| a[i] - b[i]) / norm(&|i| b[i])) as f32
}

fn set_scale(engine: &mut Engine, value: f32) {
    engine.backend.set_loss_scale(LossScale::fixed(value)).unwrap();
}

fn gradients(name: &str, dtype: DType, loss_scale: f32) -> Vec<Vec<f32>> {
    let mut engine = engine(name, dtype, UpdateRule::Torch);
    set_scale(&mut engine, loss_scale);
    engine.gradients(&window(1));
    let mut all = engine.all_gradients();
    all.iter_mut().flatten().for_each(|g| *g /= loss_scale);
    all
}

#[test]
fn gradients_are_those_of_fp32_but_for_rounding() {
    for name in ["tied", "untied"] {
        let exact = gradients(name, DType::F32, 1.0);
        for (dtype, u) in [(DType::BF16, U_BF16), (DType::F16, U_F16)] {
            for (i, (got, want)) in gradients(name, dtype, 1024.0).iter().zip(&exact).enumerate() {
                let d = distance(got, want);
                // Forward, and twice that backward.
                assert!(d <= bound(3.0 * FORWARD, u), "{name} {dtype:?}, weight {i}: {d}");
                assert!(d > 0.01 * u, "{name} {dtype:?}, weight {i}: {d} is no rounding at all");
            }
        }
    }
}

/// A step with this loss scale: the norm, and the bits of weights and state.
fn one_step(dtype: DType, loss_scale: f32) -> (f64, Vec<u8>) {
    let mut engine = engine("untied", dtype, UpdateRule::Blockwise);
    set_scale(&mut engine, loss_scale);
    let (_, norm) = engine.step(&window(1), &CONFIG);
    (norm, engine.bytes())
}

/// A power of two goes through every product and sum unchanged, unless something under- or overflows.
#[test]
fn the_loss_scale_changes_no_bit_but_in_fp16() {
    let scale = 65_536.0;
    for dtype in [DType::F32, DType::BF16] {
        assert!(gradients("tied", dtype, 1.0) == gradients("tied", dtype, scale), "{dtype:?}");
        assert!(one_step(dtype, 1.0) == one_step(dtype, scale), "{dtype:?}: one step");
    }
    let (norm, exact) = (one_step(DType::F16, scale).0, one_step(DType::F32, 1.0).0);
    let allowed = f64::from(bound(3.0 * FORWARD, U_F16)) * exact;
    assert!((norm - exact).abs() <= allowed, "norm {norm}, want {exact}");
    let (plain, scaled) = (gradients("tied", DType::F16, 1.0), gradients("tied", DType::F16, scale));
    for (i, (plain, scaled)) in plain.iter().zip(&scaled).enumerate() {
        let d = distance(plain, scaled);
        assert!(d <= bound(3.0 * FORWARD, U_F16), "weight {i}: {d}");
    }
    assert!(plain != scaled, "fp16 without a loss scale loses small gradients");
}

#[test]
fn losses_follow_those_of_fp32() {
    for name in ["tied", "untied"] {
        for rule in RULES {
            let run = |dtype: DType, loss_scale: f32| -> Vec<f64> {
                let mut engine = engine(name, dtype, rule);
                set_scale(&mut engine, loss_scale);
                (0..10).map(|step| engine.step(&window(step % 2), &CONFIG).0).collect()
            };
            let exact = run(DType::F32, 1.0);
            assert!(exact[9] < 0.95 * exact[1], "{exact:?}");
            for (dtype, u, loss_scale) in [(DType::BF16, U_BF16, 1.0), (DType::F16, U_F16, 65_536.0)] {
                let losses = run(dtype, loss_scale);
                // The mean over more than a hundred tokens: a quarter of what a single one is allowed.
                let allowed = f64::from(bound(FORWARD, u)) / 4.0;
                for (step, (got, want)) in losses.iter().zip(&exact).enumerate() {
                    let d = (got - want).abs() / want;
                    assert!(d <= allowed, "{name} {rule:?} {dtype:?} step {step}: {got}, {want}");
                }
                assert!(losses != exact, "{dtype:?} rounds nothing");
            }
        }
    }
}

/// The step after an overflow is the step that would have come without it.
fn is_skipped(dtype: DType, rule: UpdateRule, spoil: impl Fn(&mut Engine), mend: impl Fn(&mut Engine)) {
    let mut spoilt = engine("untied", dtype, rule);
    let mut clean = engine("untied", dtype, rule);
    for e in [&mut spoilt, &mut clean] {
        e.gradients(&window(1));
        assert!(!e.update(&CONFIG).skipped);
    }
    assert!(spoilt.bytes() == clean.bytes());
    spoil(&mut spoilt);
    let before = spoilt.bytes();
    spoilt.gradients(&window(2));
    let output = spoilt.update(&CONFIG);
    assert!(output.skipped && !output.grad_norm.is_finite(), "{dtype:?}: {output:?}");
    assert!(spoilt.bytes() == before, "{dtype:?}: a skipped step must leave weights and state");
    mend(&mut spoilt);
    assert!(spoilt.bytes() == clean.bytes());
    clean.steps += 1; // a skipped step counts
    for e in [&mut spoilt, &mut clean] {
        e.gradients(&window(3));
        assert!(!e.update(&CONFIG).skipped);
    }
    assert!(spoilt.bytes() == clean.bytes(), "{dtype:?} {rule:?}: the step after the overflow");
}

#[test]
fn a_loss_scale_too_large_skips_the_step() {
    for rule in RULES {
        let scale = |s: f32| move |e: &mut Engine| set_scale(e, s);
        is_skipped(DType::F16, rule, scale(2f32.powi(40)), scale(1.0));
        is_skipped(DType::F32, rule, scale(f32::INFINITY), scale(1.0));
    }
}

/// The first element of the first `down_proj`, in the master and in the working copy.
fn first_element(engine: &Engine) -> [Tensor; 2] {
    let weight = engine.model.weights.iter().find(|w| w.parameter.name.contains("down_proj")).unwrap();
    [weight.master, weight.working].map(|t| Tensor { rows: 1, cols: 1, ..t })
}

#[test]
fn an_infinite_weight_skips_the_step() {
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for rule in RULES {
            let kept = std::cell::RefCell::new(Vec::new());
            let spoil = |e: &mut Engine| {
                let elements = first_element(e);
                *kept.borrow_mut() = elements.map(|t| read_floats(&mut e.backend, t).unwrap()[0]).to_vec();
                elements.into_iter().for_each(|t| write(e, t, f32::INFINITY));
            };
            let mend = |e: &mut Engine| {
                first_element(e).into_iter().zip(kept.borrow().iter()).for_each(|(t, &x)| write(e, t, x));
            };
            is_skipped(dtype, rule, spoil, mend);
        }
    }
}

fn write(engine: &mut Engine, t: Tensor, x: f32) {
    let bytes = match t.dtype {
        DType::BF16 => half::bf16::from_f32(x).to_ne_bytes().to_vec(),
        DType::F16 => half::f16::from_f32(x).to_ne_bytes().to_vec(),
        _ => x.to_ne_bytes().to_vec(),
    };
    engine.backend.upload(t, &bytes).unwrap();
}
