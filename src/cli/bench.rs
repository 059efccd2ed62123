//! `smolten bench`: a run, or the kernels, against figures that others published.

mod cpu;
mod kernels;
mod losses;
mod reference;
mod table;
mod train;

use clap::{Args, Subcommand};
use losses::RunLosses;
use reference::Reference;
use serde_json::{Value, json};
use smolten::bench::{SIZES, Size};
use smolten::error::{Error, Result};
use std::path::Path;

/// Subcommands of `bench`.
#[derive(Args)]
pub struct BenchArguments {
    #[command(subcommand)]
    what: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Time whole training steps, optimizer included; or, with --run, hold the losses of a run against published ones
    Train(train::TrainArguments),
    /// Time every operation of the training step at the shapes of SmolLM2, on one GPU or on the CPU, beside what the
    /// machine does at best and what others reach
    Kernels(kernels::KernelsArguments),
}

/// Mean over the steps of |ours − reference| ÷ reference that a run may have: twice what a bf16 run with 8-bit state
/// was measured to differ from fp32 AdamW, as the reference may err by as much the other way.
const MEAN_BAND: f64 = 2.0 * 0.028;

/// The same for the largest of the steps.
const LARGEST_BAND: f64 = 2.0 * 0.092;

/// Runs the subcommand.
pub fn run(arguments: &BenchArguments) -> Result<()> {
    match &arguments.what {
        Bench::Train(arguments) => match &arguments.run {
            Some(run) => hold_against_the_reference(run),
            None => train::run(arguments),
        },
        Bench::Kernels(arguments) => kernels::run(arguments),
    }
}

/// The size of that name.
fn size(name: &str, flag: &str) -> Result<&'static Size> {
    SIZES.iter().find(|size| size.name == name).ok_or_else(|| {
        let found = format!("the sizes are {}", SIZES.each_ref().map(|size| size.name).join(", "));
        Error::input(format!("{flag} {name}"), found, "name one of them")
    })
}

/// What every document of a measurement begins with.
fn provenance() -> serde_json::Map<String, Value> {
    let command: Vec<String> = std::env::args().collect();
    let now = time::OffsetDateTime::now_utc().replace_nanosecond(0).expect("0 is in range");
    let date = now.format(&time::format_description::well_known::Rfc3339).expect("a year of four digits");
    let commit = std::env::var("SMOLTEN_COMMIT").ok();
    let all = json!({
        "smolten": env!("CARGO_PKG_VERSION"), "commit": commit, "command": command.join(" "), "date": date
    });
    all.as_object().cloned().unwrap_or_default()
}

fn hold_against_the_reference(run: &Path) -> Result<()> {
    let reference = Reference::trl_0_17();
    let ours = RunLosses::read(run)?;
    say!("run: {}", run.display());
    say!("reference: {}: {}", reference.name, reference.source);
    say!("           {} on {}, {}", reference.model, reference.data, reference.stack);
    let differences = print_steps(&ours, &reference);
    let contradictions = reference.contradictions(&ours);
    for contradiction in &contradictions {
        say!("not comparable: {contradiction}");
    }
    verdict(&differences, contradictions.len())
}

/// The table, the mean loss of each epoch; the relative difference of every step that both have.
fn print_steps(ours: &RunLosses, reference: &Reference) -> Vec<f64> {
    say!("\n{:>4} {:>9} {:>10} {:>11}", "step", "ours", "reference", "difference");
    let mut differences = Vec::new();
    for (i, &theirs) in reference.losses.iter().enumerate() {
        let Some(step) = ours.step(i + 1) else {
            say!("{:>4} {:>9} {theirs:>10.4}", i + 1, "-");
            continue;
        };
        let difference = (step.loss - theirs) / theirs;
        say!("{:>4} {:>9.4} {theirs:>10.4} {:>+9.1} %", i + 1, step.loss, 100.0 * difference);
        differences.push(difference);
    }
    say!();
    // Step 1 runs the weights as they were; step 33 begins the second epoch.
    for (first, last) in [(2, 32), (33, 60)] {
        let mine: Vec<f64> = (first..=last).filter_map(|step| Some(ours.step(step)?.loss)).collect();
        let theirs = mean(&reference.losses[first - 1..last]);
        if mine.len() == last + 1 - first {
            say!("mean loss of steps {first} to {last}: {:.3}, reference {theirs:.3}", mean(&mine));
        }
    }
    differences
}

fn verdict(differences: &[f64], contradictions: usize) -> Result<()> {
    let sizes: Vec<f64> = differences.iter().map(|d| d.abs()).collect();
    // A loss that is not a number is as far off as can be.
    let size = |d: f64| if d.is_nan() { f64::INFINITY } else { d };
    let largest = sizes.iter().copied().map(size).fold(0.0, f64::max);
    let mean = if sizes.is_empty() { f64::INFINITY } else { size(mean(&sizes)) };
    say!(
        "difference: {:.1} % on average (band {:.1} %), {:.1} % at most (band {:.1} %)",
        100.0 * mean,
        100.0 * MEAN_BAND,
        100.0 * largest,
        100.0 * LARGEST_BAND
    );
    if contradictions > 0 {
        return Err(Error::run(
            "no verdict: this run is not comparable with the reference (see above)",
            "run the reference's recipe: smolten train smollm2-360m-deepthink --set compat=trl-0.17",
        ));
    }
    if mean > MEAN_BAND || largest > LARGEST_BAND {
        return Err(Error::run(
            "verdict: OUTSIDE the bands: this run does not reproduce the reference's losses",
            "look at the first step that parts: step 1 speaks of model, data and masks, step 2 on of order and \
             optimizer, step 32 of the short step",
        ));
    }
    say!(
        "verdict: inside the bands: the losses are the reference's, as far as 8-bit state and bf16 let one tell"
    );
    Ok(())
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}
