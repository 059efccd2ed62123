//! Instructions that exist, almost exist or make no sense: decoding refuses or the machine executes or faults, and
//! nothing panics. `EMULATOR_FUZZ_CASES` sets the number of kernels, `EMULATOR_FUZZ_SEED` the first.

use cuda_emulator::machine::{LaunchConfig, launch};
use cuda_emulator::memory::Memory;
use cuda_emulator::program::Module;
use cuda_emulator::settings::{Checks, Order, Settings};
use std::sync::Arc;

/// Opcodes without jumps, so that every kernel ends.
const OPCODES: [&str; 72] = [
    "add",
    "sub",
    "mul",
    "mad",
    "fma",
    "div",
    "rem",
    "abs",
    "neg",
    "min",
    "max",
    "sad",
    "mul24",
    "mad24",
    "and",
    "or",
    "xor",
    "not",
    "cnot",
    "shl",
    "shr",
    "shf",
    "lop3",
    "prmt",
    "popc",
    "clz",
    "bfind",
    "brev",
    "bfe",
    "bfi",
    "bmsk",
    "szext",
    "dp4a",
    "dp2a",
    "addc",
    "subc",
    "madc",
    "rcp",
    "sqrt",
    "rsqrt",
    "ex2",
    "lg2",
    "sin",
    "cos",
    "tanh",
    "copysign",
    "testp",
    "mov",
    "cvt",
    "cvta",
    "isspacep",
    "setp",
    "set",
    "selp",
    "slct",
    "ld",
    "st",
    "atom",
    "red",
    "cp",
    "ldmatrix",
    "stmatrix",
    "mma",
    "shfl",
    "vote",
    "match",
    "redux",
    "activemask",
    "bar",
    "barrier",
    "exit",
    "fence",
];

const MODIFIERS: [&str; 92] = [
    "u8",
    "s8",
    "b8",
    "u16",
    "s16",
    "b16",
    "u32",
    "s32",
    "b32",
    "u64",
    "s64",
    "b64",
    "f16",
    "bf16",
    "f16x2",
    "bf16x2",
    "f32",
    "f64",
    "tf32",
    "pred",
    "rn",
    "rz",
    "rm",
    "rp",
    "rni",
    "rzi",
    "ftz",
    "sat",
    "relu",
    "satfinite",
    "approx",
    "full",
    "NaN",
    "hi",
    "lo",
    "wide",
    "cc",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "ltu",
    "nan",
    "num",
    "global",
    "shared",
    "local",
    "param",
    "const",
    "to",
    "v2",
    "v4",
    "v8",
    "nc",
    "volatile",
    "relaxed",
    "gpu",
    "cas",
    "exch",
    "inc",
    "sync",
    "aligned",
    "m8n8",
    "x1",
    "x2",
    "x4",
    "trans",
    "m16n8k8",
    "m16n8k16",
    "row",
    "col",
    "idx",
    "up",
    "bfly",
    "all",
    "any",
    "ballot",
    "warp",
    "red",
    "popc",
    "arrive",
    "async",
    "ca",
    "cg",
    "commit_group",
    "wait_group",
    "wait_all",
    "l",
    "wrap",
    "clamp",
];

/// Forms as they are written, to be used whole or changed by a word or two.
const FORMS: [&str; 42] = [
    "add.rn.f32 F, F, F",
    "fma.rn.f64 D, D, D, D",
    "mul.wide.s32 Q, R, R",
    "mad.lo.s64 Q, Q, Q, Q",
    "add.cc.u32 R, R, R",
    "madc.hi.u64 Q, Q, Q, Q",
    "cvt.rn.bf16x2.f32 R, F, F",
    "cvt.rzi.s16.f32 H, F",
    "cvt.u32.u8 R, H",
    "cvt.sat.s8.s64 H, Q",
    "setp.lt.and.f32 P|P, F, F, !P",
    "setp.eq.f16x2 P|P, R, R",
    "set.nan.ftz.f16x2.f16x2 R, R, R",
    "selp.b16 H, H, -1, P",
    "slct.f64.f32 D, D, D, F",
    "ld.global.v4.u32 {R, R, _, R}, [Q+16]",
    "ld.shared.s16 R, [R]",
    "ld.b64 Q, [Q]",
    "ld.param.u32 R, [out+4]",
    "st.global.v2.f64 [Q], {D, D}",
    "st.shared.u8 [buf+3], R",
    "st.local.u32 [Q], 5",
    "atom.shared.add.u32 R, [R], R",
    "atom.global.cas.b64 Q, [Q], Q, Q",
    "red.global.add.f16x2 [Q], R",
    "cp.async.cg.shared.global [R], [Q], 16, R",
    "cp.async.wait_group 0",
    "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {R, R, R, R}, [R]",
    "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {F, F, F, F}, {R, R, R, R}, {R, R}, {F, F, F, F}",
    "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.u8.s32 {R, R, R, R}, {R, R, R, R}, {R, R}, {R, R, R, R}",
    "shfl.sync.bfly.b32 R|P, R, 1, 31, -1",
    "vote.sync.ballot.b32 R, P, -1",
    "match.all.sync.b64 R|P, Q, -1",
    "redux.sync.max.s32 R, R, -1",
    "bar.sync 0",
    "bar.sync R, 64",
    "barrier.red.popc.u32 R, 1, P",
    "bar.warp.sync -1",
    "mov.b64 {R, R}, Q",
    "mov.b64 Q, {H, H, H, H}",
    "bfi.b64 Q, Q, Q, R, R",
    "cvta.to.shared.u64 Q, Q",
];

const OPERANDS: [&str; 30] = [
    "R",
    "R",
    "Q",
    "Q",
    "H",
    "F",
    "D",
    "P",
    "!P",
    "0",
    "1",
    "-1",
    "31",
    "0x80000000",
    "0x7fffffffffffffff",
    "0f7F800000",
    "0d7FF0000000000001",
    "[R]",
    "[Q]",
    "[Q+8]",
    "[buf]",
    "[out]",
    "[123]",
    "{R, R}",
    "{Q, Q}",
    "{R, R, R, R}",
    "R|P",
    "_",
    "%tid.x",
    "buf",
];

struct Random(u64);

impl Random {
    /// xorshift64.
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from((self.0 >> 11) % bound as u64).unwrap()
    }

    fn pick<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len())]
    }
}

/// Letters that stand for a register become one of its type.
fn named(random: &mut Random, operands: &str) -> String {
    let mut text = String::new();
    let mut rest = operands.chars().peekable();
    let mut before = ' ';
    while let Some(c) = rest.next() {
        let alone = !before.is_alphanumeric() && !rest.peek().is_some_and(|c| c.is_alphanumeric());
        let kind = match c {
            'R' => "%r",
            'Q' => "%rd",
            'H' => "%rs",
            'F' => "%f",
            'D' => "%fd",
            'P' => "%p",
            _ => "",
        };
        if alone && !kind.is_empty() {
            text += &format!("{kind}{}", random.below(4));
        } else {
            text.push(c);
        }
        before = c;
    }
    text
}

fn instruction(random: &mut Random) -> String {
    let (mut words, mut operands): (Vec<&str>, Vec<&str>);
    if random.below(3) == 0 {
        words = vec![random.pick(&OPCODES)];
        (0..random.below(5)).for_each(|_| words.push(random.pick(&MODIFIERS)));
        operands = (0..random.below(6)).map(|_| random.pick(&OPERANDS)).collect();
    } else {
        let (name, rest) = random.pick(&FORMS).split_once(' ').unwrap();
        words = name.split('.').collect();
        operands = vec![rest];
        for _ in 0..random.below(3) {
            let at = random.below(words.len());
            match random.below(4) {
                0 if at > 0 => drop(words.remove(at)),
                1 => words.insert(at + 1, random.pick(&MODIFIERS)),
                2 if at > 0 => words[at] = random.pick(&MODIFIERS),
                _ if random.below(4) == 0 => operands.push(random.pick(&OPERANDS)),
                _ => {}
            }
        }
    }
    let guard = ["", "", "", "@%p1 ", "@!%p2 "][random.below(5)];
    let operands = named(random, &operands.join(", "));
    format!("{guard}{} {operands};", words.join("."))
}

fn kernel(random: &mut Random) -> String {
    let body: Vec<String> = (0..1 + random.below(4)).map(|_| instruction(random)).collect();
    format!(
        ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 out, .param .u32 n)\n{{\n\
         .reg .pred %p<4>;\n.reg .b16 %rs<4>;\n.reg .b32 %r<4>;\n.reg .b64 %rd<4>;\n.reg .f32 %f<4>;\n.reg .f64 %fd<4>;\n\
         .shared .align 16 .b8 buf[1024];\n.local .align 8 .b8 depot[64];\n\
         ld.param.u64 %rd1, [out];\nmov.u32 %r1, %tid.x;\nmov.u32 %r2, buf;\nsetp.lt.u32 %p1, %r1, 5;\n\
         mov.u64 %rd2, depot;\ncvta.local.u64 %rd3, %rd2;\nmad.lo.u32 %r3, %r1, 16, %r2;\n{}\nret;\n}}\n",
        body.join("\n")
    )
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

#[test]
fn nothing_panics() {
    let (cases, seed) = (setting("EMULATOR_FUZZ_CASES", 20_000), setting("EMULATOR_FUZZ_SEED", 1));
    let memory = Arc::new(Memory::new(1 << 20));
    let out = memory.alloc(4096).unwrap();
    memory.fill(out, &[0], 2048).unwrap();
    let (mut loaded, mut ran) = (0u64, 0u64);
    for case in seed..seed + cases {
        let mut random = Random(case.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let text = kernel(&mut random);
        let order = [Order::Early, Order::Late, Order::Seed(case)][random.below(3)];
        let checks = [Checks::ALL, Checks::NONE][random.below(2)];
        let result = std::panic::catch_unwind(|| {
            let Ok(module) = Module::load(&text, 80, &memory) else { return (0, 0) };
            let threads = [1, 32, 50, 64][usize::try_from(case % 4).unwrap()];
            let config = LaunchConfig { grid: [2, 1, 1], block: [threads, 1, 1], dynamic_shared: 0 };
            let settings = Settings { capability: 80, checks, order, threads: 1, report: None };
            let mut params = out.to_le_bytes().to_vec();
            params.extend(7u32.to_le_bytes());
            let result = launch(&memory, &module.kernels[0], &config, &params, &settings);
            module.unload(&memory);
            (1, u64::from(result.is_ok()))
        });
        let (one, ok) = result.unwrap_or_else(|_| panic!("case {case} panics:\n{text}"));
        (loaded, ran) = (loaded + one, ran + ok);
    }
    println!("{cases} kernels: {loaded} loaded, {ran} ran to their end");
    assert!(ran * 20 > cases, "too few run for the test to mean much: {ran} of {cases}");
}
