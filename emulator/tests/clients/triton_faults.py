"""A pipelined product of matrices whose PTX lacks a wait or a barrier: the emulator says so, whatever the order."""

import os
import re
import tempfile

import numpy as np
from triton_matmul import product

WAIT, BARRIER = r"^\s*cp\.async\.wait_group\s.*$", r"^\s*bar\.sync\s.*$"
# Of them, those that another stands in for. Triton waits at the end of the loop, twice, and again at its start.
WAITS, SPARE_WAITS = 5, [1, 2, 3]
BARRIERS, SPARE_BARRIERS = 8, [1]
PLACE = r"\n +PTX line \d+: .*\n +at .*triton_kernels\.py:\d+\n"
NOT_WAITED = "InFlight in matmul.*has not been waited for" + PLACE
# As the order has it: the other thread's access came before, or is still to come.
NO_BARRIER = (
    "(Race in matmul.*with no barrier between|Uninitialised in matmul.*nothing was written to it|"
    "InFlight in matmul.*has not been waited for)" + PLACE
)


def multiply(device, edit):
    random = np.random.default_rng(12)
    a, b = random.integers(-8, 9, (80, 160)), random.integers(-8, 9, (160, 64))
    name = f"faulty matmul {device.launches}"
    assert np.array_equal(product(device, name, a, b, "float16", num_stages=3, edit=edit), a @ b), "a wrong product"


def told_of(device, edit):
    """What is written to standard error, by the emulator too; nothing if the launch does not fail."""
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            multiply(device, edit)
            return ""
        except AssertionError as error:
            assert "CUDA_ERROR_LAUNCH_FAILED" in str(error), error
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        device.reset()
        file.seek(0)
        return file.read().decode()


def without(line, number):
    """An edit that drops one of the lines."""

    def edit(ptx):
        start, end = [found.span() for found in re.finditer(line, ptx, re.MULTILINE)][number]
        return ptx[:start] + ptx[end:]

    return edit


def check(device):
    if device.capability < 80:
        return
    texts = []
    multiply(device, lambda ptx: texts.append(ptx) or ptx)
    for line, number, spare, diagnosis in (
        (WAIT, WAITS, SPARE_WAITS, NOT_WAITED),
        (BARRIER, BARRIERS, SPARE_BARRIERS, NO_BARRIER),
    ):
        assert len(re.findall(line, texts[0], re.MULTILINE)) == number, f"{line}: not as often as it was"
        for which in range(number):
            told = told_of(device, without(line, which))
            assert re.search(diagnosis, told) if which not in spare else not told, f"{line} {which}: {told!r}"
    # All waits for all but the last two copies, left out, or for one copy less.
    for loose in ("", "cp.async.wait_group 3;"):
        told = told_of(device, lambda ptx: re.sub(r"cp\.async\.wait_group\s+2;", loose, ptx))
        assert re.search(NOT_WAITED, told), told
