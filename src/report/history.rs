//! What a run's `metrics.jsonl` says, in bounded room.

use super::series::Series;
use crate::error::{Error, Result};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// Samples of the model's text that are kept; where more come, every second one goes.
const SAMPLES: usize = 16;

/// Steps that the smoothed line averages over: this share of the run's, within bounds.
const SMOOTHED_SHARE: usize = 50;
const SMOOTHED: std::ops::RangeInclusive<usize> = 5..=1000;

/// A text by the model.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Steps done before it.
    pub step: usize,
    /// What was asked.
    pub prompt: String,
    /// The answer.
    pub text: String,
    /// How many there were before it.
    number: usize,
}

/// The steps, evaluations and samples of one run so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// Loss of each step.
    pub loss: Series,
    /// The same, smoothed.
    pub smoothed: Series,
    /// Learning rate of each step.
    pub learning_rate: Series,
    /// Norm of the gradient of each step; not finite where the step was skipped.
    pub grad_norm: Series,
    /// Tokens per second of each step.
    pub tokens_per_second: Series,
    /// Seconds of each step.
    pub seconds: Series,
    /// Held-out losses.
    pub held_out: Series,
    /// Token accuracy on the held-out rows.
    pub held_out_accuracy: Series,
    /// Where the held-out loss may reasonably lie with other rows of the same kind, before the first step and now, at 95 %.
    pub intervals: [Option<[f64; 2]>; 2],
    /// Likewise its change over the same rows.
    pub change: Option<[f64; 2]>,
    /// The lowest held-out loss after a step, and that step.
    pub best: Option<(usize, f64)>,
    /// Texts; the first one and the latest are always there.
    pub samples: Vec<Sample>,
    /// Steps done.
    pub steps: usize,
    /// Epochs done.
    pub epoch: f64,
    /// Steps whose gradient was not finite.
    pub skipped: usize,
    /// Tokens of all steps.
    pub tokens: u64,
    /// Seconds of all steps.
    pub step_seconds: f64,
    /// Seconds of all evaluations.
    pub eval_seconds: f64,
    /// Peak memory as the last step reported it.
    pub peak_memory_bytes: Option<u64>,
    /// Steps that the smoothed line averages over.
    pub span: usize,
    /// The exponential mean of the loss and its weight, both of which begin at 0.
    mean: (f64, f64),
    /// The held-out loss before the first step.
    before: Option<f64>,
    /// Samples so far, and which of them stay: every one whose number is a multiple of this.
    sampled: usize,
    kept: usize,
}

/// What a line was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// A step.
    Step,
    /// An evaluation or a sample.
    Event,
    /// Something else.
    Other,
}

impl History {
    /// Of a run that will have `total_steps` steps.
    pub fn new(total_steps: usize) -> Self {
        let span = (total_steps / SMOOTHED_SHARE).clamp(*SMOOTHED.start(), *SMOOTHED.end());
        Self { span, kept: 1, ..Self::default() }
    }

    /// Takes in the lines of a `metrics.jsonl`. A last line without its end, which a run is still writing or was cut
    /// off in, does not count.
    ///
    /// # Errors
    /// [`Error::Input`] when there is no such file, or a line is not one of its kind.
    pub fn read(&mut self, path: &Path) -> Result<()> {
        let file = std::fs::File::open(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => {
                let remedy = "name a folder that smolten train wrote";
                Error::input(path.display(), "there is no such file", remedy)
            }
            _ => Error::io("open", path)(e),
        })?;
        let (mut reader, mut line, mut number) = (BufReader::new(file), Vec::new(), 0);
        while reader.read_until(b'\n', &mut line).map_err(Error::io("read", path))? > 0 {
            number += 1;
            if line.ends_with(b"\n") && !line.trim_ascii().is_empty() {
                let taken = serde_json::from_slice(&line).map_err(|e| format!("not JSON: {e}"));
                taken.and_then(|line: Value| self.take(&line)).map_err(|found| {
                    let remedy = "take this line out, or name another run's folder";
                    Error::input(format!("{}:{number}", path.display()), found, remedy)
                })?;
            }
            line.clear();
        }
        Ok(())
    }

    /// Takes in one line, or says what is wrong with it.
    pub fn take(&mut self, line: &Value) -> std::result::Result<Line, String> {
        let step = line["step"].as_u64().and_then(|n| usize::try_from(n).ok());
        let step = step.ok_or_else(|| format!("step is {}", line["step"]))?;
        Ok(if line.get("loss").is_some() {
            self.step(step, line)?;
            Line::Step
        } else if line.get("eval_loss").is_some() {
            let loss = number(line, "eval_loss")?;
            self.held_out.push(step, loss);
            if step == 0 && loss.is_finite() {
                self.before = Some(loss);
            }
            self.intervals[usize::from(step > 0)] = pair(line, "eval_loss_interval");
            self.change = pair(line, "eval_loss_change_interval");
            self.held_out_accuracy.push(step, number(line, "eval_mean_token_accuracy")?);
            self.eval_seconds += number(line, "eval_seconds")?;
            if step > 0 && loss < self.best.map_or(f64::INFINITY, |(_, best)| best) {
                self.best = Some((step, loss));
            }
            Line::Event
        } else if let Some(text) = line["sample"].as_str() {
            let prompt = line["sample_prompt"].as_str().unwrap_or_default().to_owned();
            self.sample(step, prompt, text.to_owned());
            Line::Event
        } else {
            Line::Other
        })
    }

    fn step(&mut self, step: usize, line: &Value) -> std::result::Result<(), String> {
        let of = |key: &str| number(line, key);
        let loss = of("loss")?;
        self.steps = step;
        self.epoch = of("epoch")?;
        self.loss.push(step, loss);
        let smoothed = self.smooth(loss);
        self.smoothed.push(step, smoothed);
        self.learning_rate.push(step, of("learning_rate")?);
        let norm = of("grad_norm")?;
        self.skipped += usize::from(!norm.is_finite());
        self.grad_norm.push(step, norm);
        self.tokens_per_second.push(step, of("tokens_per_second")?);
        let seconds = of("step_seconds")?;
        self.seconds.push(step, seconds);
        self.step_seconds += seconds;
        self.tokens += line["tokens"].as_u64().unwrap_or(0);
        self.peak_memory_bytes = line["peak_memory_bytes"].as_u64().max(self.peak_memory_bytes);
        Ok(())
    }

    /// The exponential mean of the losses so far; one that is not finite changes nothing.
    fn smooth(&mut self, loss: f64) -> f64 {
        let kept = 1.0 - 1.0 / self.span.max(1) as f64;
        if loss.is_finite() {
            self.mean = (kept * self.mean.0 + (1.0 - kept) * loss, kept * self.mean.1 + (1.0 - kept));
        }
        self.mean.0 / self.mean.1
    }

    /// Keeps the first, the latest, and ever fewer of those between.
    fn sample(&mut self, step: usize, prompt: String, text: String) {
        let number = self.sampled;
        self.sampled += 1;
        // The latest one only stood in until this one.
        if self.samples.last().is_some_and(|last| !last.number.is_multiple_of(self.kept)) {
            self.samples.pop();
        }
        self.samples.push(Sample { step, prompt, text, number });
        if self.samples.len() > SAMPLES {
            self.kept *= 2;
            let kept = self.kept;
            self.samples.retain(|s| s.number.is_multiple_of(kept) || s.number == number);
        }
    }

    /// The held-out losses before the first step and at the end, where both are known.
    pub fn held_out_ends(&self) -> Option<(f64, f64)> {
        let (_, after) = self.held_out.last().filter(|(step, _)| *step > 0)?;
        Some((self.before?, after))
    }
}

/// Both ends of an interval, where there is one.
fn pair(line: &Value, key: &str) -> Option<[f64; 2]> {
    let ends = line.get(key)?.as_array()?;
    match ends[..] {
        [ref low, ref high] => Some([low.as_f64()?, high.as_f64()?]),
        _ => None,
    }
}

/// A number, or null where it was not finite.
fn number(line: &Value, key: &str) -> std::result::Result<f64, String> {
    match line.get(key) {
        None | Some(Value::Null) => Ok(f64::NAN),
        Some(value) => value.as_f64().ok_or_else(|| format!("{key} is {value}")),
    }
}
