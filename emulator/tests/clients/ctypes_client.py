"""The emulator seen through ctypes alone: symbols by name, as a C program would link to them.

usage: scripts/with-emulator python3 emulator/tests/clients/ctypes_client.py
"""

import ctypes
from ctypes import byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p

PTX = b"""
.version 8.0
.target sm_75
.address_size 64
.visible .entry reverse(.param .u64 to, .param .u64 from)
{
    .reg .b32 %r<4>; .reg .b64 %rd<6>;
    .shared .align 4 .b8 tile[512];
    ld.param.u64 %rd0, [to];
    ld.param.u64 %rd1, [from];
    mov.u32 %r0, %tid.x;
    mul.wide.u32 %rd2, %r0, 4;
    add.u64 %rd3, %rd1, %rd2;
    ld.global.u32 %r1, [%rd3];
    mov.u32 %r2, tile;
    mad.lo.u32 %r2, %r0, 4, %r2;
    st.shared.u32 [%r2], %r1;
    bar.sync 0;
    mov.u32 %r3, tile;
    sub.u32 %r0, 127, %r0;
    mad.lo.u32 %r3, %r0, 4, %r3;
    ld.shared.u32 %r1, [%r3];
    add.u64 %rd4, %rd0, %rd2;
    st.global.u32 [%rd4], %r1;
    ret;
}
"""

cuda = ctypes.CDLL("libcuda.so.1")
assert cuda.cuInit is not None and ctypes.CDLL("libcuda.so").cuInit


def call(name, *arguments):
    return getattr(cuda, name)(*arguments)


def ok(name, *arguments):
    code = call(name, *arguments)
    text = c_char_p()
    if code:
        cuda.cuGetErrorName(code, byref(text))
    assert code == 0, f"{name}: {text.value}"


def new(type_, name, *arguments):
    value = type_()
    ok(name, byref(value), *arguments)
    return value


def main():
    ok("cuInit", 0)
    assert new(c_int, "cuDriverGetVersion").value == 13000
    device = new(c_int, "cuDeviceGet", 0)
    new(c_void_p, "cuCtxCreate_v2", 0, device)
    module = new(c_void_p, "cuModuleLoadData", PTX)
    kernel = new(c_void_p, "cuModuleGetFunction", module, b"reverse")

    words = (c_uint * 128)(*range(128))
    source, target = (new(c_uint64, "cuMemAlloc_v2", c_size_t(512)) for _ in range(2))
    start, end = (new(c_void_p, "cuEventCreate", 0) for _ in range(2))
    ok("cuMemcpyHtoD_v2", source, words, c_size_t(512))
    arguments = (c_void_p * 2)(ctypes.addressof(target), ctypes.addressof(source))
    ok("cuEventRecord", start, None)
    ok("cuLaunchKernel", kernel, 1, 1, 1, 128, 1, 1, 0, None, arguments, None)
    ok("cuEventRecord", end, None)
    got = (c_uint * 128)()
    ok("cuMemcpyDtoH_v2", got, target, c_size_t(512))
    assert list(got) == list(reversed(range(128)))
    assert new(c_float, "cuEventElapsedTime", start, end).value > 0

    # As the runtime library finds functions.
    pointer, status = c_void_p(), c_int()
    ok("cuGetProcAddress_v2", b"cuCtxSynchronize", byref(pointer), 12000, c_uint64(0), byref(status))
    assert status.value == 0 and ctypes.CFUNCTYPE(c_int)(pointer.value)() == 0

    assert call("cuModuleLoadData", byref(c_void_p()), b"\x7fELF") == 209
    assert call("cuMemFree_v2", c_uint64(1)) == 1
    assert call("cuTexObjectCreate", None, None, None, None) == 801
    print("ctypes_client: ok")


if __name__ == "__main__":
    main()
