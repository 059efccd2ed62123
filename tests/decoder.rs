//! Text from a model while it trains: the same as from a model of those weights alone, and training goes on as if
//! nothing had been asked.

mod common;

use common::engine::{Fixture, sequence, tiny_parts};
use smolten::arena::Plan;
use smolten::backend::{Backend, Cpu, StepParams, UpdateRule};
use smolten::batch::MicroBatch;
use smolten::dtype::DType;
use smolten::generate::{Continuation, Decoder, Generator, Sampling};
use smolten::model::{Capacity, Feed, Model, Purpose};
use smolten::ops::adamw::AdamWConfig;
use smolten::optimizer::Optimizer;
use smolten::recipe::Recompute;

const NEW_TOKENS: usize = 12;

struct Training {
    model: Model,
    optimizer: Optimizer,
    decoder: Decoder,
    cpu: Cpu,
}

impl Training {
    fn new(dtype: DType) -> Self {
        let (config, weights) = tiny_parts("tied");
        let mut plan = Plan::default();
        // Fewer tokens than a prompt below has, so that prompts go through in parts.
        let capacity = Capacity { tokens: 20, sequences: 4, positions: 40 };
        let model =
            Model::plan(&mut plan, &config, dtype, capacity, Purpose::Training(Recompute::NormSwiglu));
        let optimizer = Optimizer::plan(&mut plan, &model, UpdateRule::Torch, false);
        let decoder = Decoder::plan(&mut plan, &model, 1000);
        assert_eq!(decoder.positions(), 40, "no more than the model has angles for");
        let mut cpu = Cpu::new(&plan, dtype).unwrap();
        let load = |p: &smolten::config::Parameter, out: &mut [f32]| {
            out.copy_from_slice(&weights.f32(&p.name));
            Ok(())
        };
        model.load(&mut cpu, load).unwrap();
        Self { model, optimizer, decoder, cpu }
    }

    fn step(&mut self, t: u64) -> (f64, f64) {
        let window: [MicroBatch; 2] = [sequence(17, 320, t), sequence(20, 320, t + 9)];
        let config = AdamWConfig { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
        let supervised: usize = window.iter().map(MicroBatch::supervised).sum();
        let mut params = StepParams {
            inverse_denominator: 1.0 / supervised as f32,
            max_grad_norm: 1.0,
            adamw: self.optimizer.scalars(&config, t),
            ..bytemuck::Zeroable::zeroed()
        };
        for (i, batch) in window.iter().enumerate() {
            params.accumulate = u32::from(i > 0);
            self.model.feed(&mut self.cpu, &Feed::new(batch), &mut params).unwrap();
            self.model.train(&mut self.cpu).unwrap();
        }
        self.optimizer.step(&mut self.cpu).unwrap();
        let output = self.cpu.take_output().unwrap();
        (output.loss_sum, output.grad_norm)
    }

    fn sample(&mut self, prompt: &[u32]) -> Vec<u32> {
        let how = continuation();
        self.decoder.generate(&self.model, &mut self.cpu, prompt, &how, |_| Ok(())).unwrap().0
    }

    fn weights(&mut self) -> Vec<Vec<f32>> {
        let all = self.model.config.parameters();
        all.iter().map(|p| self.model.read_weight(&mut self.cpu, p).unwrap()).collect()
    }
}

fn continuation() -> Continuation<'static> {
    let sampling = Sampling { temperature: 0.7, seed: 3, ..Sampling::GREEDY };
    Continuation { sampling, max_new_tokens: NEW_TOKENS, stop_ids: &[] }
}

/// What a generator of these weights says.
fn alone(dtype: DType, weights: &[Vec<f32>], prompt: &[u32]) -> Vec<u32> {
    let (config, _): (_, Fixture) = tiny_parts("tied");
    let parameters = config.parameters();
    let open =
        |plan: &Plan| -> smolten::error::Result<Box<dyn Backend>> { Ok(Box::new(Cpu::new(plan, dtype)?)) };
    let read = |p: &smolten::config::Parameter, out: &mut [f32]| {
        let at = parameters.iter().position(|q| q == p).unwrap();
        out.copy_from_slice(&weights[at]);
        Ok(())
    };
    let mut generator = Generator::new(&config, dtype, 40, open, read).unwrap();
    generator.generate(prompt, &continuation(), |_| Ok(())).unwrap().0
}

#[test]
fn a_sample_during_training_is_that_of_the_weights_and_disturbs_nothing() {
    let prompt = sequence(26, 320, 5).ids;
    for dtype in [DType::F32, DType::BF16] {
        let (mut sampled, mut plain) = (Training::new(dtype), Training::new(dtype));
        let mut texts = Vec::new();
        for t in 1..=3 {
            sampled.decoder.reset();
            let text = sampled.sample(&prompt);
            assert_eq!(text.len(), NEW_TOKENS);
            let weights = sampled.weights();
            assert_eq!(text, alone(dtype, &weights, &prompt), "{dtype:?}, step {t}");
            texts.push(text);
            assert_eq!(sampled.step(t), plain.step(t), "{dtype:?}, step {t}");
        }
        assert!(sampled.weights() == plain.weights(), "{dtype:?}: sampling changed the training");
        assert!(texts[0] != texts[2], "the weights moved too little for this test to say anything");
    }
}

/// Without a reset the keys and values are those of the old weights.
#[test]
fn a_reset_is_needed_after_a_step() {
    let prompt = sequence(26, 320, 5).ids;
    let mut training = Training::new(DType::F32);
    let logits = |t: &mut Training| t.decoder.logits(&t.model, &mut t.cpu, &prompt).unwrap();
    logits(&mut training);
    for t in 1..=3 {
        training.step(t);
    }
    let stale = logits(&mut training);
    training.decoder.reset();
    assert!(logits(&mut training) != stale);
}

#[test]
fn a_sequence_beyond_the_plan_is_refused() {
    let mut training = Training::new(DType::F32);
    let ids = sequence(41, 320, 5).ids;
    for ids in [&ids[..], &[]] {
        let error = training.decoder.logits(&training.model, &mut training.cpu, ids).unwrap_err();
        assert!(error.to_string().contains("the context holds 1 to 40"), "{error}");
    }
    // Generation stops where the plan ends.
    assert_eq!(training.sample(&ids[..35]).len(), 5);
}
