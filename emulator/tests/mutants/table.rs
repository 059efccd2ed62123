//! The tables of README.md: what was found and how, and what was not.

use super::mutant::{Mutant, Verdict};
use super::operators::OPERATORS;
use super::sample::Sample;
use std::collections::BTreeMap;

/// How the reason begins where a survivor is a fault.
const MISSED: &str = "**Missed";

/// In per cent, rounded down.
fn share(part: usize, all: usize) -> String {
    let thousandths = part * 1000 / all;
    format!("{}.{} %", thousandths / 10, thousandths % 10)
}

/// Counts of all samples.
#[derive(Default)]
pub struct Tables {
    /// By operator: how often each verdict was given.
    verdicts: BTreeMap<&'static str, BTreeMap<String, usize>>,
    /// Sample, operator and source line.
    survivors: BTreeMap<String, usize>,
    /// In order: name, whether its kernels are the engine's production rung, mutants, survivors.
    samples: Vec<(&'static str, bool, usize, usize)>,
}

impl Tables {
    /// Adds all of a sample.
    pub fn add_all(&mut self, sample: &Sample, mutants: &[Mutant], verdicts: &[Verdict]) {
        mutants.iter().zip(verdicts).for_each(|(mutant, verdict)| self.add(sample.name, mutant, verdict));
        let survived = verdicts.iter().filter(|verdict| matches!(verdict, Verdict::Survived)).count();
        self.samples.push((sample.name, sample.is_production(), mutants.len(), survived));
    }

    fn add(&mut self, sample: &str, mutant: &Mutant, verdict: &Verdict) {
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

    /// A row per sample, and one of the engine's production kernels: mutants, survivors, those of them that are faults, and
    /// the shares that were found, of all and of the faults. `survivors` are the rows of those, with reasons.
    pub fn shares(&self, survivors: &[String]) -> Vec<String> {
        let missed = |sample: &str| {
            let rows = survivors.iter().filter(|row| row.starts_with(&format!("| {sample} |")));
            let count = |row: &String| {
                let (place, reason) = row.rsplit_once(" | ")?;
                let count = place.rsplit_once(" | ")?.1.parse::<usize>().ok()?;
                reason.starts_with(MISSED).then_some(count)
            };
            rows.filter_map(count).sum::<usize>()
        };
        let row = |name: &str, all: usize, survived: usize, missed: usize| {
            let (of_all, of_faults) =
                (share(all - survived, all), share(all - survived, all - survived + missed));
            format!("| {name} | {all} | {survived} | {missed} | {of_all} | {of_faults} |")
        };
        let mut total = (0, 0, 0);
        for &(name, is_production, all, survived) in &self.samples {
            if is_production {
                total = (total.0 + all, total.1 + survived, total.2 + missed(name));
            }
        }
        let rows =
            self.samples.iter().map(|&(name, _, all, survived)| row(name, all, survived, missed(name)));
        rows.chain([row("production kernels", total.0, total.1, total.2)]).collect()
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
