//! What a run recorded of its steps.

use serde_json::Value;
use smolten::error::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// One step as recorded.
#[derive(Clone, Copy)]
pub struct Step {
    /// Mean loss; NaN where it was not finite.
    pub loss: f64,
    /// Learning rate.
    pub learning_rate: f64,
}

/// The steps of a run, and its record.
pub struct RunLosses {
    steps: BTreeMap<u64, Step>,
    /// `run.json`.
    pub record: Value,
}

impl RunLosses {
    /// From the folder's `metrics.jsonl` and `run.json`. Of a step that was run twice, as after a resume, the later
    /// line counts.
    pub fn read(folder: &Path) -> Result<Self> {
        let record = read(&folder.join("run.json"))?;
        let record = serde_json::from_str(&record).map_err(|e| {
            Error::input(folder.join("run.json").display(), format!("not JSON: {e}"), "name a run's folder")
        })?;
        let path = folder.join("metrics.jsonl");
        let mut steps = BTreeMap::new();
        for (i, line) in read(&path)?.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let bad = |found: String| {
                let place = format!("{}:{}", path.display(), i + 1);
                Error::input(place, found, "take this line out, or name another run's folder")
            };
            let line: Value = serde_json::from_str(line).map_err(|e| bad(format!("not JSON: {e}")))?;
            // Lines of evaluations have no loss.
            let Some(loss) = line.get("loss") else { continue };
            let number = |key: &str| line[key].as_f64().ok_or_else(|| bad(format!("{key} is {}", line[key])));
            let loss = if loss.is_null() { f64::NAN } else { number("loss")? };
            let step = line["step"].as_u64().ok_or_else(|| bad(format!("step is {}", line["step"])))?;
            steps.insert(step, Step { loss, learning_rate: number("learning_rate")? });
        }
        if steps.is_empty() {
            return Err(Error::input(
                path.display(),
                "it holds no step",
                "name the folder of a run that trained",
            ));
        }
        Ok(Self { steps, record })
    }

    /// A step, counted from 1.
    pub fn step(&self, step: usize) -> Option<Step> {
        self.steps.get(&(step as u64)).copied()
    }

    /// How many steps are on record.
    pub fn len(&self) -> usize {
        self.steps.len()
    }
}

fn read(path: &Path) -> Result<String> {
    match std::fs::read_to_string(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let remedy = "name the folder that smolten train wrote: --run DIR";
            Err(Error::input(path.display(), "there is no such file", remedy))
        }
        read => read.map_err(Error::io("read", path)),
    }
}
