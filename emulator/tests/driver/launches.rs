//! Launches: what is refused before, what a fault does after, occupancy.

use crate::api::*;
use std::ffi::c_void;
use std::ptr::{null, null_mut};

#[test]
fn a_kernel_writes_what_it_should() {
    let _session = Session::new();
    let kernel = Module::load().function("store");
    let memory = get(|out| cuMemAlloc_v2(out, 4096));
    ok(store(kernel, 1024, 0, memory, 7));
    let want: Vec<u32> = (7..1031).collect();
    assert_eq!(words(memory, 1024), want);
}

#[test]
fn shapes_beyond_the_device_or_the_kernel_are_refused() {
    let _session = Session::new();
    let module = Module::load();
    let run = |name, [a, b, c]: [u32; 3], [x, y, z]: [u32; 3]| {
        cuLaunchKernel(module.function(name), a, b, c, x, y, z, 0, 0, null(), null())
    };
    let one = [1, 1, 1];
    for grid in [[0, 1, 1], [1, 0, 1], [1, 1, 0], [1 << 31, 1, 1], [1, 65536, 1], [1, 1, 65536]] {
        assert_eq!(run("bounded", grid, one), INVALID_VALUE, "grid {grid:?}");
    }
    for block in [[0, 1, 1], [1025, 1, 1], [1, 1025, 1], [1, 1, 65], [32, 32, 2], [u32::MAX; 3]] {
        assert_eq!(run("shared", one, block), INVALID_VALUE, "block {block:?}");
    }
    ok(run("shared", [3, 2, 2], [1, 1, 64]));
    ok(run("bounded", one, [64, 1, 1]));
    assert_eq!(run("bounded", one, [65, 1, 1]), INVALID_VALUE, "maxntid");
    ok(run("required", one, [32, 2, 1]));
    assert_eq!(run("required", one, [64, 1, 1]), INVALID_VALUE, "reqntid");
    for wrong in [0, module.0, u64::MAX] {
        assert_eq!(cuLaunchKernel(wrong, 1, 1, 1, 1, 1, 1, 0, 0, null(), null()), INVALID_HANDLE);
    }
    let kernel = module.function("bounded");
    assert_eq!(cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, 77, null(), null()), INVALID_HANDLE, "stream");
    assert_eq!(cuLaunchCooperativeKernel(kernel, 1, 1, 1, 1, 1, 1, 0, 0, null()), NOT_SUPPORTED);
    ok(cuCtxSynchronize());
}

#[test]
fn dynamic_shared_memory_above_48_kb_must_be_asked_for() {
    let _session = Session::new();
    let kernel = Module::load().function("last");
    let run = |bytes: u32| launch(kernel, 1, bytes, 0, &[(&raw const bytes).cast()]);
    ok(run(48 << 10));
    assert_eq!(run((48 << 10) + 1), INVALID_VALUE);
    ok(cuFuncSetAttribute(kernel, 8, 100_000));
    ok(run(100_000));
    assert_eq!(run(100_001), INVALID_VALUE);
    ok(cuCtxSynchronize());
}

#[test]
fn parameters_come_one_by_one_or_in_a_buffer() {
    let _session = Session::new();
    let kernel = Module::load().function("store");
    let memory = get(|out| cuMemAlloc_v2(out, 4));
    let run = |params: *const *const c_void, extra: *const *const c_void| {
        cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, 0, params, extra)
    };
    let mut buffer = [0_u8; 16];
    buffer[..8].copy_from_slice(&memory.to_ne_bytes());
    buffer[8..12].copy_from_slice(&21_u32.to_ne_bytes());
    let name = std::ptr::without_provenance::<c_void>;
    let extra =
        |bytes: &usize| [name(1), buffer.as_ptr().cast(), name(2), std::ptr::from_ref(bytes).cast(), name(0)];
    for enough in [12, 16] {
        ok(run(null(), extra(&enough).as_ptr()));
    }
    assert_eq!(words(memory, 1), [21]);
    assert_eq!(run(null(), extra(&11).as_ptr()), INVALID_VALUE, "too few bytes");
    assert_eq!(run(null(), [name(0)].as_ptr()), INVALID_VALUE, "no buffer");
    assert_eq!(run(null(), [name(9), null()].as_ptr()), INVALID_VALUE, "no such name");
    let value = 22_u32;
    let params = [(&raw const memory).cast(), (&raw const value).cast()];
    assert_eq!(run(params.as_ptr(), extra(&12).as_ptr()), INVALID_VALUE, "both");
    assert_eq!(run(null(), null()), INVALID_VALUE, "neither");
    assert_eq!(run([params[0], null()].as_ptr(), null()), INVALID_VALUE, "null for one");
    assert_eq!(words(memory, 1), [21]);
}

/// `CUlaunchAttribute` and `CUlaunchConfig`.
#[repr(C)]
struct Attribute {
    id: u32,
    padding: u32,
    value: [u32; 16],
}

#[repr(C)]
struct Config {
    shape: [u32; 7],
    stream: u64,
    attributes: *const Attribute,
    count: u32,
}

#[test]
fn launch_attributes_that_change_the_kernel_are_refused() {
    let _session = Session::new();
    let kernel = Module::load().function("bounded");
    let run = |id, first| {
        let mut attribute = Attribute { id, padding: 0, value: [1; 16] };
        attribute.value[0] = first;
        let config =
            Config { shape: [1, 1, 1, 32, 1, 1, 0], stream: 0, attributes: &raw const attribute, count: 1 };
        cuLaunchKernelEx((&raw const config).cast(), kernel, null(), null())
    };
    assert_eq!(run(2, 1), NOT_SUPPORTED, "cooperative");
    ok(run(2, 0));
    assert_eq!(run(4, 2), NOT_SUPPORTED, "cluster");
    ok(run(4, 1));
    ok(run(6, 1));
    assert_eq!(cuLaunchKernelEx(null(), kernel, null(), null()), INVALID_VALUE);
}

#[test]
fn a_fault_stays_in_its_context() {
    for (kernel, offset, code) in
        [("trap", 0, LAUNCH_FAILED), ("store", 1 << 30, ILLEGAL_ADDRESS), ("store", 2, MISALIGNED_ADDRESS)]
    {
        let session = Session::new();
        let module = Module::load();
        let memory = get(|out| cuMemAlloc_v2(out, 64));
        let stream = get(|out| cuStreamCreate(out, 0));
        let event = get(|out| cuEventCreate(out, 0));
        let function = module.function(kernel);
        if kernel == "trap" {
            ok(launch(function, 1, 0, stream, &[]));
        } else {
            ok(store(function, 1, stream, memory + offset, 1));
        }
        let mut word = 0_u32;
        let host: *mut c_void = (&raw mut word).cast();
        for _ in 0..2 {
            assert_eq!(cuStreamSynchronize(stream), code);
            assert_eq!(cuCtxSynchronize(), code);
            assert_eq!(cuStreamQuery(0), code);
            assert_eq!(cuEventRecord(event, stream), code);
            assert_eq!(cuEventSynchronize(event), code);
            assert_eq!(cuMemcpyDtoH_v2(host, memory, 4), code);
            assert_eq!(cuMemsetD8Async(memory, 0, 4, stream), code);
            assert_eq!(cuMemAlloc_v2(&mut 0, 4), code);
            assert_eq!(cuMemFree_v2(memory), code);
            assert_eq!(store(module.function("store"), 1, 0, memory, 1), code);
            assert_eq!(cuStreamBeginCapture_v2(stream, 0), code);
            assert_eq!(cuStreamCreate(&mut 0, 0), code);
        }
        // Another context is not touched by it.
        let other = get(|out| cuCtxCreate_v2(out, 0, 0));
        ok(cuCtxSynchronize());
        ok(cuCtxDestroy_v2(other));
        ok(cuEventDestroy_v2(event));
        ok(cuStreamDestroy_v2(stream));
        drop(session);
    }
}

#[test]
fn occupancy_is_bounded_by_threads_blocks_and_shared_memory() {
    let _session = Session::new();
    let module = Module::load();
    let (store, shared, bounded) =
        (module.function("store"), module.function("shared"), module.function("bounded"));
    let blocks = |kernel, threads, dynamic| {
        get(|out| cuOccupancyMaxActiveBlocksPerMultiprocessor(out, kernel, threads, dynamic))
    };
    // sm_80: 2048 threads, 32 blocks and 164 KB a processor; 1 KB of each block's is reserved.
    assert_eq!(blocks(store, 1024, 0), 2);
    assert_eq!(blocks(store, 33, 0), 32, "two warps");
    assert_eq!(blocks(store, 65, 0), 21, "three warps: 2048 / 96");
    assert_eq!(blocks(shared, 32, 0), 9, "164 / 17");
    assert_eq!(blocks(store, 32, 40 << 10), 4, "164 / 41");
    assert_eq!(blocks(store, 32, 163 << 10), 1);
    assert_eq!(blocks(store, 32, (163 << 10) + 1), 0);
    assert_eq!(blocks(store, 32, usize::MAX), 0);
    assert_eq!(blocks(bounded, 65, 0), 0);
    for threads in [0, -1] {
        let code = cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut 0, store, threads, 0);
        assert_eq!(code, INVALID_VALUE);
    }
    let best = |kernel, shared_of, dynamic, limit| {
        let (mut grid, mut block) = (0, 0);
        let (g, b) = (&raw mut grid, &raw mut block);
        ok(cuOccupancyMaxPotentialBlockSize(g, b, kernel, shared_of, dynamic, limit));
        (grid, block)
    };
    assert_eq!(best(store, None, 0, 0), (2 * 4, 1024));
    // 64 threads make 2048 in 32 blocks, 96 only 2016 in 21, 100 only 1600 in 16.
    assert_eq!(best(store, None, 0, 100), (32 * 4, 64));
    assert_eq!(best(bounded, None, 0, 0), (32 * 4, 64));
    extern "C" fn per_thread(threads: i32) -> usize {
        1024 * threads.unsigned_abs() as usize
    }
    // 1 KB a thread: 163 of them at most, so 160 in whole warps, in one block or in five (33 KB each: only
    // four).
    assert_eq!(best(store, Some(per_thread), 0, 0), (4, 160));
    let left = |kernel, blocks, threads| {
        get(|out| cuOccupancyAvailableDynamicSMemPerBlock(out, kernel, blocks, threads))
    };
    assert_eq!(left(store, 1, 32), 163 << 10);
    assert_eq!(left(store, 4, 32), 40 << 10);
    assert_eq!(left(shared, 4, 32), 24 << 10);
    assert_eq!(cuOccupancyAvailableDynamicSMemPerBlock(&mut 0, store, 3, 1024), INVALID_VALUE);
    assert_eq!(cuOccupancyAvailableDynamicSMemPerBlock(null_mut(), store, 1, 32), INVALID_VALUE);
}
