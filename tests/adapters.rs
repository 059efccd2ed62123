//! Training adapters (LoRA): against PEFT, against the merged model, and what must not change a bit.
//!
//! The fixture and what it holds: tests/fixtures/make_tiny_lora.py. Its reference is computed in float64, so what differs is
//! this engine's rounding.

mod common;

use common::engine::{Engine, FORWARD, Fixture, bound, sequence, tiny, tiny_parts};
use common::{assert_close, max_abs, root};
use smolten::backend::UpdateRule;
use smolten::batch::MicroBatch;
use smolten::config::{LoraConfig, LoraTarget, ModelConfig, Parameter};
use smolten::dtype::DType;
use smolten::model::{Capacity, Purpose, is_adapter};
use smolten::ops::adamw::AdamWConfig;
use smolten::recipe::Recompute;

const CAPACITY: Capacity = Capacity { tokens: 64, sequences: 8, positions: 64 };
const CONFIG: AdamWConfig = AdamWConfig { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };

fn all(rank: usize, alpha: f64) -> LoraConfig {
    LoraConfig { rank, alpha, dropout: 0.0, rslora: false, targets: LoraTarget::ALL.to_vec() }
}

/// The tiny model under adapters with these values.
fn engine(dtype: DType, rule: UpdateRule, purpose: Purpose<'_>, values: impl Fn(&str) -> Vec<f32>) -> Engine {
    let (config, weights) = tiny_parts("tied");
    let read = |name: &str| if name.contains(".lora_") { values(name) } else { weights.f32(name) };
    Engine::open(&config, dtype, rule, CAPACITY, purpose, read, |plan| {
        smolten::backend::Cpu::new(plan, dtype).unwrap()
    })
}

/// Random values of an adapter's matrix, none of them small, with which it moves the logits.
fn random(config: &ModelConfig, lora: &LoraConfig, name: &str) -> Vec<f32> {
    let mut parameters = config.adapters(lora).into_iter().flat_map(|p| [p.a, p.b]);
    let parameter = parameters.find(|p| p.name == name).unwrap();
    let seed = name.bytes().fold(7, |seed: u64, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
    let size = 0.5 / (parameter.shape[1] as f32).sqrt();
    let values = common::uniform(parameter.shape[0] * parameter.shape[1], seed % 100_000);
    values.into_iter().map(|x| size * x).collect()
}

#[expect(clippy::cast_possible_truncation, reason = "rounding is what is asked for")]
fn narrow(x: f64) -> f32 {
    x as f32
}

fn fixture() -> Fixture {
    Fixture::open(&root().join("tests/fixtures/tiny-lora.safetensors"))
}

fn adapter_parameters(engine: &Engine) -> Vec<Parameter> {
    let parameters = engine.model.weights.iter().map(|weight| &weight.parameter);
    parameters.filter(|p| is_adapter(p)).cloned().collect()
}

#[test]
fn logits_loss_and_every_gradient_are_those_of_peft() {
    let reference = fixture();
    let lora = all(4, 8.0);
    let purpose = Purpose::Adapters(Recompute::NormSwiglu, &lora);
    let mut engine = engine(DType::F32, UpdateRule::Torch, purpose, |name| reference.f32(name));
    let batch = reference.batch("");
    let (logits, output) = engine.evaluate(&batch);
    let want = reference.f32("logits");
    assert_close("logits", &logits, &want, 0.0, bound(FORWARD) * max_abs(&want));
    let (loss, want) = (output.loss_sum / batch.supervised() as f64, reference.f64("loss")[0]);
    assert!((loss - want).abs() <= f64::from(bound(FORWARD)) * want, "loss {loss}, want {want}");
    engine.gradients(&[batch]);
    let gradients = engine.all_gradients();
    let mut seen = 0;
    for (i, got) in gradients.iter().enumerate() {
        let parameter = engine.model.weights[i].parameter.clone();
        if !is_adapter(&parameter) {
            assert!(got.is_empty(), "{} is frozen", parameter.name);
            continue;
        }
        seen += 1;
        let want = reference.f32(&format!("grad.{}", parameter.name));
        // As for the model's own weights: forward and twice that backward, and the sum over 55 tokens.
        let allowed = bound(3.0 * FORWARD + 55.0) * max_abs(&want);
        assert_close(&parameter.name, got, &want, 0.0, allowed);
    }
    assert_eq!(seen, 2 * 7 * engine.model.config.num_hidden_layers);
}

/// PyTorch's own float32 run is apart from its float64 run by what rounding makes of three steps; by four times that, or by
/// one pass's rounding, may this one be.
#[test]
fn three_steps_are_those_of_peft() {
    let reference = fixture();
    let lora = all(4, 8.0);
    let purpose = Purpose::Adapters(Recompute::NormSwiglu, &lora);
    let mut engine = engine(DType::F32, UpdateRule::Torch, purpose, |name| reference.f32(name));
    let list = |name: &str| reference.f64(&format!("adamw.{name}"));
    for (step, window) in reference.u32("train.windows").chunks(2).enumerate() {
        let window: Vec<_> = window.iter().map(|i| reference.batch(&format!("train.{i}."))).collect();
        let config = AdamWConfig { lr: list("lr")[step], ..CONFIG };
        let (loss, norm) = engine.step(&window, &config);
        for (what, got, passes) in [("loss", loss, 1.0), ("grad_norm", norm, 3.0)] {
            let (want, theirs) = (list(&format!("{what}_f64"))[step], list(what)[step]);
            let allowed = 4.0 * (want - theirs).abs() + f64::from(bound(passes * FORWARD)) * want;
            assert!((got - want).abs() <= allowed, "{what} {step}: {got}, want {want} within {allowed}");
        }
    }
    let distance = list("final_distance")[0];
    for parameter in adapter_parameters(&engine) {
        let got = engine.model.read_weight(&mut engine.backend, &parameter).unwrap();
        let want = reference.f32(&format!("adamw.final.{}", parameter.name));
        // A gradient that is all rounding is a full step for Adam: single elements may part, on average they do not.
        let squares = got.iter().zip(&want).map(|(a, b)| f64::from(a - b).powi(2));
        let rms = (squares.sum::<f64>() / got.len() as f64).sqrt();
        assert!(rms <= distance, "{}: rms {rms} over {distance}", parameter.name);
    }
}

/// The weights with the adapters' products in them.
fn merged(config: &ModelConfig, lora: &LoraConfig, weights: &Fixture, name: &str) -> Vec<f32> {
    let mut values = weights.f32(name);
    for p in config.adapters(lora) {
        if name != format!("model.layers.{}.{}.weight", p.layer, p.target.path()) {
            continue;
        }
        let (a, b) = (random(config, lora, &p.a.name), random(config, lora, &p.b.name));
        let (inputs, r) = (p.a.shape[1], lora.rank);
        for (i, value) in values.iter_mut().enumerate() {
            let (row, column) = (i / inputs, i % inputs);
            let sum: f64 =
                (0..r).map(|k| f64::from(b[row * r + k]) * f64::from(a[k * inputs + column])).sum();
            *value = narrow(f64::from(*value) + lora.scale() * sum);
        }
    }
    values
}

/// Adapters of some projections, at ranks that fill what is moved at a time and that do not: logits are those of the merged
/// model, and gradients follow from its own, dA = s·Bᵀ·dW and dB = s·dW·Aᵀ.
#[test]
fn adapters_are_the_merged_model() {
    use LoraTarget::{Down, Gate, K, O, Q, Up, V};
    let (config, weights) = tiny_parts("tied");
    let batch = sequence(50, config.vocab_size, 3);
    for (rank, alpha, rslora, targets) in [
        (8, 16.0, false, LoraTarget::ALL.to_vec()),
        (3, 2.0, true, vec![Q, V]),
        (5, 5.0, false, vec![K]),
        (1, 1.0, false, vec![O, Up]),
        (16, 8.0, true, vec![Gate, Down]),
    ] {
        let lora = LoraConfig { rank, alpha, dropout: 0.0, rslora, targets };
        let purpose = Purpose::Adapters(Recompute::NormSwiglu, &lora);
        let mut beside = engine(DType::F32, UpdateRule::Torch, purpose, |name| random(&config, &lora, name));
        let mut whole = Engine::new(&config, DType::F32, UpdateRule::Torch, CAPACITY, |name| {
            merged(&config, &lora, &weights, name)
        });
        let (plain, _) = Engine::tiny("tied", DType::F32, UpdateRule::Torch).evaluate(&batch);
        let [(got, _), (want, _)] = [beside.evaluate(&batch), whole.evaluate(&batch)];
        let moved = want.iter().zip(&plain).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(moved > 0.01 * max_abs(&want), "{lora:?}: the adapters move the logits by {moved}");
        // Each is within the bound of the exact logits.
        assert_close("logits", &got, &want, 0.0, 2.0 * bound(FORWARD) * max_abs(&want));
        beside.gradients(std::slice::from_ref(&batch));
        whole.gradients(std::slice::from_ref(&batch));
        let (gradients, of_whole) = (beside.all_gradients(), whole.all_gradients());
        for p in config.adapters(&lora) {
            let index = |of: &Engine, name: &str| {
                of.model.weights.iter().position(|w| w.parameter.name == name).unwrap()
            };
            let name = format!("model.layers.{}.{}.weight", p.layer, p.target.path());
            let dw = &of_whole[index(&whole, &name)];
            let [a, b] = [&p.a, &p.b].map(|p| random(&config, &lora, &p.name));
            let ([outputs, r], inputs) = (p.b.shape, p.a.shape[1]);
            let entry = |o: usize, i: usize| f64::from(dw[o * inputs + i]);
            let da: Vec<f32> = (0..r * inputs)
                .map(|at| {
                    let (k, i) = (at / inputs, at % inputs);
                    let sum: f64 = (0..outputs).map(|o| f64::from(b[o * r + k]) * entry(o, i)).sum();
                    narrow(lora.scale() * sum)
                })
                .collect();
            let db: Vec<f32> = (0..outputs * r)
                .map(|at| {
                    let (o, k) = (at / r, at % r);
                    let sum: f64 = (0..inputs).map(|i| entry(o, i) * f64::from(a[k * inputs + i])).sum();
                    narrow(lora.scale() * sum)
                })
                .collect();
            for (parameter, want) in [(&p.a, da), (&p.b, db)] {
                let got = &gradients[index(&beside, &parameter.name)];
                let allowed = 2.0 * bound(3.0 * FORWARD + 50.0) * max_abs(&want);
                assert_close(&parameter.name, got, &want, 0.0, allowed);
            }
        }
    }
}

/// Along the gradient the loss changes by the gradient's square, dropout and noise included, whose masks stay.
#[test]
fn gradients_with_dropout_and_noise_are_the_slope() {
    let (config, _) = tiny_parts("tied");
    let batch = sequence(60, config.vocab_size, 5);
    let lora = LoraConfig { dropout: 0.3, ..all(8, 16.0) };
    let purpose = Purpose::Adapters(Recompute::NormSwiglu, &lora);
    let open = |along: Option<(&[Vec<f32>], f32)>| {
        let mut engine = engine(DType::F32, UpdateRule::Torch, purpose, |name| {
            let mut values = random(&config, &lora, name);
            if let Some((gradients, step)) = along {
                let names = config.adapters(&lora).into_iter().flat_map(|p| [p.a.name, p.b.name]);
                let i = names.zip(gradients).find(|(n, _)| n == name).unwrap().1;
                values.iter_mut().zip(i).for_each(|(x, g)| *x += step * g);
            }
            values
        });
        engine.params.noise_key = [17, 4];
        engine.model.neftune_alpha = 5.0;
        engine
    };
    let mut middle = open(None);
    let loss = middle.gradients(std::slice::from_ref(&batch)).loss_sum;
    let frozen = config.parameters().len();
    let gradients = middle.all_gradients().split_off(frozen);
    let square: f64 = gradients.iter().flatten().map(|&g| f64::from(g).powi(2)).sum();
    let at = |along: &[Vec<f32>], step: f32| {
        let output = open(Some((along, step))).gradients(std::slice::from_ref(&batch));
        output.loss_sum / batch.supervised() as f64
    };
    let slope =
        |along: &[Vec<f32>], step: f32| (at(along, step) - at(along, -step)) / (2.0 * f64::from(step));
    // A step that moves the loss by some 1e-2 of itself: its rounding is then below 1e-3 of that, and so is the
    // third-order term of the central difference.
    let step = narrow(0.01 * loss / batch.supervised() as f64 / square);
    let all = slope(&gradients, step);
    assert!((all - square).abs() <= 0.01 * square, "slope {all}, square {square}");
    // A mask left out on the way back is noise, which hides among so many; so the largest element of each matrix by
    // itself. A step that moves the loss by 1e-3: rounding and curvature are then some 1e-3 of the slope.
    for (i, gradient) in gradients.iter().enumerate() {
        let largest = (0..gradient.len()).max_by(|&a, &b| gradient[a].abs().total_cmp(&gradient[b].abs()));
        let (at, g) = largest.map(|at| (at, gradient[at])).unwrap();
        let mut along: Vec<Vec<f32>> = gradients.iter().map(|g| vec![0.0; g.len()]).collect();
        along[i][at] = 1.0;
        let slope = slope(&along, 1e-3 / g.abs());
        let name = &adapter_parameters(&middle)[i].name;
        assert!(
            (slope - f64::from(g)).abs() <= 0.02 * f64::from(g.abs()),
            "{name}: slope {slope}, gradient {g}"
        );
    }
    // Masks and noise are there in training, and in nothing else.
    let mut plain = engine(DType::F32, UpdateRule::Torch, purpose, |name| random(&config, &lora, name));
    let (logits, output) = plain.evaluate(&batch);
    middle.params.noise_key = [18, 4];
    let (again, evaluated) = middle.evaluate(&batch);
    assert_eq!((logits, output.loss_sum), (again, evaluated.loss_sum));
    assert!((loss - output.loss_sum).abs() > 1e-3 * loss, "dropout and noise change the loss");
    let other = middle.gradients(std::slice::from_ref(&batch)).loss_sum;
    assert!((loss - other).abs() > 1e-4 * loss, "another key is another mask");
}

/// Everything there is after three steps, of every precision, both optimizers, any number of threads, with activations kept or
/// computed again.
#[test]
fn bits_do_not_depend_on_threads_or_recomputation() {
    let (config, _) = tiny_parts("tied");
    let lora = LoraConfig { dropout: 0.1, ..all(16, 16.0) };
    let windows: Vec<Vec<MicroBatch>> = (0..3)
        .map(|step| (0..2).map(|i| sequence(20 + 20 * i, config.vocab_size, 10 * step + i as u64)).collect())
        .collect();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for rule in [UpdateRule::Torch, UpdateRule::Blockwise] {
            let run = |threads: usize, recompute| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| {
                    let purpose = Purpose::Adapters(recompute, &lora);
                    let mut engine = engine(dtype, rule, purpose, |name| random(&config, &lora, name));
                    let before = engine.bytes();
                    for (i, window) in (0u32..).zip(&windows) {
                        engine.params.noise_key = [i, 9];
                        engine.step(window, &CONFIG);
                    }
                    let after = engine.bytes();
                    assert!(before != after, "nothing was learnt");
                    after
                })
            };
            let want = run(1, Recompute::NormSwiglu);
            assert!(run(2, Recompute::NormSwiglu) == want, "{dtype:?} {rule:?}: two threads");
            assert!(run(3, Recompute::None) == want, "{dtype:?} {rule:?}: three threads, activations kept");
        }
    }
}

/// The frozen weights are those of the file after steps, and take part in no update.
#[test]
fn frozen_weights_stay() {
    let (config, weights) = tiny_parts("tied");
    let lora = all(4, 4.0);
    let purpose = Purpose::Adapters(Recompute::None, &lora);
    let mut engine = engine(DType::F32, UpdateRule::Blockwise, purpose, |name| random(&config, &lora, name));
    engine.step(&[sequence(40, config.vocab_size, 1)], &CONFIG);
    for parameter in config.parameters() {
        let got = engine.model.read_weight(&mut engine.backend, &parameter).unwrap();
        assert_eq!(got, weights.f32(&parameter.name), "{}", parameter.name);
    }
    let state: Vec<String> = engine.optimizer.state().map(|(name, _)| name).collect();
    assert!(state.iter().all(|name| name.contains(".lora_")), "{state:?}");
    assert!(tiny("tied").is_dir());
}

/// A begins uniform within 1/√in, B zero: the model begins as it was.
#[test]
fn the_first_values_are_those_of_peft_by_default() {
    let (config, _) = tiny_parts("tied");
    let lora = all(8, 8.0);
    for p in config.adapters(&lora) {
        let values = |parameter: &Parameter, seed: u64| {
            let mut values = vec![f32::NAN; parameter.shape[0] * parameter.shape[1]];
            smolten::model::initial(parameter, seed, &mut values);
            values
        };
        assert!(values(&p.b, 1).iter().all(|&x| x == 0.0), "{}", p.b.name);
        let (a, limit) = (values(&p.a, 1), 1.0 / (p.a.shape[1] as f32).sqrt());
        assert!(max_abs(&a) <= limit && max_abs(&a) > 0.95 * limit, "{}: {}", p.a.name, max_abs(&a));
        // Standard deviation of a uniform number's mean: limit / √(3 n).
        let mean = a.iter().sum::<f32>() / a.len() as f32;
        assert!(mean.abs() <= 5.0 * limit / (3.0 * a.len() as f32).sqrt(), "{}: mean {mean}", p.a.name);
        assert_ne!(a, values(&p.a, 2));
    }
}
