//! A model written as the folder that transformers loads, and the rest of what a run needs to go on.
//!
//! Every file is written beside its place and renamed, so that a run that is cut off leaves no half file.

mod adapter;
mod folder;
mod optimizer_state;
mod safetensors;

pub use adapter::save_adapter;
pub use folder::Checkpoints;
pub use optimizer_state::{load_optimizer, save_optimizer};

use crate::config::Parameter;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::pretrained::Pretrained;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Writes `config.json`, `generation_config.json`, `tokenizer.json`, `tokenizer_config.json`,
/// `chat_template.jinja` and `model.safetensors` into `folder`, which is created.
///
/// `read` gives one parameter's values at a time, which are converted to `dtype` (round to nearest even) while they
/// are written, so no second copy of the weights exists.
///
/// # Errors
/// [`Error::Io`] when a file cannot be written; those of `read`.
///
/// # Panics
/// If `read` gives another number of values than the parameter has, or `dtype` is no floating-point type.
pub fn save_pretrained(
    folder: &Path,
    model: &Pretrained,
    dtype: DType,
    mut read: impl FnMut(&Parameter) -> Result<Vec<f32>>,
) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    write_json(folder, "config.json", &model.config.to_json(&model.config_json, dtype))?;
    write_words(folder, model)?;
    let mut parameters = model.config.parameters();
    parameters.sort_by(|a, b| a.name.cmp(&b.name));
    write_parameters(&folder.join("model.safetensors"), &parameters, dtype, &mut read)?;
    sync_folder(folder)
}

fn write_json(folder: &Path, name: &str, value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value).expect("a JSON value can be written") + "\n";
    write_beside(&folder.join(name), |file| file.write_all(text.as_bytes()))
}

/// `generation_config.json`, `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`.
fn write_words(folder: &Path, model: &Pretrained) -> Result<()> {
    write_json(folder, "generation_config.json", &generation_config(model))?;
    let tokenizer = model.tokenizer.to_json()?;
    write_beside(&folder.join("tokenizer.json"), |file| file.write_all(tokenizer.as_bytes()))?;
    write_json(folder, "tokenizer_config.json", &tokenizer_config(model))?;
    let template = model.template.source();
    write_beside(&folder.join("chat_template.jinja"), |file| file.write_all(template.as_bytes()))
}

/// One safetensors file of these parameters, in this order, one in memory at a time.
fn write_parameters(
    path: &Path,
    parameters: &[Parameter],
    dtype: DType,
    read: &mut dyn FnMut(&Parameter) -> Result<Vec<f32>>,
) -> Result<()> {
    let entry = |p: &Parameter| safetensors::Entry { name: p.name.clone(), dtype, shape: p.stored_shape() };
    let entries: Vec<_> = parameters.iter().map(entry).collect();
    let mut failed = None;
    let written = write_beside(path, |file| {
        safetensors::write(file, &entries, |i, file| {
            let values = read(&parameters[i]).map_err(|e| {
                failed = Some(e);
                std::io::Error::other("the weights cannot be read")
            })?;
            assert_eq!(values.len() * dtype.size(), entries[i].bytes(), "values of {}", entries[i].name);
            safetensors::write_floats(file, &values, dtype)
        })
    });
    failed.map_or(written, Err)
}

/// Writes a file beside `path` and renames it there once it is whole and on the disk. On failure nothing is left.
/// That the new name is on the disk too, [`sync_folder`] sees to.
///
/// # Errors
/// [`Error::Io`].
pub fn write_beside(path: &Path, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    let name = path.file_name().expect("a path to a file").to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.{}.part", std::process::id()));
    let written = File::create(&beside).and_then(|file| {
        let mut buffered = BufWriter::with_capacity(1 << 20, file);
        write(&mut buffered)?;
        buffered.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()
    });
    written.and_then(|()| std::fs::rename(&beside, path)).map_err(|e| {
        // What failed is reported; that the remains cannot be removed either adds nothing to it.
        let _ = std::fs::remove_file(&beside);
        Error::io("write", path)(e)
    })
}

/// Has the names in a folder written to the disk.
///
/// # Errors
/// [`Error::Io`].
pub fn sync_folder(folder: &Path) -> Result<()> {
    // The folder of a bare file name is "".
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    File::open(folder).and_then(|f| f.sync_all()).map_err(Error::io("write", folder))
}

/// As found, or from the configuration.
fn generation_config(model: &Pretrained) -> Value {
    let config = &model.config;
    model.generation_config.clone().unwrap_or_else(|| {
        json!({
            "bos_token_id": config.bos_token_id,
            "eos_token_id": match config.eos_token_ids[..] {
                [] => Value::Null,
                [one] => json!(one),
                _ => json!(config.eos_token_ids),
            },
            "pad_token_id": config.pad_token_id,
        })
    })
}

/// As found, with this model's tokens and template, and the class that takes `tokenizer.json` as it is.
fn tokenizer_config(model: &Pretrained) -> Value {
    let mut config = model.tokenizer_config.as_object().cloned().unwrap_or_default();
    // What would change the tokenizer after tokenizer.json was read: that file has it all.
    for key in ["add_bos_token", "add_eos_token", "add_prefix_space", "auto_map", "tokenizer_file"] {
        config.remove(key);
    }
    config.insert("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
    config.insert("chat_template".to_owned(), json!(model.template.source()));
    for (key, token) in [
        ("bos_token", &model.bos_token),
        ("eos_token", &model.eos_token),
        ("pad_token", &model.pad_token),
        ("unk_token", &model.unk_token),
    ] {
        config.insert(key.to_owned(), json!(token));
    }
    config.entry("model_max_length").or_insert_with(|| json!(model.config.max_position_embeddings));
    // transformers 4 would give a fast tokenizer's model token_type_ids too, which a Llama refuses.
    config.insert("model_input_names".to_owned(), json!(["input_ids", "attention_mask"]));
    config.entry("clean_up_tokenization_spaces").or_insert(json!(false));
    Value::Object(config)
}
