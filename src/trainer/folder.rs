//! The folder a run writes, new or taken up again.

use super::state::State;
use crate::checkpoint::Checkpoints;
use crate::error::{Error, Result};
use crate::metrics::Log;
use crate::recipe::{Recipe, RecipeOverrides};
use crate::report::REPORT;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Written when a run starts.
pub(super) const RECORD: &str = "run.json";
/// Written last, when a run is finished: the weights, or adapters.
const MODELS: [&str; 2] = ["model.safetensors", "adapter_model.safetensors"];
/// In each checkpoint.
pub(super) const STATE: &str = "trainer_state.json";

/// A folder that may be written, and what a run in it goes on from.
#[derive(Debug)]
pub struct RunFolder {
    /// The folder.
    pub path: PathBuf,
    /// The run that is taken up again.
    pub resumed: Option<Resumed>,
    /// Its log, whose lock keeps other processes from the folder.
    pub(super) log: Option<Log>,
}

/// Where a run goes on.
#[derive(Clone, Debug)]
pub struct Resumed {
    /// `run.json` as it was.
    pub record: Value,
    /// The latest checkpoint's folder, and how far the run had come; a run cut off before its first begins again.
    pub checkpoint: Option<(PathBuf, State)>,
}

impl RunFolder {
    /// Creates a folder, or takes an empty one; one that holds a run is refused.
    ///
    /// # Errors
    /// [`Error::Input`] when it holds a run or cannot be written.
    pub fn create(path: PathBuf) -> Result<Self> {
        if let Some(file) = [RECORD, "metrics.jsonl", MODELS[0], MODELS[1], "checkpoints", REPORT]
            .iter()
            .find(|f| path.join(f).exists())
        {
            return Err(Error::input(
                format!("--out {}", path.display()),
                format!("the folder holds a run already ({file})"),
                "name another folder, move that one away, or go on with that run: --resume",
            ));
        }
        check_writable(&path)?;
        Ok(Self { path, resumed: None, log: None })
    }

    /// Takes up the run in a folder, from its latest checkpoint.
    ///
    /// # Errors
    /// [`Error::Input`] when there is no run in it, or its latest checkpoint is damaged.
    pub fn resume(path: PathBuf) -> Result<Self> {
        let record = read_json(&path.join(RECORD))?;
        check_writable(&path)?;
        // Before the checkpoints are looked at: a process that still trains would remove them meanwhile.
        let log = Some(Log::reopen(&path)?);
        let checkpoints = Checkpoints::of(&path);
        let Some(&step) = checkpoints.steps()?.last() else {
            return Ok(Self { path, resumed: Some(Resumed { record, checkpoint: None }), log });
        };
        let checkpoint = checkpoints.path(step);
        let place = checkpoint.join(STATE);
        let state: State = serde_json::from_value(read_json(&place)?).map_err(|e| damaged(&place, e))?;
        if state.step != step {
            return Err(damaged(&place, format!("it is of step {}", state.step)));
        }
        Ok(Self { path, resumed: Some(Resumed { record, checkpoint: Some((checkpoint, state)) }), log })
    }

    /// How far the run had come that goes on here.
    pub fn state(&self) -> Option<&State> {
        self.resumed.as_ref()?.checkpoint.as_ref().map(|(_, state)| state)
    }

    /// The recipe of the run in `path`, with what the resumed run may set anew.
    ///
    /// # Errors
    /// [`Error::Input`] when there is no run, or a flag would change what it computes.
    pub fn recipe(
        path: &Path,
        recipe: Option<&str>,
        sets: &[String],
        flags: &RecipeOverrides,
    ) -> Result<Recipe> {
        let place = path.join(RECORD);
        let recorded = Recipe::from_record(&read_json(&place)?["recipe"], &place.display().to_string())?;
        recorded.resume(recipe, sets, flags)
    }

    /// Whether the run in `path` came to its end.
    pub fn is_finished(path: &Path) -> bool {
        path.join(RECORD).is_file() && MODELS.iter().any(|model| path.join(model).is_file())
    }

    /// Takes a folder that was created for nothing away again; one with files in it stays.
    pub fn discard(&self) {
        // It may well not be empty.
        let _ = std::fs::remove_dir(&self.path);
    }
}

fn check_writable(path: &Path) -> Result<()> {
    let unwritable = |e: std::io::Error| {
        Error::input(
            format!("--out {}", path.display()),
            format!("cannot write there: {e}"),
            "name another folder, or make this one writable",
        )
    };
    std::fs::create_dir_all(path).map_err(unwritable)?;
    let probe = path.join(format!(".probe.{}", std::process::id()));
    std::fs::write(&probe, b"").and_then(|()| std::fs::remove_file(&probe)).map_err(unwritable)
}

fn read_json(path: &Path) -> Result<Value> {
    let text = match std::fs::read_to_string(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let remedy = "give --resume the folder of a run with --out";
            return Err(Error::input(path.display(), "there is no such file", remedy));
        }
        text => text.map_err(Error::io("read", path))?,
    };
    serde_json::from_str(&text).map_err(|e| damaged(path, e))
}

fn damaged(path: &Path, found: impl std::fmt::Display) -> Error {
    let remedy = "if it is a checkpoint's, remove its folder: the one before it is taken then";
    Error::input(path.display(), format!("it is damaged: {found}"), remedy)
}
