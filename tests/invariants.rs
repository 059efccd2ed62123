//! What must not change a result: how rows are spread over micro-batches, what else lies in one, the number of
//! threads, the time of day. In bits wherever the arithmetic is the same.

mod common;

use common::engine::{Engine, FORWARD, bound, join, sequence, tiny_parts};
use common::{assert_close, max_abs};
use smolten::arena::{Category, Plan};
use smolten::backend::{Backend, CachedSequence, Cpu, KvCache, StepOutput, UpdateRule};
use smolten::batch::{Examples, MicroBatch, Window};
use smolten::config::Parameter;
use smolten::dtype::DType;
use smolten::model::{Capacity, Feed, Model, Purpose, read_floats};
use smolten::ops::adamw::AdamWConfig;
use smolten::recipe::Recipe;
use smolten::trainer::Trained;

const TYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];
const CONFIG: AdamWConfig = AdamWConfig { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };

/// Eight sequences of very different lengths; the first has nothing in the loss. More in the loss than the logits
/// that exist at a time.
fn eight(seed: u64) -> Vec<MicroBatch> {
    let lengths = [1, 64, 2, 130, 65, 33, 63, 20];
    lengths.into_iter().zip(10 * seed..).map(|(n, seed)| sequence(n, 320, seed)).collect()
}

fn total(gradients: &[Vec<f32>]) -> usize {
    gradients.iter().map(Vec::len).sum()
}

#[test]
fn spreading_rows_over_micro_batches_changes_only_rounding() {
    let rows = eight(1);
    for name in ["tied", "untied"] {
        let mut engine = Engine::tiny_with_room(name, DType::F32, UpdateRule::Torch, 400);
        let mut run = |per: usize| {
            // Whatever an earlier window left must be gone: the first micro-batch of this one may have no loss.
            let window: Vec<MicroBatch> = rows.chunks(per).map(join).collect();
            let output = engine.gradients(&window);
            (engine.all_gradients(), output)
        };
        let (want, output) = run(8);
        assert!(total(&want) > 80_000 && rows.iter().map(MicroBatch::supervised).sum::<usize>() > 256);
        for per in [1, 4] {
            let (got, again) = run(per);
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                // Each is within the bound of the exact gradient: forward, twice that backward, the sum of 378 tokens.
                let allowed = 2.0 * bound(3.0 * FORWARD + 378.0) * max_abs(want);
                assert_close(&format!("{name}, {per} a micro-batch, weight {i}"), got, want, 0.0, allowed);
            }
            let difference = (again.loss_sum - output.loss_sum).abs();
            assert!(difference <= 2.0 * f64::from(bound(FORWARD)) * output.loss_sum, "{difference}");
            assert_eq!(again.correct, output.correct);
        }
    }
}

/// What there is room for together is one sum, in the bits of one micro-batch; apart they are others.
#[test]
fn a_step_joins_micro_batches_that_there_is_room_for() {
    let (config, weights) = tiny_parts("tied");
    let (recipe, capacity) = (Recipe::default(), Capacity { tokens: 400, sequences: 8, positions: 256 });
    let norm = |micro_batches: Vec<MicroBatch>, room: usize| {
        let mut plan = Plan::default();
        let trained = Trained::plan(&mut plan, &recipe, &config, DType::F32, capacity);
        let mut cpu = Cpu::new(&plan, DType::F32).unwrap();
        let read = |p: &Parameter, out: &mut [f32]| {
            out.copy_from_slice(&weights.f32(&p.name));
            Ok(())
        };
        trained.model.load(&mut cpu, read).unwrap();
        let window = Window { step: 0, epoch: 1.0, micro_batches, examples: Vec::new(), room };
        trained.submit(&mut cpu, &recipe, &window, 1e-2).unwrap();
        cpu.take_output().unwrap().grad_norm.to_bits()
    };
    let (rows, whole) = (eight(5), norm(vec![join(&eight(5))], 400));
    assert_eq!(norm(rows.clone(), 400), whole);
    assert_ne!(norm(rows, 130), whole);
}

/// A micro-batch without a token first overwrites, then the next adds to nothing.
#[test]
fn an_empty_micro_batch_adds_nothing() {
    for dtype in TYPES {
        let row = sequence(20, 320, 1);
        let mut engine = Engine::tiny("untied", dtype, UpdateRule::Torch);
        engine.gradients(&[sequence(30, 320, 2)]);
        let output =
            engine.gradients(&[MicroBatch::from_examples(&Examples::from_examples([]), []), row.clone()]);
        let got = engine.all_gradients();
        assert_eq!(engine.gradients(&[row]), output);
        assert!(engine.all_gradients() == got, "{dtype:?}");
    }
}

/// Five steps of two micro-batches; the bits of weights and state, and what the steps reported.
fn five_steps(dtype: DType, rule: UpdateRule, threads: usize) -> (Vec<u8>, Vec<StepOutput>) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        let mut engine = Engine::tiny_with_room("untied", dtype, rule, 400);
        let mut outputs = Vec::new();
        for step in 0..5 {
            let rows = eight(step);
            let window = [join(&rows[..4]), join(&rows[4..])];
            outputs.extend([engine.gradients(&window), engine.update(&CONFIG)]);
        }
        assert!(outputs.iter().all(|o| !o.skipped));
        (engine.bytes(), outputs)
    })
}

#[test]
fn threads_and_repetition_change_no_bit() {
    for dtype in TYPES {
        for rule in [UpdateRule::Torch, UpdateRule::Blockwise] {
            let one = five_steps(dtype, rule, 1);
            for threads in [1, 2, 3] {
                assert!(five_steps(dtype, rule, threads) == one, "{dtype:?} {rule:?}, {threads} threads");
            }
        }
    }
}

#[test]
fn neighbours_in_a_micro_batch_are_invisible() {
    let rows = eight(3);
    let mut engine = Engine::tiny_with_room("tied", DType::F32, UpdateRule::Torch, 400);
    let (together, output) = engine.evaluate(&join(&rows));
    let (mut at, mut loss_sum) = (0, 0.0);
    for row in &rows {
        let (alone, output) = engine.evaluate(row);
        // The products may add in another order when they have fewer rows; each is within the bound of the exact.
        let allowed = 2.0 * bound(FORWARD) * max_abs(&alone);
        assert_close("logits", &together[at..at + alone.len()], &alone, 0.0, allowed);
        at += alone.len();
        loss_sum += output.loss_sum;
    }
    assert_eq!(at, together.len());
    assert!((loss_sum - output.loss_sum).abs() <= 2.0 * f64::from(bound(FORWARD)) * loss_sum);
}

/// A model of three layers, with biases, planned for inference, where layers share buffers, and caches for each.
fn inference(dtype: DType) -> (Model, Cpu, Vec<KvCache>, smolten::arena::Tensor, Engine) {
    let (mut config, _) = tiny_parts("untied");
    (config.num_hidden_layers, config.attention_bias, config.mlp_bias) = (3, true, true);
    let capacity = Capacity { tokens: 140, sequences: 8, positions: 140 };
    let weights = |name: &str| {
        let parameter = config.parameters().into_iter().find(|p| p.name == name).unwrap();
        let [rows, cols] = parameter.shape;
        let seed = name.bytes().map(u64::from).sum();
        let scale = if parameter.stored_shape().len() == 1 { 1.0 } else { 3.0 / (cols as f32).sqrt() };
        common::uniform(rows * cols, seed).into_iter().map(|x| scale * x).collect::<Vec<f32>>()
    };
    let engine = Engine::new(&config, dtype, UpdateRule::Torch, capacity, weights);
    let mut plan = Plan::default();
    let model = Model::plan(&mut plan, &config, dtype, capacity, Purpose::Inference);
    let width = config.num_key_value_heads * config.head_dim;
    let mut cache = || plan.tensor(Category::KvCache, 140, width, dtype);
    let caches = (0..3).map(|_| KvCache { keys: cache(), values: cache(), slots: 1 }).collect();
    let logits = plan.tensor(Category::Scratch, 140, config.vocab_size, DType::F32);
    let mut cpu = Cpu::new(&plan, dtype).unwrap();
    let read = |p: &smolten::config::Parameter, out: &mut [f32]| {
        out.copy_from_slice(&weights(&p.name));
        Ok(())
    };
    model.load(&mut cpu, read).unwrap();
    (model, cpu, caches, logits, engine)
}

#[test]
fn planning_for_inference_changes_no_bit_and_caching_only_rounding() {
    let (model, mut cpu, caches, logits, mut engine) = inference(DType::F32);
    let batch = sequence(140, 322, 5);
    let (want, _) = engine.evaluate(&batch);
    let mut params = engine.params;
    model.feed(&mut cpu, &Feed::new(&batch), &mut params).unwrap();
    model.evaluate(&mut cpu).unwrap();
    model.logits(&mut cpu, logits).unwrap();
    assert_eq!(read_floats(&mut cpu, logits).unwrap(), want);

    let (mut past, mut got) = (0, Vec::new());
    for piece in [5, 1, 70, 1, 63] {
        let part = |list: &[u32]| list[past..past + piece].to_vec();
        let fed = MicroBatch {
            ids: part(&batch.ids),
            positions: part(&batch.positions),
            cu_seqlens: vec![0, u32::try_from(piece).unwrap()],
            targets: part(&batch.targets),
        };
        model.feed(&mut cpu, &Feed::new(&fed), &mut params).unwrap();
        model.extend(&mut cpu, &[CachedSequence { slot: 0, past }], &caches).unwrap();
        model.logits(&mut cpu, logits.head(piece)).unwrap();
        got.extend(read_floats(&mut cpu, logits.head(piece)).unwrap());
        past += piece;
    }
    // Three layers in place of two, 140 keys in place of 24; each side within the bound of the exact.
    let allowed = 2.0 * bound(1.5 * FORWARD + 420.0) * max_abs(&want);
    assert_close("cached", &got, &want, 0.0, allowed);
}

/// What lies behind the rows in use, left by a larger micro-batch, must not enter a smaller one.
#[test]
fn a_smaller_micro_batch_sees_nothing_of_the_larger_before_it() {
    for dtype in TYPES {
        let [large, small] = [eight(4), vec![sequence(3, 320, 1)]].map(|rows| [join(&rows)]);
        let mut used = Engine::tiny_with_room("tied", dtype, UpdateRule::Torch, 400);
        let mut fresh = Engine::tiny_with_room("tied", dtype, UpdateRule::Torch, 400);
        used.gradients(&large);
        let outputs = (used.gradients(&small), fresh.gradients(&small));
        assert_eq!(outputs.0, outputs.1);
        assert!(used.all_gradients() == fresh.all_gradients(), "{dtype:?}");
        let mut backend = used.backend;
        assert_eq!(backend.activation_dtype(), dtype);
        assert_eq!(backend.take_output().unwrap(), StepOutput::default());
    }
}
