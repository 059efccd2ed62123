//! The whole model with adapters on a GPU against the CPU engine in the same precision, dropout and noise included: both
//! take them from one hash.

use super::common::engine::{Engine, FORWARD, tiny_parts};
use super::common::uniform;
use super::model::{CAPACITY, CONFIG, STORES, allowed, distance, types, window};
use smolten::backend::{Backend, Cpu, CudaEngine, UpdateRule};
use smolten::config::{LoraConfig, LoraTarget};
use smolten::cuda::Rung;
use smolten::dtype::DType;
use smolten::model::Purpose;
use smolten::recipe::Recompute;

fn lora(rank: usize, dropout: f64, targets: &[LoraTarget]) -> LoraConfig {
    LoraConfig { rank, alpha: 2.0 * rank as f64, dropout, rslora: false, targets: targets.to_vec() }
}

/// The tiny model under adapters with random values.
fn open<B: Backend>(
    lora: &LoraConfig,
    dtype: DType,
    recompute: Recompute,
    backend: impl FnOnce(&smolten::arena::Plan) -> B,
) -> Engine<B> {
    let (config, weights) = tiny_parts("tied");
    let parameters: Vec<_> = config.adapters(lora).into_iter().flat_map(|p| [p.a, p.b]).collect();
    let values = |name: &str| {
        let Some(i) = parameters.iter().position(|p| p.name == name) else { return weights.f32(name) };
        let [rows, columns] = parameters[i].shape;
        let size = 0.5 / (columns as f32).sqrt();
        uniform(rows * columns, 100 + i as u64).into_iter().map(|x| size * x).collect()
    };
    let purpose = Purpose::Adapters(recompute, lora);
    let mut engine = Engine::open(&config, dtype, UpdateRule::Blockwise, CAPACITY, purpose, values, backend);
    engine.params.noise_key = [5, 6];
    engine.model.neftune_alpha = 5.0;
    engine
}

fn on_the_gpu(lora: &LoraConfig, dtype: DType, rung: Rung, recompute: Recompute) -> Engine<CudaEngine> {
    open(lora, dtype, recompute, |plan| super::engine(plan, dtype, rung))
}

#[test]
fn logits_and_every_gradient_are_those_of_the_cpu() {
    let all = lora(8, 0.2, &LoraTarget::ALL);
    let some = lora(5, 0.0, &[LoraTarget::Q, LoraTarget::V, LoraTarget::Up]);
    for (lora, rung) in [(&all, Rung::Production), (&some, Rung::Production), (&all, Rung::Naive)] {
        for (dtype, unit) in types() {
            let mut cpu = open(lora, dtype, Recompute::NormSwiglu, |plan| Cpu::new(plan, dtype).unwrap());
            let mut gpu = on_the_gpu(lora, dtype, rung, Recompute::NormSwiglu);
            let what = format!("{:?} {dtype:?} {rung:?}", lora.targets);
            let forward = allowed(STORES, FORWARD, dtype, unit);
            for batch in window(1) {
                let d = distance(&gpu.evaluate(&batch).0, &cpu.evaluate(&batch).0);
                assert!(d <= forward, "{what}: logits {d} of {forward}");
            }
            gpu.gradients(&window(2));
            cpu.gradients(&window(2));
            let backward = allowed(3.0 * STORES, 3.0 * FORWARD + 130.0, dtype, unit);
            let gradients = gpu.all_gradients().into_iter().zip(cpu.all_gradients());
            let mut seen = 0;
            for (i, (got, want)) in gradients.enumerate().filter(|(_, (got, _))| !got.is_empty()) {
                seen += 1;
                let d = distance(&got, &want);
                assert!(d <= backward, "{what}: gradient {i}: {d} of {backward}");
            }
            assert_eq!(seen, gpu.model.config.num_hidden_layers * 2 * lora.targets.len());
        }
    }
}

/// Steps that are recorded and replayed are those that are called, with activations kept or computed again: the key of the
/// masks is read anew by every replay.
#[test]
fn recorded_steps_have_the_bits_of_direct_ones() {
    let lora = lora(8, 0.2, &LoraTarget::ALL);
    let run = |recompute, records: bool| {
        let mut engine = on_the_gpu(&lora, DType::F16, Rung::Production, recompute);
        if !records {
            engine.backend.record_nothing();
        }
        let before = engine.bytes();
        for step in 0..4u32 {
            engine.params.noise_key = [step, 7];
            engine.step(&window(step.into()), &CONFIG);
        }
        let after = engine.bytes();
        assert!(before != after, "nothing was learnt");
        after
    };
    let want = run(Recompute::NormSwiglu, true);
    assert!(run(Recompute::NormSwiglu, false) == want, "without recording");
    assert!(run(Recompute::None, true) == want, "activations kept");
}
