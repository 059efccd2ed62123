//! The calls of the fuzzer: each draws its arguments and enters in the model what it made or destroyed.

use super::memory::*;
use super::model::Kind::{Context, Event, Exec, Function, Graph, Library, Module, Pool, Stream};
use super::model::{Fuzz, Kind};
use crate::api::*;
use std::ffi::{CString, c_void};
use std::ptr::{null, null_mut};

pub type Call = (&'static str, fn(&mut Fuzz) -> u32);

extern "C" fn nothing(_data: *mut c_void) {}

/// Enters what a call made.
pub fn make(fuzz: &mut Fuzz, kind: Kind, owner: u64, call: impl FnOnce(&mut Fuzz, *mut u64) -> u32) -> u32 {
    let mut handle = 0;
    let out = fuzz.out(&mut handle);
    let code = call(fuzz, out);
    if code == 0 {
        assert!(!out.is_null(), "a result went nowhere");
        fuzz.made(kind, handle, owner);
    }
    code
}

/// Enters what a call destroyed.
fn destroy(fuzz: &mut Fuzz, kind: Kind, name: &'static str, call: fn(u64) -> u32) -> u32 {
    let handle = fuzz.handle(kind);
    let code = call(handle);
    if code == 0 {
        fuzz.destroyed(name, handle);
    }
    code
}

/// A context is destroyed rarely: all that is made goes with it.
fn context(fuzz: &mut Fuzz) -> u32 {
    if fuzz.one_in(8) {
        return destroy(fuzz, Context, "cuCtxDestroy", cuCtxDestroy_v2);
    }
    let flags = fuzz.small(6);
    make(fuzz, Context, 0, |_, out| cuCtxCreate_v2(out, flags, 0))
}

/// The primary context's objects go when nobody holds it, and with a reset.
fn primary(fuzz: &mut Fuzz) -> u32 {
    let mut handle = 0;
    match fuzz.below(4) {
        0 | 1 => {
            let out = fuzz.out(&mut handle);
            let code = cuDevicePrimaryCtxRetain(out, 0);
            if code == 0 {
                fuzz.retained(handle);
            }
            code
        }
        choice => {
            let code =
                if choice == 2 { cuDevicePrimaryCtxRelease_v2(0) } else { cuDevicePrimaryCtxReset_v2(0) };
            let mut active = 0;
            ok(cuDevicePrimaryCtxGetState(0, &mut 0, &raw mut active));
            if code == 0 && (active == 0 || choice == 3) {
                fuzz.primary_gone(active != 0);
            }
            code
        }
    }
}

fn set_current(fuzz: &mut Fuzz) -> u32 {
    let handle = fuzz.handle(Context);
    cuCtxSetCurrent(handle)
}

fn push_pop(fuzz: &mut Fuzz) -> u32 {
    if fuzz.one_in(2) {
        let out = fuzz.discard();
        return cuCtxPopCurrent_v2(out);
    }
    let handle = fuzz.handle(Context);
    let code = cuCtxPushCurrent_v2(handle);
    assert!(code != 0 || handle != 0, "no context was pushed");
    code
}

fn synchronize(fuzz: &mut Fuzz) -> u32 {
    match fuzz.below(4) {
        0 => cuCtxSynchronize(),
        1 => cuStreamQuery(fuzz.handle(Stream)),
        2 => cuStreamSynchronize(fuzz.handle(Stream)),
        _ => cuEventSynchronize(fuzz.handle(Event)),
    }
}

fn stream(fuzz: &mut Fuzz) -> u32 {
    let (flags, owner) = (fuzz.small(3), fuzz.current());
    make(fuzz, Stream, owner, |_, out| cuStreamCreate(out, flags))
}

fn event(fuzz: &mut Fuzz) -> u32 {
    let (flags, owner) = (fuzz.pick(&[0, 0, 0, 1, 2, 4, 8]), fuzz.current());
    make(fuzz, Event, owner, |_, out| cuEventCreate(out, flags))
}

fn record(fuzz: &mut Fuzz) -> u32 {
    let (event, stream) = (fuzz.handle(Event), fuzz.handle(Stream));
    let flags = fuzz.pick(&[0, 0, 0, 1, 2]);
    cuEventRecordWithFlags(event, stream, flags)
}

fn wait(fuzz: &mut Fuzz) -> u32 {
    let (stream, event) = (fuzz.handle(Stream), fuzz.handle(Event));
    let flags = fuzz.pick(&[0, 0, 0, 1, 2]);
    cuStreamWaitEvent(stream, event, flags)
}

fn elapsed(fuzz: &mut Fuzz) -> u32 {
    let from = fuzz.handle(Event);
    let to = if fuzz.one_in(2) { from } else { fuzz.handle(Event) };
    let out = fuzz.discard();
    cuEventElapsedTime_v2(out, from, to)
}

fn begin_capture(fuzz: &mut Fuzz) -> u32 {
    let stream = fuzz.handle(Stream);
    let mode = fuzz.pick(&[0, 1, 2, 2, 2, 2, 3]);
    cuStreamBeginCapture_v2(stream, mode)
}

fn end_capture(fuzz: &mut Fuzz) -> u32 {
    let stream = fuzz.handle(Stream);
    make(fuzz, Graph, 0, |_, out| cuStreamEndCapture(stream, out))
}

fn capture_info(fuzz: &mut Fuzz) -> u32 {
    let stream = fuzz.handle(Stream);
    let (mut nodes, mut count) = (null(), 0);
    let status = fuzz.discard();
    let code = cuStreamGetCaptureInfo_v2(stream, status, &mut 0, &mut 0, &raw mut nodes, &raw mut count);
    for i in 0..count {
        // SAFETY: the driver says there are that many.
        let place = unsafe { nodes.add(i) };
        // SAFETY: they stay until the next call.
        let node: u64 = unsafe { *place };
        assert_ne!(node, 0);
    }
    code
}

fn exchange_mode(fuzz: &mut Fuzz) -> u32 {
    let mut mode = fuzz.pick(&[0, 1, 2, 3]);
    let out = fuzz.out(&mut mode);
    cuThreadExchangeStreamCaptureMode(out)
}

fn instantiate(fuzz: &mut Fuzz) -> u32 {
    let graph = fuzz.handle(Graph);
    let flags = fuzz.pick(&[0, 0, 1, 8, 9, 4, 5, 16]);
    make(fuzz, Exec, 0, |_, out| cuGraphInstantiateWithFlags(out, graph, flags))
}

fn launch_graph(fuzz: &mut Fuzz) -> u32 {
    let (exec, stream) = (fuzz.handle(Exec), fuzz.handle(Stream));
    cuGraphLaunch(exec, stream)
}

fn clone_graph(fuzz: &mut Fuzz) -> u32 {
    let graph = fuzz.handle(Graph);
    make(fuzz, Graph, 0, |_, out| cuGraphClone(out, graph))
}

fn nodes(fuzz: &mut Fuzz) -> u32 {
    let graph = fuzz.handle(Graph);
    let mut found = [0_u64; 8];
    let mut count = usize::try_from(fuzz.below(9)).unwrap();
    let room = fuzz.out(&mut found).cast();
    let code = cuGraphGetNodes(graph, room, &raw mut count);
    for node in found.into_iter().filter(|&node| node != 0) {
        ok(cuGraphNodeGetType(node, &mut 0));
    }
    code
}

fn edges(fuzz: &mut Fuzz) -> u32 {
    let graph = fuzz.handle(Graph);
    let (mut from, mut to, mut count) = ([0_u64; 4], [0_u64; 4], 4);
    let from = fuzz.out(&mut from).cast();
    let to = fuzz.out(&mut to).cast();
    cuGraphGetEdges(graph, from, to, &raw mut count)
}

fn image(fuzz: &mut Fuzz) -> CString {
    if fuzz.one_in(8) {
        // Some byte of the text is another.
        let mut bytes = fuzz.image.as_bytes().to_vec();
        let at = usize::try_from(fuzz.below(bytes.len() as u64)).unwrap();
        bytes[at] = fuzz.pick(b"x0 ,;{}.%\x80");
        return CString::new(bytes).unwrap();
    }
    fuzz.image.clone()
}

fn module(fuzz: &mut Fuzz) -> u32 {
    let (image, owner) = (image(fuzz), fuzz.current());
    make(fuzz, Module, owner, |_, out| cuModuleLoadData(out, image.as_ptr().cast()))
}

fn library(fuzz: &mut Fuzz) -> u32 {
    let image = image(fuzz);
    make(fuzz, Library, 0, |_, out| {
        cuLibraryLoadData(out, image.as_ptr().cast(), null(), null_mut(), 0, null(), null_mut(), 0)
    })
}

const KERNELS: [&str; 7] = ["store", "store", "store", "last", "bounded", "required", "none"];

fn function(fuzz: &mut Fuzz) -> u32 {
    let name = c(fuzz.pick(&KERNELS));
    if fuzz.one_in(3) {
        let library = fuzz.handle(Library);
        return make(fuzz, Function, library, |_, out| cuLibraryGetKernel(out, library, name.as_ptr()));
    }
    let module = fuzz.handle(Module);
    make(fuzz, Function, module, |_, out| cuModuleGetFunction(out, module, name.as_ptr()))
}

fn global(fuzz: &mut Fuzz) -> u32 {
    let module = fuzz.handle(Module);
    let name = c(fuzz.pick(&["count", "store"]));
    let (start, bytes) = (fuzz.discard(), fuzz.discard());
    cuModuleGetGlobal_v2(start, bytes, module, name.as_ptr())
}

fn attribute(fuzz: &mut Fuzz) -> u32 {
    let function = fuzz.handle(Function);
    let which = fuzz.pick(&[0, 1, 5, 8, 8, 9, 12, 99]);
    if fuzz.one_in(2) {
        let value = fuzz.pick(&[0, 1, -1, 1000, 100_000, i32::MAX, i32::MIN]);
        return cuFuncSetAttribute(function, which, value);
    }
    let out = fuzz.discard();
    cuFuncGetAttribute(out, which, function)
}

fn occupancy(fuzz: &mut Fuzz) -> u32 {
    let function = fuzz.handle(Function);
    let threads = fuzz.pick(&[0, -1, 1, 32, 1024, 1025, i32::MAX, i32::MIN]);
    let dynamic = fuzz.size();
    let out = fuzz.discard();
    match fuzz.below(3) {
        0 => cuOccupancyMaxActiveBlocksPerMultiprocessor(out, function, threads, dynamic),
        1 => cuOccupancyMaxPotentialBlockSize(out, &mut 0, function, None, dynamic, threads),
        _ => {
            let blocks = fuzz.pick(&[0, -1, 1, 4, i32::MAX]);
            let left = fuzz.discard();
            cuOccupancyAvailableDynamicSMemPerBlock(left, function, blocks, threads)
        }
    }
}

/// Two parameters whatever the kernel takes: a pointer, seldom a bad one, and a number.
fn launch_kernel(fuzz: &mut Fuzz) -> u32 {
    let (function, stream) = (fuzz.handle(Function), fuzz.handle(Stream));
    let out = if fuzz.one_in(60) { fuzz.next() } else { fuzz.any_allocation() };
    let value = [fuzz.next(); 2];
    let mut shape = [1_u32; 6];
    for size in &mut shape {
        if fuzz.one_in(12) {
            *size = fuzz.pick(&[0, 1, 2, 32, u32::MAX, 65536, 1 << 31]);
        }
    }
    // No more blocks than can be run in time, unless the grid is refused anyway.
    if shape[0] < 1 << 31 && shape[1] < 65536 && shape[2] < 65536 {
        shape[0] = shape[0].min(2);
        shape[1] = shape[1].min(2);
    }
    let dynamic = fuzz.pick(&[0, 0, 16, 16, 16, 16, 48 << 10, 48 << 10, 100_000, u32::MAX]);
    let params: [*const c_void; 2] = [(&raw const out).cast(), value.as_ptr().cast()];
    let params = if fuzz.one_in(30) { null() } else { params.as_ptr() };
    let [a, b, c, x, y, z] = shape;
    cuLaunchKernel(function, a, b, c, x, y, z, dynamic, stream, params, null())
}

fn host_function(fuzz: &mut Fuzz) -> u32 {
    let stream = fuzz.handle(Stream);
    let function: Option<Callback> = if fuzz.one_in(10) { None } else { Some(nothing) };
    cuLaunchHostFunc(stream, function, null_mut())
}

pub const CALLS: &[Call] = &[
    ("context", context),
    ("primary", primary),
    ("cuCtxSetCurrent", set_current),
    ("push and pop", push_pop),
    ("synchronize", synchronize),
    ("cuStreamCreate", stream),
    ("cuStreamDestroy", |fuzz| destroy(fuzz, Stream, "cuStreamDestroy", cuStreamDestroy_v2)),
    ("cuEventCreate", event),
    ("cuEventDestroy", |fuzz| destroy(fuzz, Event, "cuEventDestroy", cuEventDestroy_v2)),
    ("cuEventRecord", record),
    ("cuStreamWaitEvent", wait),
    ("cuEventElapsedTime", elapsed),
    ("cuStreamBeginCapture", begin_capture),
    ("cuStreamEndCapture", end_capture),
    ("cuStreamEndCapture again", end_capture),
    ("cuStreamGetCaptureInfo", capture_info),
    ("cuThreadExchangeStreamCaptureMode", exchange_mode),
    ("cuGraphInstantiate", instantiate),
    ("cuGraphLaunch", launch_graph),
    ("cuGraphClone", clone_graph),
    ("cuGraphGetNodes", nodes),
    ("cuGraphGetEdges", edges),
    ("cuGraphDestroy", |fuzz| destroy(fuzz, Graph, "cuGraphDestroy", cuGraphDestroy)),
    ("cuGraphExecDestroy", |fuzz| destroy(fuzz, Exec, "cuGraphExecDestroy", cuGraphExecDestroy)),
    ("cuMemAlloc", alloc),
    ("cuMemAllocAsync", alloc_async),
    ("cuMemFree", free),
    ("copies", copy),
    ("cuMemcpyDtoD", copy_within),
    ("cuMemcpy", copy_unified),
    ("memsets", set),
    ("cuMemsetD2D16", set_rows),
    ("cuPointerGetAttribute", pointer_attribute),
    ("cuMemGetAddressRange", range),
    ("cuMemPoolCreate", pool),
    ("cuMemPoolDestroy", |fuzz| destroy(fuzz, Pool, "cuMemPoolDestroy", cuMemPoolDestroy)),
    ("attributes of pools", pool_attribute),
    ("cuDeviceSetMemPool", current_pool),
    ("cuModuleLoadData", module),
    ("cuModuleUnload", |fuzz| destroy(fuzz, Module, "cuModuleUnload", cuModuleUnload)),
    ("cuLibraryLoadData", library),
    ("cuLibraryUnload", |fuzz| destroy(fuzz, Library, "cuLibraryUnload", cuLibraryUnload)),
    ("functions", function),
    ("cuModuleGetGlobal", global),
    ("attributes of kernels", attribute),
    ("occupancy", occupancy),
    ("cuLaunchKernel", launch_kernel),
    ("cuLaunchHostFunc", host_function),
    ("cuMemHostRegister", register),
];
