//! Runs laid over one another.

use super::chart::{Axis, Chart, Line, Style};
use super::history::History;
use super::page;
use super::record::{Record, text};
use super::scale::{From, Scale};
use super::series::Series;
use super::words;
use crate::error::Result;
use serde::Serialize;
use serde_json::json;
use std::io::Read;
use std::path::Path;

/// Colours of the style sheet; then they begin again.
const COLOURS: usize = 8;

/// What a run left in its folder.
#[derive(Clone, Debug)]
pub struct RunRecord {
    /// The folder's name, or its path where two have that name.
    pub name: String,
    /// Its `metrics.jsonl`.
    pub history: History,
    /// Its `run.json`.
    pub record: Record,
}

impl RunRecord {
    /// Reads runs' folders.
    ///
    /// # Errors
    /// [`Error::Input`](crate::error::Error::Input) naming the file, and the line, that is not as a run writes it.
    pub fn read_all(folders: &[impl AsRef<Path>]) -> Result<Vec<Self>> {
        let mut runs = Vec::new();
        for folder in folders.iter().map(AsRef::as_ref) {
            let record = Record::read(folder)?;
            let mut history = History::new(record.total_steps);
            history.read(&folder.join("metrics.jsonl"))?;
            runs.push(Self { name: name(folder), history, record });
        }
        for (i, folder) in folders.iter().enumerate() {
            if folders
                .iter()
                .enumerate()
                .any(|(j, other)| i != j && name(other.as_ref()) == name(folder.as_ref()))
            {
                runs[i].name = folder.as_ref().display().to_string();
            }
        }
        Ok(runs)
    }
}

fn name(folder: &Path) -> String {
    let last = folder.file_name().map(|name| name.to_string_lossy().into_owned());
    last.unwrap_or_else(|| folder.display().to_string())
}

/// Keys of the recipes that are not the same in all runs, and hashes of data and model alike, with each run's value.
pub fn differences(runs: &[RunRecord]) -> Vec<(String, Vec<String>)> {
    let mut keys: Vec<&str> = Vec::new();
    for key in runs.iter().flat_map(|run| run.record.recipe.keys()) {
        // Where a run was written is no part of what it computed.
        if key != "out" && !keys.contains(&key.as_str()) {
            keys.push(key);
        }
    }
    let of_recipe = keys.into_iter().map(|key| {
        let values = runs.iter().map(|run| run.record.recipe.get(key).map(text).unwrap_or_default());
        (key.to_owned(), values.collect::<Vec<_>>())
    });
    let hash = |name: &str, of: fn(&Record) -> String| {
        (name.to_owned(), runs.iter().map(|r| of(&r.record)).collect())
    };
    let others = [
        hash("precision of the step", |r| r.precision.clone()),
        hash("device that computed", |r| r.device.clone()),
        hash("sha256 of the data", |r| brief(&r.data.sha256.concat())),
        hash("sha256 of the held-out data", |r| {
            r.eval_data.as_ref().map(|d| brief(&d.sha256.concat())).unwrap_or_default()
        }),
        hash("sha256 of the model", |r| {
            r.model.sha256.values().map(|v| brief(&text(v))).collect::<Vec<_>>().join(" ")
        }),
        hash("smolten", |r| r.smolten.clone()),
    ];
    of_recipe.chain(others).filter(|(_, values)| values.iter().any(|v| *v != values[0])).collect()
}

/// Enough of a hash to tell two apart.
fn brief(hash: &str) -> String {
    hash.chars().take(12).collect()
}

/// A run in the table.
#[derive(Serialize)]
struct Row {
    colour: usize,
    cells: Vec<String>,
}

#[derive(Serialize)]
struct Answer {
    colour: usize,
    name: String,
    text: String,
}

/// The page of all of them.
///
/// # Errors
/// [`Error::Run`](crate::error::Error::Run) for a bug in the page.
pub fn overlay(runs: &[RunRecord]) -> Result<String> {
    let charts = charts(runs);
    let rows: Vec<Row> =
        runs.iter().enumerate().map(|(i, run)| Row { colour: i % COLOURS, cells: run.figures() }).collect();
    let differences = differences(runs);
    let prompts: Vec<&str> =
        runs.iter().filter_map(|r| Some(r.history.samples.last()?.prompt.as_str())).collect();
    let prompt = prompts.first().filter(|first| prompts.iter().all(|p| p == *first)).copied();
    let answers: Vec<Answer> = runs
        .iter()
        .enumerate()
        .filter(|_| prompt.is_some())
        .filter_map(|(i, run)| {
            let sample = run.history.samples.last()?;
            let name = format!("{}, after step {}", run.name, sample.step);
            Some(Answer { colour: i % COLOURS, name, text: sample.text.trim().to_owned() })
        })
        .collect();
    let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
    let of_page = json!({
        "running": false,
        "names": names,
        "head": FIGURES,
        "rows": rows,
        "differences": differences,
        "prompt": prompt.unwrap_or_default(),
        "answers": answers,
    });
    page::render("runs.html", &charts, of_page)
}

/// What [`RunRecord::figures`] gives.
pub const FIGURES: [&str; 9] = [
    "run",
    "steps",
    "training loss, smoothed",
    "held-out loss before",
    "lowest held-out loss",
    "last held-out loss",
    "tokens/s",
    "peak MiB",
    "time of the steps",
];

impl RunRecord {
    /// Its figures as text, in the order of [`FIGURES`]; a dash stands for what is not known.
    pub fn figures(&self) -> Vec<String> {
        let h = &self.history;
        let none = || "–".to_owned();
        let before = h.held_out_ends().map(|(before, _)| before);
        let rate = h.tokens as f64 / h.step_seconds;
        vec![
            self.name.clone(),
            words::grouped(h.steps as u64),
            h.smoothed.last().map_or_else(none, |(_, l)| words::loss(l)),
            before.map_or_else(none, words::loss),
            h.best.map_or_else(none, |(step, l)| {
                format!("{} at {}", words::loss(l), words::grouped(step as u64))
            }),
            h.held_out.last().map_or_else(none, |(_, l)| words::loss(l)),
            if rate.is_finite() { words::grouped(words::whole(rate)) } else { none() },
            h.peak_memory_bytes.map_or_else(none, |b| words::grouped(b.div_ceil(1 << 20))),
            words::duration(h.step_seconds),
        ]
    }
}

fn charts(runs: &[RunRecord]) -> Vec<Chart> {
    let last = runs.iter().map(|run| run.history.steps).max().unwrap_or(0);
    let axis = |ticks| Axis { steps: Scale::steps(0, last), ticks };
    let of = |id, title, style, from, large: bool, series: fn(&History) -> &Series| {
        let lines: Vec<Line<'_>> = runs
            .iter()
            .enumerate()
            .map(|(i, run)| {
                let (name, colour) = (run.name.clone(), i % COLOURS);
                Line { name, colour, style, labelled: large, series: series(&run.history) }
            })
            .collect();
        Chart::new(id, title, &lines, from, axis(if large { 6 } else { 4 }))
    };
    vec![
        of("held_out", "Held-out loss", Style::Dots, From::Data, true, |h| &h.held_out),
        of("loss", "Training loss, smoothed", Style::Strong, From::Data, true, |h| &h.smoothed),
        of("rate", "Learning rate", Style::Strong, From::Zero, false, |h| &h.learning_rate),
        of("norm", "Gradient norm", Style::Plain, From::Wide, false, |h| &h.grad_norm),
        of("speed", "Tokens per second", Style::Plain, From::Zero, false, |h| &h.tokens_per_second),
        of("seconds", "Seconds of a step", Style::Plain, From::Zero, false, |h| &h.seconds),
    ]
}

/// Whether the file at `path` was written by this program.
pub fn is_ours(path: &Path) -> bool {
    let mut head = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(1024).read_to_end(&mut head));
    read.is_ok() && String::from_utf8_lossy(&head).contains(page::MARK)
}
