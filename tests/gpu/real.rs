//! The real SmolLM2-135M-Instruct on a GPU against the CPU engine in the same precision. Minutes under the emulator, hence
//! not among the others: `scripts/with-emulator cargo test --release --test gpu -- --ignored --test-threads 1`.

use super::common::engine::{Engine, bound};
use super::common::{U_BF16, max_abs, real_model};
use smolten::arena::Plan;
use smolten::backend::{Backend, Cpu, UpdateRule};
use smolten::batch::{Example, Examples, MicroBatch};
use smolten::cuda::Rung;
use smolten::dtype::DType;
use smolten::generate::Generator;
use smolten::model::Capacity;
use smolten::ops::adamw::AdamWConfig;
use smolten::pretrained::Pretrained;
use smolten::recipe::Recompute;

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
    f64::from(2.0 * (4.0 * (times * STORES).sqrt() * U_BF16 + bound(times * DEPTH)))
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
    let recompute = Recompute::NormSwiglu;
    Engine::open(&pretrained.config, DTYPE, UpdateRule::Blockwise, capacity, recompute, read, open)
}

#[test]
#[ignore = "minutes under the emulator"]
fn two_steps_follow_the_cpu() {
    let pretrained = Pretrained::open(&real_model()).unwrap();
    let ids = text(&pretrained);
    let windows = [window(&ids, [0, 1, 2]), window(&ids, [2, 0, 1])];
    let steps = |mut step: Box<dyn FnMut(&[MicroBatch]) -> (f64, f64)>| windows.each_ref().map(|w| step(w));
    let mut cpu = open(&pretrained, |plan| Cpu::new(plan, DTYPE).unwrap());
    let want = steps(Box::new(move |w| cpu.step(w, &CONFIG)));
    let mut gpu = open(&pretrained, |plan| super::engine(plan, DTYPE, Rung::Production));
    let got = steps(Box::new(move |w| gpu.step(w, &CONFIG)));
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
        let bound = allowed(1.0) as f32 * max_abs(&want);
        assert!(got.iter().all(|l| l.is_finite()) && apart <= bound, "after {n}: {apart} of {bound}");
        let ((mine, _), (theirs, gap)) = (best(&got), best(&want));
        if mine != theirs {
            println!("after {n} tokens: {mine} for {theirs}, which led by {gap}");
        }
        assert!(mine == theirs || gap <= 2.0 * apart, "after {n}: {mine} for {theirs}, ahead by {gap}");
    }
}
