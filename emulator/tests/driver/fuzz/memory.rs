//! The fuzzer's calls about memory.

use super::calls::make;
use super::model::Kind::{Pool, Stream};
use super::model::{Fuzz, HOST};
use crate::api::*;

/// Sizes that are granted are small: other tests see to large ones.
fn bytes(fuzz: &mut Fuzz) -> usize {
    fuzz.pick(&[0, 1, 4, 64, 256, 4096, 65536, 65536, 1 << 35, usize::MAX])
}

pub fn alloc(fuzz: &mut Fuzz) -> u32 {
    let (bytes, owner, mut start) = (bytes(fuzz), fuzz.current(), 0);
    let out = fuzz.out(&mut start);
    // Memory of the host would be granted in any size: small ones only.
    let (code, bytes) = match fuzz.below(6) {
        0 => (cuMemAllocManaged(out, bytes.min(4096), 1), bytes.min(4096)),
        1 => (cuMemHostAlloc(out, bytes.min(4096), 0), bytes.min(4096)),
        _ => (cuMemAlloc_v2(out, bytes), bytes),
    };
    if code == 0 {
        fuzz.allocated(start, bytes, owner);
    }
    code
}

pub fn alloc_async(fuzz: &mut Fuzz) -> u32 {
    let (bytes, mut start) = (bytes(fuzz), 0);
    let stream = fuzz.handle(Stream);
    let out = fuzz.out(&mut start);
    let code = if fuzz.one_in(3) {
        let pool = fuzz.handle(Pool);
        cuMemAllocFromPoolAsync(out, bytes, pool, stream)
    } else {
        cuMemAllocAsync(out, bytes, stream)
    };
    // With others at work the primary context may be gone by now.
    if code == 0 && fuzz.alone {
        let (mut status, mut owner) = (0, 0);
        ok(cuStreamIsCapturing(stream, &raw mut status));
        ok(cuStreamGetCtx(stream, &raw mut owner));
        if status == 0 { fuzz.allocated(start, bytes, owner) } else { fuzz.allocated_by_graph(start) }
    }
    code
}

pub fn free(fuzz: &mut Fuzz) -> u32 {
    let start = fuzz.device(1);
    let code = match fuzz.below(4) {
        0 => cuMemFreeAsync(start, fuzz.handle(Stream)),
        1 => cuMemFreeHost(start),
        _ => cuMemFree_v2(start),
    };
    if code == 0 {
        fuzz.freed(start);
    }
    code
}

pub fn copy(fuzz: &mut Fuzz) -> u32 {
    let (host, bytes) = fuzz.host();
    let from_host = fuzz.one_in(2);
    let device = fuzz.device(bytes);
    let stream = fuzz.one_in(2).then(|| fuzz.handle(Stream));
    match (from_host, stream) {
        (true, None) => cuMemcpyHtoD_v2(device, host, bytes),
        (true, Some(stream)) => cuMemcpyHtoDAsync_v2(device, host, bytes, stream),
        (false, None) => cuMemcpyDtoH_v2(host, device, bytes),
        (false, Some(stream)) => cuMemcpyDtoHAsync_v2(host, device, bytes, stream),
    }
}

pub fn copy_within(fuzz: &mut Fuzz) -> u32 {
    let bytes = fuzz.size();
    let (to, from) = (fuzz.device(bytes), fuzz.device(bytes));
    if fuzz.one_in(2) {
        let stream = fuzz.handle(Stream);
        cuMemcpyDtoDAsync_v2(to, from, bytes, stream)
    } else {
        cuMemcpyDtoD_v2(to, from, bytes)
    }
}

/// Addresses alone tell host from device, so these are the buffer's or the device's.
pub fn copy_unified(fuzz: &mut Fuzz) -> u32 {
    let (host, bytes) = fuzz.host();
    let device = fuzz.device_only(bytes);
    if fuzz.one_in(2) {
        cuMemcpy(address(host), device, bytes)
    } else {
        cuMemcpy(device, address(host), bytes)
    }
}

pub fn set(fuzz: &mut Fuzz) -> u32 {
    let count = fuzz.size();
    let unit = fuzz.pick(&[1, 2, 4]);
    let device = fuzz.device(count.saturating_mul(unit));
    match (unit, fuzz.one_in(2)) {
        (1, false) => cuMemsetD8_v2(device, 1, count),
        (1, true) => cuMemsetD8Async(device, 1, count, fuzz.handle(Stream)),
        (2, _) => cuMemsetD16_v2(device, 1, count),
        (_, false) => cuMemsetD32_v2(device, 1, count),
        (_, true) => cuMemsetD32Async(device, 1, count, fuzz.handle(Stream)),
    }
}

pub fn set_rows(fuzz: &mut Fuzz) -> u32 {
    let (pitch, width, height) = (fuzz.size(), fuzz.size(), fuzz.size());
    let device = fuzz.device(if height == 0 { 0 } else { width.saturating_mul(2) });
    cuMemsetD2D16_v2(device, pitch, 1, width, height)
}

pub fn pointer_attribute(fuzz: &mut Fuzz) -> u32 {
    let (which, at) = (fuzz.small(22), fuzz.device(1));
    let out = fuzz.discard::<u64>().cast();
    cuPointerGetAttribute(out, which, at)
}

pub fn range(fuzz: &mut Fuzz) -> u32 {
    let at = fuzz.device(1);
    let (start, bytes) = (fuzz.discard(), fuzz.discard());
    cuMemGetAddressRange_v2(start, bytes, at)
}

pub fn pool(fuzz: &mut Fuzz) -> u32 {
    let mut props = [0_u32; 22];
    (props[0], props[2]) = (1, 1);
    let at = usize::try_from(fuzz.below(4)).unwrap();
    props[at] = fuzz.small(4);
    make(fuzz, Pool, 0, |_, out| cuMemPoolCreate(out, props.as_ptr().cast()))
}

pub fn pool_attribute(fuzz: &mut Fuzz) -> u32 {
    let pool = fuzz.handle(Pool);
    let which = fuzz.small(9);
    let out = fuzz.discard::<u64>().cast();
    if fuzz.one_in(2) {
        cuMemPoolGetAttribute(pool, which, out)
    } else {
        cuMemPoolSetAttribute(pool, which, out)
    }
}

pub fn current_pool(fuzz: &mut Fuzz) -> u32 {
    let pool = fuzz.handle(Pool);
    cuDeviceSetMemPool(0, pool)
}

pub fn register(fuzz: &mut Fuzz) -> u32 {
    let (host, bytes) = fuzz.host();
    let start = address(host) + fuzz.below(HOST as u64);
    if fuzz.one_in(2) {
        cuMemHostUnregister(start & !1023)
    } else {
        cuMemHostRegister_v2(start & !1023, bytes, 0)
    }
}
