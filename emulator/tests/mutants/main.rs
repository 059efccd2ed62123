//! Seeded faults: what people get wrong in kernels, done mechanically to the PTX of real ones at every place where it
//! fits. Each mutant must be found, by a check whose diagnosis names the fault or by its wrong result; those that
//! are not stand in README.md, each with the reason.

mod adamw;
mod adapter;
mod attention;
mod attention_backward;
mod compile;
mod engine;
mod head;
mod layers;
mod mutant;
mod near;
mod operators;
mod products;
mod sample;
mod small;
mod statement;
mod table;
mod values;

use mutant::{Mutant, Text, Verdict};
use sample::Sample;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use table::Tables;

/// All verdicts, in the order of the mutants.
fn verdicts(sample: &Sample, text: &Text, mutants: &[Mutant]) -> Vec<Verdict> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(mutant) = mutants.get(index) else { break };
            let verdict = mutant.verdict(sample, text);
            done.lock().expect("no worker panics with the lock").push((index, verdict));
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let mut done = done.into_inner().expect("no worker panicked");
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, verdict)| verdict).collect()
}

/// Rows and order of the tables are those of README.md, and every survivor has its reason there.
fn compare(tables: &Tables) {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mutants/README.md");
    let readme = std::fs::read_to_string(readme).expect("README.md is beside this file");
    let survivors = tables.survivors(&readme);
    let (summary, shares) = (tables.summary().join("\n"), tables.shares(&survivors).join("\n"));
    let survivors = survivors.join("\n");
    println!("{summary}\n{shares}");
    let new = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mutants.md");
    std::fs::write(&new, format!("{summary}\n\n{shares}\n\n{survivors}\n")).expect("a writable folder");
    let new = new.display();
    for table in [&summary, &shares] {
        assert!(readme.contains(table), "a table of README.md is another now, see {new}");
    }
    assert!(
        readme.ends_with(&format!("\n{survivors}\n")),
        "other mutants survive than README.md says, see {new}"
    );
    let bare = survivors.lines().find(|row| row.ends_with(" |  |"));
    assert!(bare.is_none(), "a survivor without a reason: {bare:?}");
}

#[test]
fn every_mutant_is_found() {
    let nvcc = compile::find_nvcc();
    let mut compiled = BTreeMap::new();
    let only = std::env::var("MUTANTS_OF").ok(); // part of a sample's name
    let mut tables = Tables::default();
    let mut complaints = Vec::new();
    let all = [
        small::samples,
        engine::samples,
        adamw::samples,
        adapter::samples,
        attention::samples,
        attention_backward::samples,
        layers::samples,
        head::samples,
        products::samples,
    ];
    for sample in all.iter().flat_map(|samples| samples()) {
        if only.as_ref().is_some_and(|only| !sample.name.contains(only)) {
            continue;
        }
        let file = (sample.file, sample.target);
        let ptx = compiled.entry(file).or_insert_with(|| compile::compile(&nvcc, file.0, file.1));
        let text = Text::of(&sample, ptx);
        sample.check(&text.lines.join("\n"));
        let mutants = text.mutants(&sample);
        let verdicts = verdicts(&sample, &text, &mutants);
        tables.add_all(&sample, &mutants, &verdicts);
        for (mutant, verdict) in mutants.iter().zip(&verdicts) {
            complaints.extend(mutant.complaint(verdict).map(|text| format!("{}, {text}", sample.name)));
            if only.is_some() && matches!(verdict, Verdict::Survived) {
                println!("{}", mutant.survived(sample.name));
            }
        }
    }
    assert!(complaints.is_empty(), "{} complaints:\n{}", complaints.len(), complaints.join("\n"));
    if only.is_some() {
        println!("{}", tables.summary().join("\n"));
    } else if compile::version(&nvcc) == compile::VERSION {
        compare(&tables);
    } else {
        println!("this nvcc is not {}: its survivors are not compared with README.md", compile::VERSION);
    }
}
