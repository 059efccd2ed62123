//! `cp.async`: bytes copied, zeros where the source is shorter, groups waited for.

use crate::grammar::Form;
use crate::harness::{Device, Job, kernel};
use crate::registers::{GUARD, REGISTERS, check, guard, text};
use crate::values::Random;

pub const LINES: &[&str] = &[
    "cp.async.ca{.shared,.shared::cta}.global{,.L2::64B,.L2::128B,.L2::256B} {[r],[q]} [q] {#4,#8,#16}",
    "cp.async.ca{.shared,.shared::cta}.global{,.L2::128B} {[r],[q]} [q] {#4,#8,#16} {r,#0,#3,#4}",
    "cp.async.cg{.shared,.shared::cta}.global{,.L2::64B,.L2::128B,.L2::256B} {[r],[q]} [q] #16",
    "cp.async.cg{.shared,.shared::cta}.global{,.L2::128B} {[r],[q]} [q] #16 {r,#0,#5}",
    "-cp.async.cg.shared.global [r] [q] {#4,#8,#2}",
    "-cp.async.ca.shared.global [r] [q] {#2,#32}",
    "-cp.async.ca.shared.global [r] [q] #4 p",
    "-cp.async.ca.shared.global.L2::cache_hint [r] [q] #4 q",
    "-cp.async.ca.shared::cluster.global [r] [q] #4",
    "-cp.async.mbarrier.arrive.shared.b64 [r]",
    "-cp.async.bulk.commit_group",
];

/// How the groups are waited for; the first copy must have come before what stands between.
const WAITS: [(&str, &str); 3] = [
    (
        "cp.async.commit_group;\nSECOND\ncp.async.commit_group;\ncp.async.wait_group 1;\n",
        "cp.async.wait_group 0;\n",
    ),
    ("cp.async.commit_group;\nSECOND\ncp.async.wait_group 0;\n", "cp.async.wait_all;\n"),
    ("SECOND\ncp.async.wait_all;\n", ""),
];

const THREADS: usize = 64;
/// Bytes of each of two parts of shared memory, and of the source.
const PART: usize = 16 * THREADS;

fn target(thread: usize) -> usize {
    (thread * 5 + 3) % THREADS * 16
}

fn kernel_of(device: &Device, form: &Form, turn: u64, guarded: bool) -> String {
    let (wait, last) = WAITS[usize::try_from(turn % 3).expect("below 3")];
    let mut body = format!(
        "{REGISTERS}{GUARD}.reg .b32 %to, %own;\n.reg .b64 %from;\n.shared .align 16 .b8 buffer[{}];\n\
         mov.b32 %own, buffer;\nmad.lo.u32 %own, %thread, 16, %own;\nmul.wide.u32 %w, %thread, 8;\nadd.u64 %w, %w, %in;\n\
         ld.global.b32 %sr1, [%w+{}];\nld.global.b32 %t, [%w+{}];\ncvt.u64.u32 %from, %t;\nadd.u64 %from, %from, %in;\n\
         mad.lo.u32 %t, %thread, 5, 3;\nrem.u32 %t, %t, {THREADS};\nmul.lo.u32 %t, %t, 16;\nmov.b32 %to, buffer;\n\
         add.u32 %to, %to, %t;\n",
        2 * PART,
        2 * PART,
        2 * PART + 4,
    );
    for k in (0..16).step_by(4) {
        body += &format!(
            "st.shared.b32 [%own+{k}], 0x5aa5c33c;\nst.shared.b32 [%own+{}], 0x5aa5c33c;\n",
            PART + k
        );
    }
    let prefix = if guarded { "@%g " } else { "" };
    let instruction = format!("{prefix}{}\n", text(form));
    let copy = |part: usize| {
        format!(
            "add.u32 %dr0, %to, {at};\ncvt.u64.u32 %dq0, %dr0;\nadd.u64 %sq0, %from, {at};\n{instruction}",
            at = part * PART
        )
    };
    body += &format!("bar.sync 0;\n{}{}", copy(0), wait.replace("SECOND", &copy(1)));
    body += "mul.wide.u32 %w, %thread, 16;\nadd.u64 %out, %out, %w;\n";
    for part in 0..2 {
        body += if part == 0 { "bar.sync 0;\n" } else { last };
        body += if part == 0 { "" } else { "bar.sync 0;\n" };
        for k in (0..16).step_by(4) {
            let at = part * PART + k;
            body += &format!("ld.shared.b32 %t, [%own+{at}];\nst.global.b32 [%out+{at}], %t;\n");
        }
    }
    kernel(device.capability, "", &body)
}

fn run(device: &Device, form: &Form, turn: u64) -> Result<(), String> {
    let number = |k: usize| form.operands.get(k)?.strip_prefix('#')?.parse::<usize>().ok();
    let bytes = number(2).expect("a size");
    let mut random = Random::new(turn);
    let mut input: Vec<u8> = (0..2 * PART).map(|_| random.next().to_le_bytes()[2]).collect();
    let (mut sizes, mut sources) = (Vec::new(), Vec::new());
    for thread in 0..THREADS {
        sizes.push([0, bytes, random.below(bytes + 1)][thread % 3]);
        sources.push(random.below(PART / bytes) * bytes);
        input.extend((sizes[thread] as u32).to_le_bytes());
        input.extend((sources[thread] as u32).to_le_bytes());
    }
    for guarded in [false, true] {
        let text = kernel_of(device, form, turn, guarded);
        let job = Job::line(1, THREADS, &input, 2 * PART);
        let (got, _) =
            device.run(&text, &job, turn).map_err(|fault| format!("{}: {fault}\n{text}", form.text()))?;
        let mut want: Vec<u8> = [0x3c, 0xc3, 0xa5, 0x5a].repeat(PART / 2);
        for thread in (0..THREADS).filter(|&thread| !guarded || guard(thread as u64)) {
            let size = match form.operands.len() {
                3 => bytes,
                _ => number(3).unwrap_or(sizes[thread]),
            };
            for part in [0, PART] {
                let (to, from) = (part + target(thread), part + sources[thread]);
                want[to..to + bytes].fill(0);
                want[to..to + size].copy_from_slice(&input[from..from + size]);
            }
        }
        if let Some(at) = got.iter().zip(&want).position(|(got, want)| got != want) {
            return Err(format!("{}: byte {at} is {:#x}, not {:#x}", form.text(), got[at], want[at]));
        }
    }
    Ok(())
}

#[test]
fn asynchronous_copies() {
    check(LINES, |device, form, turn| (0..3).try_for_each(|wait| run(device, form, 3 * turn + wait)));
}
