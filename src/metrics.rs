//! What a run reports: one JSON object per optimizer step in `metrics.jsonl`, the same for TensorBoard, and what the
//! machine is.

mod tensorboard;

use crate::error::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use tensorboard::Events;

/// One optimizer step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepRecord {
    /// Number of the step, from 1.
    pub step: usize,
    /// Epochs done after it.
    pub epoch: f64,
    /// Mean over the step's supervised tokens, in nats, before the update.
    pub loss: f64,
    /// Global L2 norm of the gradient before clipping; null when it was not finite and the step was skipped.
    pub grad_norm: f64,
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Tokens run through the model.
    pub tokens: usize,
    /// Tokens in the loss.
    pub supervised_tokens: usize,
    /// Tokens that only fill up; none but in a compat mode.
    pub padded_tokens: usize,
    /// Share of the supervised tokens that had the largest logit.
    pub mean_token_accuracy: f64,
    /// Mean entropy of the predictions at those tokens, in nats.
    pub entropy: f64,
    /// Tokens divided by the seconds of the whole step, optimizer and host work included.
    pub tokens_per_second: f64,
    /// Seconds of the whole step.
    pub step_seconds: f64,
    /// On a GPU the bytes taken of its memory; else the largest resident memory of the process so far, null where the
    /// system does not say.
    pub peak_memory_bytes: Option<u64>,
}

/// One evaluation on held-out rows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EvalRecord {
    /// Steps done before it.
    pub step: usize,
    /// Epochs done before it.
    pub epoch: f64,
    /// Mean over the supervised tokens, in nats.
    pub eval_loss: f64,
    /// From where to where it may reasonably lie with other rows of the same kind, at 95 %; none for a single row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_loss_interval: Option<[f64; 2]>,
    /// Likewise by how much it has changed over the same rows since before the first step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_loss_change_interval: Option<[f64; 2]>,
    /// Share of the supervised tokens that had the largest logit.
    pub eval_mean_token_accuracy: f64,
    /// Tokens in the loss.
    pub eval_supervised_tokens: usize,
    /// Seconds it took.
    pub eval_seconds: f64,
}

/// A text by the model during training.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SampleRecord {
    /// Steps done before it.
    pub step: usize,
    /// What was asked.
    pub sample_prompt: String,
    /// What it answered, cut after a few dozen tokens.
    pub sample: String,
}

/// For a field that JSON shows as null where it is not finite.
///
/// # Errors
/// Those of the deserializer, for anything but a number or null.
pub fn nan_if_null<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// `metrics.jsonl`, and TensorBoard's event files beside it: a record is written whole, and at once.
#[derive(Debug)]
pub struct Log {
    file: File,
    path: PathBuf,
    /// None until it is known where a run goes on.
    events: Option<Events>,
}

impl Log {
    /// A new file in the run's folder, locked for as long as the run lasts.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be created, or exists.
    pub fn create(folder: &Path) -> Result<Self> {
        let path = folder.join("metrics.jsonl");
        let file = File::create_new(&path).map_err(Error::io("create", &path))?;
        let mut log = Self { file, path, events: None }.locked()?;
        log.events = Some(Events::begin(folder, 0)?);
        Ok(log)
    }

    /// The file of a run that goes on, locked for as long as that lasts.
    ///
    /// # Errors
    /// [`Error::Input`] when another process still writes it; [`Error::Io`] when it cannot be opened.
    pub fn reopen(folder: &Path) -> Result<Self> {
        let path = folder.join("metrics.jsonl");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        Self { file: file.map_err(Error::io("open", &path))?, path, events: None }.locked()
    }

    /// Takes off the records of steps from `first` on, and a last half line; what is written next follows.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read or written.
    pub fn cut_from(&mut self, first: usize) -> Result<()> {
        self.cut(first).map_err(Error::io("write", &self.path))?;
        self.events = Some(Events::begin(self.path.parent().expect("a file in the run's folder"), first)?);
        Ok(())
    }

    fn locked(self) -> Result<Self> {
        match self.file.try_lock() {
            Ok(()) => Ok(self),
            Err(TryLockError::WouldBlock) => Err(Error::input(
                self.path.display(),
                "another process is training in this folder",
                "wait for it or stop it, or name another folder with --out",
            )),
            // A file system without locks.
            Err(TryLockError::Error(_)) => Ok(self),
        }
    }

    fn cut(&mut self, first: usize) -> std::io::Result<()> {
        let (mut kept, mut line) = (0, Vec::new());
        let mut reader = BufReader::new(&self.file);
        while reader.read_until(b'\n', &mut line)? > 0 {
            let record: Option<serde_json::Value> = serde_json::from_slice(&line).ok();
            match record.and_then(|r| r["step"].as_u64()) {
                Some(n) if n < first as u64 && line.ends_with(b"\n") => kept += line.len() as u64,
                _ => break,
            }
            line.clear();
        }
        self.file.set_len(kept)?;
        self.file.seek(SeekFrom::End(0))?;
        Ok(())
    }

    /// Has all records so far written to the disk.
    ///
    /// # Errors
    /// [`Error::Io`] when the disk does not take them.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(Error::io("write", &self.path))?;
        self.events.as_ref().map_or(Ok(()), Events::sync)
    }

    /// Appends one record.
    ///
    /// # Errors
    /// [`Error::Io`] when the disk does not take it.
    pub fn write(&mut self, record: &impl Serialize) -> Result<()> {
        let record = serde_json::to_value(record).expect("records are plain data");
        self.file.write_all(format!("{record}\n").as_bytes()).map_err(Error::io("write", &self.path))?;
        self.events.as_mut().map_or(Ok(()), |events| events.write(&record))
    }
}

/// A figure of `/proc/self/status` or `/proc/meminfo`, which are in KiB, as bytes.
fn proc_bytes(path: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// Largest resident memory of this process so far (Linux).
pub fn peak_memory_bytes() -> Option<u64> {
    proc_bytes("/proc/self/status", "VmHWM")
}

/// Memory that programs could still take (Linux).
pub fn available_memory_bytes() -> Option<u64> {
    proc_bytes("/proc/meminfo", "MemAvailable")
}

/// The processor's name and vector units, for the screen.
pub fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |key: &str| {
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let name = field("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let flags = field("flags").unwrap_or_default();
    let has = |flag: &str| flags.split(' ').any(|f| f == flag);
    let units: Vec<&str> = [("avx2", "AVX2"), ("avx512f", "AVX-512"), ("amx_bf16", "AMX")]
        .into_iter()
        .filter_map(|(flag, unit)| has(flag).then_some(unit))
        .collect();
    if units.is_empty() { name } else { format!("{name} ({})", units.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_one_line_with_the_keys_of_the_contract() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = Log::create(folder.path()).unwrap();
        let record = StepRecord {
            step: 1,
            epoch: 0.5,
            loss: 2.0,
            grad_norm: f64::NAN,
            learning_rate: 1e-4,
            tokens: 10,
            supervised_tokens: 5,
            padded_tokens: 0,
            mean_token_accuracy: 0.4,
            entropy: 1.5,
            tokens_per_second: 100.0,
            step_seconds: 0.1,
            peak_memory_bytes: None,
        };
        log.write(&record).unwrap();
        log.write(&record).unwrap();
        let text = std::fs::read_to_string(folder.path().join("metrics.jsonl")).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        let keys: Vec<&String> = lines[0].as_object().unwrap().keys().collect();
        let contract = "step epoch loss grad_norm learning_rate tokens supervised_tokens padded_tokens \
                        mean_token_accuracy entropy tokens_per_second step_seconds peak_memory_bytes";
        assert_eq!(keys, contract.split(' ').collect::<Vec<_>>());
        assert!(lines[0]["grad_norm"].is_null());
    }

    #[test]
    fn a_run_that_goes_on_takes_off_what_came_after() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let text = "{\"step\":0,\"eval_loss\":2}\n{\"step\":1}\n{\"step\":2}\n{\"step\":2,\"eval_loss\":1}\n";
        std::fs::write(&path, format!("{text}{{\"step\":3}}\n{{\"st")).unwrap();
        let mut log = Log::reopen(folder.path()).unwrap();
        assert!(matches!(Log::reopen(folder.path()), Err(Error::Input { .. })), "it is locked");
        log.cut_from(3).unwrap();
        log.write(&serde_json::json!({"step": 3})).unwrap();
        log.sync().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{text}{{\"step\":3}}\n"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn linux_tells_memory() {
        assert!(peak_memory_bytes().unwrap() > 1 << 20);
        assert!(available_memory_bytes().unwrap() > 1 << 20);
    }
}
