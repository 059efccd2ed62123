"""Kernels compiled by Triton, executed by the emulator, against NumPy: PTX that nobody wrote with it in mind.

usage: scripts/with-emulator python3 emulator/tests/clients/triton_client.py [DIGESTS]
(pip install triton cuda-bindings numpy; no torch.) DIGESTS becomes a file with a line for every launch: its name and a
hash of all bytes it may have written. Whatever the order of execution, the lines are the same.
"""

import pathlib
import sys

import triton_attention
import triton_faults
import triton_forms
import triton_matmul
import triton_rows
from triton_device import Device


def main():
    device = Device()
    for cases in (triton_matmul, triton_rows, triton_attention, triton_forms, triton_faults):
        cases.check(device)
    if len(sys.argv) > 1:
        pathlib.Path(sys.argv[1]).write_text("".join(f"{line}\n" for line in device.digests))
    print(f"triton_client: ok, {device.launches} launches at {device.capability / 10}")


if __name__ == "__main__":
    main()
