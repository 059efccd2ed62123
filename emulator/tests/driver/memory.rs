//! Memory: allocation, copies, memsets, pools, what is known of addresses.

#![allow(clippy::cast_possible_truncation, reason = "host addresses have 64 bits here")]
#![allow(
    clippy::multiple_unsafe_ops_per_block,
    reason = "a step within an array and its read are one access"
)]

use crate::api::*;
use std::ffi::c_void;
use std::ptr::{null, null_mut};

fn free_bytes() -> usize {
    get(|out| cuMemGetInfo_v2(out, &mut 0))
}

#[test]
fn allocation_takes_and_gives_back() {
    let _session = Session::new();
    let before = free_bytes();
    let memory = get(|out| cuMemAlloc_v2(out, 1000));
    assert!(free_bytes() <= before - 1000);
    let (mut start, mut bytes) = (0, 0);
    ok(cuMemGetAddressRange_v2(&raw mut start, &raw mut bytes, memory + 999));
    assert_eq!((start, bytes), (memory, 1000));
    assert_eq!(cuMemGetAddressRange_v2(&raw mut start, &raw mut bytes, memory + 1000), NOT_FOUND);
    assert_eq!(cuMemFree_v2(memory + 512), INVALID_VALUE);
    assert_eq!(cuMemFreeHost(memory), INVALID_VALUE);
    ok(cuMemFree_v2(memory));
    assert_eq!(cuMemFree_v2(memory), INVALID_VALUE);
    assert_eq!(free_bytes(), before);
    assert_eq!(cuMemAlloc_v2(&mut 0, 0), INVALID_VALUE);
    assert_eq!(cuMemAlloc_v2(null_mut(), 4), INVALID_VALUE);
    for bytes in [before + 1, 1 << 50, usize::MAX] {
        assert_eq!(cuMemAlloc_v2(&mut 0, bytes), OUT_OF_MEMORY, "{bytes}");
    }
    let mut pitch = 0;
    let rows = get(|out| cuMemAllocPitch_v2(out, &raw mut pitch, 100, 3, 4));
    assert!(pitch >= 100 && pitch % 128 == 0);
    ok(cuMemsetD8_v2(rows, 1, 3 * pitch));
    assert_eq!(cuMemAllocPitch_v2(&mut 0, &raw mut pitch, usize::MAX, 3, 4), INVALID_VALUE);
    assert_eq!(cuMemAllocPitch_v2(&mut 0, &raw mut pitch, 100, usize::MAX, 4), INVALID_VALUE);
    assert_eq!(cuMemAllocPitch_v2(&mut 0, &raw mut pitch, 100, 3, 5), INVALID_VALUE);
}

#[test]
fn copies_go_where_they_are_told() {
    let _session = Session::new();
    let [a, b] = [0; 2].map(|_| get(|out| cuMemAlloc_v2(out, 64)));
    let source: Vec<u32> = (100..116).collect();
    let host = address(source.as_ptr());
    ok(cuMemcpyHtoD_v2(a, source.as_ptr().cast(), 64));
    ok(cuMemcpyDtoD_v2(b, a + 4, 60));
    assert_eq!(words(b, 15), source[1..]);
    // By addresses alone: device to host, host to device, host to host.
    let mut target = vec![0_u32; 16];
    let target_address = address(target.as_mut_ptr());
    ok(cuMemcpy(target_address, a, 64));
    assert_eq!(target, source);
    ok(cuMemcpy(b, host, 64));
    assert_eq!(words(b, 16), source);
    ok(cuMemcpy(target_address, host + 4, 60));
    assert_eq!(target[..15], source[1..]);
    let stream = get(|out| cuStreamCreate(out, 0));
    ok(cuMemcpyHtoDAsync_v2(a, source[8..].as_ptr().cast(), 32, stream));
    ok(cuMemcpyDtoDAsync_v2(b, a, 32, stream));
    ok(cuMemcpyDtoHAsync_v2(target.as_mut_ptr().cast(), b, 32, stream));
    ok(cuStreamSynchronize(stream));
    assert_eq!(target[..8], source[8..]);
}

#[test]
fn copies_outside_an_allocation_are_refused() {
    let _session = Session::new();
    let [a, b, stale] = [0; 3].map(|_| get(|out| cuMemAlloc_v2(out, 64)));
    ok(cuMemFree_v2(stale));
    let mut host = [0_u8; 128];
    let pointer: *mut c_void = host.as_mut_ptr().cast();
    for (address, bytes) in [(a, 65), (a + 1, 64), (a - 1, 4), (stale, 4), (0, 4), (u64::MAX, 4)] {
        assert_eq!(cuMemcpyHtoD_v2(address, pointer, bytes), INVALID_VALUE);
        assert_eq!(cuMemcpyDtoH_v2(pointer, address, bytes), INVALID_VALUE);
        assert_eq!(cuMemcpyDtoD_v2(b, address, bytes), INVALID_VALUE);
        assert_eq!(cuMemcpyDtoD_v2(address, b, bytes), INVALID_VALUE);
        assert_eq!(cuMemcpyHtoDAsync_v2(address, pointer, bytes, 0), INVALID_VALUE);
        assert_eq!(cuMemsetD8_v2(address, 0, bytes), INVALID_VALUE);
        assert_eq!(cuMemsetD8Async(address, 0, bytes, 0), INVALID_VALUE);
    }
    assert_eq!(cuMemcpyHtoD_v2(a, null(), 4), INVALID_VALUE);
    assert_eq!(cuMemcpyDtoH_v2(null_mut(), a, 4), INVALID_VALUE);
    // Device addresses passed as the host's are not followed.
    assert_eq!(cuMemcpyHtoD_v2(a, std::ptr::with_exposed_provenance(stale as usize), 4), INVALID_VALUE);
    assert_eq!(cuMemcpy(address(pointer), stale, 4), INVALID_VALUE);
    // Nothing to do is no error.
    ok(cuMemcpyHtoD_v2(0, null(), 0));
    ok(cuMemsetD32_v2(0, 0, 0));
}

#[test]
fn memsets_fill_whole_units() {
    let _session = Session::new();
    let memory = get(|out| cuMemAlloc_v2(out, 32));
    ok(cuMemsetD8_v2(memory, 0xab, 32));
    ok(cuMemsetD16_v2(memory + 2, 0x1234, 3));
    ok(cuMemsetD32_v2(memory + 8, 0x0102_0304, 2));
    ok(cuMemsetD32Async(memory + 16, 9, 1, 0));
    let want = [0x1234_abab, 0x1234_1234, 0x0102_0304, 0x0102_0304, 9, 0xabab_abab, 0xabab_abab, 0xabab_abab];
    assert_eq!(words(memory, 8), want);
    assert_eq!(cuMemsetD16_v2(memory + 1, 0, 1), INVALID_VALUE, "misaligned");
    assert_eq!(cuMemsetD32_v2(memory + 2, 0, 1), INVALID_VALUE, "misaligned");
    assert_eq!(cuMemsetD32_v2(memory, 0, 9), INVALID_VALUE, "too long");
    assert_eq!(cuMemsetD32_v2(memory, 0, usize::MAX / 2), INVALID_VALUE, "overflows");
    // Two rows of two units, 12 bytes apart.
    ok(cuMemsetD2D16_v2(memory, 12, 0x7777, 2, 2));
    let want = [0x7777_7777, 0x1234_1234, 0x0102_0304, 0x7777_7777, 9];
    assert_eq!(words(memory, 5), want);
    assert_eq!(cuMemsetD2D16_v2(memory, 2, 0, 2, 2), INVALID_VALUE, "rows overlap");
    assert_eq!(cuMemsetD2D16_v2(memory, usize::MAX - 1, 0, 2, 3), INVALID_VALUE, "overflows");
}

/// `CUDA_MEMCPY2D`.
#[repr(C)]
struct Copy2D {
    from_x: usize,
    from_y: usize,
    from_type: u32,
    from_host: *const c_void,
    from_device: u64,
    from_array: u64,
    from_pitch: usize,
    to_x: usize,
    to_y: usize,
    to_type: u32,
    to_host: *mut c_void,
    to_device: u64,
    to_array: u64,
    to_pitch: usize,
    width: usize,
    height: usize,
}

#[test]
fn rectangles_are_copied_row_by_row() {
    let _session = Session::new();
    let memory = get(|out| cuMemAlloc_v2(out, 64));
    ok(cuMemsetD8_v2(memory, 0, 64));
    let source: Vec<u8> = (0..64).collect();
    // 3 by 2 bytes at (x 1, y 1) of rows of 8 bytes, to (x 2, y 1) of rows of 16.
    let mut copy = Copy2D {
        from_x: 1,
        from_y: 1,
        from_type: 1,
        from_host: source.as_ptr().cast(),
        from_device: 0,
        from_array: 0,
        from_pitch: 8,
        to_x: 2,
        to_y: 1,
        to_type: 2,
        to_host: null_mut(),
        to_device: memory,
        to_array: 0,
        to_pitch: 16,
        width: 3,
        height: 2,
    };
    ok(cuMemcpy2D_v2((&raw const copy).cast()));
    let mut got = [0_u8; 64];
    ok(cuMemcpyDtoH_v2(got.as_mut_ptr().cast(), memory, 64));
    let mut want = [0_u8; 64];
    want[18..21].copy_from_slice(&[9, 10, 11]);
    want[34..37].copy_from_slice(&[17, 18, 19]);
    assert_eq!(got, want);
    for (width, height, pitch) in [(3, 5, 16), (17, 2, 16), (3, usize::MAX, 16), (3, 2, usize::MAX)] {
        (copy.width, copy.height, copy.to_pitch) = (width, height, pitch);
        assert_eq!(cuMemcpy2D_v2((&raw const copy).cast()), INVALID_VALUE);
    }
    copy.to_type = 3;
    assert_eq!(cuMemcpy2D_v2((&raw const copy).cast()), NOT_SUPPORTED, "arrays");
    assert_eq!(cuMemcpy2D_v2(null()), INVALID_VALUE);
}

#[test]
fn host_and_managed_memory_have_one_address_for_both() {
    let _session = Session::new();
    let store_kernel = Module::load().function("store");
    for managed in [false, true] {
        let memory =
            get(|out| if managed { cuMemAllocManaged(out, 64, 1) } else { cuMemHostAlloc(out, 64, 0) });
        ok(store(store_kernel, 4, 0, memory, 5));
        ok(cuCtxSynchronize());
        let pointer = std::ptr::with_exposed_provenance::<u32>(memory as usize);
        for i in 0..4_u32 {
            // SAFETY: the driver gave 64 bytes of memory the host may read at this address.
            assert_eq!(unsafe { pointer.add(i as usize).read() }, 5 + i);
        }
        let [free, other] =
            if managed { [cuMemFree_v2, cuMemFreeHost] } else { [cuMemFreeHost, cuMemFree_v2] };
        assert_eq!(other(memory), INVALID_VALUE);
        ok(free(memory));
    }
    assert_eq!(cuMemAllocManaged(&mut 0, 64, 0), INVALID_VALUE);
    assert_eq!(cuMemHostAlloc(&mut 0, 64, 8), INVALID_VALUE);
}

#[test]
fn registered_host_memory_may_not_overlap() {
    let _session = Session::new();
    let buffer = vec![0_u8; 8192];
    let start = address(buffer.as_ptr());
    ok(cuMemHostRegister_v2(start, 4096, 0));
    for (start, bytes) in [(start, 4096), (start + 4095, 2), (start - 1, 2)] {
        assert_eq!(cuMemHostRegister_v2(start, bytes, 0), 712, "already registered");
    }
    ok(cuMemHostRegister_v2(start + 4096, 10, 0));
    ok(cuMemHostUnregister(start));
    ok(cuMemHostUnregister(start + 4096));
    assert_eq!(cuMemHostUnregister(start), 713, "not registered");
    assert_eq!(cuMemHostRegister_v2(0, 4, 0), INVALID_VALUE);
    assert_eq!(cuMemHostRegister_v2(u64::MAX - 1, 4, 0), INVALID_VALUE);
}

#[test]
fn pointers_are_described() {
    let session = Session::new();
    let memory = get(|out| cuMemAlloc_v2(out, 100));
    let long = |which, at| get::<u64>(|out| cuPointerGetAttribute(out.cast(), which, at));
    let word = |which, at| get::<u32>(|out| cuPointerGetAttribute(out.cast(), which, at));
    assert_eq!(long(1, memory), session.context);
    assert_eq!(word(2, memory + 50), 2, "memory of the device");
    assert_eq!(long(3, memory + 50), memory + 50);
    assert_eq!((long(11, memory + 50), long(12, memory + 50)), (memory, 100));
    assert_eq!((word(8, memory), word(9, memory)), (0, 0));
    let pinned = get(|out| cuMemHostAlloc(out, 8, 0));
    assert_eq!((word(2, pinned), long(4, pinned)), (1, pinned));
    let mut value = 0_u64;
    let out: *mut c_void = (&raw mut value).cast();
    assert_eq!(cuPointerGetAttribute(out, 4, memory), INVALID_VALUE, "no address for the host");
    assert_eq!(cuPointerGetAttribute(out, 2, memory + 100), INVALID_VALUE);
    assert_eq!(cuPointerGetAttribute(out, 77, memory), INVALID_VALUE);
    assert_eq!(cuPointerGetAttribute(null_mut(), 2, memory), INVALID_VALUE);
    let (mut kind, mut range) = (9_u32, 9_u64);
    let outs = [(&raw mut kind).cast(), (&raw mut range).cast()];
    ok(cuPointerGetAttributes(2, [2, 12].as_ptr(), outs.as_ptr(), memory));
    assert_eq!((kind, range), (2, 100));
    ok(cuPointerGetAttributes(2, [2, 12].as_ptr(), outs.as_ptr(), 0x1234));
    assert_eq!((kind, range), (0, 0), "nothing is known of other addresses");
}

/// `CUmemPoolProps`.
#[repr(C)]
struct Props {
    allocation: u32,
    handles: u32,
    location: [i32; 2],
    rest: [u64; 9],
}

#[test]
fn pools_count_what_is_taken_from_them() {
    let _session = Session::new();
    let default = get(|out| cuDeviceGetDefaultMemPool(out, 0));
    let (zero, mut value) = (0_u64, 0_u64);
    let props = Props { allocation: 1, handles: 0, location: [1, 0], rest: [0; 9] };
    let pool = get(|out| cuMemPoolCreate(out, (&raw const props).cast()));
    let attribute = |pool, which| get::<u64>(|out| cuMemPoolGetAttribute(pool, which, out.cast()));
    let first = get(|out| cuMemAllocFromPoolAsync(out, 1000, pool, 0));
    let second = get(|out| cuMemAllocFromPoolAsync(out, 24, pool, 0));
    assert_eq!(attribute(pool, 7), 1024);
    ok(cuMemFreeAsync(first, 0));
    assert_eq!((attribute(pool, 7), attribute(pool, 8)), (24, 1024), "used now, and at most");
    ok(cuMemPoolSetAttribute(pool, 8, (&raw const zero).cast()));
    assert_eq!(attribute(pool, 8), 24);
    assert_eq!(get::<u64>(|out| cuPointerGetAttribute(out.cast(), 17, second)), pool);
    let threshold = 1_u64 << 33;
    ok(cuMemPoolSetAttribute(pool, 4, (&raw const threshold).cast()));
    assert_eq!(attribute(pool, 4), threshold);
    assert_eq!(cuMemPoolSetAttribute(pool, 7, (&raw const threshold).cast()), INVALID_VALUE);
    assert_eq!(cuMemPoolGetAttribute(pool, 99, (&raw mut value).cast()), INVALID_VALUE);
    ok(cuMemPoolTrimTo(pool, 0));

    ok(cuDeviceSetMemPool(0, pool));
    assert_eq!(get(|out| cuDeviceGetMemPool(out, 0)), pool);
    let third = get(|out| cuMemAllocAsync(out, 16, 0));
    assert_eq!(attribute(pool, 7), 40);
    ok(cuMemPoolDestroy(pool));
    assert_eq!(get(|out| cuDeviceGetMemPool(out, 0)), default, "the default takes its place");
    assert_eq!(cuMemPoolDestroy(pool), INVALID_VALUE);
    assert_eq!(cuMemPoolDestroy(default), INVALID_VALUE);
    assert_eq!(cuMemAllocFromPoolAsync(&mut 0, 16, pool, 0), INVALID_VALUE);
    for memory in [second, third] {
        ok(cuMemFree_v2(memory));
        assert_eq!(cuMemFreeAsync(memory, 0), INVALID_VALUE);
    }
    for props in [Props { allocation: 7, ..props }, Props { location: [2, 0], ..props }] {
        assert_eq!(cuMemPoolCreate(&mut 0, (&raw const props).cast()), INVALID_VALUE);
    }
}
