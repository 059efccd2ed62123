//! Initialisation, the device, contexts, streams, events.

use crate::api::*;
use std::ptr::null_mut;
use std::time::{Duration, Instant};

#[test]
fn every_error_has_a_name_and_a_text() {
    for (code, name) in [
        (0, "CUDA_SUCCESS"),
        (1, "CUDA_ERROR_INVALID_VALUE"),
        (201, "CUDA_ERROR_INVALID_CONTEXT"),
        (209, "CUDA_ERROR_NO_BINARY_FOR_GPU"),
        (700, "CUDA_ERROR_ILLEGAL_ADDRESS"),
        (719, "CUDA_ERROR_LAUNCH_FAILED"),
        (801, "CUDA_ERROR_NOT_SUPPORTED"),
        (906, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT"),
        (999, "CUDA_ERROR_UNKNOWN"),
    ] {
        assert_eq!(text(code, cuGetErrorName).as_deref(), Some(name));
        assert!(!text(code, cuGetErrorString).unwrap().is_empty(), "{code}");
    }
    for code in [1000, 10, 12345, u32::MAX] {
        assert_eq!(text(code, cuGetErrorName), None);
        assert_eq!(text(code, cuGetErrorString), None);
    }
    assert_eq!(cuGetErrorName(1, null_mut()), INVALID_VALUE);
}

#[test]
fn the_device_describes_a_card_of_its_capability() {
    let _session = Session::new();
    assert_eq!(get(cuDriverGetVersion), 13000);
    assert_eq!(get(cuDeviceGetCount), 1);
    assert_eq!(get(|out| cuDeviceGet(out, 0)), 0);
    assert_eq!(cuDeviceGet(&mut 0, 1), INVALID_DEVICE);
    assert_eq!(cuDeviceGet(&mut 0, -1), INVALID_DEVICE);
    assert!(get(|out| cuDeviceTotalMem_v2(out, 0)) >= 1 << 30);
    assert_ne!(get(|out| cuDeviceGetUuid_v2(out, 0)), [0; 16]);

    let attribute = |number| get(|out| cuDeviceGetAttribute(out, number, 0));
    let of_sm_80 = [
        (1, 1024),
        (2, 1024),
        (4, 64),
        (5, i32::MAX),
        (6, 65535),
        (8, 48 << 10),
        (10, 32),
        (39, 2048),
        (75, 8),
        (76, 0),
        (81, 164 << 10),
        (95, 0),
        (97, 163 << 10),
        (106, 32),
        (111, 1 << 10),
        (115, 1),
        (120, 0),
    ];
    for (number, value) in of_sm_80 {
        assert_eq!(attribute(number), value, "attribute {number}");
    }
    for number in [0, 148, u32::MAX] {
        assert_eq!(cuDeviceGetAttribute(&mut 0, number, 0), INVALID_VALUE);
    }
    let mut name = [-1; 5];
    ok(cuDeviceGetName(name.as_mut_ptr(), 5, 0));
    assert_eq!(name.map(i8::cast_unsigned), *b"CUDA\0");
    for room in [0, -1] {
        assert_eq!(cuDeviceGetName(name.as_mut_ptr(), room, 0), INVALID_VALUE);
    }
}

#[test]
fn contexts_are_a_stack_and_stale_ones_are_refused() {
    let session = Session::new();
    let second = get(|out| cuCtxCreate_v2(out, 0, 0));
    assert_eq!(get(cuCtxGetCurrent), second);
    assert_eq!(get(cuCtxPopCurrent_v2), second);
    assert_eq!(get(cuCtxGetCurrent), session.context);
    ok(cuCtxPushCurrent_v2(second));
    ok(cuCtxDestroy_v2(second));
    assert_eq!(get(cuCtxGetCurrent), session.context, "a destroyed context is taken off the stack");
    for call in [cuCtxDestroy_v2, cuCtxPushCurrent_v2, cuCtxSetCurrent] {
        assert_eq!(call(second), INVALID_CONTEXT);
        assert_eq!(call(0x1234_5678), INVALID_CONTEXT);
    }
    ok(cuCtxSetCurrent(0));
    assert_eq!(get(cuCtxGetCurrent), 0);
    assert_eq!(cuCtxSynchronize(), INVALID_CONTEXT);
    assert_eq!(cuMemAlloc_v2(&mut 0, 4), INVALID_CONTEXT);
    assert_eq!(cuStreamCreate(&mut 0, 0), INVALID_CONTEXT);
    assert_eq!(cuCtxPopCurrent_v2(null_mut()), INVALID_CONTEXT);
    ok(cuCtxSetCurrent(session.context));
    assert_eq!(cuCtxCreate_v2(null_mut(), 0, 0), INVALID_VALUE);
    assert_eq!(cuCtxCreate_v2(&mut 0, 3, 0), INVALID_VALUE, "two kinds of scheduling");
    assert_eq!(cuCtxCreate_v2(&mut 0, 0, 1), INVALID_DEVICE);
}

#[test]
fn a_context_destroyed_elsewhere_is_told() {
    let _session = Session::new();
    let context = get(|out| cuCtxCreate_v2(out, 0, 0));
    let stream = get(|out| cuStreamCreate(out, 0));
    let event = get(|out| cuEventCreate(out, 0));
    let memory = get(|out| cuMemAlloc_v2(out, 4096));
    let (free_before, _) = (get(|out| cuMemGetInfo_v2(out, &mut 0)), ());
    std::thread::spawn(move || ok(cuCtxDestroy_v2(context))).join().unwrap();
    assert_eq!(cuCtxSynchronize(), CONTEXT_IS_DESTROYED);
    assert_eq!(cuMemAlloc_v2(&mut 0, 4), CONTEXT_IS_DESTROYED);
    ok(cuCtxPopCurrent_v2(null_mut()));
    // What was made in it went with it.
    assert_eq!(cuStreamSynchronize(stream), INVALID_HANDLE);
    assert_eq!(cuEventQuery(event), INVALID_HANDLE);
    assert_eq!(cuMemFree_v2(memory), INVALID_VALUE);
    let free = get(|out| cuMemGetInfo_v2(out, &mut 0));
    assert_eq!(free, free_before + 4096);
}

#[test]
fn the_primary_context_counts_those_who_retain_it() {
    let _session = Session::new();
    let active = || {
        let (mut flags, mut active) = (0, 0);
        ok(cuDevicePrimaryCtxGetState(0, &raw mut flags, &raw mut active));
        (flags, active)
    };
    assert_eq!(active(), (0, 0));
    assert_eq!(cuDevicePrimaryCtxRelease_v2(0), INVALID_CONTEXT);
    ok(cuDevicePrimaryCtxSetFlags_v2(0, 4));
    let first = get(|out| cuDevicePrimaryCtxRetain(out, 0));
    assert_eq!(get(|out| cuDevicePrimaryCtxRetain(out, 0)), first);
    ok(cuDevicePrimaryCtxRelease_v2(0));
    assert_eq!(active(), (4, 1));
    assert_eq!(cuCtxDestroy_v2(first), INVALID_CONTEXT, "only a release ends it");
    ok(cuCtxPushCurrent_v2(first));
    let stream = get(|out| cuStreamCreate(out, 0));
    ok(cuDevicePrimaryCtxReset_v2(0));
    assert_eq!(active(), (4, 1), "a reset empties it, those who hold it still do");
    assert_eq!(cuStreamSynchronize(stream), INVALID_HANDLE);
    ok(cuCtxSynchronize());
    ok(cuDevicePrimaryCtxRelease_v2(0));
    assert_eq!(active(), (4, 0));
    assert_eq!(cuCtxSynchronize(), CONTEXT_IS_DESTROYED);
    assert_eq!(get(|out| cuDevicePrimaryCtxRetain(out, 0)), first, "the same handle, alive again");
    ok(cuCtxSynchronize());
    ok(cuDevicePrimaryCtxRelease_v2(0));
    ok(cuDevicePrimaryCtxSetFlags_v2(0, 0));
}

#[test]
fn limits_are_kept_and_unknown_ones_refused() {
    let _session = Session::new();
    ok(cuCtxSetLimit(0, 4096));
    assert_eq!(get(|out| cuCtxGetLimit(out, 0)), 4096);
    assert_eq!(cuCtxGetLimit(&mut 0, 77), 215, "unsupported limit");
    assert_eq!(cuCtxGetLimit(null_mut(), 0), INVALID_VALUE);
}

#[test]
fn streams_have_flags_priorities_and_a_context() {
    let session = Session::new();
    let (mut least, mut greatest) = (1, 1);
    ok(cuCtxGetStreamPriorityRange(&raw mut least, &raw mut greatest));
    assert!(least == 0 && greatest < 0);
    let stream = get(|out| cuStreamCreateWithPriority(out, 1, -100));
    assert_eq!(get(|out| cuStreamGetPriority(stream, out)), greatest, "out of range is clamped");
    assert_eq!(get(|out| cuStreamGetCtx(stream, out)), session.context);
    assert_eq!(cuStreamCreate(&mut 0, 2), INVALID_VALUE);
    for default in [0, 1, 2, stream] {
        ok(cuStreamSynchronize(default));
        ok(cuStreamQuery(default));
    }
    ok(cuStreamDestroy_v2(stream));
    for stale in [stream, 3, u64::MAX, session.context] {
        assert_eq!(cuStreamSynchronize(stale), INVALID_HANDLE);
        assert_eq!(cuStreamDestroy_v2(stale), INVALID_HANDLE);
        assert_eq!(cuMemsetD8Async(0, 0, 0, stale), INVALID_HANDLE);
    }
}

#[test]
fn events_measure_time_between_two_records() {
    let _session = Session::new();
    let [first, second, untimed] = [0, 0, 2].map(|flags| get(|out| cuEventCreate(out, flags)));
    ok(cuEventQuery(first));
    let elapsed = |from, to| cuEventElapsedTime_v2(&mut 0.0, from, to);
    assert_eq!(elapsed(first, second), INVALID_HANDLE, "not recorded");
    let start = Instant::now();
    ok(cuEventRecord(first, 0));
    std::thread::sleep(Duration::from_millis(20));
    ok(cuEventRecord(second, 0));
    let bound = 1e3 * start.elapsed().as_secs_f32();
    let milliseconds = get(|out| cuEventElapsedTime_v2(out, first, second));
    // Between the sleep's least and all that passed; 1e-3: rounding of f32 at this size, with room.
    assert!((20.0..=bound + 1e-3).contains(&milliseconds), "{milliseconds} of {bound} ms");
    ok(cuEventRecord(untimed, 0));
    assert_eq!(elapsed(first, untimed), INVALID_HANDLE, "timing is off");
    ok(cuStreamWaitEvent(0, second, 0));
    assert_eq!(cuStreamWaitEvent(0, second, 2), INVALID_VALUE);
    ok(cuEventSynchronize(second));
    ok(cuEventDestroy_v2(second));
    assert_eq!(cuEventDestroy_v2(second), INVALID_HANDLE);
    assert_eq!(cuEventRecord(second, 0), INVALID_HANDLE);
    assert_eq!(cuEventCreate(&mut 0, 8), INVALID_VALUE);
    assert_eq!(cuEventCreate(null_mut(), 0), INVALID_VALUE);
}

#[test]
fn events_stay_in_their_context() {
    let _session = Session::new();
    let event = get(|out| cuEventCreate(out, 0));
    let other = get(|out| cuCtxCreate_v2(out, 0, 0));
    assert_eq!(cuEventRecord(event, 0), INVALID_HANDLE);
    ok(cuCtxDestroy_v2(other));
    ok(cuEventRecord(event, 0));
}
