//! One training step of SmolLM2-135M with random weights on the CPU, by operation:
//! `cargo bench --bench step -- [bf16|fp32] [ROWS] [LENGTH] [THREADS] [LEVEL]`

use smolten::arena::Plan;
use smolten::backend::{Backend, Cpu, Part, StepParams, UpdateRule};
use smolten::batch::{Example, Examples, MicroBatch};
use smolten::bench::Timed;
use smolten::config::ModelConfig;
use smolten::dtype::DType;
use smolten::model::{Capacity, Feed, Model, Purpose};
use smolten::ops::adamw::AdamWConfig;
use smolten::ops::tile::Level;
use smolten::optimizer::Optimizer;
use smolten::recipe::Recompute;
use std::time::Instant;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let number = |i: usize, default| arguments.get(i).map_or(default, |a| a.parse().expect("a number"));
    let dtype = if arguments.first().is_some_and(|a| a == "fp32") { DType::F32 } else { DType::BF16 };
    let (rows, length, threads) = (number(1, 2), number(2, 512), number(3, 2));
    if let Some(name) = arguments.get(4) {
        let level = Level::ALL.into_iter().find(|l| l.name() == name).expect("a level");
        assert!(Level::limit(level), "the processor has no {name}");
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
    pool.install(|| run(dtype, rows, length));
}

fn run(dtype: DType, rows: usize, length: usize) {
    let json = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 576,
        "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "vocab_size": 49152, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 100_000.0,
        "tie_word_embeddings": true, "attention_bias": false, "mlp_bias": false, "bos_token_id": 1, "eos_token_id": 2
    });
    let config = ModelConfig::from_json(&json, std::path::Path::new("config.json")).expect("a config");
    let mut plan = Plan::default();
    let capacity = Capacity { tokens: rows * length, sequences: rows, positions: length };
    let purpose = Purpose::Training(Recompute::NormSwiglu);
    let model = Model::plan(&mut plan, &config, dtype, capacity, purpose);
    let optimizer = Optimizer::plan(&mut plan, &model, UpdateRule::Blockwise, false);
    let mut backend = Timed::new(Cpu::new(&plan, dtype).expect("memory"));
    let mut seed = 1u64;
    let mut next = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    model
        .load(&mut backend, |p, out| {
            let vector = p.is_vector();
            out.iter_mut().for_each(|x| *x = if vector { 1.0 } else { 0.05 * next() });
            Ok(())
        })
        .expect("loaded");
    optimizer.reset(&mut backend).expect("reset");
    let mut id = 0u32;
    let examples = (0..rows).map(|_| {
        let ids = (0..length).map(|_| {
            id = id.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (id >> 8) % 49152
        });
        Example { ids: ids.collect(), supervised: vec![true; length] }
    });
    let batch = MicroBatch::from_examples(&Examples::from_examples(examples), 0..rows);
    let mut params = StepParams { max_grad_norm: 1.0, ..bytemuck::Zeroable::zeroed() };
    params.inverse_denominator = 1.0 / batch.supervised() as f32;
    let adamw = AdamWConfig { lr: 1e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
    let mut seconds = Vec::new();
    for t in 1..=8 {
        if t == 3 {
            backend.shares.clear();
        }
        let start = Instant::now();
        params.adamw = optimizer.scalars(&adamw, t);
        model.feed(&mut backend, &Feed::new(&batch), &mut params).expect("fed");
        backend.run(Part::Train, &mut |b| model.train(b)).expect("trained");
        backend.run(Part::Update, &mut |b| optimizer.step(b)).expect("updated");
        let output = backend.take_output().expect("output");
        seconds.push(start.elapsed().as_secs_f64());
        println!(
            "step {t}: {:.3} s, loss {:.4}, norm {:.4}",
            seconds[seconds.len() - 1],
            output.loss_sum / batch.supervised() as f64,
            output.grad_norm
        );
    }
    let mut timed = seconds[2..].to_vec();
    timed.sort_by(f64::total_cmp);
    let median = timed[timed.len() / 2];
    let mut shares: Vec<_> = backend.shares.iter().collect();
    shares.sort_by_key(|(_, (time, _))| std::cmp::Reverse(*time));
    for (name, (time, calls)) in shares {
        let per_step = time.as_secs_f64() / timed.len() as f64;
        println!(
            "{name:24} {:8.2} ms  {:5.1} %  {:4} calls",
            per_step * 1e3,
            100.0 * per_step / median,
            calls / timed.len()
        );
    }
    println!("median {median:.4} s, {:.0} tokens/s", (rows * length) as f64 / median);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    println!("{}", status.lines().find(|l| l.starts_with("VmHWM")).unwrap_or_default());
}
