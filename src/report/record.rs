//! What a run's `run.json` says.

use crate::dataset::Audit;
use crate::error::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::path::Path;

/// A run's `run.json`. Fields that an older version did not write are empty.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Record {
    /// Version of the program.
    pub smolten: String,
    /// The resolved recipe.
    pub recipe: Map<String, Value>,
    /// Type of weights and activations in the step.
    pub precision: String,
    /// CPU threads.
    pub threads: usize,
    /// The processor.
    pub machine: String,
    /// What computed.
    pub device: String,
    /// Optimizer steps.
    pub total_steps: usize,
    /// Rows that were trained on.
    pub data: DataRecord,
    /// Held-out rows of their own.
    pub eval_data: Option<DataRecord>,
    /// The model as it was.
    pub model: ModelRecord,
    /// Bytes by category.
    pub planned_memory_bytes: Map<String, Value>,
    /// Steps after which the run was taken up again.
    pub resumed_from_steps: Vec<usize>,
}

/// A data set of a run.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct DataRecord {
    /// Hash of each file.
    pub sha256: Vec<String>,
    /// What became of them.
    pub audit: Option<Audit>,
    /// Rows of it that were held out.
    pub held_out_rows: usize,
}

/// A model of a run.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ModelRecord {
    /// Hashes of its files.
    pub sha256: Map<String, Value>,
    /// Weights.
    pub parameters: usize,
}

impl Record {
    /// `run.json` in a run's folder.
    ///
    /// # Errors
    /// [`Error::Input`] when it is not there or is no record.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("run.json");
        let text = std::fs::read(&path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => {
                let remedy = "name a folder that smolten train wrote";
                Error::input(path.display(), "there is no such file", remedy)
            }
            _ => Error::io("read", &path)(e),
        })?;
        serde_json::from_slice(&text).map_err(|e| {
            let remedy = "name another run's folder, or mend the file";
            Error::input(path.display(), format!("it is no record of a run: {e}"), remedy)
        })
    }

    /// A key of the recipe as text; empty where it has no value.
    pub fn key(&self, key: &str) -> String {
        self.recipe.get(key).map(text).unwrap_or_default()
    }

    /// The model's name without its place.
    pub fn model_name(&self) -> String {
        stem(&self.key("model"))
    }

    /// The data's name without its place.
    pub fn data_name(&self) -> String {
        stem(&self.key("data"))
    }

    /// Bytes of all categories.
    pub fn planned_bytes(&self) -> u64 {
        self.planned_memory_bytes.values().filter_map(Value::as_u64).sum()
    }
}

/// A value of a recipe as text.
pub fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The last part of a path or an id, without a known ending.
fn stem(path: &str) -> String {
    let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or(path);
    let endings = [".gguf", ".jsonl", ".json", ".csv", ".parquet"];
    endings.iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(name).to_owned()
}
