//! What became of the rows of a data set, counted.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};

use super::encode::EncodedRow;
use crate::batch::Origin;

/// First rows of which it is checked that their tokens decode to their text.
pub(super) const ROUND_TRIPS: usize = 1000;

/// Places named of each kind of finding.
const PLACES: usize = 5;

/// Largest lengths of the histogram's bins, in tokens; the last bin holds what is longer.
const BINS: [usize; 10] = [16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192];

/// Counts over one data set. `P` is a place: text for people, an [`Origin`] while the file's name is not known.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Audit<P = String> {
    /// Rows read.
    pub rows: usize,
    /// Rows that became examples: all but the dropped ones.
    pub examples: usize,
    /// Tokens kept of a row.
    pub max_length: usize,
    /// Tokens of all examples.
    pub tokens: usize,
    /// Tokens in the loss.
    pub supervised_tokens: usize,
    /// Share of the tokens that are in the loss.
    pub supervised_share: f64,
    /// Tokens of the longest row before any cut.
    pub longest: usize,
    /// Examples cut to `max_length`.
    pub truncated: usize,
    /// Examples that lost the end of their last turn to the cut: they do not teach the model to stop.
    pub lost_turn_ends: usize,
    /// Examples with the end of a turn among their supervised tokens.
    pub turn_ends: usize,
    /// Rows left out, as no supervised token lay within `max_length`.
    pub dropped: usize,
    /// Rows of which a part, tokenised alone, is not how the whole row begins: the prompt, or an assistant turn with
    /// all before it. The part that differs is supervised.
    pub boundary_mismatches: usize,
    /// Rows with exactly the ids, before any cut, of an earlier row. Compared by the first 64 bits of their SHA-256:
    /// that two of n different rows count as one has a probability below n² / 2⁶⁵.
    pub duplicates: usize,
    /// Conversations among the first 1,000 rows, whose tokens were decoded again.
    pub round_trips: usize,
    /// Those of them that did not give back the text of the template.
    pub round_trip_failures: usize,
    /// Rows by their length in tokens before any cut.
    pub lengths: Vec<LengthBin>,
    /// The first rows of each kind: under `truncated`, `lost_turn_ends`, `dropped`, `boundary_mismatches`,
    /// `duplicates` and `round_trip_failures`.
    pub places: BTreeMap<String, Vec<P>>,
}

/// Rows whose length lies above that of the bin before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LengthBin {
    /// Largest length in tokens; none for the last bin.
    pub up_to: Option<usize>,
    /// Rows.
    pub rows: usize,
}

/// Counts rows as they come.
pub(super) struct Auditor {
    audit: Audit<Origin>,
    /// Fingerprints of the rows so far, 8 bytes each and the table's slack.
    seen: HashSet<u64>,
}

impl Auditor {
    pub fn new(max_length: usize) -> Self {
        let bins = BINS.iter().map(|&n| Some(n)).chain([None]);
        let lengths = bins.map(|up_to| LengthBin { up_to, rows: 0 }).collect();
        Self { audit: Audit { max_length, lengths, ..Audit::default() }, seen: HashSet::new() }
    }

    /// Counts a row. Whether it is an example: something in it is supervised.
    pub fn count(&mut self, row: &EncodedRow, origin: Origin) -> bool {
        let a = &mut self.audit;
        a.rows += 1;
        a.longest = a.longest.max(row.length);
        a.lengths[BINS.partition_point(|&up_to| up_to < row.length)].rows += 1;
        let mut count = |name: &str, number: &mut usize| {
            *number += 1;
            let places = a.places.entry(name.to_owned()).or_default();
            if places.len() < PLACES {
                places.push(origin);
            }
        };
        if row.boundary_mismatch {
            count("boundary_mismatches", &mut a.boundary_mismatches);
        }
        if !self.seen.insert(row.fingerprint) {
            count("duplicates", &mut a.duplicates);
        }
        a.round_trips += usize::from(row.round_trip.is_some());
        if row.round_trip == Some(false) {
            count("round_trip_failures", &mut a.round_trip_failures);
        }
        let supervised = row.num_supervised();
        if supervised == 0 {
            count("dropped", &mut a.dropped);
            return false;
        }
        if row.length > a.max_length {
            count("truncated", &mut a.truncated);
        }
        if row.lost_turn_end {
            count("lost_turn_ends", &mut a.lost_turn_ends);
        }
        a.examples += 1;
        a.turn_ends += usize::from(row.learns_turn_end);
        a.tokens += row.ids.len();
        a.supervised_tokens += supervised;
        true
    }

    pub fn finish(mut self) -> Audit<Origin> {
        let a = &mut self.audit;
        a.supervised_share = if a.tokens == 0 { 0.0 } else { a.supervised_tokens as f64 / a.tokens as f64 };
        self.audit
    }
}

impl Audit<Origin> {
    /// With its places as text.
    pub(super) fn placed(self, place: impl Fn(Origin) -> String) -> Audit {
        let named =
            |(kind, origins): (String, Vec<Origin>)| (kind, origins.into_iter().map(&place).collect());
        Audit {
            places: self.places.into_iter().map(named).collect(),
            rows: self.rows,
            examples: self.examples,
            max_length: self.max_length,
            tokens: self.tokens,
            supervised_tokens: self.supervised_tokens,
            supervised_share: self.supervised_share,
            longest: self.longest,
            truncated: self.truncated,
            lost_turn_ends: self.lost_turn_ends,
            turn_ends: self.turn_ends,
            dropped: self.dropped,
            boundary_mismatches: self.boundary_mismatches,
            duplicates: self.duplicates,
            round_trips: self.round_trips,
            round_trip_failures: self.round_trip_failures,
            lengths: self.lengths,
        }
    }
}
