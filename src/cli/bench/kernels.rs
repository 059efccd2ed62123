//! `smolten bench kernels`.

use super::{provenance, table};
use crate::cli::EngineArguments;
use clap::Args;
use serde_json::{Value, json};
use smolten::bench::{Bench, Calibration, Card, Case, Options, SIZES, Size, cases};
use smolten::cuda::{Device as Gpu, Rung};
use smolten::dtype::DType;
use smolten::error::{Error, Result};
use smolten::recipe::{Device, Precision, Recipe};

/// Flags of `bench kernels`.
#[derive(Args)]
pub struct KernelsArguments {
    /// Only operations whose name holds this text: attention, linear_residual/down
    #[arg(long, value_name = "OP")]
    only: Option<String>,
    /// Shapes of one size of SmolLM2: 135m, 360m or 1.7b; or tiny, to try the command under the emulator [default: the
    /// three sizes]
    #[arg(long, value_name = "SIZE")]
    model: Option<String>,
    /// Tokens of the micro-batch
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    tokens: u32,
    /// Timed launches of each operation
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    repeats: u32,
    /// naive, production or both; the naive kernels are launched 5 times at most
    #[arg(long, value_name = "RUNG", default_value = "both", value_parser = ["naive", "production", "both"])]
    rung: String,
    /// Print one JSON document: card, driver, command, date, calibration, operations
    #[arg(long)]
    json: bool,
    /// The GPU: cuda or cuda:N [default: cuda:0]
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Type of weights and activations: auto, bf16 or fp16 [default: auto, which is bf16, or fp16 before Ampere]
    #[arg(long, value_name = "PRECISION")]
    precision: Option<String>,
}

/// Chooses the operations, opens the GPU, measures, prints.
pub fn run(arguments: &KernelsArguments) -> Result<()> {
    let chosen = choose(arguments)?;
    let (ordinal, precision) = engine(arguments)?;
    let gpu = Gpu::open(ordinal)?;
    let dtype = dtype(&gpu, precision)?;
    let card = Card::new(&gpu)?;
    let rungs = match arguments.rung.as_str() {
        "naive" => vec![Rung::Naive],
        "production" => vec![Rung::Production],
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

/// The operations that the flags name.
fn choose(arguments: &KernelsArguments) -> Result<Vec<Case>> {
    let asked = arguments.model.as_deref();
    let sizes: Vec<&Size> = match asked {
        Some(name) => vec![super::size(name, "--model")?],
        None => SIZES.iter().filter(|size| size.name != "tiny").collect(),
    };
    let all: Vec<Case> = sizes.iter().flat_map(|size| cases(size, arguments.tokens as usize)).collect();
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

/// Number of the GPU, and the precision asked for: the same words and error texts as for a run.
fn engine(arguments: &KernelsArguments) -> Result<(usize, Precision)> {
    let device = arguments.device.clone().unwrap_or_else(|| "cuda".to_owned());
    let flags = EngineArguments {
        device: Some(device.clone()),
        precision: arguments.precision.clone(),
        threads: None,
    };
    let recipe = Recipe::resolve(None, &[], &flags.overrides())?;
    let ordinal = match recipe.device {
        Device::Cuda(ordinal) => ordinal,
        Device::Auto => 0,
        Device::Cpu => {
            let (found, remedy) = ("it times kernels of a GPU", "name a GPU: --device cuda:0");
            return Err(Error::input(format!("bench kernels --device {device}"), found, remedy));
        }
    };
    if recipe.precision == Precision::Fp32 {
        let found = "tensor cores take bf16 and fp16 only";
        return Err(Error::input("bench kernels --precision fp32", found, "use --precision bf16 or fp16"));
    }
    Ok((ordinal, recipe.precision))
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
