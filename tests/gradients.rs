//! The engine's gradients against finite differences of the model written plainly in f64.
#![expect(clippy::cast_possible_truncation, reason = "bounds and references are rounded to f32")]

mod common;

use common::engine::{Engine, FORWARD, Fixture, bound, join, sequence, tiny, tiny_parts};
use common::naive::Naive;
use common::{U_F32, assert_close, max_abs, uniform};
use rayon::prelude::*;
use smolten::backend::UpdateRule;
use smolten::batch::MicroBatch;
use smolten::config::Parameter;
use smolten::dtype::DType;

const MODELS: [&str; 3] = ["tied", "untied", "biased"];

fn naive(name: &str) -> Naive {
    let (config, weights) = tiny_parts(name);
    Naive::new(&config, |name| weights.f32(name))
}

/// PyTorch computed the fixture in f64 too. What differs is the order of sums, and eps, which the configuration
/// holds as f32: 3e-8 of 1e-5, against a mean square of 0.1. Logits are stored as f32, so both sides are rounded.
#[test]
fn the_plain_model_agrees_with_pytorch() {
    for name in MODELS {
        let (naive, reference) = (naive(name), Fixture::open(&tiny(name).join("reference.safetensors")));
        let batch = reference.batch("");
        let loss = naive.loss_sum(&batch) / batch.supervised() as f64;
        let want = reference.f64("loss")[0];
        assert!((loss - want).abs() <= 1e-10 * want, "{name}: {loss}, want {want}");
        let logits: Vec<f32> = naive.logits(&batch).into_iter().flatten().map(|l| l as f32).collect();
        let want = reference.f32("logits");
        assert_close("logits", &logits, &want, 2.0 * U_F32, 1e-10 * max_abs(&want));
    }
}

/// Elements of one weight to try: both ends and ten between; of an embedding those of tokens that occur.
fn sample(parameter: &Parameter, batch: &MicroBatch, seed: u64) -> Vec<usize> {
    let [rows, cols] = parameter.shape;
    let n = rows * cols;
    let mut chosen: Vec<usize> =
        uniform(10, seed).iter().map(|x| ((x + 1.0) / 2.0 * n as f32) as usize).collect();
    chosen.extend([0, n - 1]);
    if parameter.name == "model.embed_tokens.weight" {
        let ids = batch.ids.iter().step_by(2);
        chosen.extend(ids.enumerate().map(|(i, &id)| id as usize * cols + 7 * i % cols));
    }
    chosen
}

/// `(f(w + h) − f(w − h)) / 2h`. Its own error is h²/6 times the third derivative, and f64's rounding over h.
fn central_difference(naive: &Naive, batch: &MicroBatch, weight: usize, element: usize) -> f64 {
    const H: f64 = 1e-5;
    let mut moved = naive.clone();
    let start = moved.weights[weight][element];
    let mut at = |w: f64| {
        moved.weights[weight][element] = w;
        moved.loss_sum(batch)
    };
    (at(start + H) - at(start - H)) / (2.0 * H)
}

#[test]
fn gradients_are_the_slopes_of_the_plain_model() {
    for name in MODELS {
        let (naive, mut engine) = (naive(name), Engine::tiny(name, DType::F32, UpdateRule::Torch));
        let parts: Vec<MicroBatch> =
            [7, 1, 5, 4].into_iter().zip(1..).map(|(n, seed)| sequence(n, 320, seed)).collect();
        let batch = join(&parts);
        engine.gradients(std::slice::from_ref(&batch));
        let gradients = engine.all_gradients();
        let mut tried = 0;
        for (i, gradient) in gradients.iter().enumerate() {
            let parameter = &naive.config.parameters()[i];
            let elements = sample(parameter, &batch, i as u64);
            let mean = |&e: &usize| central_difference(&naive, &batch, i, e) / batch.supervised() as f64;
            let want: Vec<f32> = elements.par_iter().map(|e| mean(e) as f32).collect();
            let got: Vec<f32> = elements.iter().map(|&e| gradient[e]).collect();
            // Forward, twice that backward, and the sum over 17 tokens; differences add far less.
            let allowed = bound(3.0 * FORWARD + 17.0) * max_abs(gradient);
            assert_close(&format!("{name} {}", parameter.name), &got, &want, 0.0, allowed);
            tried += elements.len();
        }
        assert!(tried >= 200, "{tried}");
    }
}

/// More rows in the loss than logits that exist at a time.
#[test]
fn a_long_micro_batch_is_worked_in_chunks() {
    let (naive, mut engine) =
        (naive("tied"), Engine::tiny_with_room("tied", DType::F32, UpdateRule::Torch, 1500));
    let parts: Vec<MicroBatch> = [256, 256, 256, 256, 200, 65, 1, 130]
        .into_iter()
        .zip(1..)
        .map(|(n, seed)| sequence(n, 320, seed))
        .collect();
    let batch = join(&parts);
    assert!(batch.supervised() > 1024 + 32);
    let (logits, output) = engine.evaluate(&batch);
    let want: Vec<f32> = naive.logits(&batch).into_iter().flatten().map(|l| l as f32).collect();
    // Attention over 256 keys in place of 24, twice.
    let allowed = bound(FORWARD + 500.0);
    assert_close("logits", &logits, &want, 0.0, allowed * max_abs(&want));
    let want = naive.loss_sum(&batch);
    assert!((output.loss_sum - want).abs() <= f64::from(allowed) * want, "{} {want}", output.loss_sum);
}
