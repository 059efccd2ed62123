//! Graphs: what was captured runs again, with the parameters of then and the memory of now.

use crate::api::*;
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU32, Ordering};

/// Captures what `work` puts on the stream.
fn captured(work: impl FnOnce(u64)) -> (u64, u64) {
    let stream = get(|out| cuStreamCreate(out, 1));
    ok(cuStreamBeginCapture_v2(stream, 0));
    work(stream);
    (stream, get(|out| cuStreamEndCapture(stream, out)))
}

fn instantiate(graph: u64) -> u64 {
    get(|out| cuGraphInstantiateWithFlags(out, graph, 0))
}

extern "C" fn count(data: *mut c_void) {
    // SAFETY: the tests pass a counter that outlives their graphs.
    unsafe { &*data.cast::<AtomicU32>() }.fetch_add(1, Ordering::Relaxed);
}

#[test]
fn a_graph_runs_kernels_copies_memsets_and_host_functions() {
    let _session = Session::new();
    let kernel = Module::load().function("store");
    let [memory, copy] = [0; 2].map(|_| get(|out| cuMemAlloc_v2(out, 16)));
    let (source, mut target, calls) = ([40_u32, 41], [0_u32; 4], AtomicU32::new(0));
    for out in [memory, copy] {
        ok(cuMemsetD8_v2(out, 0, 16));
    }
    let (stream, graph) = captured(|stream| {
        ok(store(kernel, 4, stream, memory, 10));
        ok(cuMemsetD32Async(memory, 99, 1, stream));
        ok(cuMemcpyHtoDAsync_v2(memory + 8, source.as_ptr().cast(), 8, stream));
        ok(cuMemcpyDtoDAsync_v2(copy, memory, 16, stream));
        ok(cuMemcpyDtoHAsync_v2(target.as_mut_ptr().cast(), copy, 16, stream));
        ok(cuLaunchHostFunc(stream, Some(count), (&raw const calls).cast_mut().cast()));
    });
    assert_eq!(words(memory, 4), [0; 4], "nothing ran at the capture");
    assert_eq!(calls.load(Ordering::Relaxed), 0);

    let mut nodes = [0; 8];
    let mut number = 0;
    ok(cuGraphGetNodes(graph, null_mut(), &raw mut number));
    assert_eq!(number, 6);
    number = 8;
    ok(cuGraphGetNodes(graph, nodes.as_mut_ptr(), &raw mut number));
    assert_eq!((number, &nodes[6..]), (6, &[0, 0][..]));
    let types: Vec<u32> = nodes[..6].iter().map(|&node| get(|out| cuGraphNodeGetType(node, out))).collect();
    assert_eq!(types, [0, 2, 1, 1, 1, 3]);
    let (mut from, mut to) = ([0; 5], [0; 5]);
    number = 5;
    ok(cuGraphGetEdges(graph, from.as_mut_ptr(), to.as_mut_ptr(), &raw mut number));
    assert_eq!((&from[..], &to[..]), (&nodes[..5], &nodes[1..6]), "one after the other");

    let exec = instantiate(graph);
    ok(cuGraphUpload(exec, stream));
    ok(cuGraphDestroy(graph));
    assert_eq!(cuGraphNodeGetType(nodes[0], &mut 0), INVALID_HANDLE);
    for round in 1..=2 {
        ok(cuMemsetD8_v2(memory, 0, 16));
        ok(cuGraphLaunch(exec, stream));
        ok(cuStreamSynchronize(stream));
        assert_eq!(target, [99, 11, 40, 41]);
        assert_eq!(calls.load(Ordering::Relaxed), round);
        target = [0; 4];
    }
    ok(cuGraphExecDestroy(exec));
    assert_eq!(cuGraphLaunch(exec, stream), INVALID_HANDLE);
    assert_eq!(cuGraphExecDestroy(exec), INVALID_HANDLE);
}

#[test]
fn parameters_are_those_of_the_capture() {
    let _session = Session::new();
    let kernel = Module::load().function("store");
    let memory = get(|out| cuMemAlloc_v2(out, 4));
    let mut value = 5_u32;
    let (stream, graph) = captured(|stream| {
        let params = [(&raw const memory).cast(), (&raw const value).cast()];
        ok(launch(kernel, 1, 0, stream, &params));
    });
    value = 6;
    let exec = instantiate(graph);
    ok(cuGraphLaunch(exec, stream));
    assert_eq!(words(memory, 1), [5], "not {value}");
}

#[test]
fn forks_run_before_what_waits_for_them() {
    let _session = Session::new();
    let memory = get(|out| cuMemAlloc_v2(out, 8));
    let [fork, join] = [0; 2].map(|_| get(|out| cuEventCreate(out, 0)));
    let side = get(|out| cuStreamCreate(out, 1));
    let (stream, graph) = captured(|origin| {
        ok(cuMemsetD32Async(memory, 1, 1, origin));
        ok(cuEventRecord(fork, origin));
        ok(cuStreamWaitEvent(side, fork, 0));
        ok(cuMemcpyDtoDAsync_v2(memory + 4, memory, 4, side));
        ok(cuEventRecord(join, side));
        ok(cuStreamWaitEvent(origin, join, 0));
        ok(cuMemsetD32Async(memory, 2, 1, origin));
    });
    let mut edges = 0;
    ok(cuGraphGetEdges(graph, null_mut(), null_mut(), &raw mut edges));
    assert_eq!(edges, 3, "1 to copy, 1 to 2, copy to 2");
    ok(cuGraphLaunch(instantiate(graph), stream));
    assert_eq!(words(memory, 2), [2, 1]);
}

#[test]
fn events_with_the_external_flag_are_nodes() {
    let _session = Session::new();
    let event = get(|out| cuEventCreate(out, 0));
    let (stream, graph) = captured(|stream| ok(cuEventRecordWithFlags(event, stream, 1)));
    let [start, other] = [0; 2].map(|_| get(|out| cuEventCreate(out, 0)));
    ok(cuEventRecord(start, 0));
    assert_eq!(cuEventElapsedTime_v2(&mut 0.0, start, event), INVALID_HANDLE, "not recorded yet");
    ok(cuGraphLaunch(instantiate(graph), stream));
    assert!(get(|out| cuEventElapsedTime_v2(out, start, event)) >= 0.0);
    assert_eq!(cuEventRecordWithFlags(other, 0, 2), INVALID_VALUE);
}

#[test]
fn a_graph_launched_in_a_capture_becomes_part_of_it() {
    let _session = Session::new();
    let memory = get(|out| cuMemAlloc_v2(out, 4));
    let (_, inner) = captured(|stream| ok(cuMemsetD32Async(memory, 1, 1, stream)));
    let inner = instantiate(inner);
    let (stream, outer) = captured(|stream| ok(cuGraphLaunch(inner, stream)));
    ok(cuMemsetD32_v2(memory, 0, 1));
    let copy = get(|out| cuGraphClone(out, outer));
    ok(cuGraphDestroy(outer));
    let exec = instantiate(copy);
    ok(cuGraphExecDestroy(inner));
    ok(cuGraphLaunch(exec, stream));
    assert_eq!(words(memory, 1), [1]);
}

#[test]
fn memory_of_a_graph_lives_as_long_as_it() {
    let _session = Session::new();
    let free = || get(|out| cuMemGetInfo_v2(out, &mut 0));
    let before = free();
    let result = get(|out| cuMemAlloc_v2(out, 4));
    let (stream, graph) = captured(|stream| {
        let scratch = get(|out| cuMemAllocAsync(out, 4, stream));
        ok(cuMemsetD32Async(scratch, 8, 1, stream));
        ok(cuMemcpyDtoDAsync_v2(result, scratch, 4, stream));
        ok(cuMemFreeAsync(scratch, stream));
        assert_eq!(cuMemFreeAsync(result, stream), INVALID_VALUE, "not of this graph");
    });
    let exec = instantiate(graph);
    ok(cuGraphDestroy(graph));
    for _ in 0..2 {
        ok(cuMemsetD32_v2(result, 0, 1));
        ok(cuGraphLaunch(exec, stream));
        assert_eq!(words(result, 1), [8]);
    }
    ok(cuGraphExecDestroy(exec));
    ok(cuMemFree_v2(result));
    assert_eq!(free(), before);
}

#[test]
fn memory_freed_under_a_graph_is_an_illegal_address() {
    let _session = Session::new();
    let memory = get(|out| cuMemAlloc_v2(out, 4));
    let (stream, graph) = captured(|stream| ok(cuMemsetD32Async(memory, 1, 1, stream)));
    let exec = instantiate(graph);
    ok(cuMemFree_v2(memory));
    ok(cuGraphLaunch(exec, stream));
    assert_eq!(cuStreamSynchronize(stream), ILLEGAL_ADDRESS);
}

#[test]
fn what_cannot_run_is_refused_when_it_is_captured() {
    let _session = Session::new();
    let memory = get(|out| cuMemAlloc_v2(out, 64));
    let kernel = Module::load().function("bounded");
    let (_, graph) = captured(|stream| {
        assert_eq!(cuMemsetD8Async(memory, 0, 65, stream), INVALID_VALUE);
        assert_eq!(cuMemcpyDtoDAsync_v2(memory + 1, memory, 64, stream), INVALID_VALUE);
        assert_eq!(launch(kernel, 65, 0, stream, &[]), INVALID_VALUE);
    });
    let mut nodes = 77;
    ok(cuGraphGetNodes(graph, null_mut(), &raw mut nodes));
    assert_eq!(nodes, 0);
}

#[test]
fn wrong_graphs_and_flags_are_refused() {
    let _session = Session::new();
    let (stream, graph) = captured(|_| {});
    let refused = |flags| cuGraphInstantiateWithFlags(&mut 0, graph, flags);
    assert_eq!(refused(1 | 4), INVALID_VALUE);
    assert_eq!(refused(16), INVALID_VALUE);
    assert_eq!(refused(4), NOT_SUPPORTED, "launched from the device");
    let exec = get(|out| cuGraphInstantiateWithFlags(out, graph, 1 | 8));
    ok(cuGraphLaunch(exec, stream));
    assert_eq!(cuGraphLaunch(graph, stream), INVALID_HANDLE, "a graph is no executable");
    assert_eq!(cuGraphDestroy(exec), INVALID_HANDLE);
    assert_eq!(cuGraphInstantiateWithFlags(null_mut(), graph, 0), INVALID_VALUE);
    ok(cuGraphDestroy(graph));
    assert_eq!(cuGraphDestroy(graph), INVALID_HANDLE);
    assert_eq!(refused(0), INVALID_HANDLE);
    assert_eq!(cuGraphGetNodes(graph, null_mut(), &mut 0), INVALID_HANDLE);
}
