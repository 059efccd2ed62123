//! What a person sees: colours and a moving bar on a terminal, plain lines elsewhere.

use super::tokens;
use indicatif::{ProgressBar, ProgressStyle};
use smolten::dataset::Label;
use smolten::metrics::{EvalRecord, SampleRecord, StepRecord};
use smolten::report::duration;
use smolten::trainer::{Observer, Sample};
use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};

/// Tokens of the sample row that are shown.
const SAMPLE_TOKENS: usize = 160;

/// One row's tokens, as far as there is room.
pub fn sample(sample: &Sample) -> String {
    let label = |learnt| if learnt { Label::Supervised } else { Label::Masked };
    let tokens = sample.tokens.iter().take(SAMPLE_TOKENS);
    let shown: Vec<_> = tokens.map(|(text, learnt)| (text.clone(), label(*learnt))).collect();
    let rest = sample.tokens.len() - shown.len();
    let more = if rest > 0 { format!(" … and {rest} tokens more") } else { String::new() };
    format!("one row ({}):\n    {}{more}", tokens::legend(false), tokens::painted(&shown))
}

/// Shows a run's progress.
pub struct Progress {
    bar: Option<ProgressBar>,
    /// First step of this sitting, and when it began.
    start: Option<(usize, Instant)>,
    held_out: Option<f64>,
}

impl Progress {
    /// A bar on a terminal, else lines.
    pub fn new(total_steps: usize) -> Self {
        let bar = std::io::stdout().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:30.green} {pos}/{len} {msg}");
            let bar = ProgressBar::new(total_steps as u64);
            bar.set_style(style.expect("the template is well formed"));
            bar
        });
        Self { bar, start: None, held_out: None }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say!("{text}")),
            None => say!("{text}"),
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Observer for Progress {
    fn step(&mut self, r: &StepRecord, total: usize, rows: &[String]) {
        // Held-out rows were run before; the forecast counts from the first step of this sitting.
        let (first, start) = *self
            .start
            .get_or_insert_with(|| (r.step, Instant::now() - Duration::from_secs_f64(r.step_seconds)));
        let left = start.elapsed().as_secs_f64() / (r.step + 1 - first) as f64 * (total - r.step) as f64;
        let (width, rate) = (total.to_string().len(), r.tokens_per_second);
        let mut text = format!(
            "step {:>width$}/{total}  epoch {:.2}  loss {:.4}  grad norm {:.3}  lr {:.2e}  {rate:.0} tokens/s",
            r.step, r.epoch, r.loss, r.grad_norm, r.learning_rate
        );
        if let Some(bar) = &self.bar {
            bar.set_position(r.step as u64);
            let held_out = self.held_out.map_or(String::new(), |l| format!(" · held-out {l:.4}"));
            bar.set_message(format!(
                "loss {:.4}{held_out} · {rate:.0} tokens/s · {} left",
                r.loss,
                duration(left)
            ));
        } else if r.step < total {
            text += &format!("  {} left", duration(left));
        }
        if !rows.is_empty() {
            text += &format!("  SKIPPED: the gradient is not finite; its rows: {}", rows.join(", "));
        }
        self.line(&text);
    }

    fn sample(&mut self, r: &SampleRecord) {
        let text = r.sample.trim().replace('\n', "\n    ");
        self.line(&format!("asked after {} steps: {}\n    {text}", r.step, r.sample_prompt));
    }

    fn checkpoint(&mut self, step: usize, path: &Path) {
        self.line(&format!("checkpoint after step {step}: {}", path.display()));
    }

    fn evaluation(&mut self, r: &EvalRecord) {
        self.held_out = Some(r.eval_loss);
        self.line(&format!(
            "held-out loss after {} steps: {:.4} (token accuracy {:.1} %, {} tokens)",
            r.step,
            r.eval_loss,
            100.0 * r.eval_mean_token_accuracy,
            r.eval_supervised_tokens
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_marks_what_is_learnt() {
        let tokens = vec![("Hi".to_owned(), false), ("\n".to_owned(), false), ("yes".to_owned(), true)];
        assert!(sample(&Sample { tokens }).ends_with("Hi⏎\n    [[yes]]"));
    }
}
