#!/usr/bin/env python3
"""A run's event files as the tensorboard package reads them, beside its metrics.jsonl.

    check_tensorboard.py --smolten BINARY --model FILE.gguf

Trains three runs: one straight through; one that is killed beyond its last checkpoint while an EventAccumulator looks on,
then resumed; one killed before its first checkpoint. Every number of metrics.jsonl must be there once, as f32, and every
sample; so also for `tensorboard` itself, asked over HTTP, with both of its loaders.
"""

import argparse
import json
import math
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

import numpy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

STEPS = 40


def expected(run):
    """{tag: [(step, f32), …]} and [(step, sample text), …] of metrics.jsonl."""
    scalars, samples = {}, []
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        step = record.pop("step")
        for key, value in record.items():
            if key.startswith("eval_"):
                tag = "eval/" + key[len("eval_") :]
            elif "loss" in record:
                tag = "train/" + key
            else:
                continue
            if value is None and key == "peak_memory_bytes" or isinstance(value, list):  # intervals are no curves
                continue
            scalars.setdefault(tag, []).append((step, numpy.float32(math.nan if value is None else value)))
        if "sample" in record:
            text = record["sample_prompt"] + "\n\n" + record["sample"]
            samples.append((step, text.splitlines()))
    return scalars, samples


def same(got, want):
    pairs = zip(got, want, strict=True)
    return all(a[0] == b[0] and (a[1] == b[1] or math.isnan(a[1]) and math.isnan(b[1])) for a, b in pairs)


def compare(run, accumulator):
    scalars, samples = expected(run)
    accumulator.Reload()
    tags = accumulator.Tags()
    assert sorted(tags["scalars"]) == sorted(scalars), (tags["scalars"], sorted(scalars))
    needed = "train/loss eval/loss train/grad_norm train/learning_rate train/tokens_per_second train/mean_token_accuracy"
    assert set(needed.split()) | {"train/peak_memory_bytes"} <= set(scalars), sorted(scalars)
    for tag, want in scalars.items():
        got = [(e.step, numpy.float32(e.value)) for e in accumulator.Scalars(tag)]
        assert same(got, want), (tag, got, want)
    got = [(e.step, e.tensor_proto.string_val[0].decode()) for e in accumulator.Tensors("sample")]
    unindented = [(step, [line[4:] for line in text.split("\n")]) for step, text in got]
    assert unindented == samples, (unindented, samples)
    return sum(map(len, scalars.values())), len(samples)


def command(args, folder, out, more):
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"What is {i} + {i}?", "response": f"It is {2 * i}."}) + "\n" for i in range(20)))
    flags = f"--steps {STEPS} --lr 1e-2 --device cpu --set eval_every=5 --set sample_every=10 --set eval_share=0.2"
    return [args.smolten, "train", "--model", args.model, "--data", str(rows), "--out", str(out), *flags.split(), *more]


def killed(args, folder, out, more, at, look=lambda: None):
    """A run that is killed once its log has step `at`; `look` is called now and then."""
    process = subprocess.Popen(command(args, folder, out, more), stdout=subprocess.DEVNULL)
    log = out / "metrics.jsonl"
    while not (log.exists() and f'"step":{at},' in log.read_text()):
        assert process.poll() is None, "the run ended too soon"
        look()
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run([args.smolten, "train", "--resume", "--out", str(out)], check=True, stdout=subprocess.DEVNULL)


def served(folder, runs, fast):
    """What `tensorboard --logdir` answers for every scalar of every run."""
    tensorboard = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", "0", "--load_fast", fast]
    process = subprocess.Popen(tensorboard, stderr=subprocess.PIPE, text=True)
    try:
        base = next(word for line in process.stderr for word in line.split() if word.startswith("http://localhost"))
        ask = lambda path: json.load(urllib.request.urlopen(f"{base}data/plugin/{path}"))
        deadline = time.time() + 60
        for run in runs:
            name = str(run.relative_to(folder) / "tensorboard")
            for tag, want in expected(run)[0].items():
                query = urllib.parse.urlencode({"run": name, "tag": tag})
                while True:  # it reads in the background
                    try:
                        got = [(step, numpy.float32(value)) for _, step, value in ask(f"scalars/scalars?{query}")]
                        assert same(got, want), (fast, tag, got, want)
                        break
                    except (AssertionError, ValueError, urllib.error.HTTPError):
                        if time.time() > deadline:
                            raise
                        time.sleep(0.5)
    finally:
        process.terminate()
        process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smolten", required=True)
    parser.add_argument("--model", required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        runs = [folder / "runs" / name for name in ("straight", "killed", "early")]
        subprocess.run(command(args, folder, runs[0], []), check=True, stdout=subprocess.DEVNULL)
        watching = EventAccumulator(str(runs[1] / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
        look = lambda: (runs[1] / "tensorboard").is_dir() and watching.Reload()
        killed(args, folder, runs[1], ["--save-every", "20"], 33, look)
        seen = max((e.step for e in watching.Scalars("train/loss")), default=0)
        assert seen > 21, f"the one that looked on had seen step {seen} only"
        killed(args, folder, runs[2], ["--save-every", "0"], 7)
        files = [len(list((run / "tensorboard").iterdir())) for run in runs]
        assert files == [1, 2, 2], files
        accumulators = [EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0}) for run in runs]
        counts = [compare(run, accumulator) for run, accumulator in zip(runs, accumulators)]
        steps = [{tag: [step for step, _ in values] for tag, values in expected(run)[0].items()} for run in runs]
        assert steps[0] == steps[1] == steps[2], "a step is missing, or there twice"
        assert compare(runs[1], watching) == counts[1], "what looked on while it was killed"
        for fast in ("true", "false"):
            served(folder / "runs", runs, fast)
    print(f"tensorboard: {counts} numbers and samples as in metrics.jsonl; killed and resumed; seen by one looking on, and over HTTP")


if __name__ == "__main__":
    main()
