//! An audit as lines for people.

use super::Audit;
use serde::Serialize;

/// A count of an audit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Count {
    /// What was counted.
    pub what: &'static str,
    /// How many.
    pub count: usize,
    /// Its unit, or its share of what it is a part of.
    pub note: String,
    /// The first places.
    pub places: Vec<String>,
}

/// Rows of a length.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Lengths {
    /// `17 to 32`, in tokens.
    pub range: String,
    /// Rows.
    pub rows: usize,
    /// Whether all of them are longer than what is kept of a row.
    pub cut: bool,
}

impl Audit {
    /// Every count, in the order of a row's way.
    pub fn counts(&self) -> Vec<Count> {
        let share = |part: usize, of: usize| match of {
            0 => String::new(),
            of => format!("{:.1} %", 100.0 * part as f64 / of as f64),
        };
        let checked = format!("of {} checked", self.round_trips);
        let rows = self.rows;
        let mismatches = self.boundary_mismatches;
        [
            ("rows", rows, String::new(), ""),
            ("examples", self.examples, share(self.examples, rows), ""),
            ("tokens of the examples", self.tokens, String::new(), ""),
            ("supervised tokens", self.supervised_tokens, share(self.supervised_tokens, self.tokens), ""),
            ("longest row", self.longest, "tokens".to_owned(), ""),
            ("cut to --max-length", self.truncated, share(self.truncated, rows), "truncated"),
            (
                "lost the end of a turn",
                self.lost_turn_ends,
                share(self.lost_turn_ends, rows),
                "lost_turn_ends",
            ),
            ("learn the end of a turn", self.turn_ends, share(self.turn_ends, rows), ""),
            ("dropped: nothing to learn", self.dropped, share(self.dropped, rows), "dropped"),
            ("duplicates", self.duplicates, share(self.duplicates, rows), "duplicates"),
            ("boundary mismatches", mismatches, share(mismatches, rows), "boundary_mismatches"),
            ("template round trip fails", self.round_trip_failures, checked, "round_trip_failures"),
        ]
        .map(|(what, count, note, kind)| {
            let places = self.places.get(kind).cloned().unwrap_or_default();
            Count { what, count, note, places }
        })
        .into()
    }

    /// The histogram from the first length that rows have to the last.
    pub fn histogram(&self) -> Vec<Lengths> {
        let holds = |bin: &super::LengthBin| bin.rows > 0;
        let first = self.lengths.iter().position(holds).unwrap_or(0);
        let last = self.lengths.iter().rposition(holds).unwrap_or(0);
        let line = |(i, bin): (usize, &super::LengthBin)| {
            let above = i.checked_sub(1).and_then(|i| self.lengths[i].up_to).unwrap_or(0);
            let range = match bin.up_to {
                Some(up_to) => format!("{} to {up_to}", if i == 0 { 0 } else { above + 1 }),
                None => format!("above {above}"),
            };
            Lengths { range, rows: bin.rows, cut: i > 0 && above >= self.max_length }
        };
        self.lengths.iter().enumerate().take(last + 1).skip(first).map(line).collect()
    }
}
