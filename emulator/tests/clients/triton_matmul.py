"""Matrix products."""

import numpy as np
from bounds import real
from triton_device import to_bf16
from triton_kernels import matmul

# Products that a tensor core adds to the accumulator at once, or one after the other.
STEPS = {"float16": 8, "bf16": 8, "float32": 4}


def product(device, name, a, b, kind, out=np.float32, transposed=(False, False), precision="tf32", tile=(64, 64, 32),
            split=1, edit=None, **options):
    """The kernel's a b; a and b have numbers of the kind."""
    (m, k), n = a.shape, b.shape[1]
    strides, stored = [], []
    for matrix, transpose in zip((a, b), transposed):
        matrix = np.ascontiguousarray(matrix.T if transpose else matrix)
        strides += [1, matrix.shape[1]] if transpose else [matrix.shape[1], 1]
        stored.append(to_bf16(matrix) if kind == "bf16" else matrix.astype(kind))
    c = np.zeros((m, n), out)
    bm, bn, bk = tile
    constants = {"PRECISION": precision, "BM": bm, "BN": bn, "BK": bk, "SPLIT": split}
    grid = (-(-m // bm), -(-n // bn), split)
    device.run(name, matmul, grid, c, *stored, m, n, k, *strides, constants=constants, edit=edit, **options)
    return c


def check_integers(device):
    """Whole numbers: products and sums are exact, so the results are equal, sums of several programs too."""
    random = np.random.default_rng(1)
    ragged = (37, 53, 41)
    # Multiples of 16, which Triton knows: 16 bytes at a time, asynchronously, with zeros past the end.
    aligned = (80, 112, 80)
    cases = [
        (ragged, "float16", {}),
        (ragged, "bf16", {"num_warps": 8}),
        (ragged, "float32", {"transposed": (True, True)}),
        ((128, 64, 96), "float16", {}),
        ((16, 16, 16), "float16", {"tile": (16, 16, 16), "num_warps": 1}),
        ((160, 272, 160), "float16", {"tile": (128, 256, 64), "num_warps": 8, "num_stages": 2}),
        ((128, 128, 192), "float16", {"tile": (128, 128, 64), "num_stages": 4}),
        (aligned, "float16", {"out": np.float16}),
        ((80, 112, 160), "float16", {"split": 3}),
        (aligned, "float32", {"precision": "ieee"}),
    ]
    for kind in STEPS:
        cases += [(aligned, kind, {"num_stages": stages}) for stages in (1, 2, 3, 5)]
        cases += [(aligned, kind, {"num_stages": 3, "num_warps": 8})]
        cases += [(aligned, kind, {"transposed": (a, b)}) for a, b in ((True, False), (False, True), (True, True))]
    if device.capability >= 80:
        cases += [(aligned, "int8", {"out": np.int32, "transposed": (False, b)}) for b in (False, True)]
        cases += [(ragged, "int8", {"out": np.int32})]
    for (m, n, k), kind, options in cases:
        a, b = random.integers(-8, 9, (m, k)), random.integers(-8, 9, (k, n))
        name = f"matmul {m} {n} {k} {kind} {options}"
        got = product(device, name, a, b, kind, **options)
        assert np.array_equal(got, a @ b), name


def check_split(device):
    """Three products of tf32 for one of f32: numbers of up to 22 bits times small ones are exact, and not in one."""
    random = np.random.default_rng(2)
    a, b = random.integers(-1 << 16, 1 << 16, (64, 32)), random.integers(-3, 4, (32, 64))
    want = a @ b
    assert np.array_equal(product(device, "tf32x3", a, b, "float32", precision="tf32x3"), want)
    if device.capability >= 80:
        assert not np.array_equal(product(device, "tf32x1", a, b, "float32"), want)


def check_any(device):
    random = np.random.default_rng(3)
    for kind, step in STEPS.items():
        for precision in ("tf32", "ieee") if kind == "float32" else ("tf32",):
            a, b = (random.standard_normal(shape).astype(np.float32) for shape in ((80, 112), (112, 96)))
            if kind == "float16":
                a, b = a.astype(np.float16), b.astype(np.float16)
            if kind == "bf16":
                a, b = ((x.view(np.uint32) & 0xFFFF0000).view(np.float32) for x in (a, b))
            got = product(device, f"any matmul {kind} {precision}", a, b, kind, precision=precision)
            x, y = real(a), real(b)
            if kind == "float32" and precision == "tf32":
                # Of which 10 bits of the fraction remain.
                x, y = x.rounded(2.0**-10), y.rounded(2.0**-10)
            # Without tensor cores (ieee, Turing in Triton) one product at a time, with less error than this.
            x.dot(y, step).check(got, f"matmul {kind} {precision}")


def check(device):
    check_integers(device)
    check_split(device)
    check_any(device)
