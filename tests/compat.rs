//! Ten steps as TRL 0.17 takes them, against a plain PyTorch loop: torch's order, pads in the loss, the short step at
//! the end of an epoch, and a denominator that counts labels before the shift.
//!
//! Fixture and rules: tests/fixtures/make_compat.py. Losses are compared with those of float64, as in
//! tests/model_vs_torch.rs.

mod common;

use common::engine::{FORWARD, Fixture, bound, tiny_parts};
use smolten::arena::Plan;
use smolten::backend::{Backend, Cpu, StepParams, UpdateRule};
use smolten::batch::{BatchOptions, Batches, Example, Examples, Order, Window};
use smolten::config::Parameter;
use smolten::dtype::DType;
use smolten::model::{Capacity, Feed, Model, Purpose};
use smolten::ops::adamw::AdamWConfig;
use smolten::optimizer::Optimizer;
use smolten::recipe::Recompute;
use std::path::Path;

/// The reference, its rows and settings.
struct Reference {
    file: Fixture,
    max_length: usize,
    pad: u32,
    options: BatchOptions,
}

impl Reference {
    fn open() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/compat.safetensors");
        let file = Fixture::open(&path);
        let [max_length, pad, batch_size, grad_accum, seed, steps, warmup] = file.u32("settings")[..] else {
            panic!("settings")
        };
        assert_eq!((steps, warmup), (10, 2));
        let options = BatchOptions {
            batch_size: batch_size as usize,
            grad_accum: grad_accum as usize,
            packing: None,
            order: Order::TorchRandperm(seed.into()),
        };
        Self { file, max_length: max_length as usize, pad, options }
    }

    /// Each row cut or padded to the same length, all of it supervised but the first token, which nothing precedes.
    fn rows(&self) -> Examples {
        let (ids, starts) = (self.file.u32("rows.ids"), self.file.u32("rows.starts"));
        let row = |at: &[u32]| {
            let mut ids = ids[at[0] as usize..at[1] as usize].to_vec();
            ids.resize(self.max_length, self.pad);
            Example { supervised: (0..ids.len()).map(|i| i > 0).collect(), ids }
        };
        Examples::from_examples(starts.windows(2).map(row))
    }

    fn windows(&self) -> Vec<Window> {
        let examples = self.rows();
        let all = (0..examples.len()).collect();
        Batches::new(examples, all, self.options).windows(0).take(10).collect()
    }
}

/// The tied model with 8-bit state in every large tensor, the embedding too.
struct Training {
    model: Model,
    optimizer: Optimizer,
    cpu: Cpu,
}

impl Training {
    fn new(max_length: usize) -> Self {
        let (config, weights) = tiny_parts("tied");
        let mut plan = Plan::default();
        let capacity = Capacity { tokens: 2 * max_length, sequences: 2, positions: max_length };
        let model =
            Model::plan(&mut plan, &config, DType::F32, capacity, Purpose::Training(Recompute::NormSwiglu));
        let optimizer = Optimizer::plan(&mut plan, &model, UpdateRule::Blockwise, true);
        let mut cpu = Cpu::new(&plan, DType::F32).unwrap();
        optimizer.reset(&mut cpu).unwrap();
        let read = |p: &Parameter, out: &mut [f32]| {
            out.copy_from_slice(&weights.f32(&p.name));
            Ok(())
        };
        model.load(&mut cpu, read).unwrap();
        Self { model, optimizer, cpu }
    }

    /// Loss and gradient norm of one step; every token counts in the denominator, the first of a row too.
    fn step(&mut self, window: &Window, lr: f64) -> (f64, f64) {
        let labels = window.tokens() as f64;
        let config = AdamWConfig { lr, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
        #[expect(clippy::cast_possible_truncation, reason = "the kernels take fp32")]
        let mut params = StepParams {
            inverse_denominator: (1.0 / labels) as f32,
            max_grad_norm: 1.0,
            adamw: self.optimizer.scalars(&config, window.step as u64 + 1),
            ..bytemuck::Zeroable::zeroed()
        };
        for (i, batch) in window.micro_batches.iter().enumerate() {
            params.accumulate = u32::from(i > 0);
            self.model.feed(&mut self.cpu, &Feed::new(batch), &mut params).unwrap();
            self.model.train(&mut self.cpu).unwrap();
        }
        self.optimizer.step(&mut self.cpu).unwrap();
        let output = self.cpu.take_output().unwrap();
        (output.loss_sum / labels, output.grad_norm)
    }
}

#[test]
fn windows_are_those_of_the_reference() {
    let reference = Reference::open();
    let rows = reference.file.u32("rows_of_step");
    assert_eq!(rows[..3], [8, 8, 3]);
    for (window, &rows) in reference.windows().iter().zip(&rows) {
        let rows = rows as usize;
        assert_eq!(window.tokens(), rows * reference.max_length);
        assert_eq!(window.supervised(), rows * (reference.max_length - 1));
    }
}

#[test]
fn ten_steps_have_the_losses_and_norms_of_the_reference() {
    let reference = Reference::open();
    let mut training = Training::new(reference.max_length);
    let list = |name: &str| reference.file.f64(name);
    let (loss, norm) = (list("loss_f64"), list("grad_norm_f64"));
    // As for 8-bit state in tests/model_vs_torch.rs: four times the largest distance between PyTorch's float32 and
    // float64 runs, and the rounding of one pass.
    let own = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    let (loss_own, norm_own) = (own(&loss, &list("loss")), own(&norm, &list("grad_norm")));
    for (window, lr) in reference.windows().iter().zip(list("lr")) {
        let step = window.step;
        let (got_loss, got_norm) = training.step(window, lr);
        let allowed = 4.0 * loss_own + f64::from(bound(FORWARD)) * loss[step];
        let diff = (got_loss - loss[step]).abs();
        assert!(diff <= allowed, "loss of step {step}: {got_loss}, want {} ± {allowed}", loss[step]);
        let allowed = 4.0 * norm_own + f64::from(bound(3.0 * FORWARD)) * norm[step];
        let diff = (got_norm - norm[step]).abs();
        assert!(diff <= allowed, "norm of step {step}: {got_norm}, want {} ± {allowed}", norm[step]);
        // A wrong denominator moves the loss by one part in MAX_LENGTH: far more than is allowed.
        assert!(4.0 * loss_own < 0.1 * loss[step] / reference.max_length as f64);
    }
    // Root of the mean square within the largest distance between the two PyTorch runs.
    let distance = list("final_distance")[0];
    for parameter in training.model.config.parameters() {
        let got = training.model.read_weight(&mut training.cpu, &parameter).unwrap();
        let want = reference.file.f32(&format!("final.{}", parameter.name));
        let squares: f64 = got.iter().step_by(5).zip(&want).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let rms = (squares / want.len() as f64).sqrt();
        assert!(rms <= distance, "{}: rms {rms} over {distance}", parameter.name);
    }
}

/// The trainer itself: rows stripped and filled up, torch's order, the short last step, the label count before the
/// shift.
#[test]
fn a_compat_run_feeds_what_trl_feeds() {
    let folder = tempfile::tempdir().unwrap();
    let rows = folder.path().join("rows.jsonl");
    let line =
        |i: usize| format!("{{\"prompt\": \" What is {i}?\\n\", \"response\": \"It is {}. \"}}\n", 2 * i);
    std::fs::write(&rows, (0..19).map(line).collect::<String>()).unwrap();
    let out = folder.path().join("run");
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-smollm.gguf");
    let ran = std::process::Command::new(env!("CARGO_BIN_EXE_smolten"))
        .env("SMOLTEN_CACHE", folder.path().join("cache"))
        .args(["train", "--set", "compat=trl-0.17", "--max-length", "64", "--steps", "4", "--seed", "3407"])
        .args(["--device", "cpu", "--precision", "fp32"])
        .args([Path::new("--model"), &model, Path::new("--data"), &rows, Path::new("--out"), &out])
        .output()
        .unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let log = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = log.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert!(lines.iter().all(|l| l.get("eval_loss").is_none()), "no rows are held out");
    let steps: Vec<_> = lines.iter().filter(|l| l.get("loss").is_some()).collect();
    let counts = |key: &str| steps.iter().map(|s| s[key].as_u64().unwrap()).collect::<Vec<_>>();
    // 10 micro-batches of an epoch: 4, 4, and 2 with 3 rows.
    assert_eq!(counts("tokens"), [8 * 64, 8 * 64, 3 * 64, 8 * 64]);
    assert_eq!(counts("supervised_tokens"), [8 * 63, 8 * 63, 3 * 63, 8 * 63]);
    assert!(counts("padded_tokens").iter().zip(counts("tokens")).all(|(&pads, all)| 0 < pads && pads < all));

    // The same by hand: the first step's rows in torch's order, and their loss before any update.
    let pretrained = smolten::pretrained::Pretrained::open(&model).unwrap();
    let pad = pretrained.tokenizer.id("<|im_end|>").unwrap();
    let examples = Examples::from_examples((0..19).map(|i| {
        let text = format!(
            "<|im_start|>user\nWhat is {i}?<|im_end|>\n<|im_start|>assistant\nIt is {}.<|im_end|>\n",
            2 * i
        );
        let mut ids = pretrained.tokenizer.encode(&text, false).unwrap();
        ids.resize(64, pad);
        Example { supervised: (0..64).map(|t| t > 0).collect(), ids }
    }));
    let order = Order::TorchRandperm(3407);
    let options = BatchOptions { batch_size: 2, grad_accum: 4, packing: None, order };
    let window = Batches::new(examples, (0..19).collect(), options).windows(0).next().unwrap();
    let mut plan = Plan::default();
    let capacity = Capacity { tokens: 128, sequences: 128, positions: 64 };
    let model = Model::plan(&mut plan, &pretrained.config, DType::F32, capacity, Purpose::Inference);
    let mut cpu = Cpu::new(&plan, DType::F32).unwrap();
    model.load(&mut cpu, |p, out| pretrained.weights.read(p, out)).unwrap();
    let evaluation = smolten::eval::evaluate(&model, &mut cpu, &window.micro_batches).unwrap();
    let (got, want) = (steps[0]["loss"].as_f64().unwrap(), evaluation.loss * 63.0 / 64.0);
    // Two f64 roundings apart: the sums are the same.
    assert!((got - want).abs() <= 1e-15 * want.abs() * 4.0, "{got} {want}");
}
