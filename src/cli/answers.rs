//! Answers to prompts and to the questions of a data set, for `eval` and `compare`.

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use smolten::backend::Backend;
use smolten::batch::Examples;
use smolten::dataset::DataSource;
use smolten::error::{Error, Result};
use smolten::eval::{Accuracy, AnswerFigures, Exam, FinalAnswer, Grade, Rule};
use smolten::generate::{Answer, BatchDecoder, Continuation};
use smolten::model::Model;
use smolten::pretrained::Pretrained;
use smolten::recipe::Recipe;
use smolten::template::ChatTemplate;
use smolten::trainer::load_questions;

/// Answers every prompt, with a bar on standard error where that is a terminal.
pub fn all(
    model: &Model,
    backend: &mut dyn Backend,
    decoder: &BatchDecoder,
    prompts: &[Vec<u32>],
    how: &Continuation<'_>,
    name: &str,
) -> Result<Vec<Answer>> {
    let style = ProgressStyle::with_template("{msg}: {pos} tokens, {per_sec}").expect("well formed");
    let bar = ProgressBar::no_length().with_style(style);
    bar.set_message(format!("{name}: {} answers", prompts.len()));
    let answers = decoder.generate(model, backend, prompts, how, || bar.inc(1))?;
    bar.finish_and_clear();
    Ok(answers)
}

/// The first `most` of these examples as questions, in the tokens of `pretrained`.
pub fn exam(
    recipe: &Recipe,
    source: &DataSource,
    pretrained: &Pretrained,
    template: &ChatTemplate,
    (examples, indices): (&Examples, &[usize]),
    most: usize,
) -> Result<Exam> {
    let rows = &indices[..most.min(indices.len())];
    let origins: Vec<_> = rows.iter().map(|&i| examples.origin(i)).collect();
    let exam = Exam::new(rows.len(), load_questions(recipe, source, pretrained, template, &origins)?);
    if exam.questions.is_empty() {
        let found = format!("none of the {} rows has a question and an answer to compare with", rows.len());
        let remedy = "name rows whose response ends in `#### 72`, \\boxed{72}, or a number";
        return Err(Error::input(format!("--answers, of {}", source.name), found, remedy));
    }
    let limit = pretrained.config.max_position_embeddings;
    if let Some((question, _)) = exam.questions.iter().find(|(q, _)| q.prompt.len() >= limit) {
        let found =
            format!("a prompt of {} tokens, and the model's context holds {limit}", question.prompt.len());
        return Err(Error::input(&question.place, found, "shorten this row, or take it out"));
    }
    Ok(exam)
}

/// The prompts of an exam.
pub fn prompts(exam: &Exam) -> Vec<Vec<u32>> {
    exam.questions.iter().map(|(question, _)| question.prompt.clone()).collect()
}

/// For people, a line each.
pub fn lines(accuracy: &Accuracy, figures: &AnswerFigures) -> Vec<String> {
    let Accuracy { rows, right, interval, .. } = accuracy;
    let percent = |share: f64| format!("{:.1}", 100.0 * share);
    let rules = |of: &std::collections::BTreeMap<Rule, usize>| {
        let named = Rule::ALL.iter().filter_map(|rule| Some(format!("{rule} {}", of.get(rule)?)));
        named.collect::<Vec<_>>().join(", ")
    };
    let found: usize = accuracy.answer_rules.values().sum();
    let mut lines = vec![
        format!(
            "right answers: {right} of {rows}, {} % (95 % interval {} to {} %, Wilson)",
            percent(accuracy.accuracy),
            percent(interval.low),
            percent(interval.high)
        ),
        format!("  references found by: {}", rules(&accuracy.reference_rules)),
        format!("  the model's by: {}", rules(&accuracy.answer_rules)),
    ];
    if found < *rows {
        lines[2] += &format!("{}none {}", if found > 0 { ", " } else { "" }, rows - found);
    }
    if accuracy.without_reference > 0 {
        lines.push(format!(
            "  left out: {} rows without a question or an answer to compare with",
            accuracy.without_reference
        ));
    }
    lines.push(format!(
        "  ended the turn: {:.0} of {rows}; mean new tokens: {:.1}; repeated 4-grams: {}",
        figures.end_of_turn_rate * *rows as f64,
        figures.mean_new_tokens,
        figures.repetition.map_or("-".to_owned(), |share| percent(share) + " %"),
    ));
    lines
}

/// A model's answers to an exam.
pub struct Answered {
    /// Its answers as tokens.
    answers: Vec<Answer>,
    /// The same as text.
    texts: Vec<String>,
    /// What became of each question.
    pub grades: Vec<Grade>,
    /// Figures about them.
    pub accuracy: Accuracy,
}

impl Answered {
    /// Grades the answers, one to each question.
    pub fn new(exam: &Exam, answers: Vec<Answer>, pretrained: &Pretrained) -> Result<Self> {
        let texts = answers.iter().map(|a| pretrained.tokenizer.decode(&a.ids, true));
        let texts = texts.collect::<Result<Vec<String>>>()?;
        let grades = exam.grade(&texts);
        let accuracy = exam.accuracy(&grades).expect("an exam has questions");
        Ok(Self { answers, texts, grades, accuracy })
    }

    /// Figures about the answers as texts.
    pub fn figures(&self) -> AnswerFigures {
        AnswerFigures::new(&self.answers)
    }

    /// What became of question `i`, as JSON.
    pub fn document(&self, i: usize) -> Value {
        let mut found = found(self.grades[i].found.as_ref());
        found["right"] = self.grades[i].right.into();
        found["text"] = json!(self.texts[i]);
        found["stop_reason"] = json!(self.answers[i].stop_reason);
        found
    }
}

/// An answer and what marked it as one, as JSON.
pub fn found(answer: Option<&FinalAnswer>) -> Value {
    json!({ "answer": answer.map(|a| &a.text), "rule": answer.map(|a| a.rule) })
}
