"""Kernels compiled by Triton as far as PTX, launched through cuda-bindings."""

import ctypes
import os

import numpy as np
from cuda.bindings import driver as cu

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

TYPES = {"float16": "fp16", "float32": "fp32", "int8": "i8", "int32": "i32", "uint32": "u32", "int64": "i64"}


def to_ptx_only(*arguments):
    """Triton's hook into its stages: no cubin, the emulator takes PTX."""
    if not arguments:
        return "to PTX", "to PTX"
    _, stages, *_ = arguments
    stages["cubin"] = lambda source, metadata: b""


triton.knobs.runtime.add_stages_inspection_hook = to_ptx_only


class Bf16(np.ndarray):
    """Bits of bf16 numbers in an array of uint16."""


def to_bf16(x):
    """x, whose numbers must all be bf16 numbers."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    assert not np.any(bits & 0xFFFF)
    return (bits >> 16).astype(np.uint16).view(Bf16)


def ok(result):
    code, *values = result
    assert code == cu.CUresult.CUDA_SUCCESS, code
    return values[0] if len(values) == 1 else tuple(values)


def compiled(kernel, arguments, constants, capability, **options):
    """As Triton's own launcher specialises: 1 is a constant, and what 16 divides is known to be so."""
    signature, known, attributes = {}, dict(constants), {}
    for place, (name, value) in enumerate(zip(kernel.arg_names, arguments)):
        if isinstance(value, np.ndarray):
            signature[name] = "*" + ("bf16" if isinstance(value, Bf16) else TYPES[value.dtype.name])
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif value == 1:
            signature[name] = "constexpr"
            known[name] = 1
        else:
            signature[name] = "i32"
        if signature[name].startswith("*") or (signature[name] == "i32" and value % 16 == 0):
            attributes[(place,)] = [["tt.divisibility", 16]]
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, signature, known, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


class Device:
    """A context on device 0."""

    def __init__(self):
        ok(cu.cuInit(0))
        self.device = ok(cu.cuDeviceGet(0))
        ok(cu.cuCtxSetCurrent(ok(cu.cuDevicePrimaryCtxRetain(self.device))))
        which = cu.CUdevice_attribute
        major = ok(cu.cuDeviceGetAttribute(which.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, self.device))
        minor = ok(cu.cuDeviceGetAttribute(which.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, self.device))
        self.capability = 10 * major + minor

    def run(self, kernel, grid, *arguments, constants=None, edit=None, **options):
        """Launches with arrays copied to the device and back. edit changes the PTX."""
        made = compiled(kernel, arguments, constants or {}, self.capability, **options)
        assert made.metadata.global_scratch_size == made.metadata.profile_scratch_size == 0
        ptx = made.asm["ptx"]
        module = ok(cu.cuModuleLoadData((edit(ptx) if edit else ptx).encode() + b"\0"))
        function = ok(cu.cuModuleGetFunction(module, made.metadata.name.encode()))
        shared = made.metadata.shared
        if shared > 48 << 10:
            most = cu.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            ok(cu.cuFuncSetAttribute(function, most, shared))
        copies, values, types = [], [], []
        for value in arguments:
            if isinstance(value, np.ndarray):
                copies.append((ok(cu.cuMemAlloc(value.nbytes)), value))
                ok(cu.cuMemcpyHtoD(copies[-1][0], value.ctypes.data, value.nbytes))
                values.append(copies[-1][0])
                types.append(None)
            elif value != 1 or isinstance(value, float):
                values.append(value)
                types.append(ctypes.c_float if isinstance(value, float) else ctypes.c_int32)
        # Memory that a kernel may ask for, and a profiler: none does.
        values += [0, 0]
        types += [ctypes.c_uint64] * 2
        grid = (*grid, 1, 1)[:3]
        block = 32 * made.metadata.num_warps
        params = (tuple(values), tuple(types))
        ok(cu.cuLaunchKernel(function, *grid, block, 1, 1, shared, 0, params, 0))
        ok(cu.cuCtxSynchronize())
        for address, value in copies:
            ok(cu.cuMemcpyDtoH(value.ctypes.data, address, value.nbytes))
            ok(cu.cuMemFree(address))
        ok(cu.cuModuleUnload(module))
