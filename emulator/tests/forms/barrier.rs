//! Barriers of blocks and of warps: what was written before is read after, and reductions over the threads.

use crate::grammar::Form;
use crate::harness::{Device, Job, kernel, words32};
use crate::registers::{GUARD, REGISTERS, check, guard, text};

pub const SYNCS: &[&str] = &[
    "{bar,barrier,bar.cta,barrier.cta}.sync {#0,#15,r}",
    "{bar,barrier,bar.cta,barrier.cta}.sync {#1,r} {#128,r}",
    "barrier{,.cta}.sync.aligned {#0,#15,r}",
    "barrier{,.cta}.sync.aligned {#1,r} {#128,r}",
    "bar.warp.sync {#-1,r}",
    "-barrier.cluster.{arrive,wait}",
    "-bar.async #0",
];

pub const ARRIVALS: &[&str] = &[
    "{bar,barrier,bar.cta,barrier.cta}.arrive {#3,r} {#128,r}",
    "barrier{,.cta}.arrive.aligned {#3,r} {#128,r}",
];

pub const REDUCTIONS: &[&str] = &[
    "{bar,barrier,bar.cta,barrier.cta}.red.popc.u32 r {#3,r} {p,!p}",
    "{bar,barrier,bar.cta,barrier.cta}.red.popc.u32 r {#3,r} {#128,r} {p,!p}",
    "{bar,barrier,bar.cta,barrier.cta}.red.{and,or}.pred p {#3,r} {p,!p}",
    "{bar,barrier,bar.cta,barrier.cta}.red.{and,or}.pred p {#3,r} {#128,r} {p,!p}",
    "barrier{,.cta}.red.popc.aligned.u32 r {#3,r} {p,!p}",
    "barrier{,.cta}.red.popc.aligned.u32 r {#3,r} {#128,r} {p,!p}",
    "barrier{,.cta}.red.{and,or}.aligned.pred p {#3,r} {p,!p}",
    "barrier{,.cta}.red.{and,or}.aligned.pred p {#3,r} {#128,r} {p,!p}",
    "-bar.red.xor.pred p #3 p",
];

const THREADS: usize = 128;

/// Registers of numbers: the barrier 3 and 128 threads, wherever the form has them; and the threads' words in shared
/// memory, each written by its thread: 7 times its number.
fn start(form: &Form) -> String {
    let (barrier, threads) = match (form.name.contains("red"), form.operands.get(1).map(String::as_str)) {
        (true, Some("r")) => ("%sr0", "%sr1"),
        _ => ("%dr0", "%sr0"),
    };
    let number = if form.name == "bar.warp.sync" { "-1" } else { "3" };
    let mut body = format!(
        "{REGISTERS}{GUARD}.reg .b32 %own, %other, %value;\n.shared .align 16 .b8 buffer[512];\n\
         mov.b32 {barrier}, {number};\nmov.b32 {threads}, 128;\nmov.b32 %own, buffer;\nmul.lo.u32 %t, %thread, 4;\n\
         add.u32 %own, %own, %t;\nmul.wide.u32 %w, %thread, 4;\nadd.u64 %in, %in, %w;\nadd.u64 %out, %out, %w;\n\
         ld.global.b32 %t, [%in];\nmul.lo.u32 %value, %thread, 7;\n"
    );
    for k in 0..4 {
        body += &format!("setp.ne.u32 %sp{k}, %t, 0;\n");
    }
    body
}

fn results(device: &Device, form: &Form, body: &str, input: &[u8], turn: u64) -> Result<Vec<u32>, String> {
    let text = kernel(device.capability, "", body);
    let job = Job::line(1, THREADS, input, 4 * THREADS);
    let ran = device.run(&text, &job, turn).map_err(|fault| format!("{}: {fault}\n{text}", form.text()))?;
    Ok(words32(&ran.0))
}

/// A thread reads the word of another one of the block, or of the warp.
fn exchange(device: &Device, form: &Form, turn: u64) -> Result<(), String> {
    let last = if form.name == "bar.warp.sync" { 31 } else { 127 };
    let mut body = start(form);
    body += &format!(
        "st.shared.b32 [%own], %value;\n{}\nmov.b32 %other, buffer;\nxor.b32 %t, %thread, {last};\n\
         mad.lo.u32 %other, %t, 4, %other;\nld.shared.b32 %value, [%other];\nst.global.b32 [%out], %value;\n",
        text(form)
    );
    let want: Vec<u32> = (0..THREADS as u32).map(|thread| 7 * (thread ^ last)).collect();
    let got = results(device, form, &body, &[1; 4 * THREADS], turn)?;
    if got == want { Ok(()) } else { Err(format!("{}: {got:?}", form.text())) }
}

/// Two warps write and arrive; the other two wait for them and read.
fn arrival(device: &Device, form: &Form, turn: u64) -> Result<(), String> {
    let wait = if form.name.starts_with("bar.") { "bar.sync 3, 128;" } else { "barrier.sync 3, 128;" };
    let mut body = start(form);
    body += &format!(
        "setp.ge.u32 %sp7, %thread, 64;\n@%sp7 bra LATER;\nst.shared.b32 [%own], %value;\n{}\nst.global.b32 [%out], 1;\n\
         ret;\nLATER:\n{wait}\nld.shared.b32 %value, [%own+-256];\nst.global.b32 [%out], %value;\n",
        text(form)
    );
    let got = results(device, form, &body, &[1; 4 * THREADS], turn)?;
    let want: Vec<u32> = (0..THREADS as u32).map(|t| if t < 64 { 1 } else { 7 * (t - 64) }).collect();
    if got == want { Ok(()) } else { Err(format!("{}: {got:?}", form.text())) }
}

/// Predicates of all threads: none, one, some, all but one, all.
fn reduction(device: &Device, form: &Form, turn: u64) -> Result<(), String> {
    for sort in 0..5 {
        let holds = |thread: usize| match sort {
            0 => false,
            1 => thread == 77,
            2 => guard(thread as u64),
            3 => thread != 33,
            _ => true,
        };
        let input: Vec<u8> = (0..THREADS).flat_map(|t| u32::from(holds(t)).to_le_bytes()).collect();
        let predicate = form.operands[0] == "p";
        let out = if predicate { "selp.b32 %dr0, 1, 0, %dp0;\n" } else { "" };
        let body = start(form) + &format!("{}\n{out}st.global.b32 [%out], %dr0;\n", text(form));
        let inverted = form.operands.last().is_some_and(|operand| operand == "!p");
        let count = (0..THREADS as u32).filter(|&t| holds(t as usize) != inverted).count() as u32;
        let want = match form.name.split('.').find(|word| ["popc", "and", "or"].contains(word)) {
            Some("and") => u32::from(count == THREADS as u32),
            Some("or") => u32::from(count > 0),
            _ => count,
        };
        let got = results(device, form, &body, &input, turn + sort)?;
        if got != vec![want; THREADS] {
            return Err(format!("{} of {count} threads: {got:?}, not {want}", form.text()));
        }
    }
    Ok(())
}

#[test]
fn threads_wait_for_each_other() {
    check(SYNCS, |device, form, turn| (0..6).try_for_each(|order| exchange(device, form, turn + order)));
}

#[test]
fn arrivals_do_not_wait() {
    check(ARRIVALS, |device, form, turn| (0..6).try_for_each(|order| arrival(device, form, turn + order)));
}

#[test]
fn reductions_over_a_block() {
    check(REDUCTIONS, reduction);
}
