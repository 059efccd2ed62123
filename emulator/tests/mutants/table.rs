//! The tables of README.md: what was found and how, and what was not.

use super::mutant::{Mutant, Verdict};
use super::operators::OPERATORS;
use std::collections::BTreeMap;

/// Counts of all samples.
#[derive(Default)]
pub struct Tables {
    /// By operator: how often each verdict was given.
    verdicts: BTreeMap<&'static str, BTreeMap<String, usize>>,
    /// Sample, operator and source line.
    survivors: BTreeMap<String, usize>,
}

impl Tables {
    /// Adds one.
    pub fn add(&mut self, sample: &str, mutant: &Mutant, verdict: &Verdict) {
        let name = match verdict {
            Verdict::Fault(fault) => format!("{:?}", fault.kind),
            Verdict::Numbers => "wrong result".to_owned(),
            Verdict::Survived => "survived".to_owned(),
        };
        let operator = mutant.operator.name;
        *self.verdicts.entry(operator).or_default().entry(name).or_default() += 1;
        if let Verdict::Survived = verdict {
            let source = mutant.source.replace('|', "\\|");
            *self.survivors.entry(format!("| {sample} | {operator} | `{source}`")).or_default() += 1;
        }
    }

    /// A row per operator.
    pub fn summary(&self) -> Vec<String> {
        let row = |name: &str, verdicts: &BTreeMap<String, usize>| {
            let of = |which: &str| verdicts.get(which).copied().unwrap_or(0);
            let faults = verdicts.iter().filter(|(kind, _)| kind.starts_with(char::is_uppercase));
            let faults: Vec<String> = faults.map(|(kind, count)| format!("{count} {kind}")).collect();
            let all: usize = verdicts.values().sum();
            let (result, survived) = (of("wrong result"), of("survived"));
            format!("| {name} | {all} | {} | {result} | {survived} |", faults.join(", "))
        };
        let mut total = BTreeMap::new();
        for (kind, count) in self.verdicts.values().flatten() {
            *total.entry(kind.clone()).or_default() += count;
        }
        let known = OPERATORS.iter().filter_map(|o| Some(row(o.name, self.verdicts.get(o.name)?)));
        known.chain([row("all", &total)]).collect()
    }

    /// A row per sample, operator and source line of what survived, with the reason that stands in `readme`.
    pub fn survivors(&self, readme: &str) -> Vec<String> {
        let reason = |row: &str| {
            let found = readme.lines().find(|line| line.starts_with(row));
            found
                .and_then(|line| line.strip_suffix(" |")?.rsplit_once(" | "))
                .map_or("", |(_, reason)| reason)
        };
        let row = |(place, count): (&String, &usize)| {
            let reason = reason(&format!("{place} | "));
            format!("{place} | {count} | {reason} |")
        };
        self.survivors.iter().map(row).collect()
    }
}
