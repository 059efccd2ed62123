//! Subcommands and their flags, each with its default and unit.

/// A line on standard output. Where nobody reads it any more (a closed pipe) the work goes on.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

mod generate;
mod inspect;
mod screen;
mod tokens;
mod train;

use clap::{Args, Parser, Subcommand};
use smolten::error::{Error, Result};

/// Fine-tune small language models on your own prompts and responses.
#[derive(Parser)]
#[command(name = "smolten", version, max_term_width = 100)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Fine-tune a model and save it as a folder that transformers loads
    Train(Box<train::TrainArguments>),
    /// Continue a prompt, token by token
    Generate(generate::GenerateArguments),
    /// Show what a model would learn from: rows token by token, and an audit of the data
    Inspect(inspect::InspectArguments),
}

/// Flags that every command has.
#[derive(Args)]
pub struct EngineArguments {
    /// What computes: auto, cpu, cuda or cuda:N [default: auto]
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
    /// Type of weights and activations: auto, fp32, bf16 or fp16 [default: auto, which is fp32 on a CPU]
    #[arg(long, value_name = "PRECISION")]
    pub precision: Option<String>,
    /// CPU threads [default: all cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<u64>,
}

/// Runs the subcommand.
///
/// # Errors
/// Those of the subcommand.
pub fn run(arguments: Arguments) -> Result<()> {
    match arguments.command {
        Command::Train(arguments) => train::run(*arguments),
        Command::Generate(arguments) => generate::run(&arguments),
        Command::Inspect(arguments) => inspect::run(arguments),
    }
}

/// Runs `f` on a pool of its own, so that it and all it calls share `threads` threads.
fn with_threads<R: Send>(threads: Option<usize>, f: impl FnOnce() -> Result<R> + Send) -> Result<R> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0)).build();
    pool.map_err(|e| Error::run(format!("cannot start the threads: {e}"), "use a smaller --threads"))?
        .install(f)
}
