//! Result codes of the driver, by number, name and text.

use super::abi::Out;
use super::exports;
use std::ffi::c_char;

/// A code other than `CUDA_SUCCESS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Error(u32);

/// What every operation of the driver ends in.
pub(super) type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The number C sees.
    pub(super) fn code(self) -> u32 {
        self.0
    }

    /// The error of a number kept earlier; none for 0.
    pub(super) fn check(code: u32) -> Result<()> {
        if code == 0 { Ok(()) } else { Err(Self(code)) }
    }
}

macro_rules! errors {
    ($($code:literal $name:ident $text:literal;)*) => {
        #[allow(dead_code, reason = "a full table: clients ask for the names of all")]
        impl Error {
            $(pub(super) const $name: Self = Self($code);)*
        }

        /// Number, name and text, both with the NUL C wants.
        const TABLE: &[(u32, &str, &str)] = &[
            (0, "CUDA_SUCCESS\0", "no error\0"),
            $(($code, concat!("CUDA_ERROR_", stringify!($name), "\0"), concat!($text, "\0")),)*
        ];
    };
}

errors! {
    1 INVALID_VALUE "invalid argument";
    2 OUT_OF_MEMORY "out of memory";
    3 NOT_INITIALIZED "initialization error";
    4 DEINITIALIZED "driver shutting down";
    5 PROFILER_DISABLED "profiler disabled while using external profiling tool";
    6 PROFILER_NOT_INITIALIZED "profiler not initialized";
    7 PROFILER_ALREADY_STARTED "profiler already started";
    8 PROFILER_ALREADY_STOPPED "profiler already stopped";
    34 STUB_LIBRARY "CUDA driver is a stub library";
    36 CALL_REQUIRES_NEWER_DRIVER "call requires newer driver";
    46 DEVICE_UNAVAILABLE "device unavailable";
    100 NO_DEVICE "no CUDA-capable device is detected";
    101 INVALID_DEVICE "invalid device ordinal";
    102 DEVICE_NOT_LICENSED "device not licensed";
    200 INVALID_IMAGE "device kernel image is invalid";
    201 INVALID_CONTEXT "invalid device context";
    202 CONTEXT_ALREADY_CURRENT "context already current";
    205 MAP_FAILED "map failed";
    206 UNMAP_FAILED "unmap failed";
    207 ARRAY_IS_MAPPED "array is mapped";
    208 ALREADY_MAPPED "already mapped";
    209 NO_BINARY_FOR_GPU "no kernel image is available for execution on the device";
    210 ALREADY_ACQUIRED "already acquired";
    211 NOT_MAPPED "not mapped";
    212 NOT_MAPPED_AS_ARRAY "not mapped as array";
    213 NOT_MAPPED_AS_POINTER "not mapped as pointer";
    214 ECC_UNCORRECTABLE "ecc uncorrectable";
    215 UNSUPPORTED_LIMIT "limit is not supported on this architecture";
    216 CONTEXT_ALREADY_IN_USE "context already in use";
    217 PEER_ACCESS_UNSUPPORTED "peer access unsupported";
    218 INVALID_PTX "a PTX JIT compilation failed";
    219 INVALID_GRAPHICS_CONTEXT "invalid graphics context";
    220 NVLINK_UNCORRECTABLE "nvlink uncorrectable";
    221 JIT_COMPILER_NOT_FOUND "jit compiler not found";
    222 UNSUPPORTED_PTX_VERSION "the provided PTX was compiled with an unsupported toolchain.";
    223 JIT_COMPILATION_DISABLED "jit compilation disabled";
    224 UNSUPPORTED_EXEC_AFFINITY "unsupported exec affinity";
    225 UNSUPPORTED_DEVSIDE_SYNC "unsupported devside sync";
    226 CONTAINED "contained";
    300 INVALID_SOURCE "device kernel image is invalid";
    301 FILE_NOT_FOUND "file not found";
    302 SHARED_OBJECT_SYMBOL_NOT_FOUND "shared object symbol not found";
    303 SHARED_OBJECT_INIT_FAILED "shared object init failed";
    304 OPERATING_SYSTEM "OS call failed or operation not supported on this OS";
    400 INVALID_HANDLE "invalid resource handle";
    401 ILLEGAL_STATE "the operation cannot be performed in the present state";
    402 LOSSY_QUERY "lossy query";
    500 NOT_FOUND "named symbol not found";
    600 NOT_READY "device not ready";
    700 ILLEGAL_ADDRESS "an illegal memory access was encountered";
    701 LAUNCH_OUT_OF_RESOURCES "too many resources requested for launch";
    702 LAUNCH_TIMEOUT "the launch timed out and was terminated";
    703 LAUNCH_INCOMPATIBLE_TEXTURING "launch incompatible texturing";
    704 PEER_ACCESS_ALREADY_ENABLED "peer access already enabled";
    705 PEER_ACCESS_NOT_ENABLED "peer access not enabled";
    708 PRIMARY_CONTEXT_ACTIVE "cannot set while device is active in this process";
    709 CONTEXT_IS_DESTROYED "context is destroyed";
    710 ASSERT "device-side assert triggered";
    711 TOO_MANY_PEERS "too many peers";
    712 HOST_MEMORY_ALREADY_REGISTERED "part or all of the requested memory range is already mapped";
    713 HOST_MEMORY_NOT_REGISTERED "pointer does not correspond to a registered memory region";
    714 HARDWARE_STACK_ERROR "hardware stack error";
    715 ILLEGAL_INSTRUCTION "an illegal instruction was encountered";
    716 MISALIGNED_ADDRESS "misaligned address";
    717 INVALID_ADDRESS_SPACE "invalid address space";
    718 INVALID_PC "invalid pc";
    719 LAUNCH_FAILED "unspecified launch failure";
    720 COOPERATIVE_LAUNCH_TOO_LARGE "cooperative launch too large";
    721 TENSOR_MEMORY_LEAK "tensor memory leak";
    800 NOT_PERMITTED "operation not permitted";
    801 NOT_SUPPORTED "operation not supported";
    802 SYSTEM_NOT_READY "system not ready";
    803 SYSTEM_DRIVER_MISMATCH "system driver mismatch";
    804 COMPAT_NOT_SUPPORTED_ON_DEVICE "compat not supported on device";
    805 MPS_CONNECTION_FAILED "mps connection failed";
    806 MPS_RPC_FAILURE "mps rpc failure";
    807 MPS_SERVER_NOT_READY "mps server not ready";
    808 MPS_MAX_CLIENTS_REACHED "mps max clients reached";
    809 MPS_MAX_CONNECTIONS_REACHED "mps max connections reached";
    810 MPS_CLIENT_TERMINATED "mps client terminated";
    811 CDP_NOT_SUPPORTED "cdp not supported";
    812 CDP_VERSION_MISMATCH "cdp version mismatch";
    900 STREAM_CAPTURE_UNSUPPORTED "operation not permitted when stream is capturing";
    901 STREAM_CAPTURE_INVALIDATED "operation failed due to a previous error during capture";
    902 STREAM_CAPTURE_MERGE "operation would result in a merge of separate capture sequences";
    903 STREAM_CAPTURE_UNMATCHED "capture was not ended in the same stream as it began";
    904 STREAM_CAPTURE_UNJOINED "capturing stream has unjoined work";
    905 STREAM_CAPTURE_ISOLATION "dependency created on uncaptured work in another stream";
    906 STREAM_CAPTURE_IMPLICIT "operation would make the legacy stream depend on a capturing stream";
    907 CAPTURED_EVENT "operation not permitted on an event last recorded in a capturing stream";
    908 STREAM_CAPTURE_WRONG_THREAD "thread-local capture sequence ended from another thread";
    909 TIMEOUT "timeout";
    910 GRAPH_EXEC_UPDATE_FAILURE "graph exec update failure";
    911 EXTERNAL_DEVICE "external device";
    912 INVALID_CLUSTER_SIZE "invalid cluster size";
    913 FUNCTION_NOT_LOADED "function not loaded";
    914 INVALID_RESOURCE_TYPE "invalid resource type";
    915 INVALID_RESOURCE_CONFIGURATION "invalid resource configuration";
    916 KEY_ROTATION "key rotation";
    999 UNKNOWN "unknown error";
}

/// Sets `out` to one of the texts of `code`, or to null.
fn describe(
    code: u32,
    out: Out<*const c_char>,
    text: fn(&(u32, &'static str, &'static str)) -> &'static str,
) -> Result<()> {
    match TABLE.iter().find(|row| row.0 == code) {
        Some(row) => out.set(text(row).as_ptr().cast()),
        None => {
            out.set(std::ptr::null())?;
            Err(Error::INVALID_VALUE)
        }
    }
}

exports! {
    6000 fn cuGetErrorName(code: u32, out: Out<*const c_char>) { describe(code, out, |row| row.1) }
    6000 fn cuGetErrorString(code: u32, out: Out<*const c_char>) { describe(code, out, |row| row.2) }
}
