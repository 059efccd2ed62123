//! `report.html`: a run as one page, written into its folder while the run goes on; and runs laid over one another.
//!
//! A page is made from what the folder holds, `metrics.jsonl` and `run.json`, and needs nothing else to be read: no
//! network, no other file. However long a run is, its page and the memory that is kept for it stay within bounds
//! ([`Series`]).

mod chart;
mod history;
mod overlay;
mod page;
mod record;
mod scale;
mod sections;
mod series;
mod words;

pub use history::{History, Sample};
pub use overlay::{FIGURES, RunRecord, differences, is_ours, overlay};
pub use record::{DataRecord, ModelRecord, Record};
pub use series::{Bucket, Series};
pub use words::{duration, figure, grouped, loss, may_be_none, mib, verdict};

use crate::checkpoint::write_beside;
use crate::error::{Error, Result};
use history::Line;
use serde::Serialize;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The page's name in the run's folder.
pub const REPORT: &str = "report.html";

/// Steps alone are shown after so long.
const INTERVAL: Duration = Duration::from_secs(3);
/// Of the run's time, writing may take one part in so many.
const SHARE: u32 = 100;

/// How far a run is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It goes on.
    Running,
    /// It came to its end.
    Finished,
    /// Somebody stopped it.
    Interrupted,
    /// It failed, for this reason.
    Stopped(String),
}

impl Progress {
    fn word(&self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Finished => "finished",
            Self::Interrupted => "interrupted",
            Self::Stopped(_) => "stopped",
        }
    }
}

/// Writes the report of one run as it goes.
#[derive(Debug)]
pub struct Reporter {
    path: PathBuf,
    folder: String,
    record: Record,
    history: History,
    /// Something came that is to be seen soon.
    event: bool,
    /// When it was written last, and how long that took.
    written: (Instant, Duration),
}

impl Reporter {
    /// Takes up what the folder's `metrics.jsonl` holds already, and writes the report for the first time; `record` is
    /// the run's `run.json`.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be written, [`Error::Input`] when what is there cannot be read.
    pub fn start(folder: &Path, record: &Value) -> Result<Self> {
        let record: Record = serde_json::from_value(record.clone())
            .map_err(|e| Error::input(folder.join("run.json").display(), e, "start a new run"))?;
        let mut history = History::new(record.total_steps);
        history.read(&folder.join("metrics.jsonl"))?;
        let mut reporter = Self {
            path: folder.join(REPORT),
            folder: folder.display().to_string(),
            record,
            history,
            event: false,
            written: (Instant::now(), Duration::ZERO),
        };
        reporter.write(&Progress::Running)?;
        Ok(reporter)
    }

    /// Takes in what was written to the log.
    pub fn take(&mut self, line: &impl Serialize) {
        let line = serde_json::to_value(line).expect("records are plain data");
        // A line of our own log is one of its kind.
        self.event |= self.history.take(&line) == Ok(Line::Event);
    }

    /// Has the report written soon, as more than a step happened.
    pub fn event(&mut self) {
        self.event = true;
    }

    /// Writes the report if it is time to. A report that cannot be written now is tried again later: the run is worth
    /// more.
    pub fn update(&mut self) {
        let (last, took) = self.written;
        let since = last.elapsed();
        if since >= took * SHARE && (self.event || since >= INTERVAL) {
            let _ = self.write(&Progress::Running);
        }
    }

    /// Writes the report.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&mut self, progress: &Progress) -> Result<()> {
        let start = Instant::now();
        self.event = false;
        let written = run_page(&self.folder, &self.history, &self.record, progress)
            .and_then(|page| write_beside(&self.path, |file| file.write_all(page.as_bytes())));
        self.written = (Instant::now(), start.elapsed());
        written
    }
}

/// The page of the run in `folder`.
///
/// # Errors
/// [`Error::Run`] for a bug in the page.
pub fn run_page(folder: &str, history: &History, record: &Record, progress: &Progress) -> Result<String> {
    let charts = sections::charts(history, record);
    let (prompt, texts, between) = sections::texts(history);
    let total = record.total_steps.max(history.steps);
    let why = if let Progress::Stopped(why) = progress { why.as_str() } else { "" };
    let of_page = json!({
        "running": *progress == Progress::Running,
        "state": { "word": progress.word(), "why": why },
        "model": record.model_name(),
        "data": record.data_name(),
        "lead": lead(history, record),
        "done": grouped(history.steps as u64),
        "total": grouped(total as u64),
        "share": 100.0 * history.steps as f64 / total.max(1) as f64,
        "figures": sections::figures(history, record),
        "loss_said": sections::loss_said(history),
        "loss_table": sections::loss_table(history),
        "eval_table": sections::eval_table(history),
        "step_table": sections::step_table(history),
        "prompt": prompt,
        "texts": texts,
        "between": between,
        "sample_every": record.key("sample_every"),
        "memory": sections::memory(history, record),
        "memory_said": sections::memory_said(history, record),
        "sets": sections::sets(record),
        "recipe": sections::recipe(record),
        "hashes": sections::hashes(record),
        "commands": sections::commands(folder, record, *progress == Progress::Finished),
    });
    page::render("run.html", &charts, of_page)
}

/// Steps, device and machine in a line.
fn lead(history: &History, record: &Record) -> String {
    let (done, total) = (grouped(history.steps as u64), grouped(record.total_steps as u64));
    let mut parts = vec![format!("{done} of {total} steps")];
    if history.epoch > 0.0 {
        parts.push(format!("{:.2} epochs", history.epoch));
    }
    if record.model.parameters > 0 {
        parts.push(format!("{:.1} M parameters", record.model.parameters as f64 / 1e6));
    }
    let precision = match record.precision.as_str() {
        "f32" => "fp32",
        "f16" => "fp16",
        other => other,
    };
    let threads =
        if record.device == "CPU" { format!(", {} threads", record.threads) } else { String::new() };
    parts.push(format!("{}, {precision}{threads}", record.device));
    if !record.machine.is_empty() {
        parts.push(record.machine.clone());
    }
    if !record.resumed_from_steps.is_empty() {
        let steps: Vec<String> = record.resumed_from_steps.iter().map(usize::to_string).collect();
        parts.push(format!("taken up again after step {}", steps.join(", ")));
    }
    parts.join(" · ")
}
