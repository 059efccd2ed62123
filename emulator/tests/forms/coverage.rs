//! No form decodes that is not tested: every word that the decoder knows is tried as an opcode, as a type, and as one
//! more modifier of every tested form's shortest relatives.

use crate::grammar::{Form, expand};
use crate::harness::Device;
use crate::registers::{REGISTERS, text};
use crate::{atomic, barrier, collective, control, copy, matrix, memory, table};
use std::collections::{BTreeMap, BTreeSet};

const SOURCES: [&str; 11] = [
    include_str!("../../src/program/alu.rs"),
    include_str!("../../src/program/arithmetic.rs"),
    include_str!("../../src/program/compare.rs"),
    include_str!("../../src/program/convert.rs"),
    include_str!("../../src/program/lanes.rs"),
    include_str!("../../src/program/lower.rs"),
    include_str!("../../src/program/memory.rs"),
    include_str!("../../src/program/sync.rs"),
    include_str!("../../src/program/words.rs"),
    include_str!("../../src/numeric/convert.rs"),
    include_str!("../../src/numeric/compare.rs"),
];

const TYPES: [&str; 21] = [
    "pred", "b8", "u8", "s8", "b16", "u16", "s16", "b32", "u32", "s32", "b64", "u64", "s64", "f16", "bf16",
    "f16x2", "bf16x2", "f32", "f64", "tf32", "b128",
];

/// What [`control`] and [`copy`] test besides their lines, and member masks that would leave lanes out.
const OTHERS: &[&str] = &[
    "{ret,exit,trap,brkpt,cp.async.commit_group,cp.async.wait_all}",
    "cp.async.wait_group {#0,#1}",
    "bar.warp.sync {#0,#15}",
];

/// The string literals of the decoder.
fn literals() -> BTreeSet<&'static str> {
    let literal = |part: &'static str| {
        let word =
            !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':');
        word.then_some(part)
    };
    SOURCES.iter().flat_map(|source| source.split('"').skip(1).step_by(2)).filter_map(literal).collect()
}

/// All forms that are tested.
fn tested() -> Vec<Form> {
    let mut lines: Vec<String> = [
        table::INTEGER,
        table::LOGIC,
        table::FLOAT,
        table::HALF,
        table::COMPARE,
        table::CONVERT_INTEGER,
        table::CONVERT_FLOAT,
        table::MOVE,
        atomic::LINES,
        barrier::SYNCS,
        barrier::ARRIVALS,
        barrier::REDUCTIONS,
        collective::LINES,
        control::HINTS,
        control::SPACES,
        copy::LINES,
        matrix::LOADS,
        matrix::STORES,
        matrix::PRODUCTS,
        OTHERS,
    ]
    .concat()
    .into_iter()
    .map(str::to_owned)
    .collect();
    lines.extend(memory::load_lines());
    lines.extend(memory::store_lines());
    expand(lines.iter().map(String::as_str).filter(|line| !line.starts_with('-')))
}

/// Sorted words, of which the first is the opcode. One that is said twice counts once.
fn words(form: &Form) -> Vec<&str> {
    let mut words = form.words();
    words[1..].sort_unstable();
    words.dedup();
    words
}

/// Operands; addresses in registers of any size are alike.
fn operands(form: &Form) -> Vec<String> {
    form.operands.iter().map(|operand| operand.replace("[r]", "[q]")).collect()
}

/// Tested forms by opcode and operands.
struct Tested<'a>(BTreeMap<(&'a str, Vec<String>), Vec<Vec<&'a str>>>);

impl Tested<'_> {
    /// A form is tested if it is one of the tested forms, or one that lacks modifiers which the ISA asks for.
    fn covers(&self, form: &Form) -> bool {
        let words = words(form);
        let relatives = self.0.get(&(words[0], operands(form)));
        relatives.is_some_and(|relatives| relatives.iter().any(|relative| includes(relative, &words)))
    }
}

/// Whether all of the sorted words are among the others.
fn includes(all: &[&str], some: &[&str]) -> bool {
    let mut all = all[1..].iter();
    some[1..].iter().all(|word| all.any(|other| other == word))
}

fn untested<'a>(device: &Device, tested: &Tested, forms: impl IntoIterator<Item = Form> + 'a) -> Vec<String> {
    let forms: Vec<Form> = forms.into_iter().filter(|form| !tested.covers(form)).collect();
    let mut found = Vec::new();
    for forms in forms.chunks(100) {
        let texts: Vec<String> = forms.iter().map(text).collect();
        let decoded = device.decode(REGISTERS, &texts);
        found.extend(forms.iter().zip(decoded).filter(|(_, decodes)| *decodes).map(|(form, _)| form.text()));
    }
    found
}

/// Opcodes whose modifiers are not read: they do nothing, or end the thread.
const UNREAD: &[&str] = &[
    "membar",
    "fence",
    "prefetch",
    "prefetchu",
    "nanosleep",
    "discard",
    "applypriority",
    "createpolicy",
    "pmevent",
    "ret",
    "exit",
    "trap",
    "brkpt",
];

/// Modifiers of memory accesses that change nothing, in any combination.
const CACHING: &[&str] = &[
    "nc", "ca", "cg", "cs", "cv", "lu", "wb", "wt", "weak", "cta", "cluster", "gpu", "sys", "relaxed",
    "acquire", "release", "acq_rel", "sc", "volatile", "noftz", "unified",
];

fn changed(form: &Form, at: usize, word: &str) -> Form {
    let mut words = form.words();
    words.insert(at, word);
    Form { name: words.join("."), operands: form.operands.clone() }
}

/// Every word as an opcode, with each type and the operands that forms of this type have.
fn as_opcodes<'a>(all: &'a [Form], literals: &'a BTreeSet<&str>) -> impl Iterator<Item = Form> + 'a {
    let shape = |form: &'a Form| (*form.words().last().expect("words"), form.operands.as_slice());
    let plain = |form: &&Form| !form.operands.iter().any(|operand| operand.contains(['#', '!', '_', '+']));
    let shapes: BTreeSet<(&str, &[String])> =
        all.iter().filter(plain).map(shape).filter(|shape| TYPES.contains(&shape.0)).collect();
    let opcodes = literals.iter().filter(|opcode| !UNREAD.contains(opcode));
    opcodes.flat_map(move |opcode| {
        let named = |&(ty, operands): &(&str, &[String])| Form {
            name: format!("{opcode}.{ty}"),
            operands: operands.to_vec(),
        };
        shapes.iter().map(named).collect::<Vec<_>>()
    })
}

/// Of each opcode, type and operands the forms with the fewest words, with one more word at either end.
fn with_a_word_more<'a>(all: &'a [Form], literals: &'a BTreeSet<&str>) -> impl Iterator<Item = Form> + 'a {
    let plain = |form: &&Form| !form.operands.iter().any(|operand| operand.contains(['!', '_']));
    let mut shortest: BTreeMap<(&str, &str, &[String]), &Form> = BTreeMap::new();
    for form in all.iter().filter(|form| !UNREAD.contains(&form.words()[0])).filter(plain) {
        let words = form.words();
        let key = (words[0], *words.last().expect("words"), form.operands.as_slice());
        let best = shortest.entry(key).or_insert(form);
        if words.len() < best.words().len() {
            *best = form;
        }
    }
    shortest.into_values().flat_map(|form| {
        let last = (form.words().len() - 1).max(1);
        let memory = ["ld", "ldu", "st", "atom", "red"].contains(&form.words()[0]);
        let words = literals
            .iter()
            .filter(move |word| !memory || !(CACHING.contains(word) || word.starts_with("L2::")));
        // Where the order of words matters, they are few.
        let places = if memory { vec![1] } else { BTreeSet::from([1, last]).into_iter().collect() };
        words.flat_map(move |word| places.iter().map(|&at| changed(form, at, word)).collect::<Vec<_>>())
    })
}

#[test]
fn nothing_decodes_untested() {
    let (all, device, literals) = (tested(), Device::new(80), literals());
    let mut by_operands: BTreeMap<_, Vec<Vec<&str>>> = BTreeMap::new();
    for form in &all {
        by_operands.entry((form.words()[0], operands(form))).or_default().push(words(form));
    }
    let tested = Tested(by_operands);
    let mut found = untested(&device, &tested, as_opcodes(&all, &literals));
    found.extend(untested(&device, &tested, with_a_word_more(&all, &literals)));
    found.sort();
    found.dedup();
    println!("{} forms are tested", all.len());
    assert!(found.is_empty(), "{} forms decode and are not tested:\n{}", found.len(), found.join("\n"));
}
