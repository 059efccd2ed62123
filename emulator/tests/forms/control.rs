//! Branches, calls and returns; address spaces; special registers; hints that change nothing.

use crate::grammar::{Form, expand};
use crate::harness::{Device, Job, kernel, words32, words64};
use crate::registers::{GUARD, REGISTERS, check, guard, text};
use cuda_emulator::fault::FaultKind;

/// Instructions without effect on a program that is right.
pub const HINTS: &[&str] = &[
    "membar.{cta,gl,sys}",
    "fence{,.sc,.acq_rel}.{cta,cluster,gpu,sys}",
    "nanosleep.u32 {r,#20}",
    "prefetch{,.global}.{L1,L2} [q]",
    "prefetchu.L1 [q]",
    "applypriority.global.L2::evict_normal [q] #128",
    "createpolicy.fractional.L2::{evict_last,evict_first,evict_normal}.b64 q {,#1.0}",
    "pmevent #3",
    "-fence.proxy.{async,alias}",
    "-wmma.load.a.sync.aligned.row.m16n16k16.f16 (r,r,r,r,r,r,r,r) [q]",
    "-mbarrier.init.shared.b64 [r] #1",
    "-setmaxnreg.inc.sync.aligned.u32 #40",
    "-tex.2d.v4.f32.s32 (r,r,r,r) [q,(r,r)]",
    "-mapa.u64 q q r",
    "-alloca.u64 q q",
    "-istypep.texref p q",
];

#[test]
fn hints_change_nothing() {
    check(HINTS, |device, form, turn| {
        let body = format!(
            "{REGISTERS}mov.b64 %dq0, %in;\nmov.b64 %sq0, %in;\nmov.b32 %dr0, 9;\n{}\nmul.wide.u32 %w, %thread, 4;\n\
             add.u64 %out, %out, %w;\nst.global.b32 [%out], %thread;\n",
            text(form)
        );
        let job = Job::line(1, 64, &[0; 256], 256);
        let ran = device.run(&kernel(device.capability, "", &body), &job, turn);
        let (got, _) = ran.map_err(|fault| format!("{}: {fault}", form.text()))?;
        if words32(&got).into_iter().eq(0..64) { Ok(()) } else { Err(format!("{}: {got:?}", form.text())) }
    });
}

pub const SPACES: &[&str] = &[
    "cvta{,.to}.{global,const,shared,shared::cta,local,param,param::entry}.u64 q q",
    "isspacep.{global,shared,shared::cta,local,param,param::entry} p q",
    "-isspacep.{const,shared::cluster} p q",
    "-cvta{,.to}.global.u32 r r",
];

/// An address of each space: what it is in its own, and its name.
const ADDRESSES: [(&str, &str); 5] = [
    ("%in", "global"),
    ("constants", "const"),
    ("buffer+4", "shared"),
    ("depot+8", "local"),
    ("block+12", "param"),
];

/// Addresses go from their space to the generic one and back, and there a load finds what lies at them.
fn addresses(device: &Device, form: &Form, turn: u64) -> Result<(), String> {
    let declarations = ".const .align 16 .b32 constants[4] = {12345, 2, 3, 4};\n";
    let mut body = format!(
        "{REGISTERS}{GUARD}.shared .align 16 .b32 buffer[4];\n.local .align 16 .b32 depot[4];\n\
         st.shared.b32 [buffer+4], 12345;\nst.local.b32 [depot+8], 12345;\n"
    );
    let words = form.words();
    let conversion = words[0] == "cvta";
    let mine = words
        .iter()
        .find_map(|word| ADDRESSES.iter().position(|a| a.1 == word.split("::").next().unwrap_or("")));
    let mine = mine.expect("a space");
    for (k, (address, space)) in ADDRESSES.iter().enumerate() {
        if conversion && k != mine {
            continue;
        }
        body += &format!("mov.b64 %sq1, {address};\ncvta.{space}.u64 %sq0, %sq1;\n");
        body += &match (conversion, words.contains(&"to")) {
            (true, true) => format!("mov.b64 %dq0, 77;\n{}\nsub.u64 %w, %dq0, %sq1;\n", text(form)),
            (true, false) => {
                format!("mov.b64 %sq0, %sq1;\n{}\nld.u32 %t, [%dq0];\ncvt.u64.u32 %w, %t;\n", text(form))
            }
            _ => format!("setp.ne.u32 %dp0, %two, 0;\n{}\nselp.b64 %w, 1, 0, %dp0;\n", text(form)),
        };
        body += &format!("st.global.b64 [%out+{}], %w;\n", 8 * k);
        body += &format!("mov.b64 %dq0, 77;\nsetp.ne.u32 %dp0, %two, 0;\n@!%g {}\n", text(form));
        body += &match conversion {
            true => "mov.b64 %w, %dq0;\n".to_owned(),
            false => "selp.b64 %w, 1, 0, %dp0;\n".to_owned(),
        };
        body += &format!("st.global.b64 [%out+{}], %w;\n", 40 + 8 * k);
    }
    // One thread: the output is one record. Its guard does not hold, so `@!%g` does.
    assert!(!guard(0));
    body = body.replace("@!%g", if turn.is_multiple_of(2) { "@%g" } else { "@!%g" });
    let text = kernel(device.capability, declarations, &body);
    let mut input = 12345u32.to_le_bytes().to_vec();
    input.extend([0; 12]);
    let (got, _) = device
        .run(&text, &Job::line(1, 1, &input, 80), turn)
        .map_err(|fault| format!("{}: {fault}\n{text}", form.text()))?;
    let got = words64(&got);
    let at_block =
        u64::from(u32::from_le_bytes(crate::harness::block_parameter()[12..16].try_into().expect("4 bytes")));
    for (k, (_, space)) in ADDRESSES.iter().enumerate().filter(|(k, _)| !conversion || *k == mine) {
        // The window of parameters lies in global memory's; and constants do, here.
        let inside = k == mine || mine == 0 && matches!(*space, "const" | "param");
        let want = match (conversion, words.contains(&"to")) {
            (true, true) => 0,
            (true, false) if *space == "param" => at_block,
            (true, false) => 12345,
            _ => u64::from(inside),
        };
        let guarded = match (turn % 2, conversion) {
            (0, true) => got[5 + k] == 77,
            (0, false) => got[5 + k] == 0,
            (_, true) => got[5 + k] != 77,
            _ => got[5 + k] == want,
        };
        if got[k] != want || !guarded {
            return Err(format!("{} of a {space} address: {got:x?}, not {want:x}", form.text()));
        }
    }
    Ok(())
}

#[test]
fn addresses_of_all_spaces() {
    check(SPACES, |device, form, turn| (0..2).try_for_each(|more| addresses(device, form, turn + more)));
}

/// Special registers, of a thread at a place in a grid.
type Special = (&'static str, fn([u32; 3], [u32; 3]) -> u32);

const GRID: [u32; 3] = [3, 2, 2];
const BLOCK: [u32; 3] = [5, 4, 3];

fn linear(tid: [u32; 3]) -> u32 {
    tid[0] + BLOCK[0] * (tid[1] + BLOCK[1] * tid[2])
}

const SPECIALS: [Special; 26] = [
    ("%tid.x", |_, t| t[0]),
    ("%tid.y", |_, t| t[1]),
    ("%tid.z", |_, t| t[2]),
    ("%ntid.x", |_, _| BLOCK[0]),
    ("%ntid.y", |_, _| BLOCK[1]),
    ("%ntid.z", |_, _| BLOCK[2]),
    ("%ctaid.x", |b, _| b[0]),
    ("%ctaid.y", |b, _| b[1]),
    ("%ctaid.z", |b, _| b[2]),
    ("%nctaid.x", |_, _| GRID[0]),
    ("%nctaid.y", |_, _| GRID[1]),
    ("%nctaid.z", |_, _| GRID[2]),
    ("%laneid", |_, t| linear(t) % 32),
    ("%warpid", |_, t| linear(t) / 32),
    ("%nwarpid", |_, _| 2),
    ("%lanemask_eq", |_, t| 1 << (linear(t) % 32)),
    ("%lanemask_lt", |_, t| (1 << (linear(t) % 32)) - 1),
    ("%lanemask_le", |_, t| u32::MAX >> (31 - linear(t) % 32)),
    ("%lanemask_gt", |_, t| !(u32::MAX >> (31 - linear(t) % 32))),
    ("%lanemask_ge", |_, t| !((1 << (linear(t) % 32)) - 1)),
    ("%dynamic_smem_size", |_, _| 0),
    ("%total_smem_size", |_, _| 48),
    ("%smid", |_, _| 0),
    ("%nsmid", |_, _| 1),
    ("%gridid", |_, _| 0),
    ("WARP_SZ", |_, _| 32),
];

#[test]
fn special_registers() {
    let (threads, blocks) = (BLOCK.iter().product::<u32>(), GRID.iter().product::<u32>());
    let record = 8 * SPECIALS.len() + 16;
    let mut body = format!(
        "{REGISTERS}.shared .align 16 .b8 buffer[48];\nmov.u32 %t, buffer;\nmov.u32 %dr0, %tid.z;\nmov.u32 %dr1, %ntid.y;\n\
         mov.u32 %dr2, %tid.y;\nmad.lo.u32 %dr0, %dr0, %dr1, %dr2;\nmov.u32 %dr1, %ntid.x;\nmov.u32 %dr2, %tid.x;\n\
         mad.lo.u32 %dr0, %dr0, %dr1, %dr2;\nmov.u32 %dr3, %ctaid.z;\nmov.u32 %dr1, %nctaid.y;\nmov.u32 %dr2, %ctaid.y;\n\
         mad.lo.u32 %dr3, %dr3, %dr1, %dr2;\nmov.u32 %dr1, %nctaid.x;\nmov.u32 %dr2, %ctaid.x;\n\
         mad.lo.u32 %dr3, %dr3, %dr1, %dr2;\nmad.lo.u32 %dr0, %dr3, {threads}, %dr0;\nmul.wide.u32 %w, %dr0, {record};\n\
         add.u64 %out, %out, %w;\nmov.u64 %sq0, %clock64;\nmov.u32 %sr1, %clock;\n"
    );
    for (k, (name, _)) in SPECIALS.iter().enumerate() {
        body += &format!("mov.u32 %t, {name};\nst.global.b32 [%out+{}], %t;\n", 8 * k);
        // As an operand it is a constant row.
        body += &format!("add.u32 %t, {name}, 1;\nst.global.b32 [%out+{}], %t;\n", 8 * k + 4);
    }
    let end = 8 * SPECIALS.len();
    body += &format!(
        "mov.u64 %sq2, %clock64;\nsub.u64 %sq2, %sq2, %sq0;\nst.global.u64 [%out+{end}], %sq2;\nmov.u32 %sr2, %clock;\n\
         sub.u32 %sr2, %sr2, %sr1;\nst.global.u32 [%out+{}], %sr2;\nmov.u32 %sr3, %clock_hi;\nst.global.u32 [%out+{}], %sr3;\n",
        end + 8,
        end + 12
    );
    let text = kernel(80, "", &body);
    for turn in 0..6 {
        let job =
            Job { grid: GRID, block: BLOCK, input: &[], output_bytes: (threads * blocks) as usize * record };
        let (got, _) = Device::new(80).run(&text, &job, turn).unwrap_or_else(|fault| panic!("{fault}"));
        for (k, got) in words32(&got).chunks_exact(record / 4).enumerate() {
            let at = |n: u32, size: [u32; 3]| [n % size[0], n / size[0] % size[1], n / (size[0] * size[1])];
            let (block, tid) = (at(k as u32 / threads, GRID), at(k as u32 % threads, BLOCK));
            for ((name, value), got) in SPECIALS.iter().zip(got.chunks_exact(2)) {
                let want = value(block, tid);
                assert_eq!(
                    (got[0], got[1]),
                    (want, want.wrapping_add(1)),
                    "{name} of block {block:?}, thread {tid:?}"
                );
            }
            // Time goes on, and not by 2^32.
            let [low, high, clock, upper] = got[2 * SPECIALS.len()..] else { unreachable!("four words") };
            assert!(low > 0 && high == 0 && clock > 0 && upper == 0, "{low} {high} {clock} {upper}");
        }
    }
}

/// A body for 64 threads that leaves a word in `%t`, and the word of each.
fn flow(name: &str, declarations: &str, body: &str, want: impl Fn(u32) -> u32) {
    let tail = "DONE:\nmul.wide.u32 %w, %thread, 4;\nadd.u64 %w, %out, %w;\nst.global.b32 [%w], %t;\n";
    let text = kernel(
        80,
        declarations,
        &format!("{REGISTERS}{GUARD}mov.b32 %t, 1000;\nmov.b32 %sr0, %thread;\n{body}\n{tail}"),
    );
    for turn in 0..6 {
        let ran = Device::new(80).run(&text, &Job::line(1, 64, &[], 256), turn);
        let got = words32(&ran.unwrap_or_else(|fault| panic!("{name}: {fault}\n{text}")).0);
        let want: Vec<u32> = (0..64).map(&want).collect();
        assert_eq!(got, want, "{name}, turn {turn}");
    }
}

#[test]
fn branches() {
    let holds = |thread: u32| guard(thread.into());
    flow("bra", "", "bra DONE;\nmov.b32 %t, 5;", |_| 1000);
    flow("bra.uni", "", "bra.uni DONE;\nmov.b32 %t, 5;", |_| 1000);
    flow("guarded", "", "@%g bra DONE;\nmov.b32 %t, 5;", |t| if holds(t) { 1000 } else { 5 });
    flow("complemented", "", "@!%g bra DONE;\nmov.b32 %t, 5;", |t| if holds(t) { 5 } else { 1000 });
    let exits = |t: u32| if holds(t) { 0 } else { 1000 };
    flow("ret", "", "@%g ret;", exits);
    flow("exit", "", "@%g exit;", exits);
    flow(
        "loop",
        "",
        "mov.b32 %t, 0;\nAGAIN:\nadd.u32 %t, %t, 2;\nsub.u32 %sr0, %sr0, 1;\nsetp.ge.s32 %sp0, %sr0, 0;\n@%sp0 bra AGAIN;",
        |t| 2 * t + 2,
    );
    let table = "TABLE: .branchtargets ZERO, ONE, DONE;\nand.b32 %sr0, %thread, 3;\nmin.u32 %sr0, %sr0, 2;\n";
    let cases = "mov.b32 %t, 7;\nbra DONE;\nZERO:\nmov.b32 %t, 10;\nbra DONE;\nONE:\nmov.b32 %t, 11;";
    let case = |t: u32| [10, 11, 1000, 1000][(t % 4) as usize];
    flow("brx.idx", "", &format!("{table}brx.idx %sr0, TABLE;\n{cases}"), case);
    flow("guarded brx", "", &format!("{table}@%g brx.idx %sr0, TABLE;\n{cases}"), |t| {
        if holds(t) { case(t) } else { 7 }
    });
}

#[test]
fn calls() {
    let holds = |thread: u32| guard(thread.into());
    let twice = ".func (.param .b32 r) twice(.param .b32 a)\n{\n.reg .b32 %x;\n.reg .pred %p;\nld.param.b32 %x, [a];\n\
                 add.u32 %x, %x, %x;\nst.param.b32 [r], %x;\nsetp.gt.u32 %p, %x, 50;\n@%p ret;\nadd.u32 %x, %x, 1;\n\
                 st.param.b32 [r], %x;\nret;\n}\n\
                 .func (.param .b32 r) four(.param .b32 a)\n{\n.reg .b32 %x;\n.param .b32 b;\n.param .b32 c;\n\
                 ld.param.b32 %x, [a];\nst.param.b32 [b], %x;\ncall.uni (c), twice, (b);\nld.param.b32 %x, [c];\n\
                 st.param.b32 [b], %x;\ncall (c), twice, (b);\nld.param.b32 %x, [c];\nst.param.b32 [r], %x;\nret;\n}\n\
                 .func nothing()\n{\nret;\n}\n";
    let doubled = |t: u32| if 2 * t > 50 { 2 * t } else { 2 * t + 1 };
    let call = |how: &str, name: &str| {
        format!(
            "{{\n.param .b32 a;\n.param .b32 r;\nst.param.b32 [r], %t;\nst.param.b32 [a], %sr0;\n{how} (r), {name}, (a);\n\
             ld.param.b32 %t, [r];\n}}"
        )
    };
    flow("call", twice, &call("call", "twice"), doubled);
    flow("call.uni", twice, &call("call.uni", "twice"), doubled);
    flow("guarded", twice, &call("@%g call", "twice"), |t| if holds(t) { doubled(t) } else { 1000 });
    flow("complemented", twice, &call("@!%g call", "twice"), |t| if holds(t) { 1000 } else { doubled(t) });
    flow("nested", twice, &call("call", "four"), |t| doubled(doubled(t)));
    flow("without arguments", twice, "call nothing;", |_| 1000);
}

#[test]
fn traps() {
    for form in expand(["{trap,brkpt}"]) {
        let text = kernel(80, "", &format!("{REGISTERS}{GUARD}@%g {};", form.name));
        let fault =
            Device::new(80).run(&text, &Job::line(1, 64, &[], 0), 0).map(|_| ()).expect_err("a fault");
        let first = (0..64).find(|&thread| guard(thread)).expect("one that takes part") as u32;
        assert_eq!((fault.kind, fault.thread), (FaultKind::Trap, Some([first, 0, 0])), "{fault}");
    }
}
