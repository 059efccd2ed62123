//! `smolten export`.

use super::{EngineArguments, fetch, with_threads};
use clap::{Args, ValueEnum};
use smolten::checkpoint::write_beside;
use smolten::dtype::DType;
use smolten::error::{Error, Result};
use smolten::export;
use smolten::gguf::GgmlType;
use smolten::pretrained::Pretrained;
use smolten::recipe::EngineChoice;
use std::path::{Path, PathBuf};

/// Flags of `export`.
#[derive(Args)]
pub struct ExportArguments {
    /// A Hugging Face folder, an adapter of PEFT, a .gguf file, or the id of a model on the hub: org/name[@revision]
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// Where to: a .gguf file, or with --format hf a new folder
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// gguf: one file for llama.cpp and Ollama, with a Modelfile beside it; hf: a folder for transformers
    #[arg(long, value_enum, default_value = "gguf")]
    format: Format,
    /// Element type of the matrices; norms stay f32 in a GGUF file. q8_0: 8 bits and a scale per 32 elements
    #[arg(long = "type", value_enum, default_value = "f16")]
    kind: Kind,
    #[command(flatten)]
    engine: EngineArguments,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Format {
    Hf,
    Gguf,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    F32,
    F16,
    Bf16,
    #[value(name = "q8_0")]
    Q8,
}

/// Checks where it is to go, opens the model and writes it.
pub fn run(arguments: &ExportArguments) -> Result<()> {
    // Nothing is computed, so of these only the threads matter.
    let threads = EngineChoice::resolve(&arguments.engine.overrides())?.threads;
    let out = &arguments.out;
    let asked = || format!("--out {}", out.display());
    let modelfile = (arguments.format == Format::Gguf).then(|| out.with_extension("Modelfile"));
    if let Some(path) = [Some(out), modelfile.as_ref()].into_iter().flatten().find(|path| path.exists()) {
        let remedy = "give another path, or remove it first";
        let found = format!("{} exists already, and nothing is written over", path.display());
        return Err(Error::input(asked(), found, remedy));
    }
    with_threads(threads, || match (arguments.format, arguments.kind) {
        (Format::Hf, kind) => {
            let dtype = match kind {
                Kind::F32 => DType::F32,
                Kind::F16 => DType::F16,
                Kind::Bf16 => DType::BF16,
                Kind::Q8 => {
                    let remedy = "use --format gguf, or --type f32, f16 or bf16";
                    return Err(Error::input("--type q8_0", "--format hf has no such type", remedy));
                }
            };
            let model = open(arguments)?;
            export::folder(&model, out, dtype)?;
            say!("folder: {} (transformers loads it)", out.display());
            Ok(())
        }
        (Format::Gguf, _) if out.extension().is_none_or(|e| e != "gguf") => {
            Err(Error::input(asked(), "a GGUF file is to end in .gguf", "write it so, or use --format hf"))
        }
        (Format::Gguf, kind) => {
            let kind = match kind {
                Kind::F32 => GgmlType::F32,
                Kind::F16 => GgmlType::F16,
                Kind::Bf16 => GgmlType::BF16,
                Kind::Q8 => GgmlType::Q8_0,
            };
            gguf(&open(arguments)?, arguments, kind)
        }
    })
}

fn open(arguments: &ExportArguments) -> Result<Pretrained> {
    let model = Pretrained::open(&fetch::model(&arguments.model)?)?;
    say!("model: {} ({:.1} M parameters)", arguments.model, model.config.num_parameters() as f64 / 1e6);
    model.description.iter().for_each(|line| say!("{line}"));
    Ok(model)
}

fn gguf(model: &Pretrained, arguments: &ExportArguments, kind: GgmlType) -> Result<()> {
    let out = &arguments.out;
    if let Some(folder) = out.parent().filter(|f| !f.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    }
    let source = Path::new(&arguments.model).file_name().unwrap_or("model".as_ref()).to_string_lossy();
    let written = export::gguf(model, out, kind, source.trim_end_matches(".gguf"))?;
    say!("file: {} ({:.1} MB, {})", out.display(), written.bytes as f64 / 1e6, kind.name());
    if !written.as_f16.is_empty() {
        say!("as F16, since their rows are no multiple of 32 long: {}", written.as_f16.join(", "));
    }
    let file = out.file_name().expect("it ends in .gguf").to_string_lossy().into_owned();
    let modelfile = out.with_extension("Modelfile");
    let text = export::modelfile(model, &file);
    write_beside(&modelfile, |f| f.write_all(text.as_bytes()))?;
    say!("for Ollama: ollama create NAME -f {}", modelfile.display());
    Ok(())
}
