//! A model in the form that other programs take: one GGUF file for llama.cpp and Ollama, or a folder for transformers
//! in another element type.

mod modelfile;

pub use modelfile::modelfile;

use crate::checkpoint::{save_pretrained, write_beside};
use crate::config::Parameter;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::gguf::{self, Entry, GgmlType, MetaValue, OutTensor, ROPE_FACTORS};
use crate::pretrained::Pretrained;
use crate::weights::{interleaved_row, is_interleaved};
use std::path::Path;

/// Values of `general.file_type`: what most tensors are.
fn file_type(kind: GgmlType) -> u32 {
    match kind {
        GgmlType::F32 => 0,
        GgmlType::F16 => 1,
        GgmlType::Q8_0 => 7,
        GgmlType::BF16 => 32,
        GgmlType::Q4_0 | GgmlType::Q4_1 => panic!("{} is not written", kind.name()),
    }
}

/// What was written.
#[derive(Debug, PartialEq, Eq)]
pub struct Written {
    /// Bytes of the file.
    pub bytes: u64,
    /// Tensors stored as F16, since their rows are no whole blocks of the type asked for.
    pub as_f16: Vec<String>,
}

/// Writes the model as a GGUF file, version 3, architecture `llama`: matrices in the type `kind` (F32, F16, BF16 or
/// Q8_0), norms in F32, with tokenizer and template. `name` is what the file says it is called.
///
/// One tensor at a time is in memory. The file gets its name when it is whole.
///
/// # Errors
/// [`Error::Input`] when llama.cpp has no name for the tokenizer, or a weight does not fit the type or is not finite;
/// [`Error::Io`].
pub fn gguf(model: &Pretrained, path: &Path, kind: GgmlType, name: &str) -> Result<Written> {
    let metadata = metadata(model, kind, name)?;
    let parameters = model.config.parameters();
    let factors = model.config.rope_factors();
    let mut tensors = Vec::new();
    if let Some(factors) = &factors {
        let name = ROPE_FACTORS.to_owned();
        tensors.push(OutTensor { name, shape: vec![factors.len()], kind: GgmlType::F32 });
    }
    let extra = tensors.len();
    tensors.extend(parameters.iter().map(|p| out_tensor(p, kind)));
    let mut failed = None;
    let written = write_beside(path, |file| {
        gguf::write(file, &metadata, &tensors, |i, tensor| {
            if i < extra {
                return Ok(factors.clone().unwrap_or_default());
            }
            stored(model, &parameters[i - extra], tensor.kind).map_err(|e| {
                failed = Some(e);
                std::io::Error::other("the weights cannot be written")
            })
        })
    });
    failed.map_or(written, Err)?;
    let bytes = path.metadata().map_err(Error::io("read", path))?.len();
    let smaller = tensors.iter().filter(|t| kind == GgmlType::Q8_0 && t.kind == GgmlType::F16);
    Ok(Written { bytes, as_f16: smaller.map(|t| t.name.clone()).collect() })
}

/// Writes the model as a folder that transformers loads, its weights in `dtype` (fp32, bf16 or fp16).
///
/// # Errors
/// [`Error::Input`] when a weight does not fit the type or is not finite; [`Error::Io`].
pub fn folder(model: &Pretrained, path: &Path, dtype: DType) -> Result<()> {
    let kind = match dtype {
        DType::F16 => GgmlType::F16,
        DType::BF16 => GgmlType::BF16,
        _ => GgmlType::F32,
    };
    save_pretrained(path, model, dtype, |parameter| read(model, parameter, kind))
}

fn out_tensor(parameter: &Parameter, kind: GgmlType) -> OutTensor {
    let name = gguf::gguf_name(&parameter.name).expect("every parameter of a Llama has a name");
    let (elements, _) = kind.block();
    let kind = match parameter.shape[1] {
        _ if parameter.is_vector() => GgmlType::F32,
        columns if !columns.is_multiple_of(elements) => GgmlType::F16,
        _ => kind,
    };
    OutTensor { name, shape: parameter.stored_shape(), kind }
}

/// A parameter's values in the order of the file.
fn stored(model: &Pretrained, parameter: &Parameter, kind: GgmlType) -> Result<Vec<f32>> {
    let values = read(model, parameter, kind)?;
    if !is_interleaved(parameter) {
        return Ok(values);
    }
    let mut out = vec![0.0; values.len()];
    let columns = if parameter.is_vector() { 1 } else { parameter.shape[1] };
    for (row, values) in values.chunks_exact(columns).enumerate() {
        let at = interleaved_row(row, model.config.head_dim) * columns;
        out[at..at + columns].copy_from_slice(values);
    }
    Ok(out)
}

/// A parameter's values, seen to be finite also in the type they are to be stored in.
fn read(model: &Pretrained, parameter: &Parameter, kind: GgmlType) -> Result<Vec<f32>> {
    /// From here on fp16 rounds to infinity.
    const F16_END: f32 = 65520.0;
    let mut values = vec![0.0; parameter.shape[0] * parameter.shape[1]];
    model.weights.read(parameter, &mut values)?;
    let fits = |x: f32| match kind {
        GgmlType::F16 => x.abs() < F16_END,
        GgmlType::BF16 => half::bf16::from_f32(x).is_finite(),
        // The scale of a block is stored in fp16.
        GgmlType::Q8_0 => x.abs() / 127.0 < F16_END,
        _ => x.is_finite(),
    };
    match values.iter().find(|&&x| !fits(x)) {
        None => Ok(values),
        Some(x) => {
            let asked = format!("tensor {} as {}", parameter.name, kind.name());
            let (found, remedy) = if x.is_finite() {
                (format!("the value {x:e}, which that type cannot hold"), "use --type bf16 or f32")
            } else {
                (format!("the value {x}"), "the training that made it diverged: use an earlier checkpoint")
            };
            Err(Error::input(asked, found, remedy))
        }
    }
}

/// All metadata, in the order of llama.cpp's converter.
fn metadata(model: &Pretrained, kind: GgmlType, name: &str) -> Result<Vec<Entry>> {
    let id = |token: &Option<String>| token.as_deref().and_then(|t| model.tokenizer.id(t));
    let string = |key: &str, text: &str| (key.to_owned(), MetaValue::String(text.to_owned()));
    let number = |key: &str, n: u32| (key.to_owned(), MetaValue::U32(n));
    let mut all = vec![
        string("general.architecture", "llama"),
        string("general.type", "model"),
        string("general.name", name),
        number("general.alignment", 32),
        number("general.file_type", file_type(kind)),
        number("general.quantization_version", 2),
    ];
    all.extend(model.config.to_gguf());
    let bos = id(&model.bos_token);
    all.extend(model.tokenizer.to_gguf(model.config.vocab_size, bos)?);
    for (key, id) in [
        ("bos", bos),
        ("eos", id(&model.eos_token)),
        ("padding", id(&model.pad_token)),
        ("unknown", id(&model.unk_token)),
    ] {
        all.extend(id.map(|id| number(&format!("tokenizer.ggml.{key}_token_id"), id)));
    }
    all.push(string("tokenizer.chat_template", model.template.source()));
    Ok(all)
}
