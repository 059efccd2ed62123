//! Loads and stores of every type, vector, space and register: bytes against a copy of the memory.

use crate::grammar::Form;
use crate::harness::{Device, Job, block_parameter, kernel, words64};
use crate::integer::number;
use crate::registers::{GUARD, REGISTERS, check, guard, letters, named, sentinel, set, store};
use crate::values::Random;

/// Threads of a launch: one block.
const THREADS: usize = 64;
/// Bytes of global, constant and shared memory that are accessed.
const BYTES: usize = 2048;
/// Bytes of each thread's local memory and of the parameter.
const SMALL: usize = 64;

const TYPES: [(&str, usize, &str); 4] = [
    ("b8,u8,s8", 1, "hrq"),
    ("b16,u16,s16,f16,bf16", 2, "hrq"),
    ("b32,u32,s32,f32,f16x2,bf16x2", 4, "rq"),
    ("b64,u64,s64,f64", 8, "q"),
];

/// `(r,r,r,r)`, or the letter itself.
fn vector(letter: char, count: usize) -> String {
    match count {
        1 => letter.to_string(),
        _ => format!("({})", vec![letter.to_string(); count].join(",")),
    }
}

/// Lines of all types, vectors and registers; `shape` puts a value and an address together.
fn lines(opcode: &str, spaces: &str, addresses: &str, shape: impl Fn(&str) -> String) -> Vec<String> {
    let mut lines = Vec::new();
    for (types, bytes, letters) in TYPES {
        for count in [1, 2, 4, 8] {
            let dimension = if count == 1 { String::new() } else { format!(".v{count}") };
            let refused = bytes * count > if spaces == ".global" { 32 } else { 16 };
            for letter in letters.chars() {
                let sign = if refused { "-" } else { "" };
                let (value, types) = (shape(&vector(letter, count)), types);
                let value = value.replace("ADDRESS", addresses);
                lines.push(format!("{sign}{opcode}{{{spaces}}}{dimension}.{{{types}}} {value}"));
            }
        }
    }
    lines
}

pub fn load_lines() -> Vec<String> {
    let shape = |value: &str| format!("{value} ADDRESS");
    let mut all = lines("ld", ".global", "[q]", shape);
    all.extend(lines("ld", ",.const", "[q]", shape));
    all.extend(lines("ldu", ",.global", "[q]", shape).into_iter().filter(|line| !line.starts_with('-')));
    all.extend(lines(
        "ld",
        ".shared,.shared::cta,.local,.param,.param::entry,.param::func",
        "{[q],[r]}",
        shape,
    ));
    let more = [
        "ld.weak{,.global,.shared,.local}.{s8,u16,f32,b64} q [q]",
        "ld{,.global,.shared,.local}{.ca,.cg,.cs,.lu,.cv}.{s8,u16,f32} r [q]",
        "ld.volatile{,.global,.shared,.local}.{s16,b32} r [q]",
        "ld.{relaxed,acquire}.{cta,cluster,gpu,sys}{,.global,.shared}.{s16,b32} r [q]",
        "ld.global{,.ca,.cg,.cs}.nc{,.L1::no_allocate,.L1::evict_first}{,.L2::128B}.{u8,f32} r [q]",
        "ld.global{.L1::evict_last,.L2::64B,.L2::256B}.s32 r [q]",
        "ld.global{.b32,.u32} r {[data+20],[data]}",
        "ld.const.s16 r {[constants+6],[constants]}",
        "ld.shared.s8 r {[buffer+7],[buffer]}",
        "ld.local.u16 r {[depot+14],[depot]}",
        "ld.param.{b8,s8} {h,r,q} {[block+9],[block]}",
        "ld.param.{b16,s16} {h,r,q} {[block+10],[block]}",
        "ld.param.{b32,s32} {r,q} {[block+12],[block]}",
        "ld.param.b64 q {[block+16],[block]}",
        "-ld.mmio.relaxed.sys.global.u32 r [q]",
        "-ld.global.b128 q [q]",
        "-ld.shared::cluster.u32 r [r]",
    ];
    all.extend(more.map(str::to_owned));
    for (value, count) in [("(r,_)", 2), ("(_,r,_,r)", 4), ("(_,q)", 2)] {
        all.push(format!("ld{{,.global,.shared,.local,.const,.param}}.v{count}.s16 {value} [q]"));
    }
    for (value, count) in [("(h,h)", 2), ("(r,r,r,r)", 4), ("(r,_,r,_)", 4)] {
        all.push(format!("ld.param.v{count}.s8 {value} [block+4]"));
        all.push(format!("ld.global.nc.v{count}.u8 {value} [q]"));
        all.push(format!("ld.volatile.shared.v{count}.u8 {value} [q]"));
    }
    all
}

pub fn store_lines() -> Vec<String> {
    let shape = |value: &str| format!("ADDRESS {value}");
    let mut all = lines("st", ".global", "[q]", shape);
    all.extend(lines("st", "", "[q]", shape));
    all.extend(lines("st", ".shared,.shared::cta,.local", "{[q],[r]}", shape));
    let more = [
        "st.weak{,.global,.shared,.local}.{s8,u16,f32,b64} [q] q",
        "st{,.global,.shared,.local}{.wb,.cg,.cs,.wt}.{s8,u16,f32} [q] r",
        "st.volatile{,.global,.shared,.local}.{s16,b32} [q] r",
        "st.{relaxed,release}.{cta,cluster,gpu,sys}{,.global,.shared}.{s16,b32} [q] r",
        "st.global.L1::no_allocate.s32 [q] r",
        "st{,.global,.shared,.shared::cta,.local}.{b8,u16,s32,b64} [q] #-7",
        "st{,.global,.shared,.shared::cta,.local}.f32 [q] #0fBFC00000",
        "st{,.global,.shared,.shared::cta,.local}.f64 [q] #0dBFF8000000000000",
        "-st.async.shared::cluster.u32 [r] r",
        "-st.{param,param::entry,const}.u32 [q] r",
        "-st.global.b128 [q] q",
        "-st.global.b64 [q] r",
    ];
    all.extend(more.map(str::to_owned));
    for (value, count) in [("(r,#-7)", 2), ("(r,r,r,r)", 4)] {
        all.push(format!("st.{{volatile.shared,cs.global,wt.local}}.v{count}.u16 [q] {value}"));
    }
    all
}

/// Space an address is in.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Global,
    Constant,
    Shared,
    Local,
    Parameter,
}

const GENERIC: [Place; 3] = [Place::Global, Place::Shared, Place::Local];

/// The word of a space; generic addresses of a form go to several.
fn places(form: &Form, turn: u64) -> Vec<Place> {
    let words = form.words();
    let found = words.iter().find_map(|word| match *word {
        "global" => Some(Place::Global),
        "const" => Some(Place::Constant),
        "shared" | "shared::cta" => Some(Place::Shared),
        "local" => Some(Place::Local),
        "param" | "param::entry" | "param::func" => Some(Place::Parameter),
        _ => None,
    });
    let mixed =
        || (0..THREADS as u64).map(|t| GENERIC[usize::try_from((t + turn) % 3).expect("below 3")]).collect();
    found.map_or_else(mixed, |place| vec![place; THREADS])
}

/// Bytes of an element, whether it is signed, how many.
fn element(form: &Form) -> (usize, bool, usize) {
    let words = form.words();
    let ty = words.last().expect("a type");
    let (_, bytes, _) = TYPES.iter().find(|(types, ..)| types.split(',').any(|t| t == *ty)).expect("a type");
    let count = words.iter().find_map(|word| word.strip_prefix('v')?.parse().ok());
    (*bytes, ty.starts_with('s'), count.unwrap_or(1))
}

/// The offset of a thread's access from the start of its space: each its own, of all alignments.
fn offset(place: Place, thread: usize, size: usize) -> usize {
    match place {
        Place::Local | Place::Parameter => (thread * 5 + 1) % (SMALL / size) * size,
        _ => (thread * 7 + 3) % THREADS * size,
    }
}

/// The offset in a symbol's brackets.
fn fixed(form: &Form) -> Option<usize> {
    let address = form.operands.iter().find(|operand| operand.starts_with('['))?;
    let inner = address.trim_matches(['[', ']']);
    let symbol = inner.split('+').next()?.len() > 1;
    symbol.then(|| inner.split_once('+').map_or(0, |(_, offset)| offset.parse().expect("a number")))
}

/// The thread's address, in its space or generic, in `%aq` and `%ar`: its offset is a word of the table, and so is
/// its space. Less `further`, which stands in the brackets.
fn addresses(places: &[Place], further: usize) -> String {
    let generic = places.iter().any(|place| *place != places[0]);
    let mut body =
        String::from("ld.global.u32 %g0, [%table];\nld.global.u32 %t, [%table+4];\ncvt.u64.u32 %aq, %g0;\n");
    for (place, start, space) in [
        (Place::Global, "%global", "global"),
        (Place::Constant, "constants", "const"),
        (Place::Shared, "buffer", "shared"),
        (Place::Local, "depot", "local"),
        (Place::Parameter, "block", "param"),
    ] {
        if places.contains(&place) {
            let window = if generic { format!("cvta.{space}.u64 %w, %w;\n") } else { String::new() };
            body += &format!("setp.eq.u32 %dp7, %t, {};\nmov.b64 %w, {start};\n{window}", place as u32);
            body += "@%dp7 add.u64 %aq, %aq, %w;\n";
        }
    }
    body + &format!("add.u64 %aq, %aq, {further};\ncvt.u32.u64 %ar, %aq;\n")
}

/// A form's address as it is written.
fn bracketed(form: &Form, operand: &str, further: usize) -> String {
    match operand {
        "[q]" => format!("[%aq+-{further}]"),
        "[r]" => format!("[%ar+-{further}]"),
        _ if fixed(form).is_some() => operand.to_owned(),
        _ => unreachable!("{operand}"),
    }
}

/// Words of the table, data, and values to store.
fn input(data: &[u8], places: &[Place], size: usize, values: &[u64]) -> Vec<u8> {
    let mut input = data.to_vec();
    for (thread, &place) in places.iter().enumerate() {
        let at = offset(place, thread, size) as u32;
        input.extend(at.to_le_bytes());
        input.extend((place as u32).to_le_bytes());
    }
    input.extend(values.iter().flat_map(|x| x.to_le_bytes()));
    input
}

fn bytes(seed: u64, count: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    (0..count).map(|_| random.next().to_le_bytes()[3]).collect()
}

/// Constants and a global variable with the data, if the form needs them.
fn declarations(form: &Form, places: &[Place], data: &[u8]) -> String {
    let list: Vec<String> = data.iter().map(u8::to_string).collect();
    let variable =
        |space, name| format!(".{space} .align 16 .b8 {name}[{BYTES}] = {{{}}};\n", list.join(","));
    let mut text = String::new();
    if places.contains(&Place::Constant) {
        text += &variable("const", "constants");
    }
    if form.text().contains("[data") {
        text += &variable("global", "data");
    }
    text
}

/// Shared memory and the thread's local memory, filled with the data: local memory from 32 bytes per thread on.
const FILL: &str = ".reg .b64 %table, %from, %global, %aq;\n.reg .b32 %s, %ar;\n.shared .align 16 .b8 buffer[2048];\n.local .align 16 .b8 depot[64];\n\
    mul.wide.u32 %w, %thread, 8;\nadd.u64 %table, %in, %w;\nadd.u64 %table, %table, 2048;\nmov.b64 %global, %in;\n\
    mov.b32 %s, buffer;\nmad.lo.u32 %s, %thread, 32, %s;\nmul.wide.u32 %from, %thread, 32;\nadd.u64 %from, %from, %in;\n";

fn fill() -> String {
    let mut body = FILL.to_owned();
    for k in (0..32).step_by(4) {
        body += &format!("ld.global.b32 %t, [%from+{k}];\nst.shared.b32 [%s+{k}], %t;\n");
    }
    // The last thread would read past the data.
    for k in (0..64).step_by(4) {
        let from = if k < 32 { "%from" } else { "%in" };
        body += &format!("ld.global.b32 %t, [{from}+{k}];\nst.local.b32 [depot+{k}], %t;\n");
    }
    body + "bar.sync 0;\n"
}

/// What a thread's local memory holds after [`fill`].
fn local(data: &[u8], thread: usize) -> Vec<u8> {
    [&data[32 * thread..32 * thread + 32], &data[32..64]].concat()
}

fn load(device: &Device, form: &Form, turn: u64) -> Result<(), String> {
    let data = bytes(turn, BYTES);
    let ((size, signed, count), places) = (element(form), places(form, turn));
    let outputs: Vec<char> = letters(&form.operands[0]).collect();
    let (constant, further) = (fixed(form), 8 * (turn % 3) as usize);
    let address = bracketed(form, &form.operands[1], further);
    let text = format!("{} {}, {address};", form.name, named(&form.operands[0], 'd', &mut 0));
    let mut body = format!("{REGISTERS}{}{GUARD}{}", fill(), addresses(&places, further));
    body += "mul.wide.u32 %w, %thread, 128;\nadd.u64 %out, %out, %w;\n";
    for (run, prefix) in ["", "@%g "].iter().enumerate() {
        outputs.iter().enumerate().for_each(|(k, &letter)| body += &set(letter, k));
        body += &format!("{prefix}{text}\n");
        outputs.iter().enumerate().for_each(|(k, &letter)| body += &store(letter, 'd', k, 64 * run + 8 * k));
    }
    let text = kernel(device.capability, &declarations(form, &places, &data), &body);
    let input = input(&data, &places, size * count, &[]);
    let job = Job::line(1, THREADS, &input, 128 * THREADS);
    let (results, _) = device.run(&text, &job, turn).map_err(|fault| format!("{}: {fault}", form.text()))?;
    for (thread, got) in words64(&results).chunks_exact(16).enumerate() {
        let at = constant.unwrap_or_else(|| offset(places[thread], thread, size * count));
        let memory = match places[thread] {
            Place::Local => local(&data, thread),
            Place::Parameter => block_parameter(),
            _ => data.clone(),
        };
        let sinks = form.operands[0].trim_matches(['(', ')']).split(',').map(|part| part == "_");
        let kept = sinks.enumerate().filter(|(_, sink)| !sink).map(|(k, _)| k);
        for (slot, (k, &letter)) in kept.zip(&outputs).enumerate() {
            let mut raw = [0; 8];
            raw[..size].copy_from_slice(&memory[at + k * size..at + (k + 1) * size]);
            let bits = width(letter);
            let want =
                number(u64::from_le_bytes(raw), 8 * size as u32, signed) as u64 & u64::MAX >> (64 - bits);
            let guarded = if guard(thread as u64) { want } else { sentinel(letter, thread as u64) };
            if (got[slot], got[8 + slot]) != (want, guarded) {
                return Err(format!(
                    "{} thread {thread}, element {k}: {:x} and {:x}, not {want:x} and {guarded:x}",
                    form.text(),
                    got[slot],
                    got[8 + slot]
                ));
            }
        }
    }
    Ok(())
}

/// Stores go to global memory after the table and the values, to shared and to local memory; then all three go out.
fn store_once(device: &Device, form: &Form, turn: u64, guarded: bool) -> Result<(), String> {
    let data = bytes(turn, BYTES);
    let ((size, _, count), places) = (element(form), places(form, turn));
    let sources: Vec<char> = letters(&form.operands[1]).collect();
    let further = 8 * (turn % 3) as usize;
    let mut random = Random::new(turn);
    let values: Vec<u64> = (0..8 * THREADS).map(|_| random.next()).collect();
    let mut body = format!("{REGISTERS}{}{GUARD}", fill());
    body += &format!("mov.b64 %global, %out;\n{}", addresses(&places, further));
    body += "mul.wide.u32 %w, %thread, 64;\nadd.u64 %w, %w, %in;\n";
    for (k, letter) in sources.iter().enumerate() {
        body +=
            &format!("ld.global.b{} %s{letter}{k}, [%w+{}];\n", width(*letter), BYTES + 8 * THREADS + 8 * k);
    }
    let value = named(&form.operands[1], 's', &mut 0).replace('#', "");
    let prefix = if guarded { "@%g " } else { "" };
    let address = bracketed(form, &form.operands[0], further);
    body += &format!("{prefix}{} {address}, {value};\nbar.sync 0;\n", form.name);
    body += "mul.wide.u32 %w, %thread, 32;\nadd.u64 %w, %w, %out;\nmul.wide.u32 %from, %thread, 64;\n\
             add.u64 %from, %from, %out;\n";
    for k in (0..32).step_by(4) {
        body += &format!("ld.shared.b32 %t, [%s+{k}];\nst.global.b32 [%w+{}], %t;\n", BYTES + k);
    }
    for k in (0..SMALL).step_by(4) {
        body += &format!("ld.local.b32 %t, [depot+{k}];\nst.global.b32 [%from+{}], %t;\n", 2 * BYTES + k);
    }
    let text = kernel(device.capability, "", &body);
    let input = input(&data, &places, size * count, &values);
    let job = Job::line(1, THREADS, &input, 2 * BYTES + SMALL * THREADS);
    let (got, _) = device.run(&text, &job, turn).map_err(|fault| format!("{}: {fault}", form.text()))?;
    let mut want = [vec![0; BYTES], data.clone()].concat();
    (0..THREADS).for_each(|thread| want.extend(local(&data, thread)));
    for thread in (0..THREADS).filter(|&thread| !guarded || guard(thread as u64)) {
        let at = offset(places[thread], thread, size * count)
            + match places[thread] {
                Place::Shared => BYTES,
                Place::Local => 2 * BYTES + SMALL * thread,
                _ => 0,
            };
        for (k, part) in form.operands[1].trim_matches(['(', ')']).split(',').enumerate() {
            let bits = match part {
                "#-7" => 7u64.wrapping_neg(),
                "#0fBFC00000" => 0xbfc0_0000,
                "#0dBFF8000000000000" => 0xbff8_0000_0000_0000,
                _ => values[8 * thread + k],
            };
            want[at + k * size..at + (k + 1) * size].copy_from_slice(&bits.to_le_bytes()[..size]);
        }
    }
    match got.iter().zip(&want).position(|(got, want)| got != want) {
        None => Ok(()),
        Some(at) => Err(format!("{}: byte {at} is {:#x}, not {:#x}", form.text(), got[at], want[at])),
    }
}

#[test]
fn loads() {
    check(&load_lines(), load);
}

#[test]
fn stores() {
    check(&store_lines(), |device, form, turn| {
        store_once(device, form, turn, false)?;
        store_once(device, form, turn, true)
    });
}

fn width(letter: char) -> u32 {
    match letter {
        'h' => 16,
        'r' => 32,
        _ => 64,
    }
}
