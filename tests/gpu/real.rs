//! The real SmolLM2-135M-Instruct on a GPU, and a layer of each size, against the CPU engine in the same precision. Minutes
//! under the emulator, hence not among the others: `scripts/with-emulator cargo test --release --test gpu -- --ignored --test-threads 1`.

use super::common::engine::{Engine, bound, join, sequence};
use super::common::{U_BF16, max_abs, real_model, uniform};
use smolten::arena::Plan;
use smolten::backend::{Backend, Cpu, UpdateRule};
use smolten::batch::{Example, Examples, MicroBatch};
use smolten::config::ModelConfig;
use smolten::cuda::Rung;
use smolten::dtype::DType;
use smolten::generate::Generator;
use smolten::model::{Capacity, Purpose};
use smolten::ops::adamw::AdamWConfig;
use smolten::pretrained::Pretrained;
use smolten::recipe::Recompute;
use std::path::Path;

const CONFIG: AdamWConfig = AdamWConfig { lr: 2e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
const TOKENS: usize = 64;
const FORCED: usize = 16;
const DTYPE: DType = DType::BF16;

/// Roundings to A on the way to a logit, as counted for the tiny models in tests/precision.rs: 31 stores for two layers,
/// of which 14 a layer.
const STORES: f32 = 14.0 * 30.0 + 3.0;

/// Products and sums on the longest path forward: per layer two norms (576 terms each), q·k (64), softmax and values (64
/// keys), o (576), gate and up (576), down (1536); a head (576).
const DEPTH: f32 = 30.0 * (2.0 * 576.0 + 64.0 + 64.0 + 576.0 + 576.0 + 1536.0) + 576.0;

/// By how much two engines of 16 bits may differ, relative to the whole: as in `model.rs`.
fn allowed(times: f32) -> f64 {
    between(times * STORES, times * DEPTH)
}

fn between(stores: f32, depth: f32) -> f64 {
    f64::from(2.0 * (4.0 * stores.sqrt() * U_BF16 + bound(depth)))
}

const TEXT: &str = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. \
                    How many clips did Natalia sell altogether in April and May? Natalia sold 48/2 = 24 clips in May. \
                    Natalia sold 48+24 = 72 clips altogether in April and May. The answer is 72, as was asked.";

fn text(pretrained: &Pretrained) -> Vec<u32> {
    let ids = pretrained.tokenizer.encode(TEXT, false).unwrap();
    assert!(ids.len() >= TOKENS, "{} tokens", ids.len());
    ids[..TOKENS].to_vec()
}

/// Three sequences, of which the last two thirds of each are learnt.
fn window(ids: &[u32], order: [usize; 3]) -> Vec<MicroBatch> {
    let parts = [&ids[..37], &ids[37..38], &ids[38..]];
    let example = |&i: &usize| {
        let ids = parts[i].to_vec();
        let supervised = (0..ids.len()).map(|t| t >= ids.len() / 3).collect();
        Example { ids, supervised }
    };
    let examples = Examples::from_examples(order.iter().map(example));
    vec![MicroBatch::from_examples(&examples, [0, 1, 2])]
}

fn open<B: Backend>(pretrained: &Pretrained, open: impl FnOnce(&Plan) -> B) -> Engine<B> {
    let capacity = Capacity { tokens: TOKENS + 1, sequences: 3, positions: TOKENS };
    let read = |name: &str| {
        let parameters = pretrained.config.parameters();
        let parameter = parameters.iter().find(|p| p.name == name).unwrap();
        let mut values = vec![0.0; parameter.shape[0] * parameter.shape[1]];
        pretrained.weights.read(parameter, &mut values).unwrap();
        values
    };
    let purpose = Purpose::Training(Recompute::NormSwiglu);
    Engine::open(&pretrained.config, DTYPE, UpdateRule::Blockwise, capacity, purpose, read, open)
}

#[test]
#[ignore = "minutes under the emulator"]
fn two_steps_follow_the_cpu() {
    let pretrained = Pretrained::open(&real_model()).unwrap();
    let ids = text(&pretrained);
    let windows = [window(&ids, [0, 1, 2]), window(&ids, [2, 0, 1])];
    // One after the other, as each takes gigabytes.
    let mut cpu = open(&pretrained, |plan| Cpu::new(plan, DTYPE).unwrap());
    let want = windows.each_ref().map(|window| cpu.step(window, &CONFIG));
    drop(cpu);
    let mut gpu = open(&pretrained, |plan| super::engine(plan, DTYPE, Rung::Production));
    let got = windows.each_ref().map(|window| gpu.step(window, &CONFIG));
    println!("loss and norm: {got:?}, the CPU engine {want:?}");
    for ((loss, norm), (of_cpu, norm_of_cpu)) in got.into_iter().zip(want) {
        assert!((loss - of_cpu).abs() <= allowed(1.0) * of_cpu, "loss {loss} for {of_cpu}");
        assert!((norm - norm_of_cpu).abs() <= allowed(3.0) * norm_of_cpu, "norm {norm} for {norm_of_cpu}");
    }
}

/// The largest logit's place and its distance to the next one.
fn best(logits: &[f32]) -> (usize, f32) {
    let (mut best, mut next) = (0, f32::NEG_INFINITY);
    for (i, &l) in logits.iter().enumerate().skip(1) {
        if l > logits[best] {
            (next, best) = (logits[best], i);
        } else {
            next = next.max(l);
        }
    }
    (best, logits[best] - next)
}

#[test]
#[ignore = "minutes under the emulator"]
fn forced_tokens_have_the_cpus_logits() {
    let pretrained = Pretrained::open(&real_model()).unwrap();
    let ids = text(&pretrained);
    let new = |open: fn(&Plan) -> Box<dyn Backend>| {
        let read = |parameter: &_, out: &mut [f32]| pretrained.weights.read(parameter, out);
        Generator::new(&pretrained.config, DTYPE, TOKENS, |plan| Ok(open(plan)), read).unwrap()
    };
    let mut cpu = new(|plan| Box::new(Cpu::new(plan, DTYPE).unwrap()));
    let mut gpu = new(|plan| Box::new(super::engine(plan, DTYPE, Rung::Production)));
    for n in TOKENS - FORCED..TOKENS {
        let (got, want) = (gpu.logits(&ids[..n]).unwrap(), cpu.logits(&ids[..n]).unwrap());
        let apart = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
        let bound = allowed(1.0) * f64::from(max_abs(&want));
        assert!(
            got.iter().all(|l| l.is_finite()) && f64::from(apart) <= bound,
            "after {n}: {apart} of {bound}"
        );
        let ((mine, _), (theirs, gap)) = (best(&got), best(&want));
        if mine != theirs {
            println!("after {n} tokens: {mine} for {theirs}, which led by {gap}");
        }
        assert!(mine == theirs || gap <= 2.0 * apart, "after {n}: {mine} for {theirs}, ahead by {gap}");
    }
}

/// `‖a − b‖ / ‖b‖`; 0 where both vanish.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |f: &dyn Fn(usize) -> f32| (0..a.len()).map(|i| f64::from(f(i)).powi(2)).sum::<f64>().sqrt();
    let (difference, size) = (norm(&|i| a[i] - b[i]), norm(&|i| b[i]));
    if difference == 0.0 { 0.0 } else { difference / size }
}

/// The shapes of all three sizes: forward, backward and an update, of a layer with random weights.
#[test]
#[ignore = "minutes under the emulator"]
fn a_layer_of_each_size() {
    for (hidden, intermediate, heads, kv_heads) in
        [(576, 1536, 9, 3), (960, 2560, 15, 5), (2048, 8192, 32, 32)]
    {
        let json = serde_json::json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": 1,
            "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": 49_152,
            "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 100_000.0,
            "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2,
        });
        let config = ModelConfig::from_json(&json, Path::new("config.json")).unwrap();
        let parameters = config.parameters();
        let read = |name: &str| {
            let i = parameters.iter().position(|p| p.name == name).unwrap();
            let [rows, cols] = parameters[i].shape;
            let size = if name.contains("norm") { 1.0 } else { (3.0 / cols as f32).sqrt() };
            let mut values = uniform(rows * cols, i as u64 + 1);
            values.iter_mut().for_each(|w| *w *= size);
            values
        };
        let capacity = Capacity { tokens: 40, sequences: 3, positions: 40 };
        let rows: Vec<MicroBatch> = [17, 1, 5].map(|n| sequence(n, 49_152, n as u64)).to_vec();
        let window = [join(&rows)];
        let (rule, purpose) = (UpdateRule::Blockwise, Purpose::Training(Recompute::NormSwiglu));
        let cpu = |plan: &_| Cpu::new(plan, DTYPE).unwrap();
        let mut cpu = Engine::open(&config, DTYPE, rule, capacity, purpose, read, cpu);
        let gpu = |plan: &_| super::engine(plan, DTYPE, Rung::Production);
        let mut gpu = Engine::open(&config, DTYPE, rule, capacity, purpose, read, gpu);
        let depth = (5 * hidden + intermediate + 2 * 64) as f32;
        let (got, want) = (gpu.gradients(&window), cpu.gradients(&window));
        // A token's loss is off by at most twice what a logit is, and the logits here are no larger than losses.
        let allowed = 2.0 * between(17.0, depth) * want.loss_sum;
        assert!((got.loss_sum - want.loss_sum).abs() <= allowed, "{hidden}: {got:?} for {want:?}");
        let backward = between(3.0 * 17.0, 3.0 * depth);
        for (i, (got, want)) in gpu.all_gradients().iter().zip(cpu.all_gradients()).enumerate() {
            let d = distance(got, &want);
            assert!(d <= backward, "{hidden}, {}: {d} of {backward}", parameters[i].name);
        }
        let (got, want) = (gpu.update(&CONFIG), cpu.update(&CONFIG));
        let off = (got.grad_norm - want.grad_norm).abs() / want.grad_norm;
        assert!(off <= backward && !got.skipped, "{hidden}: norm {} for {}", got.grad_norm, want.grad_norm);
        println!("hidden_size {hidden}: norm {} for {}", got.grad_norm, want.grad_norm);
    }
}
