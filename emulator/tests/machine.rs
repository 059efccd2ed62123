//! Small kernels, executed: results under every order and number of threads, and the faults that checks must find.

use cuda_emulator::fault::{Fault, FaultKind};
use cuda_emulator::machine::{LaunchConfig, launch, launch_within};
use cuda_emulator::memory::Memory;
use cuda_emulator::program::Module;
use cuda_emulator::report::Counters;
use cuda_emulator::settings::{Checks, Order, Settings};
use std::sync::Arc;

const ORDERS: [Order; 5] = [Order::Early, Order::Late, Order::Seed(1), Order::Seed(2), Order::Seed(3)];

fn settings(order: Order, threads: usize) -> Settings {
    Settings { capability: 80, checks: Checks::ALL, order, threads, report: None }
}

/// A kernel with the parameters `out` and `in`, both pointers, and 128 words of shared memory in `buf`.
fn kernel(body: &str) -> String {
    format!(
        ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 out, .param .u64 in)\n{{\n\
         .reg .pred %p<9>;\n.reg .b32 %r<20>;\n.reg .b64 %rd<20>;\n.shared .align 16 .b8 buf[512];\n\
         ld.param.u64 %rd0, [out];\nld.param.u64 %rd1, [in];\nmov.u32 %r0, %tid.x;\nmov.u32 %r1, buf;\n\
         mad.lo.u32 %r2, %r0, 4, %r1;\nmul.wide.u32 %rd2, %r0, 4;\nadd.u64 %rd3, %rd0, %rd2;\n\
         add.u64 %rd4, %rd1, %rd2;\n{body}\nret;\n}}\n"
    )
}

struct Ran {
    words: Vec<u32>,
    result: Result<Counters, Box<Fault>>,
}

/// Runs it with 1024 words in (0, 1, 2, ...) and 1024 out (zeros).
fn run(body: &str, blocks: u32, threads: u32, settings: &Settings) -> Ran {
    let memory = Arc::new(Memory::new(1 << 30));
    let module = Module::load(&kernel(body), 80, &memory).unwrap();
    let [out, source] = [0; 2].map(|_| memory.alloc(4096).unwrap());
    memory.fill(out, &[0], 4096).unwrap();
    let words: Vec<u8> = (0..1024u32).flat_map(u32::to_le_bytes).collect();
    memory.write(source, &words).unwrap();
    let config = LaunchConfig { grid: [blocks, 1, 1], block: [threads, 1, 1], dynamic_shared: 0 };
    let params: Vec<u8> = [out, source].into_iter().flat_map(u64::to_le_bytes).collect();
    let result = launch(&memory, &module.kernels[0], &config, &params, settings);
    let mut bytes = vec![0; 4096];
    memory.read(out, &mut bytes).unwrap();
    let words = bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect();
    Ran { words, result }
}

/// The same under every order, on one thread and on two.
fn everywhere(body: &str, blocks: u32, threads: u32, check: impl Fn(&[u32])) {
    for order in ORDERS {
        for workers in [1, 2] {
            let ran = run(body, blocks, threads, &settings(order, workers));
            ran.result.unwrap_or_else(|fault| panic!("{order:?}: {fault}"));
            check(&ran.words);
        }
    }
}

/// Every order finds this fault, at an instruction that starts so.
fn faulty(body: &str, threads: u32, kind: FaultKind, instruction: &str) {
    for order in ORDERS {
        let fault = run(body, 1, threads, &settings(order, 1)).result.expect_err("a fault");
        assert_eq!(fault.kind, kind, "{order:?}: {fault}");
        assert!(fault.instruction.starts_with(instruction), "{order:?}: {fault}");
    }
}

const REVERSE: &str = "ld.global.u32 %r3, [%rd4];\nst.shared.u32 [%r2], %r3;\nBARRIER\nsub.u32 %r4, 127, %r0;\n\
                       mad.lo.u32 %r5, %r4, 4, %r1;\nld.shared.u32 %r6, [%r5];\nst.global.u32 [%rd3], %r6;";

#[test]
fn a_block_reverses_its_words_through_shared_memory() {
    let body = REVERSE.replace("BARRIER", "bar.sync 0;");
    everywhere(&body, 1, 128, |words| {
        assert!((0..128).all(|i| words[i] == 127 - u32::try_from(i).unwrap()), "{words:?}");
    });
}

#[test]
fn a_dropped_barrier_is_a_race_or_a_read_of_nothing() {
    for order in ORDERS {
        let ran = run(&REVERSE.replace("BARRIER", ""), 1, 128, &settings(order, 1));
        let fault = ran.result.expect_err("a fault");
        let found = matches!(fault.kind, FaultKind::Race | FaultKind::Uninitialised);
        assert!(found, "{fault}");
    }
}

#[test]
fn lanes_of_one_warp_race_without_a_warp_barrier() {
    let body = "st.shared.u32 [%r2], %r0;\nSYNC\nxor.b32 %r4, %r0, 1;\nmad.lo.u32 %r5, %r4, 4, %r1;\n\
                ld.shared.u32 %r6, [%r5];\nst.global.u32 [%rd3], %r6;";
    faulty(&body.replace("SYNC", ""), 32, FaultKind::Race, "ld.shared");
    everywhere(&body.replace("SYNC", "bar.warp.sync 0xffffffff;"), 1, 32, |words| {
        assert!((0..32).all(|i| words[i] == u32::try_from(i ^ 1).unwrap()));
    });
}

#[test]
fn warps_that_write_the_same_bytes_do_not_race() {
    // 64 threads, each writes VALUE to the word of its lane.
    let body = "and.b32 %r4, %r0, 31;\nshr.u32 %r7, %r0, 5;\nmad.lo.u32 %r5, %r4, 4, %r1;\nFIRST\n\
                st.shared.u32 [%r5], VALUE;\nTHEN\nbar.sync 0;\nld.shared.u32 %r6, [%r5];\nst.global.u32 [%rd3], %r6;";
    let same = body.replace("FIRST", "").replace("THEN", "");
    everywhere(&same.replace("VALUE", "%r4"), 1, 64, |words| {
        assert!((0..64).all(|i| words[i] == u32::try_from(i % 32).unwrap()), "{words:?}");
    });
    // One lane's word differs.
    let other = "setp.eq.u32 %p0, %r0, 40;\nselp.u32 %r8, 1, %r4, %p0;";
    let different = body.replace("FIRST", other).replace("VALUE", "%r8").replace("THEN", "");
    faulty(&different, 64, FaultKind::Race, "st.shared");
    // One warp reads what the other writes again.
    let read = "setp.eq.u32 %p0, %r7, 0;\n@%p0 st.shared.u32 [%r5], %r4;\nbar.sync 0;\n@%p0 ld.shared.u32 %r9, [%r5];\n\
                @!%p0 st.shared.u32 [%r5], %r4;";
    let again = body.split_once("FIRST").expect("a place").0.to_owned() + read;
    faulty(&again, 64, FaultKind::Race, "");
    // The same bytes, but a third time others.
    let third =
        body.replace("FIRST", "").replace("VALUE", "%r4").replace("THEN", "st.shared.u32 [%r5], %r7;");
    faulty(&third, 64, FaultKind::Race, "st.shared");
    // Two lanes of an instruction, one with what another warp has written.
    let two = body.replace("FIRST", "").replace("VALUE", "7").replace(
        "THEN",
        "bar.sync 0;\nsetp.lt.u32 %p0, %r0, 2;\nsub.u32 %r8, 8, %r0;\n@%p0 st.shared.u32 [buf], %r8;",
    );
    faulty(&two, 64, FaultKind::Race, "@%p0 st.shared");
}

#[test]
fn a_barrier_that_some_lanes_skip() {
    let body = "setp.lt.u32 %p0, %r0, 7;\n@%p0 bar.sync 0;";
    faulty(body, 64, FaultKind::Divergence, "@%p0 bar.sync");
}

#[test]
fn a_copy_that_is_not_waited_for() {
    let body = "cp.async.ca.shared.global [%r2], [%rd4], 4;\ncp.async.commit_group;\nWAIT\n\
                ld.shared.u32 %r6, [%r2];\nst.global.u32 [%rd3], %r6;";
    faulty(&body.replace("WAIT", ""), 32, FaultKind::InFlight, "ld.shared");
    faulty(&body.replace("WAIT", "cp.async.wait_group 1;"), 32, FaultKind::InFlight, "ld.shared");
    everywhere(&body.replace("WAIT", "cp.async.wait_group 0;"), 1, 32, |words| {
        assert!((0..32).all(|i| words[i] == u32::try_from(i).unwrap()));
    });
}

#[test]
fn bounds_alignment_and_bytes_that_nothing_wrote() {
    faulty("ld.global.u32 %r3, [%rd4+4096];", 32, FaultKind::OutOfBounds, "ld.global");
    let fault = run("ld.global.u32 %r3, [%rd4+4096];", 1, 32, &settings(Order::Early, 1)).result.unwrap_err();
    assert!(
        fault.message.contains("outside every allocation: right at the end of the 4096 bytes"),
        "{fault}"
    );
    faulty("st.shared.u32 [%r2+512], %r0;", 32, FaultKind::OutOfBounds, "st.shared");
    faulty("ld.global.v2.u32 {%r3, %r4}, [%rd4];", 32, FaultKind::Misaligned, "ld.global");
    faulty("ld.shared.u32 %r3, [%r2];", 32, FaultKind::Uninitialised, "ld.shared");
    faulty("trap;", 1, FaultKind::Trap, "trap");
}

#[test]
fn a_shuffle_whose_mask_leaves_out_a_lane() {
    let body = "shfl.sync.bfly.b32 %r3, %r0, 1, 31, MASK;\nst.global.u32 [%rd3], %r3;";
    faulty(&body.replace("MASK", "0xfffffffe"), 32, FaultKind::Divergence, "shfl");
    everywhere(&body.replace("MASK", "-1"), 1, 32, |words| {
        assert!((0..32).all(|i| words[i] == u32::try_from(i ^ 1).unwrap()));
    });
}

#[test]
fn warps_that_wait_for_nobody() {
    // Warp 0 waits at a barrier for 64 threads that warp 1 never reaches.
    let body = "setp.lt.u32 %p0, %r0, 32;\n@!%p0 bra END;\nbar.sync 1, 64;\nEND:";
    faulty(body, 64, FaultKind::Deadlock, "bar.sync");
}

#[test]
fn a_loop_without_end() {
    let memory = Arc::new(Memory::new(1 << 20));
    let module = Module::load(&kernel("LOOP:\nadd.u32 %r3, %r3, 1;\nbra LOOP;"), 80, &memory).unwrap();
    let config = LaunchConfig { grid: [1; 3], block: [64, 1, 1], dynamic_shared: 0 };
    for order in ORDERS {
        let settings = settings(order, 1);
        let ended = launch_within(1 << 16, &memory, &module.kernels[0], &config, &[0; 16], &settings);
        let fault = ended.expect_err("a fault");
        assert_eq!(fault.kind, FaultKind::Deadlock, "{fault}");
        assert!(fault.message.contains("executed 65536 warp instructions"), "{fault}");
    }
}

#[test]
fn divergent_loops_meet_again_and_atomics_add_up() {
    // Every thread counts to its number and adds it to one word; the vote after it needs all lanes.
    let body = "mov.u32 %r3, 0;\nLOOP:\nsetp.ge.u32 %p0, %r3, %r0;\n@%p0 bra DONE;\nadd.u32 %r3, %r3, 1;\nbra LOOP;\n\
                DONE:\natom.global.add.u32 %r4, [%rd0], %r3;\nvote.sync.all.pred %p1, %p0, -1;\n\
                @%p1 red.global.add.u32 [%rd0+4], 1;";
    everywhere(body, 3, 96, |words| assert_eq!(words[..2], [3 * 95 * 96 / 2, 3 * 96]));
}

/// What an instruction leaves in `%rs0` is stored as 32 bits.
fn narrow(body: &str) -> u32 {
    let text = format!(".reg .b16 %rs<4>;\n{body}\ncvt.u32.u16 %r3, %rs0;\nst.global.u32 [%rd3], %r3;");
    let ran = run(&text, 1, 1, &settings(Order::Early, 1));
    ran.result.unwrap_or_else(|fault| panic!("{body}: {fault}"));
    ran.words[0]
}

#[test]
fn registers_of_16_bits_hold_no_more() {
    assert_eq!(narrow("mov.b16 %rs1, -2;\nmin.u16 %rs0, %rs1, -1;"), 0xfffe);
    assert_eq!(narrow("mov.b16 %rs1, -2;\nshr.u16 %rs0, %rs1, 4;"), 0x0fff);
    assert_eq!(narrow("mov.b16 %rs1, 1;\nor.b16 %rs2, %rs1, -256;\nshr.u16 %rs0, %rs2, 8;"), 0xff);
    // A sign-extended byte, compared as an unsigned number.
    let byte = "mov.b32 %r4, 0x80;\ncvt.s16.s8 %rs1, %r4;\nsetp.hi.u16 %p0, %rs1, 0xffff;\nsetp.eq.u16 %p1, %rs1, 0xff80;";
    assert_eq!(narrow(&format!("{byte}\nselp.b16 %rs0, 1, -1, %p0;")), 0xffff);
    assert_eq!(narrow(&format!("{byte}\nselp.b16 %rs0, 1, -1, %p1;")), 1);
}

#[test]
fn halves_compared_to_their_own_type() {
    // Of 1 and NaN, and of 2 and 2.
    for (set, want) in [
        ("lt.f16x2.f16x2 %r4, 0x7e003c00, 0x40004000", 0x0000_3c00),
        ("nan.f16x2.f16x2 %r4, 0x7e003c00, 0x40004000", 0x3c00_0000),
        ("geu.bf16x2.bf16x2 %r4, 0x7fc03f80, 0x40004000", 0x3f80_0000),
        ("neu.bf16x2.bf16x2 %r4, 0x7fc03f80, 0x40004000", 0x3f80_3f80),
        ("eq.ftz.f16x2.f16x2 %r4, 0x00018001, 0", 0x3c00_3c00),
        ("eq.f16x2.f16x2 %r4, 0x00018000, 0", 0x0000_3c00),
    ] {
        everywhere(&format!("set.{set};\nst.global.u32 [%rd3], %r4;"), 1, 1, |words| {
            assert_eq!(words[0], want, "{set}: {:#x}", words[0]);
        });
    }
    assert_eq!(narrow("mov.b16 %rs0, 0x3c00;\nset.eq.f16.f16 %rs0, %rs0, 0x3c00;"), 0x3c00);
    assert_eq!(narrow("mov.b16 %rs0, 0x3f80;\nset.ne.bf16.bf16 %rs0, %rs0, 0x3f80;"), 0);
}

#[test]
fn checks_can_be_chosen_one_by_one() {
    let race = REVERSE.replace("BARRIER", "");
    let unwritten = "ld.shared.u32 %r3, [%r2];";
    for order in ORDERS {
        let only = |checks: Checks| Settings { checks, ..settings(order, 1) };
        let races = only(Checks { races: true, ..Checks::NONE });
        let initialised = only(Checks { initialised: true, ..Checks::NONE });
        assert_eq!(run(&race, 1, 128, &races).result.unwrap_err().kind, FaultKind::Race);
        assert!(run(unwritten, 1, 32, &races).result.is_ok());
        assert_eq!(run(unwritten, 1, 32, &initialised).result.unwrap_err().kind, FaultKind::Uninitialised);
        for body in [&race, unwritten] {
            assert!(run(body, 1, 128, &only(Checks::NONE)).result.is_ok());
        }
    }
}

#[test]
fn generic_addresses_name_their_space() {
    let body = "cvta.shared.u64 %rd5, %rd6;\nst.u32 [%rd5], %r0;\nld.shared.u32 %r3, [%r2];\n\
                isspacep.shared %p0, %rd5;\nisspacep.global %p1, %rd3;\n@%p0 add.u32 %r3, %r3, 100;\n\
                @%p1 add.u32 %r3, %r3, 1000;\nst.u32 [%rd3], %r3;";
    let body = format!("cvt.u64.u32 %rd6, %r2;\n{body}");
    everywhere(&body, 1, 32, |words| {
        assert!((0..32).all(|i| words[i] == 1100 + u32::try_from(i).unwrap()), "{words:?}");
    });
}

#[test]
fn sums_of_floats_flush_subnormals_in_global_memory_only() {
    // 2^-149 + 2^-149
    let global = "mov.b32 %r3, 1;\nst.global.u32 [%rd3], %r3;\nred.global.add.f32 [%rd3], %r3;";
    assert_eq!(run(global, 1, 1, &settings(Order::Early, 1)).words[0], 0);
    let shared = "mov.b32 %r3, 1;\nst.shared.u32 [%r2], %r3;\nred.shared.add.f32 [%r2], %r3;\n\
                  ld.shared.u32 %r4, [%r2];\nst.global.u32 [%rd3], %r4;";
    assert_eq!(run(shared, 1, 1, &settings(Order::Early, 1)).words[0], 2);
}

#[test]
fn halves_are_added_to_the_last_bytes_of_an_allocation() {
    let body = ".reg .b16 %h<2>;\nmov.b16 %h0, 0x3c00;\natom.global.add.noftz.f16 %h1, [%rd0+4], %h0;";
    let memory = Arc::new(Memory::new(1 << 20));
    let module = Module::load(&kernel(body), 80, &memory).unwrap();
    let out = memory.alloc(6).unwrap();
    memory.write(out, &[0, 0, 0x12, 0x34, 0, 0]).unwrap();
    let config = LaunchConfig { grid: [2, 1, 1], block: [32, 1, 1], dynamic_shared: 0 };
    let params = [out.to_le_bytes(), out.to_le_bytes()].concat();
    launch(&memory, &module.kernels[0], &config, &params, &settings(Order::Early, 2)).unwrap();
    let mut bytes = [0; 6];
    memory.read(out, &mut bytes).unwrap();
    // 64 in fp16.
    assert_eq!(bytes, [0, 0, 0x12, 0x34, 0, 0x54]);
}

#[test]
fn what_a_module_may_not_have() {
    let memory = Memory::new(1 << 20);
    let refused = |text: &str| Module::load(text, 80, &memory).err().expect("refused").to_string();
    let constants =
        ".version 8.0\n.target sm_80\n.address_size 64\n.const .b8 a[40000];\n.const .b8 b[40000];\n";
    assert!(refused(constants).contains("80000 bytes of constants"), "{}", refused(constants));
    assert_eq!(memory.free_and_total().0, 1 << 20, "nothing stays allocated");
    let unsupported = |text: &str| {
        let module = Module::load(text, 80, &memory).unwrap();
        let config = LaunchConfig { grid: [1; 3], block: [1; 3], dynamic_shared: 0 };
        let memory = Arc::new(Memory::new(1 << 20));
        let fault = launch(&memory, &module.kernels[0], &config, &[0; 16], &settings(Order::Early, 1));
        fault.unwrap_err()
    };
    for body in
        ["ld.shared.v4.u64 {%rd5, %rd6, %rd7, %rd8}, [%r2];", "mul.lo.u32 %r3, %r0;", "mov.b32 %p0, %r0;"]
    {
        let fault = unsupported(&kernel(body));
        assert_eq!(fault.instruction, body);
        assert_eq!((fault.kind, fault.ptx_line), (FaultKind::Unsupported, 18), "{fault}");
    }
}

#[test]
fn counters_do_not_depend_on_order_or_threads() {
    let body = REVERSE.replace("BARRIER", "bar.sync 0;");
    let first = run(&body, 8, 128, &settings(Order::Early, 1)).result.unwrap();
    assert_eq!((first.blocks, first.traffic.barriers), (8, 8 * 4));
    // Four warps of a block load and store 128 bytes each: four sectors.
    assert_eq!(first.traffic.global_loads.sectors, 8 * 4 * 4);
    assert_eq!(first.traffic.shared_wavefronts, first.traffic.shared_requests);
    for order in ORDERS {
        assert_eq!(run(&body, 8, 128, &settings(order, 2)).result.unwrap(), first, "{order:?}");
    }
}
