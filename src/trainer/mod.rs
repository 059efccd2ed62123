//! A fine-tuning run: everything is opened and checked first, then the steps, then the model is saved.

mod card;
mod fit;
mod folder;
mod forecast;
mod prepare;
mod record;
mod rows;
mod sample;
mod save;
mod state;
mod step;

pub use folder::{Resumed, RunFolder};
pub use prepare::{Run, Sample};
pub use rows::{Rows, Sources, load_dataset, load_questions};
pub use state::State;
pub use step::{Trained, peak_memory};

pub(crate) use prepare::{capacity, check_memory};
pub(crate) use rows::order;

use crate::backend::Backend;
use crate::batch::Window;
use crate::error::{Error, Result};
use crate::eval;
use crate::metrics::{EvalRecord, Log, SampleRecord, StepRecord};
use crate::report::{Progress, Reporter};
use save::Saver;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Steps without a finite gradient, one after the other, that end a run.
const MAX_SKIPPED: usize = 3;

/// Sees a run as it goes, for the screen.
pub trait Observer {
    /// A step is done. `rows` says which rows a skipped step had, and is empty otherwise.
    fn step(&mut self, record: &StepRecord, total: usize, rows: &[String]);
    /// The held-out rows were run.
    fn evaluation(&mut self, record: &EvalRecord);
    /// The model was asked something.
    fn sample(&mut self, record: &SampleRecord);
    /// A checkpoint is on the disk.
    fn checkpoint(&mut self, step: usize, path: &Path);
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// How far it came.
    pub state: State,
    /// For a run that was interrupted: the checkpoint to go on from, if a step was done.
    pub interrupted: Option<Option<PathBuf>>,
    /// Where the best weights by held-out loss are, where they are not those of the last step.
    pub best: Option<PathBuf>,
    /// The model card; none where somebody's own `README.md` stays, or the run was interrupted.
    pub card: Option<PathBuf>,
    /// As in [`StepRecord`].
    pub peak_memory_bytes: Option<u64>,
    /// Why the report does not show how the run ended, where it does not.
    pub unreported: Option<String>,
}

/// The parts that change while a run goes on.
struct Running<'a> {
    backend: &'a mut dyn Backend,
    log: Log,
    report: Reporter,
    observer: &'a mut dyn Observer,
    saver: Saver<'a>,
    state: State,
}

impl Run {
    /// Trains, and saves the model and its records into the folder. When `interrupt` becomes true, the step is
    /// finished and a checkpoint written.
    ///
    /// # Errors
    /// [`Error::Input`] when memory is short, or the folder's run is another one; [`Error::Run`] when gradients stop
    /// being finite, a checkpoint having been written, or when the disk does not take the files.
    pub fn execute(
        &self,
        folder: RunFolder,
        interrupt: &AtomicBool,
        observer: &mut dyn Observer,
    ) -> Result<Outcome> {
        let record = self.record(folder.resumed.as_ref())?;
        let mut backend = self.open(folder.resumed.as_ref(), &record)?;
        self.write_record(&folder.path, &record)?;
        let state = folder.state().cloned();
        let state = state.unwrap_or_else(|| State::new(self.total_steps, self.recipe.seed, self.dtype));
        let log = match folder.log {
            Some(mut log) => {
                // Before the first checkpoint the run begins again, with the evaluation before its first step.
                log.cut_from(if state.step == 0 { 0 } else { state.step + 1 })?;
                log
            }
            None => Log::create(&folder.path)?,
        };
        let report = Reporter::start(&folder.path, &record)?;
        let saver = Saver::new(self, &folder.path);
        backend.set_loss_scale(state.loss_scale)?;
        if !self.recipe.cuda_graph {
            backend.record_nothing();
        }
        let mut running = Running { backend: &mut *backend, log, report, observer, saver, state };
        let mut card = None;
        let ended = self.steps(&mut running, interrupt).and_then(|interrupted| match interrupted {
            None => {
                card = card::write(self, &running.state, &folder.path)?;
                running.saver.finish(running.backend).map(|()| None)
            }
            checkpoint => Ok(checkpoint),
        });
        let ended = ended.map_err(|e| running.saver.explain(e));
        let progress = match &ended {
            Ok(None) => Progress::Finished,
            Ok(Some(_)) => Progress::Interrupted,
            Err(e) => Progress::Stopped(e.to_string()),
        };
        let unreported = running.report.write(&progress).err().map(|e| e.to_string());
        let interrupted = ended?;
        let Running { saver, state, backend, .. } = running;
        let peak_memory_bytes = peak_memory(backend);
        let best = state.best.filter(|(step, _)| *step < state.step).map(|(step, _)| saver.path(step));
        let best = best.filter(|path| path.is_dir());
        Ok(Outcome { state, interrupted, best, card, peak_memory_bytes, unreported })
    }

    /// The steps that are left; for a run that was interrupted, its last checkpoint.
    fn steps(&self, running: &mut Running<'_>, interrupt: &AtomicBool) -> Result<Option<Option<PathBuf>>> {
        let interrupted = || interrupt.load(Ordering::Relaxed);
        if running.state.step == 0 {
            self.evaluate(running, 0.0)?;
            self.ask(running)?;
            running.report.update();
            if interrupted() {
                return Ok(Some(None));
            }
        }
        let mut windows = self
            .batches
            .windows(running.state.step)
            .take(self.total_steps.saturating_sub(running.state.step));
        let mut next = windows.next();
        while let Some(window) = next {
            next = self.step(running, &window, &mut windows)?;
            self.check_skipping(running)?;
            let (step, every) = (running.state.step, self.recipe.eval_every);
            let (last, stops) = (step == self.total_steps, interrupted());
            let mut best = false;
            if last || (every > 0 && step.is_multiple_of(every)) {
                best = self.evaluate(running, window.epoch)?;
            }
            let every = self.recipe.sample_every;
            if last || (every > 0 && step.is_multiple_of(every)) {
                self.ask(running)?;
            }
            let every = self.recipe.save_every;
            if !last && (stops || (every > 0 && (best || step.is_multiple_of(every)))) {
                let path = running.checkpoint()?;
                if stops {
                    return Ok(Some(Some(path)));
                }
            }
            running.report.update();
        }
        Ok(None)
    }

    /// One optimizer step. While the device works, the host makes the next window of `windows` ready, which is
    /// returned.
    fn step(
        &self,
        running: &mut Running<'_>,
        window: &Window,
        windows: &mut dyn Iterator<Item = Window>,
    ) -> Result<Option<Window>> {
        let start = Instant::now();
        let Running { backend, state, .. } = running;
        let (supervised, counted) = (window.supervised(), step::counted(&self.recipe, window));
        let learning_rate = self.recipe.learning_rate(window.step, self.total_steps);
        self.trained.submit(&mut **backend, &self.recipe, window, learning_rate)?;
        let next = windows.next();
        let output = backend.take_output()?;
        let (tokens, seconds) = (window.tokens(), start.elapsed().as_secs_f64());
        let record = StepRecord {
            step: window.step + 1,
            epoch: window.epoch,
            loss: output.loss_sum / counted as f64,
            grad_norm: output.grad_norm,
            learning_rate,
            tokens,
            supervised_tokens: supervised,
            padded_tokens: self.rows.padded_tokens(&window.examples),
            mean_token_accuracy: output.correct as f64 / supervised as f64,
            entropy: output.entropy_sum / supervised as f64,
            tokens_per_second: tokens as f64 / seconds,
            step_seconds: seconds,
            peak_memory_bytes: peak_memory(*backend),
        };
        state.stepped(&record, &output);
        running.log(&record)?;
        let rows = window.examples.iter().filter(|_| output.skipped);
        let rows: Vec<String> = rows.map(|&example| self.rows.data.place(example)).collect();
        running.observer.step(&record, self.total_steps, &rows);
        Ok(next)
    }

    /// Stops a run that no longer learns; its weights are those of the last good step.
    fn check_skipping(&self, running: &mut Running<'_>) -> Result<()> {
        let State { step, skipped_in_a_row, loss_scale, .. } = running.state;
        if skipped_in_a_row < MAX_SKIPPED || loss_scale.excuses_skipping() {
            return Ok(());
        }
        let path = running.checkpoint()?;
        Err(Error::run(
            format!("steps {} to {step} had no finite gradient", step + 1 - skipped_in_a_row),
            format!(
                "the weights from before them are in {}; use a smaller --lr, or --precision fp32",
                path.display()
            ),
        ))
    }

    /// Asks the model something, where that is wanted.
    fn ask(&self, running: &mut Running<'_>) -> Result<()> {
        let Some(sampler) = &self.sampler else { return Ok(()) };
        let record = SampleRecord {
            step: running.state.step,
            sample_prompt: self.recipe.sample_prompt.clone(),
            sample: sampler.sample(&self.trained.model, running.backend, &self.pretrained)?,
        };
        running.log(&record)?;
        running.observer.sample(&record);
        Ok(())
    }

    /// Runs the held-out rows, where there are any; whether this was the best result so far.
    fn evaluate(&self, running: &mut Running<'_>, epoch: f64) -> Result<bool> {
        if self.rows.held_out.is_empty() {
            return Ok(false);
        }
        let start = Instant::now();
        let (examples, held_out) = (self.rows.held_out_examples(), &self.rows.held_out);
        let batches = eval::micro_batches(examples, held_out, self.capacity.tokens);
        let rows = eval::evaluate_rows(&self.trained.model, running.backend, batches)?;
        running.state.evaluated_rows(&rows.losses);
        let evaluation = rows.evaluation;
        let record = EvalRecord {
            step: running.state.step,
            epoch,
            eval_loss: evaluation.loss,
            eval_loss_interval: rows.loss_interval.map(|interval| interval.ends()),
            eval_loss_change_interval: running.state.change,
            eval_mean_token_accuracy: evaluation.mean_token_accuracy,
            eval_supervised_tokens: evaluation.supervised_tokens,
            eval_seconds: start.elapsed().as_secs_f64(),
        };
        running.log(&record)?;
        running.observer.evaluation(&record);
        Ok(running.state.evaluated(evaluation))
    }
}

impl Running<'_> {
    /// Writes a line to the log, and tells the report.
    fn log(&mut self, line: &impl Serialize) -> Result<()> {
        self.log.write(line)?;
        self.report.take(line);
        Ok(())
    }

    /// Writes a checkpoint of the present state, and removes those that are no longer kept.
    fn checkpoint(&mut self) -> Result<PathBuf> {
        self.log.sync()?;
        let path = self.saver.checkpoint(self.backend, &self.state)?;
        self.observer.checkpoint(self.state.step, &path);
        self.report.event();
        Ok(path)
    }
}
