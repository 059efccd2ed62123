//! What a run is about to do, on the screen.

use crate::cli::screen::sample;
use smolten::arena::Category;
use smolten::backend::{self, Target};
use smolten::bench::{Step, step_seconds};
use smolten::dataset::Audit;
use smolten::dtype::DType;
use smolten::error::Result;
use smolten::metrics::processor;
use smolten::recipe::OptimizerKind;
use smolten::report::duration;
use smolten::trainer::Run;

/// Runs forecast to take longer are announced with a smaller thing to try.
const LONG_SECONDS: f64 = 600.0;

/// All that is known before the first step.
pub fn announce(run: &Run) -> Result<()> {
    let r = &run.recipe;
    let precision = match run.dtype {
        DType::BF16 => "bf16",
        DType::F16 => "fp16",
        _ => "fp32",
    };
    say!("machine: {}", processor());
    let target = Target::of(r)?;
    let (device, gpu_memory) = backend::describe(target)?;
    let threads = if gpu_memory.is_some() { "host threads" } else { "threads" };
    say!("engine: {device}, {precision}, {} {threads}", rayon::current_num_threads());
    say!("model: {} ({:.1} M parameters)", r.model, run.pretrained.config.num_parameters() as f64 / 1e6);
    run.pretrained.description.iter().for_each(|line| say!("{line}"));
    let rows = &run.rows;
    let cached = if rows.data.cached { " (tokens from the cache)" } else { "" };
    say!("data: {}: {}{cached}", r.data, describe(&rows.data.audit));
    rows.data.notes.iter().for_each(|note| say!("{note}"));
    if let (Some(name), Some(data)) = (&r.eval_data, &rows.eval_data) {
        say!("held out: {name}: {}", describe(&data.audit));
    } else if !rows.held_out.is_empty() {
        say!("held out: {} of these rows, never trained on", rows.held_out.len());
    } else {
        say!("held out: no rows, so no held-out loss (--set eval_share=0.05 holds some out)");
    }
    say!("{}", sample(&run.sample()?));
    let optimizer = match r.optimizer {
        OptimizerKind::AdamW => "adamw",
        OptimizerKind::AdamW8bit => "adamw_8bit",
    };
    say!(
        "plan: {} steps of {} x {} rows ({} steps make an epoch), {optimizer} at {:e}",
        run.total_steps,
        r.grad_accum,
        r.batch_size,
        run.steps_per_epoch,
        r.lr
    );
    adapters(run);
    let mib: Vec<String> =
        run.memory.iter().map(|(c, bytes)| format!("{} {}", category(*c), bytes >> 20)).collect();
    say!("memory planned, MiB: {}", mib.join(", "));
    if r.save_every > 0 {
        say!(
            "checkpoints: every {} steps and at the lowest held-out loss, {} MiB each; the last {} and the best stay",
            r.save_every,
            run.checkpoint_bytes() >> 20,
            r.keep_checkpoints
        );
    }
    forecast(run, target)
}

/// Which adapters are trained, where some are.
fn adapters(run: &Run) {
    let Some(lora) = run.recipe.lora() else { return };
    let targets: Vec<_> = lora.targets.iter().map(|target| target.name()).collect();
    let trained = run.trained_parameters();
    say!(
        "adapters: rank {}, scale {}, dropout {}, on {}: {:.2} M of the {:.1} M parameters are trained",
        lora.rank,
        lora.scale(),
        lora.dropout,
        targets.join(" "),
        trained as f64 / 1e6,
        (trained + run.pretrained.config.num_parameters()) as f64 / 1e6
    );
}

/// How long it will take, where something tells.
fn forecast(run: &Run, target: Target) -> Result<()> {
    let r = &run.recipe;
    if let Target::Card(card) = target {
        let (tokens, passes, length) = run.mean_passes();
        let blockwise = r.optimizer == OptimizerKind::AdamW8bit;
        let frozen = r.lora_rank > 0;
        let step = Step { tokens, passes, length, blockwise, frozen, dtype: run.dtype };
        if let Some(seconds) = step_seconds(card, &run.pretrained.config, step)? {
            let all = duration(seconds * run.total_steps as f64);
            say!(
                "time: {all} for the steps, {:.0} tokens/s: a model, not a measurement, of this card's peaks and the share of them \
                 that published kernels reach on an H100; expect more",
                (tokens * passes) as f64 / seconds
            );
        }
        return Ok(());
    }
    if backend::describe(target)?.1.is_some() {
        return Ok(()); // on a GPU the first steps tell
    }
    let seconds = run.forecast_seconds();
    say!("time: about {} on this machine (a forecast)", duration(seconds));
    if seconds > LONG_SECONDS {
        say!("      for a first look, fewer steps do: --steps 10");
    }
    Ok(())
}

fn category(category: Category) -> &'static str {
    match category {
        Category::Weights => "weights",
        Category::Gradients => "gradients",
        Category::OptimizerState => "optimizer state",
        Category::Activations => "activations",
        Category::Scratch => "scratch",
        Category::Batch => "batch",
        Category::KvCache => "cache",
    }
}

fn describe(stats: &Audit) -> String {
    let share = 100.0 * stats.supervised_tokens as f64 / stats.tokens as f64;
    let mut text = format!("{} rows, {} tokens, {share:.0} % of them learnt", stats.rows, stats.tokens);
    for (count, what) in [
        (stats.truncated, "rows cut to --max-length"),
        (stats.lost_turn_ends, "rows lost the end of their turn to the cut, so do not teach to stop"),
        (stats.dropped, "rows dropped, with nothing to learn left in them"),
        (stats.boundary_mismatches, "rows whose prompt is tokenised differently before its response"),
        (stats.duplicates, "rows are copies of an earlier one"),
    ] {
        if count > 0 {
            text += &format!("; {count} {what}");
        }
    }
    text
}
