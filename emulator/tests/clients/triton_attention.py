"""Causal attention, in blocks with a running maximum."""

import numpy as np
from bounds import APPROXIMATE, U, Real, real
from triton_device import to_bf16
from triton_kernels import attention

HEADS = 2
# Tokens, channels, rows and columns of a tile.
SIZES = [
    (100, 64, 64, 32, {}),
    (112, 64, 128, 64, {"num_warps": 8, "num_stages": 2}),
    (112, 32, 32, 32, {"num_stages": 4}),
    (70, 128, 64, 64, {"num_warps": 8, "num_stages": 1}),
]
# Unit roundoff and half the smallest number.
KINDS = {"fp16": (2.0**-11, 2.0**-25), "bf16": (2.0**-8, 0.0)}


def exact(q, k, v, scale, tile_columns, roundoff, smallest):
    """Rescaling step by step multiplies exponentials whose arguments have one sign: the roundings of arguments sum to
    U times the distance from the final maximum, those of each block's exponential and product come on top. A common
    factor, as by an error of the maximum, cancels between numerator and denominator."""
    tokens = len(q)
    blocks = -(-tokens // tile_columns)
    scores = (real(q).dot(k.T, 8) * scale)
    below = np.where(np.tril(np.ones((tokens, tokens), bool)), 0.0, -np.inf)
    highest = (scores.value + below).max(1, keepdims=True)
    away = scores.value + below - highest
    finite = np.where(np.isfinite(away), away, 0.0)
    error = scores.bound + U * (abs(finite) + 2 * scores.bound)
    p = np.exp2(away)
    relative = np.expm1(np.log(2) * error + (blocks + 1) * np.log1p(APPROXIMATE + 2 * U))
    p = Real(p, p * relative)
    total = p.sum(1)
    return p.rounded(roundoff, smallest).dot(v, 8, more=2 * blocks) / total


def check(device):
    random = np.random.default_rng(7)
    for kind, (roundoff, smallest) in KINDS.items():
        for tokens, channels, rows, columns, options in SIZES:
            shape = (HEADS, tokens, channels)
            q, k, v = (random.standard_normal(shape).astype(np.float16) for _ in range(3))
            if kind == "bf16":
                q, k, v = ((x.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32) for x in (q, k, v))
            stored = [to_bf16(x) if kind == "bf16" else x for x in (q, k, v)]
            out = np.zeros(shape, np.float32)
            scale = float(np.float32(channels**-0.5 * np.log2(np.e)))
            name = f"attention {kind} {tokens} {channels} {rows} {columns} {options}"
            constants = {"D": channels, "BM": rows, "BN": columns}
            grid = (-(-tokens // rows), HEADS)
            device.run(name, attention, grid, out, *stored, tokens, scale, constants=constants, **options)
            for head in range(HEADS):
                want = exact(*(x[head] for x in (q, k, v)), scale, columns, roundoff, smallest)
                want.check(out[head], name)
