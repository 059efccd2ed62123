//! `smolten bench train`, without `--run`.

use super::provenance;
use crate::cli::{EngineArguments, fetch, with_threads};
use clap::Args;
use serde_json::{Value, json};
use smolten::backend;
use smolten::bench::{Figure, Size, StepTime, TrainBench, WARM_UP, step_figures};
use smolten::error::Result;
use smolten::metrics::processor;
use smolten::pretrained::Pretrained;
use smolten::recipe::{Recipe, RecipeOverrides};
use std::path::PathBuf;

/// Flags of `bench train`.
#[derive(Args)]
pub struct TrainArguments {
    /// Folder of a run with compat = "trl-0.17": hold its losses (metrics.jsonl, run.json) against those of the
    /// reference, step by step. Ends with 0 inside the bands, with 1 outside or where the run is not comparable
    #[arg(long, value_name = "DIR", exclusive = true)]
    pub run: Option<PathBuf>,
    /// Size of SmolLM2 to time with random weights: 135m, 360m or 1.7b; or tiny, to try the command [default: 135m
    /// when no --model is given]
    #[arg(long, value_name = "SIZE", conflicts_with = "model")]
    size: Option<String>,
    /// A Hugging Face folder, a .gguf file, or the id of a model on the hub, in place of random weights
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Rows to train on as they come: what `train` takes [default: full rows of random tokens]
    #[arg(long, value_name = "DATA", requires = "model")]
    data: Option<String>,
    /// Rows of a micro-batch
    #[arg(long, value_name = "ROWS", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    rows: u32,
    /// Tokens of a row; with --data the most that is kept of one
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = clap::value_parser!(u32).range(2..=1 << 20))]
    length: u32,
    /// Micro-batches of an optimizer step
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    grad_accum: u32,
    /// Timed steps, after two that are not
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    steps: u32,
    /// adamw or adamw_8bit [default: adamw_8bit]
    #[arg(long, value_name = "NAME")]
    optimizer: Option<String>,
    /// A recipe key, as of train: lora_rank=16, recompute=none, …
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print one JSON document: machine, command, date, every step, tokens_per_second, step_seconds,
    /// peak_memory_bytes
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArguments,
}

/// What the steps were of, in words.
struct Subject {
    model: String,
    data: String,
}

impl TrainArguments {
    fn overrides(&self, subject: &Subject) -> RecipeOverrides {
        RecipeOverrides {
            model: Some(subject.model.clone()),
            data: Some(subject.data.clone()),
            batch_size: Some(self.rows.into()),
            max_length: Some(self.length.into()),
            grad_accum: Some(self.grad_accum.into()),
            optimizer: self.optimizer.clone(),
            shuffle: Some(false),
            ..self.engine.overrides()
        }
    }
}

/// Opens model, rows and device, takes the steps, prints.
pub fn run(arguments: &TrainArguments) -> Result<()> {
    let size = super::size(arguments.size.as_deref().unwrap_or("135m"), "--size")?;
    let subject = Subject {
        model: arguments.model.clone().unwrap_or_else(|| format!("{}, random weights", size.name)),
        data: arguments.data.clone().unwrap_or_else(|| "full rows of random tokens".to_owned()),
    };
    // Every row of the data counts, and none is set aside.
    let sets = [&["eval_share=0".to_owned()][..], &arguments.set].concat();
    let recipe = Recipe::resolve(None, &sets, &arguments.overrides(&subject))?;
    with_threads(recipe.threads, || time(arguments, &subject, recipe, size))
}

fn time(arguments: &TrainArguments, subject: &Subject, recipe: Recipe, size: &Size) -> Result<()> {
    let (device, _) = backend::describe(recipe.device)?;
    let optimizer = serde_json::to_value(recipe.optimizer).expect("a name");
    let mut bench = open(arguments, recipe, size)?;
    if !arguments.json {
        say!("machine: {}, {} cores", processor(), cores());
        say!("engine: {device}, {:?}, {} threads", bench.dtype, rayon::current_num_threads());
        say!("model: {} ({:.1} M parameters)", subject.model, bench.parameters as f64 / 1e6);
        let (rows, length, windows) = (arguments.rows, arguments.length, arguments.grad_accum);
        let optimizer = optimizer.as_str().unwrap_or_default();
        say!("step: {windows} x {rows} rows of at most {length} tokens, {}, {optimizer}", subject.data);
        arguments.set.iter().for_each(|set| say!("set: {set}"));
        say!("\n{:>4} {:>8} {:>9} {:>9} {:>9}", "step", "tokens", "seconds", "tokens/s", "loss");
    }
    let mut steps = Vec::new();
    bench.steps(arguments.steps as usize, |step| {
        if !arguments.json {
            let rate = step.tokens as f64 / step.seconds;
            let number = steps.len() + 1 + WARM_UP;
            say!("{number:>4} {:>8} {:>9.4} {rate:>9.1} {:>9.4}", step.tokens, step.seconds, step.loss);
        }
        steps.push(step);
    })?;
    let summary = Summary::new(&steps);
    let figures = step_figures(bench.parameters);
    if !arguments.json {
        summary.print(bench.peak_memory_bytes());
        figures.iter().filter(|_| arguments.data.is_none()).for_each(print_figure);
        return Ok(());
    }
    let mut document = provenance();
    let rest = json!({
        "machine": processor(), "cores": cores(), "device": device, "precision": bench.dtype,
        "threads": rayon::current_num_threads(), "model": subject.model, "parameters": bench.parameters,
        "data": subject.data, "rows": arguments.rows, "length": arguments.length,
        "grad_accum": arguments.grad_accum, "optimizer": optimizer, "set": arguments.set, "warm_up_steps": WARM_UP, "steps": steps,
        "tokens_per_second": summary.tokens_per_second(), "all_tokens_per_second": summary.overall,
        "step_seconds": summary.seconds, "peak_memory_bytes": bench.peak_memory_bytes(),
        "beside": figures,
    });
    document.extend(rest.as_object().cloned().unwrap_or_default());
    say!("{}", Value::Object(document));
    Ok(())
}

fn open(arguments: &TrainArguments, recipe: Recipe, size: &Size) -> Result<TrainBench> {
    let Some(model) = &arguments.model else { return TrainBench::random(recipe, size) };
    if arguments.data.is_some() {
        let sources = fetch::sources(&recipe)?;
        let pretrained = Pretrained::open(&sources.model)?;
        return TrainBench::ragged(recipe, &sources, &pretrained);
    }
    TrainBench::full(recipe, &Pretrained::open(&fetch::model(model)?)?)
}

/// Of the timed steps.
struct Summary {
    /// Of each, ascending.
    rates: Vec<f64>,
    /// Median.
    seconds: f64,
    /// All tokens in all seconds: what counts where steps differ in length.
    overall: f64,
}

impl Summary {
    fn new(steps: &[StepTime]) -> Self {
        let sorted = |f: &dyn Fn(&StepTime) -> f64| {
            let mut values: Vec<f64> = steps.iter().map(f).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let seconds = sorted(&|step| step.seconds);
        let tokens: usize = steps.iter().map(|step| step.tokens).sum();
        Self {
            rates: sorted(&|step| step.tokens as f64 / step.seconds),
            seconds: median(&seconds),
            overall: tokens as f64 / seconds.iter().sum::<f64>(),
        }
    }

    fn tokens_per_second(&self) -> Value {
        json!({ "median": median(&self.rates), "min": self.rates[0], "max": self.rates[self.rates.len() - 1] })
    }

    fn print(&self, peak_memory_bytes: Option<u64>) {
        let (low, high) = (self.rates[0], self.rates[self.rates.len() - 1]);
        let n = self.rates.len();
        say!(
            "\ntokens/s: {:.1} median, {low:.1} to {high:.1}, of {n} steps after {WARM_UP} to warm up; {:.1} over all",
            median(&self.rates),
            self.overall
        );
        say!("step: {:.4} s median, optimizer included", self.seconds);
        if let Some(bytes) = peak_memory_bytes {
            say!("peak memory: {:.2} GB", bytes as f64 / 1e9);
        }
    }
}

fn print_figure(figure: &Figure) {
    say!("beside: {} {:.0} {} ({}; {})", figure.of, figure.value, figure.unit, figure.card, figure.measured);
}

/// Of ascending values.
fn median(values: &[f64]) -> f64 {
    let n = values.len();
    f64::midpoint(values[(n - 1) / 2], values[n / 2])
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
