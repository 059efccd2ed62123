//! Many host threads at once.

use crate::api::*;

#[test]
fn threads_share_a_context() {
    let session = Session::new();
    let kernel = Module::load().function("store");
    let context = session.context;
    let work = |thread: u32| {
        ok(cuCtxSetCurrent(context));
        let stream = get(|out| cuStreamCreate(out, 1));
        let event = get(|out| cuEventCreate(out, 0));
        for round in 0..50 {
            let memory = get(|out| cuMemAllocAsync(out, 128, stream));
            let value = 1000 * thread + round;
            ok(store(kernel, 32, stream, memory, value));
            ok(cuEventRecord(event, stream));
            ok(cuEventSynchronize(event));
            let want: Vec<u32> = (value..value + 32).collect();
            assert_eq!(words(memory, 32), want);
            ok(cuMemFreeAsync(memory, stream));
        }
        // Each may capture its own, with others at work: only its own calls are watched.
        ok(cuStreamBeginCapture_v2(stream, 1));
        ok(cuStreamEndCapture(stream, &mut 0));
        ok(cuEventDestroy_v2(event));
        ok(cuStreamDestroy_v2(stream));
    };
    let free = get(|out| cuMemGetInfo_v2(out, &mut 0));
    std::thread::scope(|scope| {
        for thread in 0..8 {
            scope.spawn(move || work(thread));
        }
    });
    assert_eq!(get(|out| cuMemGetInfo_v2(out, &mut 0)), free);
}

#[test]
fn every_thread_has_its_own_current_context_and_default_stream() {
    let session = Session::new();
    ok(cuStreamBeginCapture_v2(2, 2));
    let context = session.context;
    std::thread::spawn(move || {
        assert_eq!(get(cuCtxGetCurrent), 0);
        assert_eq!(cuCtxSynchronize(), INVALID_CONTEXT);
        ok(cuCtxSetCurrent(context));
        assert_eq!(get(|out| cuStreamIsCapturing(2, out)), 0);
        ok(cuStreamSynchronize(2));
    })
    .join()
    .unwrap();
    assert_eq!(get(|out| cuStreamIsCapturing(2, out)), 1);
    ok(cuStreamEndCapture(2, &mut 0));
}

#[test]
fn contexts_come_and_go_while_others_work() {
    let _session = Session::new();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let context = get(|out| cuCtxCreate_v2(out, 0, 0));
                    let kernel = Module::load().function("store");
                    let memory = get(|out| cuMemAlloc_v2(out, 4));
                    ok(store(kernel, 1, 0, memory, 9));
                    assert_eq!(words(memory, 1), [9]);
                    ok(cuCtxDestroy_v2(context));
                }
            });
        }
    });
}
