//! What of an audit stops a run, in words.

use super::Audit;
use crate::error::{Error, Result};
use crate::recipe::Finding;

impl Audit {
    /// What of the data would most likely spoil a run: each finding with its counts, its first places and what to do.
    pub fn findings(&self) -> Vec<(Finding, String)> {
        let single = [
            (
                self.turn_ends == 0,
                Finding::NoTurnEnd,
                format!(
                    "none of the {} examples has the end of a turn among its learnt tokens, so the model would not \
                     learn to stop: raise --max-length where rows are cut ({} are), or correct the chat template",
                    self.examples, self.truncated
                ),
            ),
            (
                2 * self.round_trip_failures > self.round_trips,
                Finding::TemplateRoundTrip,
                format!(
                    "{} of the first {} conversations do not decode to the text the template wrote{}: the tokenizer \
                     changes that text; clean those rows, or take tokenizer and template from one model",
                    self.round_trip_failures,
                    self.round_trips,
                    self.places_of("round_trip_failures", self.round_trip_failures)
                ),
            ),
        ];
        let mut all: Vec<_> = single.into_iter().chain(self.of_most_rows()).collect();
        all.retain(|(holds, ..)| *holds);
        all.into_iter().map(|(_, finding, text)| (finding, text)).collect()
    }

    /// Findings that hold when more than half of the rows are of that kind, and whether they do.
    fn of_most_rows(&self) -> [(bool, Finding, String); 4] {
        let Self { rows, max_length, .. } = self;
        let most = |n: usize| 2 * n > self.rows;
        [
            (
                most(self.lost_turn_ends),
                Finding::LostTurnEnds,
                format!(
                    "{} of {rows} rows lost the end of their last turn to the cut at {max_length} tokens{}: raise \
                     --max-length (the longest row has {}), or shorten the rows",
                    self.lost_turn_ends,
                    self.places_of("lost_turn_ends", self.lost_turn_ends),
                    self.longest
                ),
            ),
            (
                most(self.dropped),
                Finding::DroppedRows,
                format!(
                    "{} of {rows} rows have nothing to learn within their first {max_length} tokens and are left \
                     out{}: raise --max-length (the longest row has {}), or shorten their prompts",
                    self.dropped,
                    self.places_of("dropped", self.dropped),
                    self.longest
                ),
            ),
            (
                most(self.duplicates),
                Finding::Duplicates,
                format!(
                    "{} of {rows} rows are copies of an earlier row{}: take the copies out; --epochs repeats rows \
                     better",
                    self.duplicates,
                    self.places_of("duplicates", self.duplicates)
                ),
            ),
            (
                most(self.boundary_mismatches),
                Finding::BoundaryMismatches,
                format!(
                    "{} of {rows} rows are tokenised differently where a turn's answer begins{}, so the model would \
                     learn from a prompt it never gets: take white space off the responses' starts, or use a chat \
                     template that ends the generation prompt at a token's end",
                    self.boundary_mismatches,
                    self.places_of("boundary_mismatches", self.boundary_mismatches)
                ),
            ),
        ]
    }

    /// ` (rows.jsonl:3, rows.jsonl:8, …)`: the first of `count` places.
    fn places_of(&self, kind: &str, count: usize) -> String {
        let places = self.places.get(kind).map_or(&[][..], Vec::as_slice);
        let more = if count > places.len() { ", …" } else { "" };
        if places.is_empty() { String::new() } else { format!(" ({}{more})", places.join(", ")) }
    }

    /// Refuses data with findings that are not in `allow`.
    ///
    /// # Errors
    /// [`Error::Input`] that names the findings, their counts and places, and how to go on all the same.
    pub fn refuse(&self, allow: &[Finding]) -> Result<()> {
        let refused: Vec<_> = self.findings().into_iter().filter(|(f, _)| !allow.contains(f)).collect();
        if refused.is_empty() {
            return Ok(());
        }
        let named: Vec<String> = refused.iter().map(|(finding, _)| word(*finding)).collect();
        let found: Vec<&str> = refused.iter().map(|(_, text)| text.as_str()).collect();
        // `--set allow` replaces the list, so what was allowed before is named again.
        let words = allow.iter().map(|f| word(*f)).chain(named.iter().cloned());
        let list: Vec<String> = words.map(|word| format!("\"{word}\"")).collect();
        Err(Error::input(
            format!("data audit, {}", named.join(", ")),
            found.join("\n  "),
            format!("or go on all the same with --set allow='[{}]'", list.join(", ")),
        ))
    }
}

/// The word of a finding in a recipe.
fn word(finding: Finding) -> String {
    let value = serde_json::to_value(finding).expect("a unit variant");
    value.as_str().expect("a word").to_owned()
}
