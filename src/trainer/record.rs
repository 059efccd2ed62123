//! `run.json`: what a run was made from, so that it can be told apart and repeated.

use super::folder::RECORD;
use super::{Resumed, Run};
use crate::backend;
use crate::checkpoint::{sync_folder, write_beside};
use crate::dataset::hash_file;
use crate::error::{Error, Result};
use crate::metrics::processor;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

impl Run {
    /// The run as it is to be recorded; one that goes on adds the step it goes on from.
    pub(super) fn record(&self, resumed: Option<&Resumed>) -> Result<Value> {
        let rows = &self.rows;
        let mut weights = serde_json::Map::new();
        for file in weight_files(&self.sources.model)? {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            weights.insert(name, hash_file(&file)?.into());
        }
        let memory: serde_json::Map<_, _> = self
            .memory
            .iter()
            .map(|(category, bytes)| {
                let name = serde_json::to_value(category).expect("a unit variant");
                (name.as_str().expect("a name").to_owned(), json!(bytes))
            })
            .collect();
        let mut resumed_from = resumed.map_or(json!([]), |r| r.record["resumed_from_steps"].clone());
        if let (Some(list), Some(resumed)) = (resumed_from.as_array_mut(), resumed) {
            list.push(json!(resumed.checkpoint.as_ref().map_or(0, |(_, state)| state.step)));
        }
        Ok(json!({
            "smolten": env!("CARGO_PKG_VERSION"),
            "recipe": self.recipe,
            "precision": self.dtype,
            "threads": rayon::current_num_threads(),
            "machine": processor(),
            "device": backend::describe(self.recipe.device)?.0,
            "total_steps": self.total_steps,
            "steps_per_epoch": self.steps_per_epoch,
            "data": {
                "sha256": rows.data.sha256,
                "audit": rows.data.audit,
                "held_out_rows": if rows.eval_data.is_none() { rows.held_out.len() } else { 0 },
            },
            "eval_data": rows.eval_data.as_ref().map(|d| json!({ "sha256": d.sha256, "audit": d.audit })),
            "model": { "sha256": weights, "parameters": self.pretrained.config.num_parameters() },
            "planned_memory_bytes": memory,
            "resumed_from_steps": resumed_from,
        }))
    }

    pub(super) fn write_record(&self, folder: &Path, record: &Value) -> Result<()> {
        let text = serde_json::to_string_pretty(record).expect("plain data") + "\n";
        write_beside(&folder.join(RECORD), |file| file.write_all(text.as_bytes()))?;
        sync_folder(folder)
    }
}

/// The files that hold a model's weights, sorted.
fn weight_files(model: &Path) -> Result<Vec<PathBuf>> {
    if model.is_file() {
        return Ok(vec![model.to_owned()]);
    }
    let entries = std::fs::read_dir(model).map_err(Error::io("read", model))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "safetensors"));
    files.sort();
    Ok(files)
}
