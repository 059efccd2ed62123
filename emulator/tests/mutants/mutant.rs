//! All mutants of a sample, and what the emulator says of each.

use super::compile;
use super::operators::{Edit, OPERATORS, Operator};
use super::sample::{Loaded, ORDERS, Sample};
use cuda_emulator::fault::Fault;
use cuda_emulator::ptx::{self, ast};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// One changed place.
pub struct Mutant<'a> {
    /// What is wrong with it.
    pub operator: &'a Operator,
    /// Line of the PTX, from 1; 0 for the launch.
    pub line: u32,
    /// Source text of the line.
    pub source: String,
    /// What the line was.
    pub before: String,
    /// What it is now.
    pub after: String,
    edits: Vec<Edit>,
    /// Bytes of shared memory too few at the launch.
    less: u32,
}

/// How a mutant ended.
#[derive(Debug)]
pub enum Verdict {
    /// A check found it.
    Fault(Box<Fault>),
    /// The result is wrong in some order.
    Numbers,
    /// Neither.
    Survived,
}

/// The PTX of a sample's kernels, with the source text of every line.
pub struct Text {
    /// Of the kernels that are launched.
    pub lines: Vec<String>,
    sources: BTreeMap<u32, String>,
    /// Lines that belong to an instantiation that is left as it is.
    left: BTreeSet<u32>,
}

impl Text {
    /// What concerns a sample of all that its file was compiled to.
    pub fn of(sample: &Sample, ptx: &str) -> Self {
        let lines = compile::keep(ptx, &sample.kernels());
        let tree = ptx::parse(&lines.join("\n")).unwrap_or_else(|e| panic!("{}: {e}", sample.name));
        let (root, mut files) = (compile::root(), BTreeMap::new());
        for (index, name) in &tree.files {
            let ours =
                ["kernels", "emulator"].iter().any(|folder| Path::new(name).starts_with(root.join(folder)));
            if ours {
                let text = fs::read_to_string(name).expect("nvcc read it, too");
                files.insert(*index, text.lines().map(|line| line.trim().to_owned()).collect());
            }
        }
        let (mut sources, mut left) = (BTreeMap::new(), BTreeSet::new());
        // Instructions that belong to no line, or to no instantiation, are taken to belong to that of the one before.
        let (mut source, mut is_left) = (None, false);
        for instruction in tree.functions.iter().flat_map(|function| &function.instructions) {
            let lines = source_lines(&files, instruction.location.as_ref());
            is_left = lines.iter().find_map(|line| is_left_by(sample, line)).unwrap_or(is_left);
            source = lines.into_iter().next().or(source);
            sources.extend(source.clone().map(|source| (instruction.line, source)));
            if is_left {
                left.insert(instruction.line);
            }
        }
        Self { lines, sources, left }
    }

    /// Every operator at every place.
    pub fn mutants(&self, sample: &Sample) -> Vec<Mutant<'static>> {
        let mut mutants = Vec::new();
        for operator in OPERATORS {
            let changed = |at: &usize| !self.left.contains(&number(*at));
            let mut copies: BTreeMap<String, usize> = BTreeMap::new();
            for at in (0..self.lines.len()).filter(changed) {
                for edits in (operator.apply)(&self.lines, at, sample.stage) {
                    let mutant = self.mutant(operator, at, edits);
                    let copy = copies.entry(mutant.source.clone()).or_default();
                    *copy += 1;
                    if *copy <= operator.copies {
                        mutants.push(mutant);
                    }
                }
            }
        }
        let smaller = OPERATORS.iter().find(|operator| operator.name == "shared memory too small");
        let dynamic = sample.cases[0].launches.iter().any(|launched| launched.shared > 0);
        for less in [Some(4), sample.stage].into_iter().flatten().filter(|_| dynamic) {
            mutants.push(Mutant {
                operator: smaller.expect("it is there"),
                line: 0,
                source: "the launch".to_owned(),
                before: "the launch".to_owned(),
                after: format!("{less} bytes less at the launch"),
                edits: vec![],
                less,
            });
        }
        mutants
    }

    fn mutant(&self, operator: &'static Operator, at: usize, edits: Vec<Edit>) -> Mutant<'static> {
        let line = number(at);
        let after: Vec<&str> = edits.iter().map(|(_, text)| text.as_str()).collect();
        Mutant {
            operator,
            line,
            source: self.sources.get(&line).cloned().unwrap_or_else(|| "a declaration".to_owned()),
            before: self.lines[at].trim().replace('\t', ""),
            after: after.join(" / "),
            edits,
            less: 0,
        }
    }

    fn edited(&self, edits: &[Edit]) -> String {
        let mut lines: Vec<&str> = self.lines.iter().map(String::as_str).collect();
        edits.iter().for_each(|(line, text)| lines[*line] = text);
        lines.join("\n")
    }
}

/// Of a line by its index.
fn number(at: usize) -> u32 {
    u32::try_from(at + 1).expect("few lines")
}

/// Of a source line that calls an instantiation: whether it is one that is left as it is.
fn is_left_by(sample: &Sample, line: &str) -> Option<bool> {
    let [call, kept] = sample.kept?;
    Some(!line.split_once(call)?.1.starts_with(kept))
}

/// The lines of sources of ours that an instruction comes from, from the innermost one on.
fn source_lines(files: &BTreeMap<u32, Vec<String>>, location: Option<&ast::Location>) -> Vec<String> {
    let all = std::iter::successors(location, |location| location.inlined_at.as_deref());
    let text = |location: &ast::Location| {
        files.get(&location.file)?.get((location.line as usize).checked_sub(1)?).cloned()
    };
    all.filter_map(text).collect()
}

impl Mutant<'_> {
    /// Executes it in one order after the other, until a check finds it; or a wrong result, where that is right.
    pub fn verdict(&self, sample: &Sample, text: &Text) -> Verdict {
        let loaded = Loaded::new(&text.edited(&self.edits));
        let mut verdict = Verdict::Survived;
        for order in ORDERS {
            match loaded.run(sample, self.less, order, self.operator.numbers) {
                Err(fault) => return Verdict::Fault(fault),
                Ok(true) => {}
                Ok(false) if self.operator.numbers => return Verdict::Numbers,
                Ok(false) => verdict = Verdict::Numbers,
            }
        }
        verdict
    }

    /// Which one it is that was not found.
    pub fn survived(&self, sample: &str) -> String {
        let Self { operator, line, source, before, after, .. } = self;
        format!("{sample}, {}: {source}\n    line {line}: {before}\n    became {after}", operator.name)
    }

    /// What is wrong with a verdict, if it is not a right one.
    pub fn complaint(&self, verdict: &Verdict) -> Option<String> {
        let Self { operator, line, source, before, after, .. } = self;
        let complaint = match verdict {
            Verdict::Survived => return None,
            Verdict::Numbers if operator.numbers => return None,
            Verdict::Numbers => "found by its wrong result only".to_owned(),
            Verdict::Fault(fault) => {
                let here = !operator.at_its_place || fault.ptx_line == *line;
                if operator.right.contains(&fault.kind) && here {
                    return None;
                }
                format!("the wrong diagnosis: {fault}")
            }
        };
        Some(format!(
            "{}: {source}\n    line {line}: {before}\n    became {after}\n    {complaint}",
            operator.name
        ))
    }
}
