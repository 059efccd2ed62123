//! The whole model on a GPU against the CPU engine in the same precision.
#![expect(clippy::cast_possible_truncation, reason = "bounds are compared in f32")]

use super::common::engine::{Engine, FORWARD, bound, join, sequence, tiny_parts};
use super::common::{U_BF16, U_F16, U_F32, max_abs};
use super::linear::has_tensor_cores;
use smolten::backend::{Backend, CudaEngine, StepOutput, UpdateRule};
use smolten::batch::MicroBatch;
use smolten::cuda::Rung;
use smolten::dtype::DType;
use smolten::model::{Capacity, Purpose};
use smolten::ops::adamw::AdamWConfig;
use smolten::recipe::Recompute;

pub const CONFIG: AdamWConfig =
    AdamWConfig { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
pub const CAPACITY: Capacity = Capacity { tokens: 130, sequences: 8, positions: 70 };

/// Roundings to A on the way to a logit of the tiny models (see tests/precision.rs).
pub const STORES: f32 = 31.0;

/// Types that the device computes in.
pub fn types() -> impl Iterator<Item = (DType, f32)> {
    [(DType::F32, U_F32), (DType::F16, U_F16), (DType::BF16, U_BF16)]
        .into_iter()
        .filter(|&(dtype, _)| dtype == DType::F32 || has_tensor_cores(dtype))
}

/// What two engines may differ by, relative to the size of the whole: in 16 bits the roundings to A, of independent sign
/// in both, since sums in another order make some of them fall the other way; in f32 all roundings.
pub fn allowed(stores: f32, depth: f32, dtype: DType, unit: f32) -> f32 {
    let narrow = if dtype == DType::F32 { 0.0 } else { 4.0 * stores.sqrt() * unit };
    2.0 * (narrow + bound(depth))
}

fn on_the_cpu(name: &str, dtype: DType, rule: UpdateRule) -> Engine {
    let (config, weights) = tiny_parts(name);
    Engine::new(&config, dtype, rule, CAPACITY, |name| weights.f32(name))
}

fn on_the_gpu(name: &str, dtype: DType, rule: UpdateRule, rung: Rung) -> Engine<CudaEngine> {
    with_recompute(name, dtype, rule, rung, Recompute::NormSwiglu)
}

fn with_recompute(
    name: &str,
    dtype: DType,
    rule: UpdateRule,
    rung: Rung,
    recompute: Recompute,
) -> Engine<CudaEngine> {
    let (config, weights) = tiny_parts(name);
    let open = |plan: &_| super::engine(plan, dtype, rung);
    let purpose = Purpose::Training(recompute);
    Engine::open(&config, dtype, rule, CAPACITY, purpose, |name| weights.f32(name), open)
}

/// Two micro-batches of sequences of very different lengths, one without anything in the loss.
pub fn window(seed: u64) -> Vec<MicroBatch> {
    let rows: Vec<MicroBatch> =
        [1, 20, 65, 7, 40, 2].into_iter().zip(10 * seed..).map(|(n, seed)| sequence(n, 320, seed)).collect();
    vec![join(&rows[..3]), join(&rows[3..])]
}

/// `‖a − b‖ / ‖b‖`; 0 where both vanish.
pub fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let norm = |f: &dyn Fn(usize) -> f32| (0..a.len()).map(|i| f64::from(f(i)).powi(2)).sum::<f64>().sqrt();
    let (difference, size) = (norm(&|i| a[i] - b[i]), norm(&|i| b[i]));
    if difference == 0.0 { 0.0 } else { (difference / size) as f32 }
}

#[test]
fn logits_loss_and_every_gradient() {
    for name in ["tied", "untied", "biased"] {
        for (dtype, unit) in types() {
            // The untied one's vocabulary is no multiple of 8, which only the naive kernels take.
            for rung in [Rung::Naive, Rung::Production].into_iter().take(if name == "untied" { 1 } else { 2 })
            {
                let (mut cpu, mut gpu) = (
                    on_the_cpu(name, dtype, UpdateRule::Torch),
                    on_the_gpu(name, dtype, UpdateRule::Torch, rung),
                );
                let what = format!("{name} {dtype:?} {rung:?}");
                let forward = allowed(STORES, FORWARD, dtype, unit);
                for batch in window(1) {
                    let ((got, sums), (want, of_cpu)) = (gpu.evaluate(&batch), cpu.evaluate(&batch));
                    let d = distance(&got, &want);
                    assert!(d <= forward, "{what}: logits {d} of {forward}");
                    check_sums(&what, sums, of_cpu, forward * max_abs(&want), batch.supervised());
                }
                gpu.gradients(&window(2));
                cpu.gradients(&window(2));
                // Forward and twice that backward.
                let backward = allowed(3.0 * STORES, 3.0 * FORWARD + 130.0, dtype, unit);
                let gradients = gpu.all_gradients().into_iter().zip(cpu.all_gradients());
                for (i, (got, want)) in gradients.enumerate() {
                    let d = distance(&got, &want);
                    assert!(d <= backward, "{what}: gradient {i}: {d} of {backward}");
                }
            }
        }
    }
}

/// A loss is off by at most twice what a logit is.
fn check_sums(what: &str, got: StepOutput, want: StepOutput, of_a_logit: f32, tokens: usize) {
    let difference = (got.loss_sum - want.loss_sum).abs();
    let allowed = 2.0 * f64::from(of_a_logit) * tokens as f64;
    assert!(difference <= allowed, "{what}: loss {} for {}", got.loss_sum, want.loss_sum);
    // A near tie may fall the other way.
    assert!(got.correct.abs_diff(want.correct) <= 1, "{what}: {} correct, {}", got.correct, want.correct);
}

#[test]
fn recorded_steps_have_the_bits_of_direct_ones() {
    ["tied", "biased"].into_iter().for_each(recorded_has_the_bits_of_direct);
}

fn recorded_has_the_bits_of_direct(name: &str) {
    let dtype = DType::F16;
    let run = || {
        let mut engine = on_the_gpu(name, dtype, UpdateRule::Blockwise, Rung::Production);
        let mut bytes = Vec::new();
        for step in 0..3 {
            engine.step(&window(step), &CONFIG);
            bytes.push(engine.bytes());
        }
        bytes
    };
    // The first step records at its second micro-batch; an engine of its own for every step records nothing.
    let recorded = run();
    assert!(run() == recorded, "twice the same");
    let mut engine = on_the_gpu(name, dtype, UpdateRule::Blockwise, Rung::Production);
    for (step, want) in recorded.iter().enumerate() {
        let window = window(step as u64);
        let supervised: usize = window.iter().map(MicroBatch::supervised).sum();
        engine.params.inverse_denominator = 1.0 / supervised as f32;
        engine.direct(&window);
        engine.steps += 1;
        engine.params.adamw = engine.optimizer.scalars(&CONFIG, engine.steps);
        engine.update_directly();
        assert!(engine.bytes() == *want, "step {step}");
    }
}

#[test]
fn thirty_steps_follow_the_cpu() {
    let (dtype, unit) = types().last().unwrap();
    for rule in [UpdateRule::Torch, UpdateRule::Blockwise] {
        let mut cpu = on_the_cpu("tied", dtype, rule);
        let mut gpu = on_the_gpu("tied", dtype, rule, Rung::Production);
        let rows = window(7);
        let (mut first, mut last) = (0.0, 0.0);
        for step in 0..30 {
            let ((got, norm), (want, of_cpu)) = (gpu.step(&rows, &CONFIG), cpu.step(&rows, &CONFIG));
            first = if step == 0 { want } else { first };
            last = want;
            // A rounding that falls the other way moves a weight by a part of its update: the losses stay together
            // within a few roundings to A, the norms within what single gradients may differ by.
            let of_loss = f64::from(4.0 * unit) * want;
            assert!((got - want).abs() <= of_loss, "{rule:?}, step {step}: {got} for {want}");
            let of_norm = f64::from(allowed(3.0 * STORES, 3.0 * FORWARD + 130.0, dtype, unit)) * of_cpu;
            assert!((norm - of_cpu).abs() <= of_norm, "{rule:?}, step {step}: norm {norm} for {of_cpu}");
        }
        assert!(last < 0.8 * first, "it learns: {first} to {last}");
    }
}

#[test]
fn recomputing_changes_no_bit() {
    let (dtype, _) = types().last().unwrap();
    let run = |recompute, records: bool| {
        let mut engine = with_recompute("tied", dtype, UpdateRule::Blockwise, Rung::Production, recompute);
        if !records {
            engine.backend.record_nothing();
        }
        for step in 0..3 {
            engine.step(&window(step), &CONFIG);
        }
        engine.bytes()
    };
    let recomputed = run(Recompute::NormSwiglu, true);
    assert!(run(Recompute::None, true) == recomputed);
    assert!(run(Recompute::None, false) == recomputed, "without recording");
}

/// Codes, scales and master weights over five steps, from the gradients that the GPU computed.
#[test]
fn optimizer_state_has_the_cpus_bits() {
    for (dtype, _) in types() {
        let mut cpu = on_the_cpu("tied", dtype, UpdateRule::Blockwise);
        let mut gpu = on_the_gpu("tied", dtype, UpdateRule::Blockwise, Rung::Production);
        assert!(cpu.bytes() == gpu.bytes());
        let grads = gpu.model.grads.unwrap();
        for step in 0..5 {
            gpu.gradients(&window(step));
            let mut bytes = vec![0; grads.bytes()];
            gpu.backend.download(grads, &mut bytes).unwrap();
            cpu.backend.upload(cpu.model.grads.unwrap(), &bytes).unwrap();
            let before = gpu.bytes();
            let (got, want) = (gpu.update(&CONFIG), cpu.update(&CONFIG));
            assert_eq!(got.grad_norm.to_bits(), want.grad_norm.to_bits(), "{dtype:?}, step {step}");
            let after = gpu.bytes();
            assert!(after != before && after == cpu.bytes(), "{dtype:?}, step {step}");
        }
    }
}

/// What the second step leaves allocated is all there ever is.
#[test]
#[ignore = "looks at the GPU's free memory, so must be alone on it"]
fn steps_allocate_nothing() {
    let mut engine = on_the_gpu("tied", DType::F16, UpdateRule::Blockwise, Rung::Production);
    let free = || super::gpu().memory().unwrap().0;
    let mut after = Vec::new();
    for step in 0..5 {
        engine.step(&window(step), &CONFIG);
        after.push((free(), engine.backend.device_memory_bytes()));
    }
    assert_eq!(after[1..4], after[2..5]);
    assert!(after[4].1.unwrap() > 0);
}
