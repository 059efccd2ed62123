//! Capture of streams: what is recorded, what is refused, and what a refusal does to the capture.

use crate::api::*;
use std::ptr::null_mut;

const GLOBAL: u32 = 0;
const THREAD_LOCAL: u32 = 1;
const RELAXED: u32 = 2;

/// A stream that is not ordered with the legacy default stream, being captured.
fn capturing(mode: u32) -> u64 {
    let stream = get(|out| cuStreamCreate(out, 1));
    ok(cuStreamBeginCapture_v2(stream, mode));
    stream
}

fn status(stream: u64) -> u32 {
    get(|out| cuStreamIsCapturing(stream, out))
}

/// Ends a capture that has failed: the error, no graph, and the stream is free again.
fn ends_invalidated(stream: u64) {
    assert_eq!(status(stream), 2);
    let mut graph = 77;
    assert_eq!(cuStreamEndCapture(stream, &raw mut graph), CAPTURE_INVALIDATED);
    assert_eq!(graph, 0);
    assert_eq!(status(stream), 0);
    ok(cuStreamSynchronize(stream));
}

#[test]
fn a_capture_has_a_status_an_id_and_a_graph() {
    let _session = Session::new();
    let memory = get(|out| cuMemAlloc_v2(out, 64));
    let stream = capturing(GLOBAL);
    ok(cuMemsetD8Async(memory, 1, 64, stream));
    let (mut state, mut id, mut graph, mut nodes, mut count) = (0, 0, 0, std::ptr::null(), 0);
    let mut info = || {
        ok(cuStreamGetCaptureInfo_v2(
            stream,
            &raw mut state,
            &raw mut id,
            &raw mut graph,
            &raw mut nodes,
            &raw mut count,
        ));
        (state, id, graph, count)
    };
    let first = info();
    assert!(first.0 == 1 && first.1 != 0 && first.3 == 1, "{first:?}");
    ok(cuMemsetD8Async(memory, 2, 64, stream));
    assert_eq!(info(), first, "the same capture, one node to depend on");
    assert_eq!(get(|out| cuStreamEndCapture(stream, out)), first.2);
    assert_eq!(info().0, 0);
    ok(cuGraphDestroy(first.2));
}

#[test]
fn beginning_and_ending_at_the_wrong_place() {
    let _session = Session::new();
    let stream = get(|out| cuStreamCreate(out, 0));
    let mut graph = 77;
    assert_eq!(cuStreamEndCapture(stream, &raw mut graph), ILLEGAL_STATE);
    assert_eq!(cuStreamEndCapture(stream, null_mut()), INVALID_VALUE);
    assert_eq!(cuStreamBeginCapture_v2(stream, 3), INVALID_VALUE);
    for legacy in [0, 1] {
        assert_eq!(cuStreamBeginCapture_v2(legacy, RELAXED), CAPTURE_UNSUPPORTED);
    }
    ok(cuStreamBeginCapture_v2(stream, RELAXED));
    assert_eq!(cuStreamBeginCapture_v2(stream, RELAXED), ILLEGAL_STATE);
    ok(cuStreamEndCapture(stream, &raw mut graph));
    ok(cuGraphDestroy(graph));
    // The thread's own default stream can be captured; by its variant, handle 0 names it.
    ok(cuStreamBeginCapture_v2_ptsz(0, RELAXED));
    assert_eq!(status(2), 1);
    assert_eq!(status(1), 0);
    ok(cuStreamEndCapture_ptsz(0, &raw mut graph));
    ok(cuGraphDestroy(graph));
}

#[test]
fn waiting_for_a_captured_stream_is_refused_and_fails_the_capture() {
    let _session = Session::new();
    let calls: [fn(u64) -> u32; 3] = [cuStreamSynchronize, cuStreamQuery, |_| cuCtxSynchronize()];
    for call in calls {
        let stream = capturing(RELAXED);
        assert_eq!(call(stream), CAPTURE_UNSUPPORTED);
        assert_eq!(cuMemsetD8Async(0, 0, 0, stream), CAPTURE_INVALIDATED);
        ends_invalidated(stream);
    }
}

#[test]
fn calls_that_might_wait_are_refused_as_the_mode_says() {
    let session = Session::new();
    let memory = get(|out| cuMemAlloc_v2(out, 64));
    let context = session.context;
    let image = c(PTX);
    let calls: [(&str, &(dyn Fn() -> u32 + Sync)); 4] = [
        ("cuMemAlloc", &|| cuMemAlloc_v2(&mut 0, 4)),
        ("cuMemcpyHtoD", &|| cuMemcpyHtoD_v2(memory, (&raw const context).cast(), 8)),
        ("cuMemsetD8", &|| cuMemsetD8_v2(memory, 0, 8)),
        ("cuModuleLoadData", &|| cuModuleLoadData(&mut 0, image.as_ptr().cast())),
    ];
    for (name, call) in calls {
        for (mode, is_own, refused) in [
            (GLOBAL, true, true),
            (GLOBAL, false, true),
            (THREAD_LOCAL, true, true),
            (THREAD_LOCAL, false, false),
            (RELAXED, true, false),
            (RELAXED, false, false),
        ] {
            let stream = capturing(mode);
            let elsewhere = || {
                ok(cuCtxSetCurrent(context));
                call()
            };
            let code = if is_own {
                call()
            } else {
                std::thread::scope(|scope| scope.spawn(elsewhere).join().unwrap())
            };
            assert_eq!(code, if refused { CAPTURE_UNSUPPORTED } else { 0 }, "{name}, {mode}, {is_own}");
            if refused {
                ends_invalidated(stream);
            } else {
                ok(cuGraphDestroy(get(|out| cuStreamEndCapture(stream, out))));
            }
        }
        // A thread may waive the check.
        let stream = capturing(GLOBAL);
        let mut mode = RELAXED;
        ok(cuThreadExchangeStreamCaptureMode(&raw mut mode));
        assert_eq!(mode, GLOBAL);
        ok(call());
        ok(cuThreadExchangeStreamCaptureMode(&raw mut mode));
        assert_eq!(mode, RELAXED);
        ok(cuGraphDestroy(get(|out| cuStreamEndCapture(stream, out))));
    }
    assert_eq!(cuThreadExchangeStreamCaptureMode(&mut 3), INVALID_VALUE);
}

#[test]
fn the_legacy_stream_may_not_depend_on_a_captured_one() {
    let _session = Session::new();
    let memory = get(|out| cuMemAlloc_v2(out, 64));
    let blocking = get(|out| cuStreamCreate(out, 0));
    ok(cuStreamBeginCapture_v2(blocking, RELAXED));
    assert_eq!(cuMemsetD8Async(memory, 0, 4, 0), CAPTURE_IMPLICIT);
    ends_invalidated(blocking);
    ok(cuStreamBeginCapture_v2(blocking, RELAXED));
    assert_eq!(cuMemsetD8_v2(memory, 0, 4), CAPTURE_IMPLICIT);
    ends_invalidated(blocking);
    // A stream that is not ordered with it does no harm.
    let stream = capturing(RELAXED);
    ok(cuMemsetD8Async(memory, 0, 4, 0));
    ok(cuGraphDestroy(get(|out| cuStreamEndCapture(stream, out))));
}

#[test]
fn events_carry_a_capture_to_other_streams() {
    let _session = Session::new();
    let memory = get(|out| cuMemAlloc_v2(out, 8));
    let [fork, join] = [0; 2].map(|_| get(|out| cuEventCreate(out, 0)));
    let origin = capturing(GLOBAL);
    let side = get(|out| cuStreamCreate(out, 1));
    ok(cuMemsetD32Async(memory, 1, 1, origin));
    ok(cuEventRecord(fork, origin));
    assert_eq!(cuEventQuery(fork), CAPTURED_EVENT);
    assert_eq!(cuEventSynchronize(fork), CAPTURED_EVENT);
    ok(cuStreamWaitEvent(side, fork, 0));
    assert_eq!(status(side), 1);
    ok(cuMemsetD32Async(memory + 4, 2, 1, side));
    ok(cuMemsetD32Async(memory, 3, 1, origin));
    ok(cuEventRecord(join, side));
    ok(cuStreamWaitEvent(origin, join, 0));
    ok(cuMemsetD32Async(memory, 4, 1, origin));
    assert_eq!(cuStreamEndCapture(side, &mut 0), CAPTURE_UNMATCHED);
    ends_invalidated(origin);
    assert_eq!(status(side), 0);
    // What an event of an ended capture stands for is gone.
    assert_eq!(cuStreamWaitEvent(side, join, 0), CAPTURED_EVENT);
    ok(cuEventRecord(join, side));
    ok(cuStreamWaitEvent(origin, join, 0));
}

#[test]
fn forks_that_are_not_joined_leave_no_graph() {
    let _session = Session::new();
    let memory = get(|out| cuMemAlloc_v2(out, 8));
    let fork = get(|out| cuEventCreate(out, 0));
    let side = get(|out| cuStreamCreate(out, 1));
    for works in [false, true] {
        let origin = capturing(GLOBAL);
        ok(cuMemsetD32Async(memory, 1, 1, origin));
        ok(cuEventRecord(fork, origin));
        ok(cuStreamWaitEvent(side, fork, 0));
        if works {
            ok(cuMemsetD32Async(memory, 1, 1, side));
        }
        let mut graph = 77;
        let code = cuStreamEndCapture(origin, &raw mut graph);
        assert_eq!(code, if works { CAPTURE_UNJOINED } else { 0 });
        assert_eq!(graph == 0, works);
        assert_eq!((status(origin), status(side)), (0, 0));
    }
}

#[test]
fn captures_stay_apart_from_each_other_and_from_work_outside() {
    let _session = Session::new();
    let [inside, outside] = [0; 2].map(|_| get(|out| cuEventCreate(out, 0)));
    ok(cuEventRecord(outside, 0));
    let stream = capturing(RELAXED);
    assert_eq!(cuStreamWaitEvent(stream, outside, 0), CAPTURE_ISOLATION);
    ends_invalidated(stream);
    let first = capturing(RELAXED);
    let second = capturing(RELAXED);
    ok(cuEventRecord(inside, first));
    assert_eq!(cuStreamWaitEvent(second, inside, 0), CAPTURE_MERGE);
    ends_invalidated(second);
    ok(cuGraphDestroy(get(|out| cuStreamEndCapture(first, out))));
}

#[test]
fn only_the_thread_that_began_ends_a_capture() {
    let session = Session::new();
    let context = session.context;
    let end = move |stream| {
        ok(cuCtxSetCurrent(context));
        cuStreamEndCapture(stream, &mut 0)
    };
    for (mode, code) in [(GLOBAL, CAPTURE_WRONG_THREAD), (THREAD_LOCAL, CAPTURE_WRONG_THREAD), (RELAXED, 0)] {
        let stream = capturing(mode);
        assert_eq!(std::thread::spawn(move || end(stream)).join().unwrap(), code);
        let mut graph = 0;
        assert_eq!(cuStreamEndCapture(stream, &raw mut graph), if code == 0 { ILLEGAL_STATE } else { 0 });
    }
}

#[test]
fn destroying_a_stream_or_context_ends_its_captures() {
    let _session = Session::new();
    let event = get(|out| cuEventCreate(out, 0));
    let (origin, side) = (capturing(GLOBAL), get(|out| cuStreamCreate(out, 1)));
    ok(cuEventRecord(event, origin));
    ok(cuStreamWaitEvent(side, event, 0));
    ok(cuStreamDestroy_v2(side));
    ends_invalidated(origin);
    let origin = capturing(GLOBAL);
    ok(cuStreamDestroy_v2(origin));
    ok(cuMemFree_v2(get(|out| cuMemAlloc_v2(out, 4))));
    let context = get(|out| cuCtxCreate_v2(out, 0, 0));
    let _ = capturing(GLOBAL);
    ok(cuStreamBeginCapture_v2(2, GLOBAL));
    ok(cuCtxDestroy_v2(context));
    ok(cuMemFree_v2(get(|out| cuMemAlloc_v2(out, 4))));
}
