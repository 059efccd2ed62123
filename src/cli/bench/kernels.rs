//! `smolten bench kernels`.

use super::{cpu, provenance, table};
use crate::cli::{EngineArguments, with_threads};
use clap::Args;
use serde_json::{Value, json};
use smolten::backend;
use smolten::bench::{Bench, Calibration, Card, Case, Options, SIZES, Size, cases};
use smolten::cuda::{Device as Gpu, Rung, gpu_present};
use smolten::dtype::DType;
use smolten::error::{Error, Result};
use smolten::recipe::{Device, EngineChoice, Precision};

/// Flags of `bench kernels`.
#[derive(Args)]
pub struct KernelsArguments {
    /// Only operations whose name holds this text: attention, linear_residual/down
    #[arg(long, value_name = "OP")]
    only: Option<String>,
    /// Shapes of one size of SmolLM2: 135m, 360m or 1.7b; or tiny, to try the command [default: the three sizes on a
    /// GPU, 135m on a CPU]
    #[arg(long, value_name = "SIZE")]
    model: Option<String>,
    /// Tokens of the micro-batch [default: 8192 on a GPU, 1024 on a CPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    tokens: Option<u32>,
    /// Timed launches of each operation
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    repeats: u32,
    /// Of a GPU: naive, production or both; the naive kernels are launched 5 times at most [default: both]
    #[arg(long, value_name = "RUNG", value_parser = ["naive", "production", "both"])]
    rung: Option<String>,
    /// Print one JSON document: machine or card, driver, command, date, calibration, operations
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArguments,
}

/// Chooses operations and device, measures, prints.
pub fn run(arguments: &KernelsArguments) -> Result<()> {
    let choice = EngineChoice::resolve(&arguments.engine.overrides())?;
    let ordinal = match choice.device {
        Device::Cuda(ordinal) => Some(ordinal),
        Device::Auto if gpu_present()? => Some(0),
        Device::Auto | Device::Cpu => None,
    };
    match ordinal {
        Some(ordinal) => on_gpu(arguments, ordinal, choice.precision),
        None => with_threads(choice.threads, || on_cpu(arguments, choice.precision)),
    }
}

fn on_cpu(arguments: &KernelsArguments, precision: Precision) -> Result<()> {
    if let Some(rung) = &arguments.rung {
        let found = "the code of a CPU has no rungs";
        return Err(Error::input(
            format!("--rung {rung}"),
            found,
            "leave it out, or name a GPU: --device cuda",
        ));
    }
    let dtype = backend::precision(Device::Cpu, precision, &SIZES[0].config())?;
    let chosen = choose(arguments, &SIZES[..1], 1024)?;
    cpu::run(&chosen, dtype, arguments.repeats as usize, arguments.json)
}

fn on_gpu(arguments: &KernelsArguments, ordinal: usize, precision: Precision) -> Result<()> {
    if precision == Precision::Fp32 {
        let found = "tensor cores take bf16 and fp16 only";
        return Err(Error::input("bench kernels --precision fp32", found, "use --precision bf16 or fp16"));
    }
    let chosen = choose(arguments, &SIZES[..3], 8192)?;
    let gpu = Gpu::open(ordinal)?;
    let dtype = dtype(&gpu, precision)?;
    let card = Card::new(&gpu)?;
    let rungs = match arguments.rung.as_deref() {
        Some("naive") => vec![Rung::Naive],
        Some("production") => vec![Rung::Production],
        _ => vec![Rung::Production, Rung::Naive],
    };
    let repeats = arguments.repeats as usize;
    let mut bench = Bench::new(&gpu, &card, &chosen, Options { repeats, rungs, dtype })?;
    let table = table::Table::new(&card, dtype, bench.calibration);
    if !arguments.json {
        table.print_head();
    }
    let mut operations = Vec::new();
    for case in &chosen {
        let measured = bench.measure(case)?;
        if arguments.json {
            operations.push(table.json(&measured));
        } else {
            table.print(&measured);
        }
    }
    if arguments.json {
        say!("{}", document(&card, dtype, &bench.calibration, operations));
    } else {
        table.print_foot();
    }
    Ok(())
}

/// The operations that the flags name, of `usual` sizes and tokens where they name none.
fn choose(arguments: &KernelsArguments, usual: &'static [Size], tokens: u32) -> Result<Vec<Case>> {
    let sizes = match arguments.model.as_deref() {
        Some(name) => std::slice::from_ref(super::size(name, "--model")?),
        None => usual,
    };
    let tokens = arguments.tokens.unwrap_or(tokens) as usize;
    let all: Vec<Case> = sizes.iter().flat_map(|size| cases(size, tokens)).collect();
    let only = arguments.only.as_deref().unwrap_or("");
    let chosen: Vec<Case> = all.iter().filter(|case| case.name().contains(only)).cloned().collect();
    if chosen.is_empty() {
        let mut names: Vec<String> = all.iter().map(Case::name).collect();
        names.dedup();
        let found = format!("no operation's name holds it; there are {}", names.join(", "));
        return Err(Error::input(format!("--only {only}"), found, "name one of them, or a part of it"));
    }
    Ok(chosen)
}

/// bf16 where the GPU has it, unless fp16 is asked for.
fn dtype(gpu: &Gpu, precision: Precision) -> Result<DType> {
    let (major, minor) = gpu.compute_capability();
    match precision {
        Precision::Bf16 | Precision::Auto if major >= 8 => Ok(DType::BF16),
        Precision::Bf16 => {
            let found =
                format!("a GPU of compute capability {major}.{minor}; bf16 needs 8.0 (Ampere) or newer");
            Err(Error::input("--precision bf16", found, "use --precision fp16"))
        }
        _ => Ok(DType::F16),
    }
}

fn document(card: &Card, dtype: DType, calibration: &Calibration, operations: Vec<Value>) -> Value {
    let mut document = provenance();
    let rest = json!({
        "not_a_gpu": card.not_a_gpu,
        "card": card,
        "precision": dtype,
        "calibration": calibration,
        "operations": operations,
    });
    document.extend(rest.as_object().cloned().unwrap_or_default());
    Value::Object(document)
}
