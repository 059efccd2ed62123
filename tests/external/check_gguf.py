#!/usr/bin/env python3
"""Opens GGUF files that smolten exported with the gguf package and compares them with the file they were made of.

    check_gguf.py --source FILE.gguf --smolten BINARY --out DIR

Exports FILE as F32, F16, BF16 and Q8_0 into DIR. Every tensor must be, in every bit, what the package makes of the
source's values (its quantisers are the reference ones of ggml), norms in F32. Metadata must be the source's, except for
what names the element type; keys that only one of both has are printed and must be among the known ones.
"""

import argparse
import pathlib
import subprocess

import gguf
import numpy

TYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7}
# What the source says about its own making; what ours says beside that.
ONLY_SOURCE = ("general.", "quantize.")
ONLY_OURS = {"general.alignment", "llama.attention.key_length", "llama.attention.value_length"}
DIFFERENT = {"GGUF.tensor_count", "GGUF.kv_count", "general.file_type", "general.name"}


def same(a, b):
    return a == b or (isinstance(a, float) and numpy.float32(a) == numpy.float32(b))


def check_metadata(source, ours, kind):
    have, want = ({name: field.contents() for name, field in r.fields.items()} for r in (ours, source))
    assert have["general.architecture"] == "llama" and have["GGUF.version"] == 3
    assert have["general.file_type"] == FILE_TYPES[kind], have["general.file_type"]
    for name in sorted(have.keys() & want.keys() - DIFFERENT):
        assert same(have[name], want[name]), f"{name}: {str(have[name])[:200]} where the source has {str(want[name])[:200]}"
    missing = [name for name in want.keys() - have.keys() if not name.startswith(ONLY_SOURCE)]
    assert not missing, f"keys of the source that are missing: {missing}"
    new = have.keys() - want.keys() - ONLY_OURS
    assert not new, f"keys that are new: {new}"
    return len(have.keys() & want.keys() - DIFFERENT), sorted(have.keys() - want.keys())


def check_tensors(source, ours, kind):
    theirs = {t.name: t for t in source.tensors}
    names = [t.name for t in ours.tensors]
    assert sorted(names) == sorted(theirs), set(names) ^ set(theirs)
    counts = {}
    for tensor in ours.tensors:
        of = theirs[tensor.name]
        assert tensor.shape.tolist() == of.shape.tolist(), tensor.name
        values = gguf.dequantize(of.data, of.tensor_type).astype(numpy.float32)
        values = values.reshape(tuple(reversed(of.shape.tolist())))
        wanted = "F32" if values.ndim == 1 else TYPES[kind]
        assert tensor.tensor_type.name == wanted, f"{tensor.name}: {tensor.tensor_type.name}"
        expected = gguf.quantize(values, tensor.tensor_type)
        assert tensor.data.tobytes() == expected.tobytes(), f"{tensor.name} differs as {wanted}"
        counts[wanted] = counts.get(wanted, 0) + 1
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True)
    parser.add_argument("--smolten", required=True)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    args = parser.parse_args()
    source = gguf.GGUFReader(args.source)
    args.out.mkdir(parents=True, exist_ok=True)
    for kind in TYPES:
        path = args.out / f"{kind}.gguf"
        for old in (path, path.with_suffix(".Modelfile")):
            old.unlink(missing_ok=True)
        command = [args.smolten, "export", "--model", args.source, "--out", str(path), "--type", kind]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        ours = gguf.GGUFReader(path)
        equal, new = check_metadata(source, ours, kind)
        counts = check_tensors(source, ours, kind)
        print(f"{kind}: tensors equal in every bit ({counts}), {equal} metadata keys equal, new: {', '.join(new)}")


if __name__ == "__main__":
    main()
