//! Seeded faults: what people get wrong in kernels, done mechanically to the PTX of real ones at every place where it
//! fits. Each mutant must be found, by a check whose diagnosis names the fault or by its wrong result; those that
//! are not stand in README.md, each with the reason.

mod compile;
mod engine;
mod mutant;
mod operators;
mod sample;
mod small;
mod statement;

use mutant::{Mutant, Text, Verdict};
use sample::Sample;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

fn samples() -> Vec<Sample> {
    small::samples().into_iter().chain(engine::samples()).collect()
}

/// All verdicts, in the order of the mutants.
fn verdicts(sample: &Sample, mutants: &[Mutant]) -> Vec<Verdict> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(mutant) = mutants.get(index) else { break };
            let start = std::time::Instant::now();
            let verdict = mutant.verdict(sample);
            if start.elapsed().as_secs() > 2 { println!("SLOW {:?} {} {} {}", start.elapsed(), mutant.operator.name, mutant.source, mutant.before); }
            done.lock().expect("no panic").push((index, verdict));
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let mut done = done.into_inner().expect("no panic");
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, verdict)| verdict).collect()
}

#[test]
fn every_mutant_is_found() {
    let nvcc = compile::find_nvcc();
    for sample in samples() {
        let start = std::time::Instant::now();
        let text = Text::of(&sample, &nvcc);
        sample.check(&text.lines.join("\n"));
        println!("{} ok {:?}", sample.name, start.elapsed());
        let mutants = text.mutants(&sample);
        for (mutant, verdict) in mutants.iter().zip(verdicts(&sample, &mutants)) {
            let kind = match &verdict { Verdict::Fault(f) => format!("{:?}{} @{}", f.kind, if mutant.is_right(f.kind) {""} else {" WRONG"}, f.ptx_line), v => format!("{v:?}") };
            println!("{} | {} | {} | {} | {} => {} | {kind}", sample.name, mutant.operator.name, mutant.source, mutant.line, mutant.before, mutant.after);
        }
        println!("{} {} mutants {:?}", sample.name, mutants.len(), start.elapsed());
    }
}
