//! The comparison for people, and as JSON.

use super::difference::{Difference, Differences};
use super::side::Side;
use super::{Matched, page};
use crate::cli::answers;
use serde_json::{Value, json};
use smolten::dataset::Question;
use smolten::eval::{Exam, FinalAnswer};
use smolten::generate::StopReason;

/// What both models are given, one line each.
pub fn conditions(matched: &Matched) -> String {
    let mut lines = vec![format!("both: {} prompts, {}", matched.prompts.len(), matched.decoding)];
    let differs = if matched.same_template { "" } else { "; the base model's own is another" };
    lines.push(format!("template: the tuned model's for both{differs}"));
    if let Some(system) = &matched.system {
        lines.push(format!("system turn of the tuned model's run: {system}"));
    }
    if !matched.same_tokens {
        lines.push("tokenizers: they differ, so each model reads these texts as its own tokens".to_owned());
    }
    lines.push(match &matched.held_out {
        Ok(rows) => format!("held out: {}", rows.source),
        Err(why) => format!("held out: no loss, as {why} (--data names rows)"),
    });
    lines.join("\n")
}

/// Texts, table and verdict.
pub fn page(matched: &Matched, base: &Side, tuned: &Side, width: usize) -> String {
    let n = matched.prompts.len();
    let mut page = String::new();
    for (i, prompt) in matched.prompts.iter().enumerate() {
        let title = page::wrap(&format!("── {} of {n}: {}", i + 1, prompt.text), width);
        page += &format!("\n{}\n\n", title.join("\n"));
        let heading = |name: &str, side: &Side| {
            let answer = &side.answers[i];
            let end = match answer.stop_reason {
                StopReason::Stop => "ended its turn after",
                StopReason::Length => "cut at",
            };
            format!("{name} ({end} {} tokens)", answer.ids.len())
        };
        let (left, right) = (heading("base", base), heading("tuned", tuned));
        page += &page::pair((&left, &base.texts[i]), (&right, &tuned.texts[i]), width);
    }
    page += "\n";
    let differences = Differences::new(matched, base, tuned);
    page += &table(matched, &differences, base, tuned);
    page += "\n";
    for note in notes(matched, &differences, base, tuned) {
        page += &(page::wrap(&note, width).join("\n") + "\n");
    }
    page.trim_end().to_owned()
}

/// One line of the table.
struct Line {
    what: &'static str,
    base: String,
    tuned: String,
    /// Values of which the smaller is wanted, where one is.
    wanted: Option<(f64, f64)>,
}

impl Line {
    /// No mark where nobody can see a difference.
    fn marks(&self) -> (&'static str, &'static str) {
        match self.wanted {
            Some((base, tuned)) if self.base != self.tuned && base < tuned => (" *", ""),
            Some((base, tuned)) if self.base != self.tuned && tuned < base => ("", " *"),
            _ => ("", ""),
        }
    }
}

fn lines(matched: &Matched, differences: &Differences, base: &Side, tuned: &Side) -> Vec<Line> {
    let (a, b) = (&base.figures, &tuned.figures);
    let n = matched.prompts.len() + base.answered.as_ref().map_or(0, |answered| answered.accuracy.rows);
    let share = |s: Option<f64>| s.map_or("-".to_owned(), |s| format!("{:.1} %", 100.0 * s));
    let ended = |rate: f64| format!("{:.0} of {n}", rate * n as f64);
    let seen = |difference: &Option<Difference>| difference.as_ref().is_some_and(|d| !d.is_null());
    let mut lines = vec![
        Line {
            what: "ended the turn",
            base: ended(a.end_of_turn_rate),
            tuned: ended(b.end_of_turn_rate),
            wanted: Some((-a.end_of_turn_rate, -b.end_of_turn_rate)),
        },
        Line {
            what: "mean new tokens",
            base: format!("{:.1}", a.mean_new_tokens),
            tuned: format!("{:.1}", b.mean_new_tokens),
            wanted: None,
        },
        Line {
            what: "repeated 4-grams",
            base: share(a.repetition),
            tuned: share(b.repetition),
            wanted: a.repetition.zip(b.repetition),
        },
    ];
    if let (Some(a), Some(b)) = (&base.held_out, &tuned.held_out) {
        let (a, b) = (&a.evaluation, &b.evaluation);
        lines.push(Line {
            what: "held-out loss",
            base: format!("{:.4}", a.loss),
            tuned: format!("{:.4}", b.loss),
            wanted: seen(&differences.loss).then_some((a.loss, b.loss)),
        });
        lines.push(Line {
            what: "held-out perplexity",
            base: format!("{:.2}", a.perplexity),
            tuned: format!("{:.2}", b.perplexity),
            wanted: None,
        });
        lines.push(Line {
            what: "held-out accuracy",
            base: share(Some(a.mean_token_accuracy)),
            tuned: share(Some(b.mean_token_accuracy)),
            wanted: matched.same_tokens.then_some((-a.mean_token_accuracy, -b.mean_token_accuracy)),
        });
    }
    if let (Some(a), Some(b)) = (&base.answered, &tuned.answered) {
        let (a, b) = (&a.accuracy, &b.accuracy);
        lines.push(Line {
            what: "right answers",
            base: format!("{} of {}", a.right, a.rows),
            tuned: format!("{} of {}", b.right, b.rows),
            wanted: seen(&differences.accuracy).then_some((-a.accuracy, -b.accuracy)),
        });
    }
    lines
}

fn table(matched: &Matched, differences: &Differences, base: &Side, tuned: &Side) -> String {
    let mut text = format!("{:<20} {:>10}   {:>10}\n", "", "base", "tuned");
    for line in lines(matched, differences, base, tuned) {
        let (left, right) = line.marks();
        let row = format!("{:<20} {:>10}{left:<2} {:>10}{right}", line.what, line.base, line.tuned);
        text += &(row.trim_end().to_owned() + "\n");
    }
    text
}

/// What the table says, and how little.
fn notes(matched: &Matched, differences: &Differences, base: &Side, tuned: &Side) -> Vec<String> {
    let n = matched.prompts.len();
    let mut notes = vec![format!(
        "* the better of the two in this line alone. {n} prompts show a direction, not its size; and longer answers \
         repeat more."
    )];
    if !matched.same_tokens && base.held_out.is_some() {
        let why = "Held-out loss is a mean over tokens, and the two models' tokens differ: these losses cannot be \
                   compared.";
        notes.push(why.to_owned());
    }
    notes.extend(differences.says(base));
    for (name, side) in [("base", base), ("tuned", tuned)] {
        let Some(answered) = &side.answered else { continue };
        notes.push(format!("{name}: {}", answers::lines(&answered.accuracy, &answered.figures()).join("\n")));
    }
    notes
}

/// The whole comparison as one JSON object.
pub fn document(matched: &Matched, exam: Option<&Exam>, base: &Side, tuned: &Side) -> Value {
    let side = |side: &Side| {
        let answers: Vec<Value> = side
            .answers
            .iter()
            .zip(&side.texts)
            .map(|(answer, text)| {
                json!({ "new_ids": answer.ids, "text": text, "stop_reason": answer.stop_reason })
            })
            .collect();
        json!({
            "model": side.model,
            "answers": answers,
            "end_of_turn_rate": side.figures.end_of_turn_rate,
            "mean_new_tokens": side.figures.mean_new_tokens,
            "repetition": side.figures.repetition,
            "held_out": side.held_out,
            "accuracy": side.answered.as_ref().map(|answered| &answered.accuracy),
        })
    };
    json!({
        "prompts": matched.prompts.iter().map(|p| &p.text).collect::<Vec<_>>(),
        "system": matched.system,
        "decoding": matched.decoding,
        "same_template": matched.same_template,
        "same_tokens": matched.same_tokens,
        "held_out_rows": matched.held_out.as_ref().ok().map(|rows| &rows.source),
        "base": side(base),
        "tuned": side(tuned),
        "difference": Differences::new(matched, base, tuned).document(),
        "questions": exam.map(|exam| questions(exam, base, tuned)),
    })
}

/// What each model made of each question.
fn questions(exam: &Exam, base: &Side, tuned: &Side) -> Vec<Value> {
    let of = |side: &Side, i| side.answered.as_ref().map(|answered| answered.document(i));
    let one = |(i, (question, reference)): (usize, &(Question, FinalAnswer))| {
        json!({
            "place": question.place,
            "reference": answers::found(Some(reference)),
            "base": of(base, i),
            "tuned": of(tuned, i),
        })
    };
    exam.questions.iter().enumerate().map(one).collect()
}
