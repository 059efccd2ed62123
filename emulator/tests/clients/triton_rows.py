"""Softmax and layer norm."""

import numpy as np
from bounds import real
from triton_kernels import layer_norm, layer_norm_backward, softmax

# 781 is odd, 784 a multiple of 16.
SIZES = [(10, 781, {}), (10, 784, {"num_warps": 8, "num_stages": 4}), (3, 5, {"num_warps": 1})]
EPS = 1e-5


def normal(random, *shape):
    return random.standard_normal(shape).astype(np.float32)


def check_softmax(device):
    random = np.random.default_rng(4)
    for rows, columns, options in SIZES:
        x = 3 * normal(random, rows, columns)
        y = np.zeros_like(x)
        name = f"softmax {rows} {columns} {options}"
        device.run(name, softmax, (4,), y, x, rows, columns, constants={"BLOCK": 1024}, **options)
        numerator = (real(x) - x.max(1, keepdims=True)).exp()
        (numerator / numerator.sum(1)).check(y, name)


def check_layer_norm(device):
    random = np.random.default_rng(5)
    for rows, columns, options in SIZES:
        x, w, b = 1 + normal(random, rows, columns), normal(random, columns), normal(random, columns)
        y, mean, rstd = np.zeros_like(x), np.zeros(rows, np.float32), np.zeros(rows, np.float32)
        name = f"layer norm {rows} {columns} {options}"
        arguments = (y, x, w, b, mean, rstd, columns, EPS)
        device.run(name, layer_norm, (rows,), *arguments, constants={"BLOCK": 256}, **options)
        exact_mean = real(x).sum(1) / columns
        centred = real(x) - exact_mean
        exact_rstd = real(1.0) / ((centred * centred).sum(1) / columns + np.float32(EPS)).sqrt()
        exact_mean[:, 0].check(mean, name)
        exact_rstd[:, 0].check(rstd, name)
        (centred * exact_rstd * w + b).check(y, name)


def check_backward(device):
    random = np.random.default_rng(6)
    groups = 3
    for rows, columns, options in SIZES:
        x, dy, w = 1 + normal(random, rows, columns), normal(random, rows, columns), normal(random, columns)
        mean = x.mean(1)
        rstd = 1 / np.sqrt(x.var(1) + np.float32(EPS))
        dx = np.zeros_like(x)
        dw, db = np.zeros((groups, columns), np.float32), np.zeros((groups, columns), np.float32)
        locks = np.zeros(groups, np.int32)
        name = f"layer norm backward {rows} {columns} {options}"
        arguments = (dx, dw, db, locks, dy, x, w, mean, rstd, columns)
        constants = {"GROUPS": groups, "BLOCK": 1024}
        # Rows add their part of dw and db whenever they get the lock.
        device.run(name, layer_norm_backward, (rows,), *arguments, constants=constants, is_ordered=False, **options)
        normed = (real(x) - mean[:, None]) * rstd[:, None]
        weighted = real(dy) * w
        along, level = (weighted * normed).sum(1) / columns, weighted.sum(1) / columns
        ((weighted - (normed * along + level)) * rstd[:, None]).check(dx, name)
        assert not locks.any()
        for group in range(groups):
            (real(dy) * normed)[group::groups].sum(0)[0].check(dw[group], name)
            real(dy)[group::groups].sum(0)[0].check(db[group], name)


def check(device):
    check_softmax(device)
    check_layer_norm(device)
    check_backward(device)
