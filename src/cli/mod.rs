//! Subcommands and their flags, each with its default and unit.

/// A line on standard output. Where nobody reads it any more (a closed pipe) the work goes on.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

mod answers;
mod bench;
mod compare;
mod decoding;
mod eval;
mod export;
mod fetch;
mod generate;
mod inspect;
mod overlay;
mod screen;
mod tokens;
mod train;
mod version;

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use smolten::error::{Error, Result};
use smolten::ops::tile::Level;
use smolten::recipe::RecipeOverrides;

/// Fine-tune small language models on your own prompts and responses.
#[derive(Parser)]
#[command(name = "smolten", version = version::SHORT, long_version = version::LONG.as_str(), max_term_width = 100)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// For tests and measurements: use no more of the CPU than portable, avx2, avx512, avx512_bf16 or amx
    #[arg(long, value_name = "ISA", hide = true, global = true)]
    isa: Option<String>,
}

#[derive(Subcommand)]
enum Command {
    /// Fine-tune a model and save it as a folder that transformers loads
    Train(Box<train::TrainArguments>),
    /// Show what a model would learn from: rows token by token, and an audit of the data
    Inspect(inspect::InspectArguments),
    /// Show two models' answers to the same prompts, with figures; or lay the records of runs over one another
    Compare(compare::CompareArguments),
    /// Loss, perplexity and token accuracy of a model on rows
    Eval(eval::EvalArguments),
    /// Continue a prompt, token by token
    Generate(generate::GenerateArguments),
    /// Write a model as a GGUF file for llama.cpp and Ollama, or as a folder in another element type
    Export(export::ExportArguments),
    /// Hold a run against published figures
    Bench(bench::BenchArguments),
    /// Print what makes a shell complete commands and flags
    #[command(
        after_help = "bash: source <(smolten completions bash), also in ~/.bashrc\nzsh: smolten completions zsh > \
        \"${fpath[1]}/_smolten\"\nfish: smolten completions fish > ~/.config/fish/completions/smolten.fish"
    )]
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// Flags that every command has.
#[derive(Args)]
pub struct EngineArguments {
    /// What computes: auto, cpu, cuda or cuda:N [default: auto]
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
    /// Type of weights and activations: auto, fp32, bf16 or fp16 [default: auto, which is bf16 on a CPU with AMX or
    /// AVX-512 BF16, else fp32; on a GPU bf16, or fp16 before Ampere]
    #[arg(long, value_name = "PRECISION")]
    pub precision: Option<String>,
    /// CPU threads [default: all cores]
    #[arg(long, value_name = "N")]
    pub threads: Option<u64>,
}

/// Exit code of a run that Ctrl-C ended, as the shell has it.
const INTERRUPTED: u8 = 130;

/// How a subcommand ended that did not fail.
pub enum Ended {
    /// All was done.
    Done,
    /// Ctrl-C, and what was done is saved.
    Interrupted,
}

impl Ended {
    /// The program's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Interrupted => INTERRUPTED,
        }
    }
}

impl EngineArguments {
    /// As recipe keys: the same words, ranges and error texts.
    fn overrides(&self) -> RecipeOverrides {
        RecipeOverrides {
            device: self.device.clone(),
            precision: self.precision.clone(),
            threads: self.threads,
            ..RecipeOverrides::default()
        }
    }
}

/// Runs the subcommand.
///
/// # Errors
/// Those of the subcommand.
pub fn run(arguments: Arguments) -> Result<Ended> {
    if let Some(isa) = &arguments.isa {
        limit(isa)?;
    }
    match arguments.command {
        Command::Train(arguments) => return train::run(*arguments),
        Command::Generate(arguments) => generate::run(&arguments)?,
        Command::Bench(arguments) => bench::run(&arguments)?,
        Command::Compare(arguments) => compare::run(&arguments)?,
        Command::Eval(arguments) => eval::run(&arguments)?,
        Command::Export(arguments) => export::run(&arguments)?,
        Command::Inspect(arguments) => inspect::run(arguments)?,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "smolten", &mut script);
            say!("{}", String::from_utf8_lossy(&script).trim_end());
        }
    }
    Ok(Ended::Done)
}

/// Keeps the process to an instruction set.
fn limit(isa: &str) -> Result<()> {
    let names = Level::ALL.map(Level::name).join(", ");
    let wrong = |found: &str| Error::input("--isa", found, format!("use one of {names}"));
    let level = Level::ALL.into_iter().find(|level| level.name() == isa).ok_or_else(|| wrong(isa))?;
    if Level::limit(level) {
        Ok(())
    } else {
        Err(wrong("an instruction set that this processor does not have"))
    }
}

/// Runs `f` on a pool of its own, so that it and all it calls share `threads` threads.
fn with_threads<R: Send>(threads: Option<usize>, f: impl FnOnce() -> Result<R> + Send) -> Result<R> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.unwrap_or(0)).build();
    pool.map_err(|e| Error::run(format!("cannot start the threads: {e}"), "use a smaller --threads"))?
        .install(f)
}
