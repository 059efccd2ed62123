//! The whole model against PyTorch: logits, loss, every gradient, ten steps with each optimizer.
//!
//! Fixtures and what they hold: tests/fixtures/make_tiny_llama.py. The reference is computed in float64, so what
//! differs is this engine's rounding. Bounds are stated where they are used.

mod common;

use common::engine::{Engine, FORWARD, Fixture, bound, tiny};
use common::{assert_close, max_abs};
use smolten::backend::UpdateRule;
use smolten::dtype::DType;
use smolten::ops::adamw::AdamWConfig;

const MODELS: [&str; 3] = ["tied", "untied", "biased"];

#[test]
fn logits_and_loss() {
    for name in MODELS {
        let reference = Fixture::open(&tiny(name).join("reference.safetensors"));
        let mut engine = Engine::tiny(name, DType::F32, UpdateRule::Torch);
        let batch = reference.batch("");
        let (logits, output) = engine.evaluate(&batch);
        let want = reference.f32("logits");
        assert_close("logits", &logits, &want, 0.0, bound(FORWARD) * max_abs(&want));
        let loss = output.loss_sum / batch.supervised() as f64;
        let want = reference.f64("loss")[0];
        assert!((loss - want).abs() <= f64::from(bound(FORWARD)) * want, "{name}: loss {loss}, want {want}");
    }
}

#[test]
fn every_gradient() {
    for name in MODELS {
        let reference = Fixture::open(&tiny(name).join("reference.safetensors"));
        let mut engine = Engine::tiny(name, DType::F32, UpdateRule::Torch);
        engine.gradients(&[reference.batch("")]);
        for i in 0..engine.model.weights.len() {
            let parameter = &engine.model.weights[i].parameter.name.clone();
            let got = engine.model.read_gradient(&mut engine.backend, i).unwrap();
            let want = reference.f32(&format!("grad.{parameter}"));
            // Forward and twice that backward, and the sum over 55 tokens.
            assert_close(
                &format!("{name} {parameter}"),
                &got,
                &want,
                0.0,
                bound(3.0 * FORWARD + 55.0) * max_abs(&want),
            );
        }
    }
}

#[test]
fn ten_steps_of_each_optimizer() {
    for name in MODELS {
        let reference = Fixture::open(&tiny(name).join("reference.safetensors"));
        for (rule, prefix) in [(UpdateRule::Torch, "adamw"), (UpdateRule::Blockwise, "adamw_8bit")] {
            let mut engine = Engine::tiny(name, DType::F32, rule);
            let batches: Vec<_> = (0..10).map(|i| reference.batch(&format!("train.{i}."))).collect();
            let list = |what: &str| reference.f64(&format!("{prefix}.{what}"));
            let (loss, norm, lr) = (list("loss_f64"), list("grad_norm_f64"), list("lr"));
            let (loss32, norm32) = (list("loss"), list("grad_norm"));
            for (step, window) in reference.u32("train.windows").chunks(2).enumerate() {
                let window: Vec<_> = window.iter().map(|&i| batches[i as usize].clone()).collect();
                let config =
                    AdamWConfig { lr: lr[step], beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
                let (got_loss, got_norm) = engine.step(&window, &config);
                // PyTorch's own float32 run differs from its float64 run by rounding that training amplifies; ours
                // may differ by four times the largest such difference so far, or by one pass's rounding. With 8-bit
                // state a moment near the middle of two codes goes one way or the other by chance, in any step; so
                // there the largest difference of all ten counts. (Given the same gradients the codes are equal bit
                // for bit: tests/adamw_8bit_bits.rs.)
                let counted = if rule == UpdateRule::Torch { step + 1 } else { loss.len() };
                let own = |a: &[f64], b: &[f64]| {
                    a.iter().zip(b).take(counted).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
                };
                let allowed = 4.0 * own(&loss, &loss32) + f64::from(bound(FORWARD)) * loss[step];
                let diff = (got_loss - loss[step]).abs();
                assert!(
                    diff.is_finite() && diff <= allowed,
                    "{name} {prefix} loss {step}: {diff} over {allowed}"
                );
                let allowed = 4.0 * own(&norm, &norm32) + f64::from(bound(3.0 * FORWARD)) * norm[step];
                let diff = (got_norm - norm[step]).abs();
                assert!(
                    diff.is_finite() && diff <= allowed,
                    "{name} {prefix} norm {step}: {diff} over {allowed}"
                );
            }
            // Where a gradient is all rounding, Adam still makes a full step of it, so single elements may part; not
            // by more than a share of the way a weight can go in ten steps, and not on average.
            let distance = reference.f64(&format!("{prefix}.final_distance"))[0];
            let way: f64 = lr.iter().sum();
            let share = if rule == UpdateRule::Torch { 0.01 } else { 0.1 };
            for (i, got) in engine.weights().iter().enumerate() {
                let parameter = &engine.model.weights[i].parameter.name;
                let want = reference.f32(&format!("{prefix}.final.{parameter}"));
                let diffs: Vec<f64> =
                    got.iter().step_by(5).zip(&want).map(|(a, b)| f64::from(a - b)).collect();
                let rms = (diffs.iter().map(|d| d * d).sum::<f64>() / diffs.len() as f64).sqrt();
                let worst =
                    diffs.iter().fold(0.0, |m: f64, d| if d.is_finite() { m.max(d.abs()) } else { f64::NAN });
                assert!(rms <= distance, "{name} {prefix} {parameter}: rms {rms} over {distance}");
                assert!(worst <= share * way, "{name} {prefix} {parameter}: {worst} over {share} of {way}");
            }
        }
    }
}
