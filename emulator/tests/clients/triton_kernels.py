"""Kernels in Triton: the usual ones of training, and forms that Triton compiles to instructions of their own."""

import triton
import triton.language as tl


@triton.jit
def matmul(c, a, b, m, n, k, a_row, a_col, b_row, b_col,
           PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SPLIT: tl.constexpr):
    """c = a b for any strides; with SPLIT > 1 a part of k for each program of the third axis, added atomically."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    columns = tl.program_id(1) * BN + tl.arange(0, BN)
    acc = tl.zeros((BM, BN), dtype=c.dtype.element_ty)
    for start in range(tl.program_id(2) * BK, k, BK * SPLIT):
        inner = start + tl.arange(0, BK)
        a_at = a + rows[:, None] * a_row + inner[None, :] * a_col
        b_at = b + inner[:, None] * b_row + columns[None, :] * b_col
        a_tile = tl.load(a_at, mask=(rows[:, None] < m) & (inner[None, :] < k), other=0)
        b_tile = tl.load(b_at, mask=(inner[:, None] < k) & (columns[None, :] < n), other=0)
        acc = tl.dot(a_tile, b_tile, acc, input_precision=PRECISION, out_dtype=c.dtype.element_ty)
    at = c + rows[:, None] * n + columns[None, :]
    mask = (rows[:, None] < m) & (columns[None, :] < n)
    if SPLIT == 1:
        tl.store(at, acc, mask=mask)
    else:
        tl.atomic_add(at, acc, mask=mask)


@triton.jit
def softmax(y, x, rows, columns, BLOCK: tl.constexpr):
    """Over rows, each program takes every so manieth."""
    for row in tl.range(tl.program_id(0), rows, tl.num_programs(0)):
        at = tl.arange(0, BLOCK)
        values = tl.load(x + row * columns + at, mask=at < columns, other=-float("inf"))
        numerator = tl.exp(values - tl.max(values, axis=0))
        tl.store(y + row * columns + at, numerator / tl.sum(numerator, axis=0), mask=at < columns)


@triton.jit
def layer_norm(y, x, w, b, mean_out, rstd_out, columns, eps, BLOCK: tl.constexpr):
    """One row a program, in pieces of BLOCK."""
    row = tl.program_id(0)
    x += row * columns
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        sums += tl.load(x + at, mask=at < columns, other=0.0)
    mean = tl.sum(sums, axis=0) / columns
    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        centred = tl.where(at < columns, tl.load(x + at, mask=at < columns, other=0.0) - mean, 0.0)
        squares += centred * centred
    rstd = 1 / tl.sqrt(tl.sum(squares, axis=0) / columns + eps)
    tl.store(mean_out + row, mean)
    tl.store(rstd_out + row, rstd)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        mask = at < columns
        normed = (tl.load(x + at, mask=mask) - mean) * rstd
        tl.store(y + row * columns + at, normed * tl.load(w + at, mask=mask) + tl.load(b + at, mask=mask), mask=mask)


@triton.jit
def layer_norm_backward(dx, dw, db, locks, dy, x, w, means, rstds, columns,
                        GROUPS: tl.constexpr, BLOCK: tl.constexpr):
    """One row a program. Rows of a group add their part of dw and db to the same row, one after the other."""
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    mask = at < columns
    upstream = tl.load(dy + row * columns + at, mask=mask, other=0.0)
    rstd = tl.load(rstds + row)
    normed = tl.where(mask, (tl.load(x + row * columns + at, mask=mask, other=0.0) - tl.load(means + row)) * rstd, 0.0)
    weighted = upstream * tl.load(w + at, mask=mask, other=0.0)
    along = tl.sum(weighted * normed, axis=0) / columns
    level = tl.sum(weighted, axis=0) / columns
    tl.store(dx + row * columns + at, (weighted - (normed * along + level)) * rstd, mask=mask)

    group = row % GROUPS
    while tl.atomic_cas(locks + group, 0, 1) == 1:
        pass
    dw_at = dw + group * columns + at
    db_at = db + group * columns + at
    tl.store(dw_at, tl.load(dw_at, mask=mask) + upstream * normed, mask=mask)
    tl.store(db_at, tl.load(db_at, mask=mask) + upstream, mask=mask)
    tl.debug_barrier()
    tl.atomic_xchg(locks + group, 0)


@triton.jit
def attention(out, q, k, v, tokens, scale, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """Causal, one head for each program of the second axis; scale includes log2(e)."""
    head = tl.program_id(1) * tokens * D
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    channels = tl.arange(0, D)
    at = rows[:, None] * D + channels[None, :]
    queries = tl.load(q + head + at, mask=rows[:, None] < tokens, other=0.0)
    highest = tl.full([BM], -float("inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, D], tl.float32)
    for start in range(0, tl.minimum((tl.program_id(0) + 1) * BM, tokens), BN):
        columns = start + tl.arange(0, BN)
        tile = head + columns[:, None] * D + channels[None, :]
        keys = tl.load(k + tile, mask=columns[:, None] < tokens, other=0.0)
        scores = tl.dot(queries, tl.trans(keys)) * scale
        scores = tl.where(rows[:, None] >= columns[None, :], scores, -float("inf"))
        new_highest = tl.maximum(highest, tl.max(scores, axis=1))
        p = tl.exp2(scores - new_highest[:, None])
        rescale = tl.exp2(highest - new_highest)
        total = total * rescale + tl.sum(p, axis=1)
        values = tl.load(v + tile, mask=columns[:, None] < tokens, other=0.0)
        acc = tl.dot(p.to(values.dtype), values, acc * rescale[:, None])
        highest = new_highest
    tl.store(out + head + at, acc / total[:, None], mask=rows[:, None] < tokens)


@triton.jit
def atomics(words, out, x, n, BLOCK: tl.constexpr):
    """words: added up, largest, smallest, ored and xored x; out: a histogram of x % 256."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    values = tl.load(x + at, mask=mask, other=0)
    tl.atomic_add(words + at * 0, values, mask=mask)
    tl.atomic_max(words + 1 + at * 0, values, mask=mask)
    tl.atomic_min(words + 2 + at * 0, values, mask=mask)
    tl.atomic_or(words + 3, tl.sum(values, axis=0))
    tl.atomic_xor(words + 4, tl.xor_sum(values, axis=0))
    counts = tl.histogram(values & 255, 256, mask=mask)
    tl.atomic_add(out + tl.arange(0, 256), counts)


@triton.jit
def swaps(taken, given, before_taken, before_given, n, BLOCK: tl.constexpr):
    """A word of taken that is 1 becomes 1000 plus its place, one of given its place in any case."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    tl.store(before_taken + at, tl.atomic_cas(taken + at, tl.full([BLOCK], 1, tl.int32), 1000 + at), mask=mask)
    tl.store(before_given + at, tl.atomic_xchg(given + at, at, mask=mask), mask=mask)


@triton.jit
def add_half(out, x, n, COPIES: tl.constexpr, BLOCK: tl.constexpr):
    """Atomic sums in fp16."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.atomic_add(out + at % (n // COPIES), tl.load(x + at, mask=at < n), mask=at < n)


@triton.jit
def recurrence(a1, b1, a2, b2):
    """x -> a1 x + b1, then x -> a2 x + b2."""
    return a1 * a2, a2 * b1 + b2


@triton.jit
def scans(sums, backwards, linear, x, a, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Running sums along both axes, and of a linear recurrence."""
    at = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    values = tl.load(x + at)
    tl.store(sums + at, tl.cumsum(values, axis=1))
    tl.store(backwards + at, tl.cumsum(values, axis=0, reverse=True))
    tl.store(linear + at, tl.associative_scan((tl.load(a + at), values), 1, recurrence)[1])


@triton.jit
def orders(ordered, largest, places, picked, flipped, x, index, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows sorted, their largest and where it is; a gather and a flip of each row."""
    rows = tl.arange(0, ROWS)
    at = rows[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    values = tl.load(x + at)
    tl.store(ordered + at, tl.sort(values, dim=1))
    value, place = tl.max(values, axis=1, return_indices=True)
    tl.store(largest + rows, value)
    tl.store(places + rows, place)
    tl.store(picked + at, tl.gather(values, tl.load(index + at), axis=1))
    tl.store(flipped + at, tl.flip(values, 1))


@triton.jit
def permute(out, x, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr):
    """[A, B, C] to [C, A, B]: through shared memory."""
    a, b, c = tl.arange(0, A), tl.arange(0, B), tl.arange(0, C)
    values = tl.load(x + (a[:, None, None] * B + b[None, :, None]) * C + c[None, None, :])
    to = (c[:, None, None] * A + a[None, :, None]) * B + b[None, None, :]
    tl.store(out + to, tl.permute(values, (2, 0, 1)))


@triton.jit
def random(words, uniform, seed, n, BLOCK: tl.constexpr):
    """Philox, and numbers in [0, 1) of it."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(words + at, tl.randint(seed, at), mask=at < n)
    tl.store(uniform + at, tl.rand(seed, at), mask=at < n)


@triton.jit
def functions(out, x, n, BLOCK: tl.constexpr):
    """Row i of out: function i of x, which is positive."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    values = tl.load(x + at, mask=mask, other=1.0)
    tl.store(out + at, tl.exp(-values), mask=mask)
    tl.store(out + n + at, tl.log(values), mask=mask)
    tl.store(out + 2 * n + at, tl.sin(values), mask=mask)
    tl.store(out + 3 * n + at, tl.erf(values), mask=mask)
    tl.store(out + 4 * n + at, tl.rsqrt(values), mask=mask)
    tl.store(out + 5 * n + at, tl.sqrt_rn(values), mask=mask)
    tl.store(out + 6 * n + at, tl.div_rn(1.0, values), mask=mask)
    tl.store(out + 7 * n + at, tl.floor(values), mask=mask)


@triton.jit
def narrow(half, back, x, n, BLOCK: tl.constexpr):
    """Bytes as numbers of 8 bits in fp16, and to bytes again."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = at < n
    wide = tl.load(x + at, mask=mask).to(tl.float8e5, bitcast=True).to(tl.float16)
    tl.store(half + at, wide, mask=mask)
    tl.store(back + at, wide.to(tl.float8e5).to(tl.int8, bitcast=True), mask=mask)
