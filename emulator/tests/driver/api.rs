//! The driver as a C program sees it: declared anew from the driver API's reference, handles and device addresses
//! as plain numbers. Calls are unsafe as those of C are: what pointers are given must be valid.

#![allow(dead_code, reason = "the interface is declared whole, and its chapters get their tests one by one")]

use std::ffi::{CStr, CString, c_char, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};

// The functions are in the emulator's library.
use cuda_emulator as _;

pub const INVALID_VALUE: u32 = 1;
pub const OUT_OF_MEMORY: u32 = 2;
pub const NOT_INITIALIZED: u32 = 3;
pub const INVALID_DEVICE: u32 = 101;
pub const INVALID_IMAGE: u32 = 200;
pub const INVALID_CONTEXT: u32 = 201;
pub const NO_BINARY_FOR_GPU: u32 = 209;
pub const INVALID_PTX: u32 = 218;
pub const INVALID_HANDLE: u32 = 400;
pub const ILLEGAL_STATE: u32 = 401;
pub const NOT_FOUND: u32 = 500;
pub const ILLEGAL_ADDRESS: u32 = 700;
pub const CONTEXT_IS_DESTROYED: u32 = 709;
pub const MISALIGNED_ADDRESS: u32 = 716;
pub const LAUNCH_FAILED: u32 = 719;
pub const NOT_SUPPORTED: u32 = 801;
pub const CAPTURE_UNSUPPORTED: u32 = 900;
pub const CAPTURE_INVALIDATED: u32 = 901;
pub const CAPTURE_MERGE: u32 = 902;
pub const CAPTURE_UNMATCHED: u32 = 903;
pub const CAPTURE_UNJOINED: u32 = 904;
pub const CAPTURE_ISOLATION: u32 = 905;
pub const CAPTURE_IMPLICIT: u32 = 906;
pub const CAPTURED_EVENT: u32 = 907;
pub const CAPTURE_WRONG_THREAD: u32 = 908;
pub const UNKNOWN: u32 = 999;

macro_rules! declare {
    ($(fn $name:ident($($arg:ident: $type:ty),* $(,)?);)*) => {
        mod raw {
            use super::*;
            unsafe extern "C" {
                $(pub fn $name($($arg: $type),*) -> u32;)*
            }
        }
        $(
            #[allow(non_snake_case, clippy::too_many_arguments, reason = "the driver's")]
            pub fn $name($($arg: $type),*) -> u32 {
                // SAFETY: tests pass null, or pointers made from references or buffers that live during the call
                // and are of the size the function is told.
                unsafe { raw::$name($($arg),*) }
            }
        )*
    };
}

pub type Callback = extern "C" fn(*mut c_void);

declare! {
    fn cuInit(flags: u32);
    fn cuDriverGetVersion(out: *mut i32);
    fn cuGetErrorName(code: u32, out: *mut *const c_char);
    fn cuGetErrorString(code: u32, out: *mut *const c_char);
    fn cuDeviceGet(out: *mut i32, ordinal: i32);
    fn cuDeviceGetCount(out: *mut i32);
    fn cuDeviceGetName(out: *mut c_char, room: i32, device: i32);
    fn cuDeviceGetUuid_v2(out: *mut [u8; 16], device: i32);
    fn cuDeviceGetAttribute(out: *mut i32, attribute: u32, device: i32);
    fn cuDeviceTotalMem_v2(out: *mut usize, device: i32);
    fn cuDevicePrimaryCtxRetain(out: *mut u64, device: i32);
    fn cuDevicePrimaryCtxRelease_v2(device: i32);
    fn cuDevicePrimaryCtxReset_v2(device: i32);
    fn cuDevicePrimaryCtxGetState(device: i32, flags: *mut u32, active: *mut i32);
    fn cuDevicePrimaryCtxSetFlags_v2(device: i32, flags: u32);
    fn cuCtxCreate_v2(out: *mut u64, flags: u32, device: i32);
    fn cuCtxCreate_v4(out: *mut u64, params: *const c_void, flags: u32, device: i32);
    fn cuCtxDestroy_v2(context: u64);
    fn cuCtxPushCurrent_v2(context: u64);
    fn cuCtxPopCurrent_v2(out: *mut u64);
    fn cuCtxSetCurrent(context: u64);
    fn cuCtxGetCurrent(out: *mut u64);
    fn cuCtxGetDevice(out: *mut i32);
    fn cuCtxSynchronize();
    fn cuCtxGetLimit(out: *mut usize, limit: u32);
    fn cuCtxSetLimit(limit: u32, value: usize);
    fn cuCtxGetStreamPriorityRange(least: *mut i32, greatest: *mut i32);
    fn cuStreamCreate(out: *mut u64, flags: u32);
    fn cuStreamCreateWithPriority(out: *mut u64, flags: u32, priority: i32);
    fn cuStreamDestroy_v2(stream: u64);
    fn cuStreamSynchronize(stream: u64);
    fn cuStreamQuery(stream: u64);
    fn cuStreamWaitEvent(stream: u64, event: u64, flags: u32);
    fn cuStreamGetPriority(stream: u64, out: *mut i32);
    fn cuStreamGetCtx(stream: u64, out: *mut u64);
    fn cuStreamBeginCapture_v2(stream: u64, mode: u32);
    fn cuStreamBeginCapture_v2_ptsz(stream: u64, mode: u32);
    fn cuStreamEndCapture(stream: u64, out: *mut u64);
    fn cuStreamEndCapture_ptsz(stream: u64, out: *mut u64);
    fn cuStreamIsCapturing(stream: u64, out: *mut u32);
    fn cuStreamGetCaptureInfo_v2(
        stream: u64, status: *mut u32, id: *mut u64, graph: *mut u64, nodes: *mut *const u64, count: *mut usize
    );
    fn cuThreadExchangeStreamCaptureMode(mode: *mut u32);
    fn cuLaunchHostFunc(stream: u64, function: Option<Callback>, data: *mut c_void);
    fn cuEventCreate(out: *mut u64, flags: u32);
    fn cuEventDestroy_v2(event: u64);
    fn cuEventRecord(event: u64, stream: u64);
    fn cuEventRecordWithFlags(event: u64, stream: u64, flags: u32);
    fn cuEventQuery(event: u64);
    fn cuEventSynchronize(event: u64);
    fn cuEventElapsedTime_v2(out: *mut f32, from: u64, to: u64);
    fn cuMemAlloc_v2(out: *mut u64, bytes: usize);
    fn cuMemAllocPitch_v2(out: *mut u64, pitch: *mut usize, width: usize, height: usize, element: u32);
    fn cuMemFree_v2(address: u64);
    fn cuMemHostAlloc(out: *mut u64, bytes: usize, flags: u32);
    fn cuMemFreeHost(address: u64);
    fn cuMemAllocManaged(out: *mut u64, bytes: usize, flags: u32);
    fn cuMemAllocAsync(out: *mut u64, bytes: usize, stream: u64);
    fn cuMemAllocFromPoolAsync(out: *mut u64, bytes: usize, pool: u64, stream: u64);
    fn cuMemFreeAsync(address: u64, stream: u64);
    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize);
    fn cuMemGetAddressRange_v2(start: *mut u64, bytes: *mut usize, address: u64);
    fn cuMemHostRegister_v2(start: u64, bytes: usize, flags: u32);
    fn cuMemHostUnregister(start: u64);
    fn cuPointerGetAttribute(out: *mut c_void, attribute: u32, address: u64);
    fn cuPointerGetAttributes(count: u32, attributes: *const u32, out: *const *mut c_void, address: u64);
    fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, bytes: usize);
    fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, bytes: usize);
    fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize);
    fn cuMemcpy(to: u64, from: u64, bytes: usize);
    fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, stream: u64);
    fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, stream: u64);
    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: u64);
    fn cuMemcpy2D_v2(params: *const c_void);
    fn cuMemsetD8_v2(address: u64, value: u8, count: usize);
    fn cuMemsetD16_v2(address: u64, value: u16, count: usize);
    fn cuMemsetD32_v2(address: u64, value: u32, count: usize);
    fn cuMemsetD8Async(address: u64, value: u8, count: usize, stream: u64);
    fn cuMemsetD32Async(address: u64, value: u32, count: usize, stream: u64);
    fn cuMemsetD2D16_v2(address: u64, pitch: usize, value: u16, width: usize, height: usize);
    fn cuDeviceGetDefaultMemPool(out: *mut u64, device: i32);
    fn cuDeviceGetMemPool(out: *mut u64, device: i32);
    fn cuDeviceSetMemPool(device: i32, pool: u64);
    fn cuMemPoolCreate(out: *mut u64, props: *const c_void);
    fn cuMemPoolDestroy(pool: u64);
    fn cuMemPoolTrimTo(pool: u64, bytes: usize);
    fn cuMemPoolGetAttribute(pool: u64, attribute: u32, out: *mut c_void);
    fn cuMemPoolSetAttribute(pool: u64, attribute: u32, value: *const c_void);
    fn cuModuleLoad(out: *mut u64, name: *const c_char);
    fn cuModuleLoadData(out: *mut u64, image: *const c_void);
    fn cuModuleLoadDataEx(
        out: *mut u64, image: *const c_void, count: u32, names: *const u32, values: *mut *mut c_void
    );
    fn cuModuleUnload(module: u64);
    fn cuModuleGetFunction(out: *mut u64, module: u64, name: *const c_char);
    fn cuModuleGetGlobal_v2(address: *mut u64, bytes: *mut usize, module: u64, name: *const c_char);
    fn cuLibraryLoadData(
        out: *mut u64, image: *const c_void, names: *const u32, values: *mut *mut c_void, count: u32,
        library_names: *const u32, library_values: *mut *mut c_void, library_count: u32
    );
    fn cuLibraryUnload(library: u64);
    fn cuLibraryGetKernel(out: *mut u64, library: u64, name: *const c_char);
    fn cuKernelGetFunction(out: *mut u64, kernel: u64);
    fn cuFuncGetAttribute(out: *mut i32, attribute: u32, function: u64);
    fn cuFuncSetAttribute(function: u64, attribute: u32, value: i32);
    fn cuFuncGetName(out: *mut *const c_char, function: u64);
    fn cuFuncGetParamInfo(function: u64, index: usize, offset: *mut usize, bytes: *mut usize);
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(out: *mut i32, function: u64, threads: i32, dynamic: usize);
    fn cuOccupancyMaxPotentialBlockSize(
        grid: *mut i32, block: *mut i32, function: u64, shared_of: Option<extern "C" fn(i32) -> usize>,
        dynamic: usize, limit: i32
    );
    fn cuOccupancyAvailableDynamicSMemPerBlock(out: *mut usize, function: u64, blocks: i32, threads: i32);
    fn cuLaunchKernel(
        function: u64, grid_x: u32, grid_y: u32, grid_z: u32, block_x: u32, block_y: u32, block_z: u32,
        dynamic: u32, stream: u64, params: *const *const c_void, extra: *const *const c_void
    );
    fn cuLaunchKernelEx(
        config: *const c_void, function: u64, params: *const *const c_void, extra: *const *const c_void
    );
    fn cuLaunchCooperativeKernel(
        function: u64, grid_x: u32, grid_y: u32, grid_z: u32, block_x: u32, block_y: u32, block_z: u32,
        dynamic: u32, stream: u64, params: *const *const c_void
    );
    fn cuGraphInstantiateWithFlags(out: *mut u64, graph: u64, flags: u64);
    fn cuGraphLaunch(exec: u64, stream: u64);
    fn cuGraphUpload(exec: u64, stream: u64);
    fn cuGraphExecDestroy(exec: u64);
    fn cuGraphDestroy(graph: u64);
    fn cuGraphClone(out: *mut u64, graph: u64);
    fn cuGraphGetNodes(graph: u64, nodes: *mut u64, count: *mut usize);
    fn cuGraphGetEdges(graph: u64, from: *mut u64, to: *mut u64, count: *mut usize);
    fn cuGraphNodeGetType(node: u64, out: *mut u32);
    fn cuGetProcAddress_v2(
        name: *const c_char, out: *mut *mut c_void, version: i32, flags: u64, status: *mut u32
    );
    fn cuGetExportTable(out: *mut *const c_void, id: *const [u8; 16]);
    fn cuTexObjectCreate();
}

/// A pointer to hand in as a device address.
pub fn address<T>(memory: *const T) -> u64 {
    memory.expose_provenance() as u64
}

/// Text of a code by one of the two functions.
pub fn text(code: u32, function: fn(u32, *mut *const c_char) -> u32) -> Option<String> {
    let mut pointer = std::ptr::null();
    (function(code, &raw mut pointer) == 0).then(|| {
        // SAFETY: the function succeeded, so it points to text that ends in NUL and stays.
        unsafe { CStr::from_ptr(pointer) }.to_str().unwrap().to_owned()
    })
}

/// Asserts success, and names the code if there is none.
#[track_caller]
pub fn ok(code: u32) {
    assert_eq!(code, 0, "{}", text(code, cuGetErrorName).unwrap_or_default());
}

/// The result of a call that succeeds.
#[track_caller]
pub fn get<T: Default>(call: impl FnOnce(*mut T) -> u32) -> T {
    let mut value = T::default();
    ok(call(&raw mut value));
    value
}

/// A test of its own: a context, current on this thread; no other test beside it, since captures and the device's
/// memory are seen by all threads.
pub struct Session {
    pub context: u64,
    _alone: MutexGuard<'static, ()>,
}

static ALONE: Mutex<()> = Mutex::new(());

impl Session {
    pub fn new() -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        ok(cuInit(0));
        let context = get(|out| cuCtxCreate_v2(out, 0, 0));
        Self { context, _alone: alone }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut current = 1;
        while cuCtxPopCurrent_v2(&raw mut current) == 0 {}
        let _ = cuCtxDestroy_v2(self.context);
    }
}

/// PTX with the kernels the tests use.
///
/// `store(u64 out, u32 value)`: out[tid] = value + tid. `trap()`. `shared()`: 16 KB static. `bounded()`: at most 64
/// threads. `required()`: exactly 32 by 2. `count`: a variable that starts as 7.
pub const PTX: &str = "
.version 8.0
.target sm_80
.address_size 64
.visible .global .align 4 .u32 count = 7;
.extern .shared .align 16 .b8 dynamic[];
.visible .entry store(.param .u64 out, .param .u32 value)
{
    .reg .b32 %r<4>; .reg .b64 %rd<4>;
    ld.param.u64 %rd0, [out];
    ld.param.u32 %r0, [value];
    mov.u32 %r1, %tid.x;
    add.u32 %r2, %r0, %r1;
    mul.wide.u32 %rd1, %r1, 4;
    add.u64 %rd2, %rd0, %rd1;
    st.global.u32 [%rd2], %r2;
    ret;
}
.visible .entry trap()
{
    trap;
}
.visible .entry shared()
{
    .shared .align 4 .b8 tile[16384];
    .reg .b32 %r<2>;
    mov.u32 %r0, tile;
    st.shared.u32 [%r0], %r0;
    ret;
}
.visible .entry last(.param .u32 bytes)
{
    .reg .b32 %r<4>;
    ld.param.u32 %r0, [bytes];
    mov.u32 %r1, dynamic;
    add.u32 %r2, %r0, %r1;
    st.shared.u8 [%r2+-1], %r0;
    ret;
}
.visible .entry bounded() .maxntid 64, 1, 1
{
    ret;
}
.visible .entry required() .reqntid 32, 2, 1
{
    ret;
}
";

/// A NUL-terminated copy, to be kept during the call.
pub fn c(text: &str) -> CString {
    CString::new(text).unwrap()
}

/// A loaded module and its kernels.
pub struct Module(pub u64);

impl Module {
    pub fn load() -> Self {
        let image = c(PTX);
        Self(get(|out| cuModuleLoadData(out, image.as_ptr().cast())))
    }

    pub fn function(&self, name: &str) -> u64 {
        get(|out| cuModuleGetFunction(out, self.0, c(name).as_ptr()))
    }
}

/// Launches one block in x, on a stream.
pub fn launch(function: u64, threads: u32, dynamic: u32, stream: u64, params: &[*const c_void]) -> u32 {
    let params = params.as_ptr();
    cuLaunchKernel(function, 1, 1, 1, threads, 1, 1, dynamic, stream, params, std::ptr::null())
}

/// Launches `store`.
pub fn store(function: u64, threads: u32, stream: u64, out: u64, value: u32) -> u32 {
    launch(function, threads, 0, stream, &[(&raw const out).cast(), (&raw const value).cast()])
}

/// Words of device memory.
pub fn words(address: u64, count: usize) -> Vec<u32> {
    let mut words = vec![0xdead_beef_u32; count];
    ok(cuMemcpyDtoH_v2(words.as_mut_ptr().cast(), address, 4 * count));
    words
}
