//! Tuned less base over the same rows, and whether that may be chance.

use super::Matched;
use super::side::Side;
use crate::cli::eval::few;
use serde_json::{Value, json};
use smolten::eval::{Interval, RESAMPLES, accuracy_difference, loss_difference};

/// A difference and what it says.
pub struct Difference {
    value: f64,
    /// None where there is a single row.
    interval: Option<Interval>,
    /// A plain sentence.
    pub says: String,
}

impl Difference {
    /// Whether it may be none, or nothing is known about it.
    pub fn is_null(&self) -> bool {
        self.interval.is_none_or(|interval| interval.holds_zero())
    }

    /// Of the loss, where both sides have one over the same tokens.
    pub fn of_loss(matched: &Matched, base: &Side, tuned: &Side) -> Option<Self> {
        let (a, b) = (base.held_out.as_ref()?, tuned.held_out.as_ref()?);
        if !matched.same_tokens {
            return None;
        }
        let value = b.evaluation.loss - a.evaluation.loss;
        let interval = loss_difference(&a.losses, &b.losses);
        let over = format!("over {} tokens of {} rows", b.evaluation.supervised_tokens, b.count);
        let between = |i: Interval, sign: f64| {
            let [low, high] = if sign < 0.0 { [-i.high, -i.low] } else { [i.low, i.high] };
            format!("95 % interval {low:.4} to {high:.4}")
        };
        let says = match interval {
            _ if value == 0.0 => format!("Held-out loss is the same, {over}."),
            None => format!(
                "Held-out loss changed by {value:+.4} on a single row, which shows nothing about others."
            ),
            Some(i) if i.holds_zero() => format!(
                "No difference in held-out loss seen: it changed by {value:+.4}, {over}, and the interval at 95 %, \
                 {:+.4} to {:+.4}, holds 0.",
                i.low, i.high
            ),
            Some(i) if value < 0.0 => {
                format!("Held-out loss fell by {:.4} ({}), {over}.", -value, between(i, -1.0))
            }
            Some(i) => format!(
                "Held-out loss ROSE by {value:.4} ({}), {over}: there the tuned model is the worse one, whatever its \
                 answers look like. Fewer steps or a smaller --lr may help.",
                between(i, 1.0)
            ),
        };
        Some(Self { value, interval, says })
    }

    /// Of the share of right answers, where questions were asked.
    pub fn of_accuracy(base: &Side, tuned: &Side) -> Option<Self> {
        let (a, b) = (base.answered.as_ref()?, tuned.answered.as_ref()?);
        let interval = accuracy_difference(&a.grades, &b.grades);
        let ([before, after], rows) = ([a, b].map(|x| x.accuracy.right), a.accuracy.rows);
        let value = b.accuracy.accuracy - a.accuracy.accuracy;
        let sides = format!("{before} of {rows} before, {after} after");
        let points = |share: f64| format!("{:+.1}", 100.0 * share);
        let between = |i: Interval| format!("{} to {} points", points(i.low), points(i.high));
        let says = match interval {
            None => format!("Right answers: {sides}; a single question shows nothing about others."),
            Some(i) if i.holds_zero() => format!(
                "No difference in right answers seen: {sides}; the interval of the difference at 95 %, {}, holds 0.",
                between(i)
            ),
            Some(i) => format!(
                "Right answers {}: {sides}, {} points (95 % interval {}).",
                if value > 0.0 { "ROSE" } else { "FELL" },
                points(value),
                between(i)
            ),
        };
        Some(Self { value, interval, says })
    }

    /// As JSON.
    pub fn document(&self) -> Value {
        json!({ "value": self.value, "interval": self.interval, "says": self.says })
    }
}

/// How the intervals came about.
pub fn method(rows: usize) -> String {
    format!(
        "Intervals of differences: paired bootstrap over rows, {RESAMPLES} samples, each of the same rows of both \
         models{}.",
        few(rows)
    )
}
