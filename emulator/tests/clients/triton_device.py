"""Kernels compiled by Triton as far as PTX, launched through cuda-bindings."""

import ctypes
import hashlib
import os

import numpy as np
from cuda.bindings import driver as cu

# Both ways are correct; without a choice there is a warning.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

TYPES = {"float16": "fp16", "float32": "fp32", "int8": "i8", "int32": "i32"}


def to_ptx_only(*arguments):
    """Triton's hook into its stages: no cubin, the emulator takes PTX."""
    if not arguments:
        return "to PTX", "to PTX"
    _, stages, *_ = arguments
    stages["cubin"] = lambda source, metadata: b""
    return None


triton.knobs.runtime.add_stages_inspection_hook = to_ptx_only


class Bf16(np.ndarray):
    """Bits of bf16 numbers in an array of uint16."""


def to_bf16(x):
    """x, whose numbers must all be bf16 numbers."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    assert not np.any(bits & 0xFFFF)
    return (bits >> 16).astype(np.uint16).view(Bf16)


def compiled(kernel, arguments, constants, capability, options):
    """As Triton's own launcher specialises: 1 becomes a constant, and what 16 divides is known to be so."""
    signature, known, attributes = {}, dict(constants), {}
    for place, (name, value) in enumerate(zip(kernel.arg_names, arguments)):
        if isinstance(value, np.ndarray):
            signature[name] = "*" + ("bf16" if isinstance(value, Bf16) else TYPES[value.dtype.name])
        elif is_constant(value):
            signature[name], known[name] = "constexpr", value
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
        if isinstance(value, np.ndarray) or (signature[name] == "i32" and value % 16 == 0):
            attributes[(place,)] = [["tt.divisibility", 16]]
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, signature, known, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def is_constant(value):
    return isinstance(value, int) and value == 1


def ok(result):
    code, *values = result
    assert code == cu.CUresult.CUDA_SUCCESS, code
    return values[0] if len(values) == 1 else tuple(values)


class Device:
    """Device 0. Hashes of what every launch wrote are kept."""

    def __init__(self):
        ok(cu.cuInit(0))
        self.device = ok(cu.cuDeviceGet(0))
        ok(cu.cuCtxSetCurrent(ok(cu.cuDevicePrimaryCtxRetain(self.device))))
        names = cu.CUdevice_attribute
        major, minor = (
            ok(cu.cuDeviceGetAttribute(attribute, self.device))
            for attribute in (
                names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        self.capability = 10 * major + minor
        self.launches = 0
        self.digests = []

    def run(self, name, kernel, grid, *arguments, constants, edit=None, is_ordered=True, **options):
        """Launches with arrays copied to the device and back. `edit` changes the PTX. Not `is_ordered`: the bits
        depend on the order of blocks, on a card too."""
        made = compiled(kernel, arguments, constants, self.capability, options)
        ptx = made.asm["ptx"]
        module = ok(cu.cuModuleLoadData((edit(ptx) if edit else ptx).encode() + b"\0"))
        function = ok(cu.cuModuleGetFunction(module, made.metadata.name.encode()))
        if made.metadata.shared > 48 << 10:
            most = cu.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            ok(cu.cuFuncSetAttribute(function, most, made.metadata.shared))
        arrays = [value for value in arguments if isinstance(value, np.ndarray)]
        places = [ok(cu.cuMemAlloc(array.nbytes)) for array in arrays]
        for array, place in zip(arrays, places):
            ok(cu.cuMemcpyHtoD(place, array.ctypes.data, array.nbytes))
        self.launch(function, grid, made.metadata, parameters(arguments, places))
        ok(cu.cuCtxSynchronize())
        for array, place in zip(arrays, places):
            ok(cu.cuMemcpyDtoH(array.ctypes.data, place, array.nbytes))
            ok(cu.cuMemFree(place))
        ok(cu.cuModuleUnload(module))
        self.launches += 1
        if is_ordered:
            digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
            self.digests.append(f"{name}: {digest}")

    def launch(self, function, grid, metadata, params):
        grid = (*grid, 1, 1)[:3]
        block = (32 * metadata.num_warps, 1, 1)
        ok(cu.cuLaunchKernel(function, *grid, *block, metadata.shared, 0, params, 0))

    def reset(self):
        """After a fault."""
        ok(cu.cuDevicePrimaryCtxReset(self.device))


def parameters(arguments, places):
    """Pointers, numbers, and two more pointers: memory that a kernel may ask for and a profiler's, which none does."""
    places = iter(places)
    values, types = [], []
    for value in arguments:
        if isinstance(value, np.ndarray):
            values.append(next(places))
            types.append(None)
        elif not is_constant(value):
            values.append(value)
            types.append(ctypes.c_float if isinstance(value, float) else ctypes.c_int32)
    return (*values, 0, 0), (*types, ctypes.c_uint64, ctypes.c_uint64)
