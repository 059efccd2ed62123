//! Share of questions whose answer is the reference's.

use super::{FinalAnswer, Interval, Rule};
use crate::dataset::Question;
use serde::Serialize;
use std::collections::BTreeMap;

/// Questions whose row gives an answer to compare with.
#[derive(Clone, Debug)]
pub struct Exam {
    /// Each with the answer that its row gives.
    pub questions: Vec<(Question, FinalAnswer)>,
    /// Rows that were left out, as they ask nothing or their response holds no answer.
    pub without_reference: usize,
}

impl Exam {
    /// Of `rows` rows, those that are questions.
    pub fn new(rows: usize, questions: Vec<Question>) -> Self {
        let with_answer = |question: Question| {
            let answer = FinalAnswer::find(&question.response)?;
            Some((question, answer))
        };
        let questions: Vec<_> = questions.into_iter().filter_map(with_answer).collect();
        Self { without_reference: rows - questions.len(), questions }
    }

    /// Grades the texts that a model answered with, one a question.
    ///
    /// # Panics
    /// If there are not as many.
    pub fn grade(&self, texts: &[String]) -> Vec<Grade> {
        assert_eq!(texts.len(), self.questions.len(), "a text for each question");
        let grade = |((_, reference), text): (&(_, FinalAnswer), &String)| {
            let found = FinalAnswer::find(text);
            Grade { right: found.as_ref().is_some_and(|found| found.agrees(reference)), found }
        };
        self.questions.iter().zip(texts).map(grade).collect()
    }

    /// Figures about such grades; none for an exam without questions.
    pub fn accuracy(&self, grades: &[Grade]) -> Option<Accuracy> {
        let (rows, right) = (grades.len(), grades.iter().filter(|grade| grade.right).count());
        let found = grades.iter().filter_map(|grade| grade.found.as_ref());
        (rows > 0).then(|| Accuracy {
            rows,
            right,
            accuracy: right as f64 / rows as f64,
            interval: Interval::wilson(right, rows),
            without_reference: self.without_reference,
            reference_rules: count(self.questions.iter().map(|(_, answer)| answer)),
            answer_rules: count(found),
        })
    }
}

/// What became of a question.
#[derive(Clone, Debug)]
pub struct Grade {
    /// The answer found in the model's text.
    pub found: Option<FinalAnswer>,
    /// Whether it is the reference's.
    pub right: bool,
}

/// Figures about the answers to an exam.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Accuracy {
    /// Questions.
    pub rows: usize,
    /// Those whose answer is the reference's.
    pub right: usize,
    /// Their share.
    pub accuracy: f64,
    /// Of that share.
    pub interval: Interval,
    /// As in [`Exam`].
    pub without_reference: usize,
    /// How many references each rule found.
    pub reference_rules: BTreeMap<Rule, usize>,
    /// How many of the model's answers each rule found; what they lack of the rows had none.
    pub answer_rules: BTreeMap<Rule, usize>,
}

fn count<'a>(answers: impl Iterator<Item = &'a FinalAnswer>) -> BTreeMap<Rule, usize> {
    let mut counts = BTreeMap::new();
    answers.for_each(|answer| *counts.entry(answer.rule).or_default() += 1);
    counts
}

/// By how much the accuracy differs over the same questions, `b` less `a`: each sample draws the same ones of both.
///
/// # Panics
/// If they are not as many questions.
pub fn accuracy_difference(a: &[Grade], b: &[Grade]) -> Option<Interval> {
    assert_eq!(a.len(), b.len(), "the same questions");
    Interval::bootstrap(a.len(), |drawn| {
        let differ = |&row: &usize| f64::from(i8::from(b[row].right) - i8::from(a[row].right));
        drawn.iter().map(differ).sum::<f64>() / drawn.len() as f64
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exam_counts_what_it_leaves_out_and_which_rules_fired() {
        let question = |response: &str| Question {
            place: String::new(),
            prompt: vec![1],
            response: response.to_owned(),
        };
        let asked = ["3 + 4 = 7\n#### 7", "no answer", "so 12", "\\boxed{A}"].map(question);
        let exam = Exam::new(6, asked.to_vec());
        assert_eq!((exam.questions.len(), exam.without_reference), (3, 3));
        let texts = ["It is 7.0 then", "nothing", "\\boxed{A}"].map(str::to_owned);
        let grades = exam.grade(&texts);
        assert_eq!(grades.iter().map(|g| g.right).collect::<Vec<_>>(), [true, false, true]);
        let accuracy = exam.accuracy(&grades).unwrap();
        assert_eq!((accuracy.rows, accuracy.right, accuracy.without_reference), (3, 2, 3));
        assert_eq!(accuracy.accuracy, 2.0 / 3.0);
        assert_eq!(accuracy.interval, Interval::wilson(2, 3));
        let rules = |of: &BTreeMap<Rule, usize>| Rule::ALL.map(|rule| of.get(&rule).copied().unwrap_or(0));
        assert_eq!((rules(&accuracy.reference_rules), rules(&accuracy.answer_rules)), ([1, 1, 1], [0, 1, 1]));
        assert!(exam.accuracy(&[]).is_none());
    }

    #[test]
    fn a_difference_of_accuracy_is_paired() {
        let grades = |right: fn(usize) -> bool| -> Vec<Grade> {
            (0..40).map(|i| Grade { found: None, right: right(i) }).collect()
        };
        let (half, other_half, more) = (grades(|i| i < 20), grades(|i| i >= 20), grades(|i| i < 32));
        let same = accuracy_difference(&half, &half).unwrap();
        assert_eq!((same.low, same.high), (0.0, 0.0));
        // As many right, but other ones: nothing is known about the sign.
        let other = accuracy_difference(&half, &other_half).unwrap();
        assert!(other.low < -0.25 && other.high > 0.25, "{other:?}");
        let rise = accuracy_difference(&half, &more).unwrap();
        assert!(!rise.holds_zero() && rise.low > 0.1 && rise.high < 0.5, "{rise:?}");
        assert!((accuracy_difference(&more, &half).unwrap().high + rise.low).abs() < 1e-12);
    }
}
