//! `smolten train`.

mod announce;

use super::inspect::report;
use super::screen::Progress;
use super::{Ended, EngineArguments, INTERRUPTED, fetch, with_threads};
use announce::announce;
use clap::Args;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag::{register, register_conditional_shutdown};
use smolten::error::{Error, Result};
use smolten::recipe::{Recipe, RecipeOverrides};
use smolten::report::{REPORT, verdict};
use smolten::trainer::{Outcome, Run, RunFolder};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Flags of `train`; each wins over the recipe.
#[derive(Args)]
pub struct TrainArguments {
    /// A recipe file, or the name of a built-in one (quickstart, smollm2-360m-deepthink) [default:
    /// smollm2-360m-deepthink when no --model is given]
    recipe: Option<String>,
    /// A Hugging Face folder, a .gguf file, or the id of a model on the hub: org/name[@revision]
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Rows to learn from: a .jsonl, .json, .csv or .parquet file, the id of a data set on the hub, or
    /// builtin:reasoning
    #[arg(long, value_name = "DATA")]
    data: Option<String>,
    /// Held-out rows in a file of their own [default: a share of --data, see --set eval_share]
    #[arg(long, value_name = "DATA")]
    eval_data: Option<String>,
    /// Folder for the model and the records [default: runs/<date>-<model>-<data>]
    #[arg(long, value_name = "DIR")]
    out: Option<String>,
    /// Optimizer steps; wins over --epochs
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Passes over the rows [default: 1]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    epochs: Option<f64>,
    /// Rows of a micro-batch; with --packing packed rows [default: 2]
    #[arg(long, value_name = "ROWS")]
    batch_size: Option<u64>,
    /// Micro-batches of an optimizer step [default: 4]
    #[arg(long, value_name = "N")]
    grad_accum: Option<u64>,
    /// Tokens kept of a row, from its start; also the size of a packed row [default: 512]
    #[arg(long, value_name = "TOKENS")]
    max_length: Option<u64>,
    /// Peak learning rate [default: 2e-4]
    #[arg(long, value_name = "RATE", allow_negative_numbers = true)]
    lr: Option<f64>,
    /// Steps from 0 to the peak rate; below 1 a share of all steps [default: 5]
    #[arg(long, value_name = "STEPS", allow_negative_numbers = true)]
    warmup: Option<f64>,
    /// adamw or adamw_8bit [default: adamw_8bit]
    #[arg(long, value_name = "NAME")]
    optimizer: Option<String>,
    /// Which tokens are learnt: completion, assistant (every assistant turn) or all [default: completion]
    #[arg(long, value_name = "TOKENS")]
    loss_on: Option<String>,
    /// Fill rows to --max-length with whole examples
    #[arg(long)]
    packing: bool,
    /// Take the rows as they come, every epoch
    #[arg(long)]
    no_shuffle: bool,
    /// Seed of the order and of the held-out share [default: 3407]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Steps between checkpoints; 0 writes none [default: 50]
    #[arg(long, value_name = "STEPS")]
    save_every: Option<u64>,
    /// Go on with the run in --out from its latest checkpoint; what it computes stays as recorded there
    #[arg(long, requires = "out")]
    resume: bool,
    /// Print the resolved recipe, the engine, what became of the data, and the memory plan, and stop
    #[arg(long)]
    dry_run: bool,
    /// Any recipe key: scheduler, weight_decay, clip, betas, eps, eval_share, eval_every, sample_every,
    /// keep_checkpoints, allow, compat, save_dtype, system, prompt_field, response_field, embedding_state, recompute,
    /// lora_rank (trains adapters instead of the weights), lora_alpha, lora_dropout, lora_rslora, lora_targets,
    /// neftune_alpha, device_name (plans for a card that is not here), …
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    #[command(flatten)]
    engine: EngineArguments,
}

impl TrainArguments {
    fn overrides(&self) -> RecipeOverrides {
        RecipeOverrides {
            model: self.model.clone(),
            data: self.data.clone(),
            eval_data: self.eval_data.clone(),
            out: self.out.clone(),
            steps: self.steps,
            epochs: self.epochs,
            batch_size: self.batch_size,
            grad_accum: self.grad_accum,
            max_length: self.max_length,
            lr: self.lr,
            warmup: self.warmup,
            optimizer: self.optimizer.clone(),
            loss_on: self.loss_on.clone(),
            packing: self.packing.then_some(true),
            shuffle: self.no_shuffle.then_some(false),
            seed: self.seed,
            save_every: self.save_every,
            device: self.engine.device.clone(),
            precision: self.engine.precision.clone(),
            threads: self.engine.threads,
        }
    }
}

/// Resolves the recipe, prepares the run, shows what it is about to do, and trains.
pub fn run(arguments: TrainArguments) -> Result<Ended> {
    let (name, sets, flags) = (arguments.recipe.as_deref(), &arguments.set, arguments.overrides());
    let recipe = match &arguments.out {
        Some(out) if arguments.resume => {
            let out = Path::new(out);
            let recipe = RunFolder::recipe(out, name, sets, &flags)?;
            if RunFolder::is_finished(out) {
                say!("nothing to do: the run in {} is finished", out.display());
                return Ok(Ended::Done);
            }
            recipe
        }
        _ => Recipe::resolve(name, sets, &flags)?,
    };
    with_threads(recipe.threads, || train(recipe, &arguments))
}

fn train(recipe: Recipe, arguments: &TrainArguments) -> Result<Ended> {
    if arguments.dry_run {
        let sources = fetch::sources(&recipe)?;
        let run = Run::prepare(recipe, sources)?;
        announce(&run)?;
        say!("\n{}\n", report(&run.recipe.data, &run.rows.data));
        let recipe = serde_json::to_string_pretty(&run.recipe).expect("plain data");
        say!("recipe: {recipe}");
        run.check_memory()?;
        if let Some((size, free)) = run.largest_batch()? {
            say!(
                "largest batch: --batch-size {size} fits into the {} MiB that are free, by the same plan",
                free >> 20
            );
        }
        say!("dry run: nothing was written");
        return Ok(Ended::Done);
    }
    if let Some(name) = &recipe.device_name {
        let found = "a card by name is for plans: no run computes on it";
        return Err(Error::input(format!("device_name={name}"), found, "add --dry-run, or leave it out"));
    }
    let out = match (&arguments.out, &recipe.out) {
        (Some(out), _) => out.into(),
        (None, Some(out)) => out.clone(),
        (None, None) => default_folder(&recipe.model, &recipe.data),
    };
    let folder =
        if arguments.resume { RunFolder::resume(out.clone())? } else { RunFolder::create(out.clone())? };
    let run = fetch::sources(&recipe).and_then(|sources| Run::prepare(recipe, sources));
    let run = run.inspect_err(|_| folder.discard())?;
    announce(&run)?;
    if let Some(state) = folder.state() {
        say!("resumed: step {} of {} is done", state.step, run.total_steps);
    }
    let planned: usize = run.memory.iter().map(|(_, bytes)| bytes).sum();
    say!("report: {} (written as the run goes on; open it in a browser)", out.join(REPORT).display());
    let interrupt = interrupt_flag()?;
    let mut progress = Progress::new(run.total_steps);
    let outcome = run.execute(folder, &interrupt, &mut progress);
    progress.finish();
    let outcome = outcome?;
    match &outcome.interrupted {
        Some(checkpoint) => {
            let done = checkpoint.as_ref().map_or("no step was done".to_owned(), |path| {
                format!(
                    "step {} of {} is done and saved in {}",
                    outcome.state.step,
                    run.total_steps,
                    path.display()
                )
            });
            say!("interrupted: {done}");
            say!("go on with: smolten train --resume --out {}", out.display());
            Ok(Ended::Interrupted)
        }
        None => {
            conclude(&outcome, &out, planned, run.recipe.lora_rank > 0);
            Ok(Ended::Done)
        }
    }
}

/// Becomes true at Ctrl-C or SIGTERM, which then lets the step finish; the next one ends the program at once.
fn interrupt_flag() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal finds the flag unset, sets it, and the second finds it set.
        let registered = register_conditional_shutdown(signal, INTERRUPTED.into(), Arc::clone(&flag))
            .and_then(|_| register(signal, Arc::clone(&flag)));
        registered.map_err(|e| Error::run(format!("cannot watch for Ctrl-C: {e}"), "try again"))?;
    }
    Ok(flag)
}

fn conclude(outcome: &Outcome, out: &Path, planned: usize, adapters: bool) {
    let state = &outcome.state;
    say!("training loss: {:.4} at the first step, {:.4} at the last", state.first_loss, state.last_loss);
    if let Some((before, after)) = state.evaluations {
        let verdict = verdict(before.loss, after.loss, state.change);
        let lower = state.best.filter(|(_, loss)| *loss < after.loss);
        let risen = lower.map_or(String::new(), |(step, _)| format!("; it has risen since step {step}"));
        say!("held-out loss: {:.4} before, {:.4} after ({verdict}{risen})", before.loss, after.loss);
        if let Some([low, high]) = state.change {
            say!("  changed by {low:+.4} to {high:+.4} over these rows, at 95 %");
        }
    }
    if let (Some((step, loss)), Some(path)) = (state.best, &outcome.best) {
        say!("lowest held-out loss: {loss:.4} after step {step}, kept in {}", path.display());
    }
    if state.skipped > 0 {
        say!("skipped: {} steps whose gradient was not finite", state.skipped);
    }
    if let Some(peak) = outcome.peak_memory_bytes {
        say!("memory: {} MiB at the peak, {} MiB planned", peak >> 20, planned >> 20);
    }
    if adapters {
        say!("adapters: {} (PEFT loads this folder beside the model they were trained on)", out.display());
        say!("merged model: smolten export --model {} --out FOLDER --format hf", out.display());
    } else {
        say!("model: {} (transformers loads this folder)", out.display());
    }
    say!("records: {}, {}", out.join("metrics.jsonl").display(), out.join("run.json").display());
    match &outcome.unreported {
        None => say!("report: {}", out.join(REPORT).display()),
        Some(why) => say!("report: not written to its end: {why}"),
    }
    match &outcome.card {
        Some(card) => say!("model card: {}", card.display()),
        None => say!("model card: {} was edited, so it stays as it is", out.join("README.md").display()),
    }
    say!("curves: tensorboard --logdir {}", out.display());
    say!("try it: smolten generate --model {} --prompt \"Explain AGI in simple terms?\"", out.display());
}

/// `runs/<date>-<model>-<data>`.
fn default_folder(model: &str, data: &str) -> PathBuf {
    let now = time::OffsetDateTime::now_local().unwrap_or_else(|_| time::OffsetDateTime::now_utc());
    let date = format!(
        "{}-{:02}-{:02}-{:02}{:02}{:02}",
        now.year(),
        u8::from(now.month()),
        now.day(),
        now.hour(),
        now.minute(),
        now.second()
    );
    let stem = |path: &str| {
        let name = path.trim_end_matches('/').rsplit(['/', ':']).next().unwrap_or(path).to_owned();
        ["gguf", "jsonl", "json", "csv", "parquet"]
            .iter()
            .find_map(|ending| name.strip_suffix(&format!(".{ending}")).map(str::to_owned))
            .unwrap_or(name)
    };
    Path::new("runs").join(format!("{date}-{}-{}", stem(model), stem(data)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_folder_names_date_model_and_data() {
        let folder = default_folder("models/SmolLM2-135M.gguf", "builtin:reasoning");
        let name = folder.file_name().unwrap().to_str().unwrap();
        assert!(folder.starts_with("runs") && name.ends_with("-SmolLM2-135M-reasoning"), "{name}");
    }
}
