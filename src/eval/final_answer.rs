//! The answer that a piece of reasoning ends in.

use super::number::{Number, Text};
use serde::Serialize;

/// What marked an answer as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Rule {
    /// `#### 72`, as GSM8K has it: the last such line.
    #[serde(rename = "####")]
    Hashes,
    /// `\boxed{72}`: the last one.
    #[serde(rename = "\\boxed")]
    Boxed,
    /// Nothing; the last number of the text was taken.
    #[serde(rename = "last number")]
    LastNumber,
}

impl Rule {
    /// Every rule, the first that finds something having its way.
    pub const ALL: [Self; 3] = [Self::Hashes, Self::Boxed, Self::LastNumber];
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Hashes => "####",
            Self::Boxed => "\\boxed",
            Self::LastNumber => "last number",
        })
    }
}

/// An answer found in a text.
#[derive(Clone, Debug)]
pub struct FinalAnswer {
    /// How it was found.
    pub rule: Rule,
    /// As it stands there, but for the ways to write a minus or a space.
    pub text: String,
    /// None for one that is no number.
    number: Option<Number>,
}

impl FinalAnswer {
    /// That of `text`, where there is any.
    pub fn find(text: &str) -> Option<Self> {
        hashes(text).or_else(|| boxed(text)).or_else(|| {
            let text = Text::new(text);
            let (number, at) = text.last_number()?;
            Some(Self { rule: Rule::LastNumber, text: text.slice(at), number: Some(number) })
        })
    }

    /// The same answer: numbers by their exact value, anything else letter by letter.
    pub fn agrees(&self, other: &Self) -> bool {
        match (&self.number, &other.number) {
            (Some(a), Some(b)) => a == b,
            (None, None) => self.text == other.text,
            _ => false,
        }
    }
}

/// The last line with `####` and a number, behind which there may be a unit, but neither a heading (`#### 1. First`) nor a
/// calculation.
fn hashes(text: &str) -> Option<FinalAnswer> {
    text.lines().rev().find_map(|line| {
        let rest =
            line[line.find("####")?..].trim_start_matches('#').trim_start_matches([' ', '\t', '*', '`']);
        let text = Text::new(rest);
        let (number, at) = text.number_at(0)?;
        let behind = text.slice(at.end..text.len());
        let behind = behind.trim();
        let is_heading = behind.len() > 1 && behind.starts_with(['.', ')', ':']);
        let calculates = behind.contains(|c: char| c.is_ascii_digit());
        let answer = FinalAnswer { rule: Rule::Hashes, text: text.slice(at), number: Some(number) };
        (!is_heading && !calculates).then_some(answer)
    })
}

/// The content of the last `\boxed{…}` that is closed.
fn boxed(text: &str) -> Option<FinalAnswer> {
    let content = last_box(text)?.trim();
    // One word in \text{…}.
    let word = content.strip_prefix("\\text{").and_then(|rest| rest.strip_suffix('}'));
    let content = word.filter(|word| !word.contains(['{', '}'])).map_or(content, str::trim);
    let as_text = || FinalAnswer { rule: Rule::Boxed, text: content.to_owned(), number: None };
    Some(whole_number(content).unwrap_or_else(as_text))
}

fn last_box(text: &str) -> Option<&str> {
    // Of each open brace, where the box begins that it opens.
    let (mut open, mut escaped) = (Vec::new(), false);
    let mut last: Option<(usize, usize)> = None;
    for (at, c) in text.char_indices() {
        match c {
            '{' if !escaped => open.push(text[..at].ends_with("\\boxed").then_some(at + 1)),
            '}' if !escaped => {
                let start = open.pop().flatten();
                last = start.map(|start| (start, at)).max(last);
            }
            _ => {}
        }
        escaped = c == '\\' && !escaped;
    }
    last.map(|(start, end)| &text[start..end])
}

/// A number with at most a unit in LaTeX, or a full stop, behind it.
fn whole_number(content: &str) -> Option<FinalAnswer> {
    const UNITS: [&str; 4] = ["\\text", "\\mathrm", "^\\circ", "^{\\circ}"];
    let text = Text::new(content);
    let (number, at) = text.number_at(0)?;
    let behind = text.slice(at.end..text.len());
    let behind = behind.trim_matches(|c: char| c.is_whitespace() || c == '~');
    let whole = matches!(behind, "" | ".") || UNITS.iter().any(|unit| behind.starts_with(unit));
    whole.then(|| FinalAnswer { rule: Rule::Boxed, text: text.slice(at), number: Some(number) })
}
