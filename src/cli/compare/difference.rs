//! Tuned less base over the same rows, and whether that may be chance.

use super::Matched;
use super::side::Side;
use crate::cli::eval::few;
use serde_json::{Value, json};
use smolten::eval::{Interval, RESAMPLES, accuracy_difference, loss_difference};

/// Differences of what both sides have.
pub struct Differences {
    /// Of the loss, where it is over the same tokens.
    pub loss: Option<Difference>,
    /// Of the share of right answers, where questions were asked.
    pub accuracy: Option<Difference>,
}

impl Differences {
    /// Tuned less base.
    pub fn new(matched: &Matched, base: &Side, tuned: &Side) -> Self {
        let loss = Difference::of_loss(base, tuned).filter(|_| matched.same_tokens);
        Self { loss, accuracy: Difference::of_accuracy(base, tuned) }
    }

    /// Sentences for people.
    pub fn says(&self, base: &Side) -> Vec<String> {
        let mut says: Vec<String> =
            [&self.loss, &self.accuracy].into_iter().flatten().map(|d| d.says.clone()).collect();
        let rows = [
            base.held_out.as_ref().map(|rows| rows.count),
            base.answered.as_ref().map(|answered| answered.accuracy.rows),
        ];
        if let Some(fewest) = rows.into_iter().flatten().min().filter(|_| !says.is_empty()) {
            says.push(format!(
                "Intervals of differences: paired bootstrap over rows, {RESAMPLES} samples, each of the same rows of \
                 both models{}.",
                few(fewest)
            ));
        }
        says
    }

    /// As JSON.
    pub fn document(&self) -> Value {
        let one = |d: &Option<Difference>| {
            d.as_ref().map(|d| json!({ "value": d.value, "interval": d.interval, "says": d.says }))
        };
        json!({ "loss": one(&self.loss), "accuracy": one(&self.accuracy) })
    }
}

/// A difference and what it says.
pub struct Difference {
    value: f64,
    /// None where there is a single row.
    interval: Option<Interval>,
    /// A plain sentence.
    says: String,
}

impl Difference {
    /// Whether it may be none, or nothing is known about it.
    pub fn is_null(&self) -> bool {
        self.interval.is_none_or(|interval| interval.holds_zero())
    }

    fn of_loss(base: &Side, tuned: &Side) -> Option<Self> {
        let (a, b) = (base.held_out.as_ref()?, tuned.held_out.as_ref()?);
        let value = b.evaluation.loss - a.evaluation.loss;
        let interval = loss_difference(&a.losses, &b.losses);
        let over = format!("over {} tokens of {} rows", b.evaluation.supervised_tokens, b.count);
        Some(Self { value, interval, says: loss_says(value, interval, &over) })
    }

    fn of_accuracy(base: &Side, tuned: &Side) -> Option<Self> {
        let (a, b) = (base.answered.as_ref()?, tuned.answered.as_ref()?);
        let interval = accuracy_difference(&a.grades, &b.grades);
        let value = b.accuracy.accuracy - a.accuracy.accuracy;
        let sides = format!("{} of {} before, {} after", a.accuracy.right, a.accuracy.rows, b.accuracy.right);
        Some(Self { value, interval, says: answers_say(value, interval, &sides) })
    }
}

fn loss_says(value: f64, interval: Option<Interval>, over: &str) -> String {
    let Some(Interval { low, high, .. }) = interval else {
        return format!(
            "Held-out loss changed by {value:+.4} on a single row, which shows nothing about others."
        );
    };
    if value == 0.0 && low == high {
        format!("Held-out loss is the same, {over}.")
    } else if interval.is_some_and(|i| i.holds_zero()) {
        format!(
            "No difference in held-out loss seen: it changed by {value:+.4}, {over}, and the interval at 95 %, \
             {low:+.4} to {high:+.4}, holds 0."
        )
    } else if high < 0.0 {
        format!("Held-out loss fell by {:.4} (95 % interval {:.4} to {:.4}), {over}.", -value, -high, -low)
    } else {
        format!(
            "Held-out loss ROSE by {value:.4} (95 % interval {low:.4} to {high:.4}), {over}: there the tuned model is \
             the worse one, whatever its answers look like. Fewer steps or a smaller --lr may help."
        )
    }
}

fn answers_say(value: f64, interval: Option<Interval>, sides: &str) -> String {
    let Some(interval) = interval else {
        return format!("Right answers: {sides}; a single question shows nothing about others.");
    };
    let [value, low, high] = [value, interval.low, interval.high].map(|share| 100.0 * share);
    if interval.holds_zero() {
        return format!(
            "No difference in right answers seen: {sides}; the interval of the difference at 95 %, {low:+.1} to \
             {high:+.1} points, holds 0."
        );
    }
    let moved = if low > 0.0 { "rose" } else { "FELL" };
    format!("Right answers {moved}: {sides}, {value:+.1} points (95 % interval {low:+.1} to {high:+.1}).")
}

#[cfg(test)]
mod tests {
    use super::*;
    use smolten::eval::LEVEL;

    #[test]
    fn what_may_be_chance_is_called_none() {
        let of = |low, high| Some(Interval { low, high, level: LEVEL, method: "", resamples: None });
        let loss = |value, interval| loss_says(value, interval, "over 9 tokens of 3 rows");
        let cases = [
            (loss(-0.5, of(-0.7, -0.2)), "fell by 0.5000 (95 % interval 0.2000 to 0.7000), over 9 tokens"),
            (loss(0.5, of(0.2, 0.7)), "ROSE by 0.5000 (95 % interval 0.2000 to 0.7000)"),
            (loss(-0.5, of(-0.7, 0.2)), "No difference in held-out loss seen: it changed by -0.5000"),
            (loss(-0.5, of(-0.7, 0.2)), "-0.7000 to +0.2000, holds 0."),
            (loss(0.5, of(0.0, 0.7)), "No difference"),
            (loss(f64::NAN, of(f64::NAN, f64::NAN)), "No difference"),
            (loss(0.0, of(-0.1, 0.1)), "No difference"),
            (loss(0.0, of(0.0, 0.0)), "is the same, over 9 tokens"),
            (loss(0.5, None), "a single row"),
            (
                answers_say(0.1, of(0.02, 0.2), "1 of 9 before, 2 after"),
                "rose: 1 of 9 before, 2 after, +10.0 points",
            ),
            (answers_say(-0.1, of(-0.2, -0.02), ""), "FELL: , -10.0 points (95 % interval -20.0 to -2.0)."),
            (
                answers_say(0.1, of(0.0, 0.2), "1 of 9 before, 2 after"),
                "No difference in right answers seen: 1 of 9",
            ),
            (answers_say(0.1, None, ""), "a single question"),
        ];
        for (says, part) in cases {
            assert!(says.contains(part), "`{part}` is not in `{says}`");
        }
    }
}
