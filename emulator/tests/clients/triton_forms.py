"""Atomics, scans, sorts, random numbers, conversions: forms with instructions of their own."""

import math

import numpy as np
import triton_kernels as kernels
from bounds import APPROXIMATE, U, Real, real

F32_SCALE = np.float32(4.6566127342e-10)


def integers(random, low, high, shape, kind=np.int32):
    return random.integers(low, high, shape).astype(kind)


def check_atomics(device):
    random = np.random.default_rng(8)
    n = 1000
    x = integers(random, -1000, 1000, n)
    words = np.array([0, -1 << 31, (1 << 31) - 1, 0, 0], np.int32)
    counts = np.zeros(256, np.int32)
    device.run("atomics", kernels.atomics, (4,), words, counts, x, n, constants={"BLOCK": 256})
    blocks = np.pad(x, (0, 24)).reshape(4, 256)
    every = [x.sum(), x.max(), x.min(), np.bitwise_or.reduce(blocks.sum(1)), np.bitwise_xor.reduce(x)]
    assert np.array_equal(words, every)
    assert np.array_equal(counts, np.bincount(x & 255, minlength=256))

    n = 512
    taken, given = (integers(random, 0, 3, n) for _ in range(2))
    was_taken, was_given = taken.copy(), given.copy()
    before_taken, before_given = (np.zeros(n, np.int32) for _ in range(2))
    device.run("swaps", kernels.swaps, (2,), taken, given, before_taken, before_given, n, constants={"BLOCK": 256})
    assert np.array_equal(before_taken, was_taken) and np.array_equal(before_given, was_given)
    assert np.array_equal(taken, np.where(was_taken == 1, 1000 + np.arange(n), was_taken))
    assert np.array_equal(given, np.arange(n))

    # Whole numbers below 2048 are exact in fp16.
    for copies, n in ((4, 1024), (3, 999)):
        x = integers(random, -4, 5, n, np.float16)
        out = np.zeros(n // copies, np.float16)
        constants = {"COPIES": copies, "BLOCK": 256}
        device.run(f"add half {n}", kernels.add_half, (4,), out, x, n, constants=constants)
        assert np.array_equal(out, x.reshape(copies, -1).sum(0))


def check_scans(device):
    random = np.random.default_rng(9)
    for rows, columns, options in ((16, 128, {}), (4, 512, {"num_warps": 8}), (64, 16, {"num_warps": 2})):
        x, a = (integers(random, -4, 5, (rows, columns)) for _ in range(2))
        sums, backwards, linear = (np.zeros_like(x) for _ in range(3))
        constants = {"ROWS": rows, "COLUMNS": columns}
        name = f"scans {rows} {columns}"
        device.run(name, kernels.scans, (1,), sums, backwards, linear, x, a, constants=constants, **options)
        assert np.array_equal(sums, x.cumsum(1)), name
        assert np.array_equal(backwards, x[::-1].cumsum(0)[::-1]), name
        want = np.zeros_like(x)
        carried = np.zeros(rows, np.int32)
        for column in range(columns):
            carried = a[:, column] * carried + x[:, column]
            want[:, column] = carried
        assert np.array_equal(linear, want), name


def check_orders(device):
    random = np.random.default_rng(10)
    for rows, columns, options in ((16, 64, {}), (2, 256, {"num_warps": 2})):
        # Few values, so that the largest is there more than once.
        x = integers(random, -50, 50, (rows, columns), np.float32)
        index = integers(random, 0, columns, (rows, columns))
        ordered, picked, flipped = (np.zeros_like(x) for _ in range(3))
        largest, places = np.zeros(rows, np.float32), np.zeros(rows, np.int32)
        constants = {"ROWS": rows, "COLUMNS": columns}
        name = f"orders {rows} {columns}"
        arguments = (ordered, largest, places, picked, flipped, x, index)
        device.run(name, kernels.orders, (1,), *arguments, constants=constants, **options)
        assert np.array_equal(ordered, np.sort(x, 1)), name
        assert np.array_equal(largest, x.max(1)) and np.array_equal(places, x.argmax(1)), name
        assert np.array_equal(picked, np.take_along_axis(x, index, 1)), name
        assert np.array_equal(flipped, x[:, ::-1]), name

    x = integers(random, -1 << 31, 1 << 31, (16, 8, 32))
    out = np.zeros((32, 16, 8), np.int32)
    device.run("permute", kernels.permute, (1,), out, x, constants={"A": 16, "B": 8, "C": 32})
    assert np.array_equal(out, x.transpose(2, 0, 1))


def philox(seed, counters):
    """The first word of Philox 4x32-10 (Salmon and others 2011), as Triton numbers counters and keys."""
    mask = np.uint64(0xFFFFFFFF)
    words = [counters.astype(np.uint64), *(np.zeros_like(counters, np.uint64) for _ in range(3))]
    keys = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        first, second = words[0] * np.uint64(0xD2511F53), words[2] * np.uint64(0xCD9E8D57)
        high = np.uint64(32)
        words = [(second >> high) ^ words[1] ^ np.uint64(keys[0]), second & mask,
                 (first >> high) ^ words[3] ^ np.uint64(keys[1]), first & mask]
        keys = [(keys[0] + 0x9E3779B9) & 0xFFFFFFFF, (keys[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return words[0].astype(np.uint32).view(np.int32)


def check_random(device):
    n, seed = 1000, 20261126
    words, uniform = np.zeros(n, np.int32), np.zeros(n, np.float32)
    device.run("random", kernels.random, (4,), words, uniform, seed, n, constants={"BLOCK": 256})
    want = philox(seed, np.arange(n))
    assert np.array_equal(words, want)
    assert np.array_equal(uniform, np.where(want < 0, ~want, want).astype(np.float32) * F32_SCALE)


def check_functions(device):
    random = np.random.default_rng(11)
    n = 1000
    x = random.uniform(0.01, 60, n).astype(np.float32)
    got = np.zeros((8, n), np.float32)
    device.run("functions", kernels.functions, (4,), got, x, n, constants={"BLOCK": 256})
    exact = x.astype(np.float64)
    (real(exact) * -1).exp().check(got[0], "exp")
    # CUDA's table of maximal errors for its library: log 1 ulp, sin 2, erf 2; an ulp is at most 2 U.
    Real(np.log(exact)).rounded(2 * U).check(got[1], "log")
    Real(np.sin(exact)).rounded(4 * U).check(got[2], "sin")
    Real([math.erf(value) for value in exact]).rounded(4 * U).check(got[3], "erf")
    Real(exact**-0.5).rounded(APPROXIMATE).check(got[4], "rsqrt")
    # Rounded once, like NumPy's.
    for row, want in ((5, np.sqrt(x)), (6, np.float32(1) / x), (7, np.floor(x))):
        assert np.array_equal(got[row].view(np.uint32), want.view(np.uint32)), row


def check_narrow(device):
    """An 8-bit number of 5 exponent bits is the upper half of an fp16 number."""
    x = np.arange(256, dtype=np.uint8)
    half, back = np.zeros(256, np.float16), np.zeros(256, np.int8)
    device.run("narrow", kernels.narrow, (1,), half, back, x.view(np.int8), 256, constants={"BLOCK": 256})
    magnitude = x & 0x7F
    is_nan = magnitude > 0x7C
    assert np.isnan(half[is_nan]).all() and np.all(back.view(np.uint8)[is_nan] & 0x7F == 0x7F)
    assert np.array_equal(half.view(np.uint16)[~is_nan], x[~is_nan].astype(np.uint16) << 8)
    # Infinities saturate.
    want = np.where(magnitude == 0x7C, x - 1, x)
    assert np.array_equal(back.view(np.uint8)[~is_nan], want[~is_nan])


def check(device):
    check_atomics(device)
    check_scans(device)
    check_orders(device)
    check_random(device)
    check_functions(device)
    check_narrow(device)
