//! What a run writes besides its log: checkpoints, and at its end the model.

use super::folder::STATE;
use super::{Run, State};
use crate::backend::Backend;
use crate::checkpoint::{self, Checkpoints, write_beside};
use crate::config::Parameter;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::hub;
use std::path::{Path, PathBuf};

/// The optimizer's moments in a checkpoint.
pub(super) const OPTIMIZER: &str = "optimizer.safetensors";

/// Writes the files of one run.
pub(super) struct Saver<'a> {
    run: &'a Run,
    folder: PathBuf,
    checkpoints: Checkpoints,
}

impl<'a> Saver<'a> {
    pub fn new(run: &'a Run, folder: &Path) -> Self {
        Self { run, folder: folder.to_owned(), checkpoints: Checkpoints::of(folder) }
    }

    /// Where the checkpoint of a step is or would be.
    pub fn path(&self, step: usize) -> PathBuf {
        self.checkpoints.path(step)
    }

    /// A folder that transformers (of adapters PEFT) loads, with the fp32 master weights, the optimizer's state and the run's; then the
    /// checkpoints beyond the latest `keep_checkpoints` are removed, but for the best.
    pub fn checkpoint(&self, backend: &mut dyn Backend, state: &State) -> Result<PathBuf> {
        let path = self.checkpoints.write(state.step, |folder| {
            self.model(backend, folder, DType::F32)?;
            checkpoint::save_optimizer(&folder.join(OPTIMIZER), &self.run.trained.optimizer, backend)?;
            let text = serde_json::to_string_pretty(state).expect("plain data") + "\n";
            write_beside(&folder.join(STATE), |file| file.write_all(text.as_bytes()))
        })?;
        let steps = self.checkpoints.steps()?;
        let latest = &steps[steps.len().saturating_sub(self.run.recipe.keep_checkpoints)..];
        let best = state.best.map(|(step, _)| step);
        self.checkpoints.retain(|step| latest.contains(&step) || Some(step) == best)?;
        Ok(path)
    }

    /// The model of a finished run.
    pub fn finish(&self, backend: &mut dyn Backend) -> Result<()> {
        self.model(backend, &self.folder, self.run.recipe.save_dtype)
    }

    fn model(&self, backend: &mut dyn Backend, folder: &Path, dtype: DType) -> Result<()> {
        let Run { pretrained, trained, recipe, sources, .. } = self.run;
        let read = |parameter: &Parameter| trained.model.read_weight(backend, parameter);
        match recipe.lora() {
            None => checkpoint::save_pretrained(folder, pretrained, dtype, read),
            Some(lora) => {
                let path = sources.model.to_string_lossy();
                let base = if hub::is_id(&recipe.model) { &recipe.model } else { path.as_ref() };
                checkpoint::save_adapter(folder, pretrained, &lora, base, read)
            }
        }
    }

    /// Says of an error of the disk what is saved and how to go on.
    pub fn explain(&self, error: Error) -> Error {
        let Error::Io { .. } = error else { return error };
        let saved = match self.checkpoints.steps().ok().and_then(|steps| steps.last().copied()) {
            Some(step) => format!(
                "{} is whole: make room or make the folder writable, then go on with\n  smolten train --resume --out {}",
                self.path(step).display(),
                self.folder.display()
            ),
            None => "no checkpoint was written yet: make room, or name another folder with --out".to_owned(),
        };
        Error::run(format!("the run stopped: {error}"), saved)
    }
}
