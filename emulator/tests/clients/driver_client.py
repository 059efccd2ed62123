"""The emulator seen through cuda-bindings (pip install cuda-bindings numpy), which looks up every function at load.

usage: scripts/with-emulator python3 emulator/tests/clients/driver_client.py
"""

import ctypes
import sys

import numpy as np
from cuda.bindings import driver as cu

PTX = rb"""
.version 8.0
.target sm_75
.address_size 64
.visible .global .align 4 .u32 calls = 0;
.visible .entry saxpy(.param .u64 y, .param .u64 x, .param .f32 a, .param .u32 n)
{
    .reg .pred %p; .reg .b32 %r<5>; .reg .f32 %f<4>; .reg .b64 %rd<6>;
    ld.param.u64 %rd0, [y];
    ld.param.u64 %rd1, [x];
    ld.param.f32 %f0, [a];
    ld.param.u32 %r0, [n];
    mov.u32 %r1, %ctaid.x;
    mov.u32 %r2, %ntid.x;
    mov.u32 %r3, %tid.x;
    mad.lo.u32 %r4, %r1, %r2, %r3;
    setp.ge.u32 %p, %r4, %r0;
    @%p ret;
    mul.wide.u32 %rd2, %r4, 4;
    add.u64 %rd3, %rd0, %rd2;
    add.u64 %rd4, %rd1, %rd2;
    ld.global.f32 %f1, [%rd3];
    ld.global.f32 %f2, [%rd4];
    fma.rn.f32 %f3, %f0, %f2, %f1;
    st.global.f32 [%rd3], %f3;
    ret;
}
"""


def ok(result):
    code, *values = result
    assert code == cu.CUresult.CUDA_SUCCESS, code
    return values[0] if len(values) == 1 else tuple(values)


def fails(result, code):
    assert result[0] == code, f"{result[0]} where {code} was expected"


def launch(kernel, stream, y, x, a, n):
    params = ((y, x, a, n), (None, None, ctypes.c_float, ctypes.c_uint32))
    ok(cu.cuLaunchKernel(kernel, (n + 127) // 128, 1, 1, 128, 1, 1, 0, stream, params, 0))


def main():
    fails(cu.cuDeviceGetCount(), cu.CUresult.CUDA_ERROR_NOT_INITIALIZED)
    ok(cu.cuInit(0))
    device = ok(cu.cuDeviceGet(0))
    attribute = cu.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_WARP_SIZE
    assert ok(cu.cuDeviceGetAttribute(attribute, device)) == 32
    assert ok(cu.cuDeviceGetName(32, device)).startswith(b"CUDA emulator")
    context = ok(cu.cuDevicePrimaryCtxRetain(device))
    ok(cu.cuCtxSetCurrent(context))

    module = ok(cu.cuModuleLoadData(PTX + b"\0"))
    kernel = ok(cu.cuModuleGetFunction(module, b"saxpy"))
    assert ok(cu.cuModuleGetGlobal(module, b"calls"))[1] == 4
    fails(cu.cuModuleGetFunction(module, b"none"), cu.CUresult.CUDA_ERROR_NOT_FOUND)
    library = ok(cu.cuLibraryLoadData(PTX + b"\0", [], [], 0, [], [], 0))
    assert ok(cu.cuKernelGetName(ok(cu.cuLibraryGetKernel(library, b"saxpy")))) == b"saxpy"

    # Small whole numbers: products and sums are exact, so the results are equal.
    n = 1000
    x = np.arange(n, dtype=np.float32)
    y = np.ones(n, dtype=np.float32)
    stream = ok(cu.cuStreamCreate(1))
    dx, dy = (ok(cu.cuMemAllocAsync(x.nbytes, stream)) for _ in range(2))
    ok(cu.cuMemcpyHtoDAsync(dx, x.ctypes.data, x.nbytes, stream))
    ok(cu.cuMemcpyHtoDAsync(dy, y.ctypes.data, y.nbytes, stream))
    launch(kernel, stream, dy, dx, 3.0, n)
    got = np.empty_like(y)
    ok(cu.cuMemcpyDtoHAsync(got.ctypes.data, dy, got.nbytes, stream))
    ok(cu.cuStreamSynchronize(stream))
    assert np.array_equal(got, 3 * x + 1)

    # A captured graph, replayed.
    ok(cu.cuStreamBeginCapture(stream, cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL))
    launch(kernel, stream, dy, dx, 2.0, n)
    fails(cu.cuStreamQuery(stream), cu.CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)
    fails(cu.cuStreamEndCapture(stream), cu.CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED)
    ok(cu.cuStreamBeginCapture(stream, cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL))
    launch(kernel, stream, dy, dx, 2.0, n)
    graph = ok(cu.cuStreamEndCapture(stream))
    executable = ok(cu.cuGraphInstantiate(graph, 0))
    for _ in range(2):
        ok(cu.cuGraphLaunch(executable, stream))
    ok(cu.cuMemcpyDtoH(got.ctypes.data, dy, got.nbytes))
    assert np.array_equal(got, 7 * x + 1)

    # One thread too many reads past the end: told by the next call, and by all after it.
    launch(kernel, stream, dy, dx, 1.0, n + 1)
    for _ in range(2):
        fails(cu.cuStreamSynchronize(stream), cu.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS)
    fails(cu.cuMemAlloc(4), cu.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS)
    ok(cu.cuDevicePrimaryCtxReset(device))
    ok(cu.cuMemFree(ok(cu.cuMemAlloc(4))))
    ok(cu.cuDevicePrimaryCtxRelease(device))
    print("driver_client: ok")


if __name__ == "__main__":
    sys.exit(main())
