"""smolten beside its peers on a CPU: both sides of every ratio in one run, in turn, never at once.

Usage: python benches/peers.py [PART ...] [--model MODEL.gguf] [--data ROWS.jsonl] [--threads 2] [--rounds 2] [--steps 5]

Parts (default: all that have what they need):
  step-fp32, step-bf16   whole training steps of SmolLM2's shape with random weights, optimizer included, PyTorch beside
  step-avx2              the same with AVX-512 and AMX switched off, both in fp32
  step-avx2-bf16         and in bf16, for which PyTorch takes minutes a step; only where named, with --rounds 1
  products-fp32, -bf16   matrix products of the step, three layouts, beside torch.mm (MKL, oneDNN)
  trl                    ragged rows, TRL's SFTTrainer with bitsandbytes' adamw_8bit beside   (--model, --data)
  lora                   the same rows with adapters of rank 16, TRL with PEFT and our own full step beside  (--model, --data)
  losses                 how far bf16's losses are from fp32's, here and in TRL; --steps 60   (--model, --data)
  decode                 one greedy stream, llama.cpp beside, from the same GGUF file         (--model)

Each round runs first one side, then the other, each in its own process. Reported: medians over the timed steps of all
rounds. Products are timed call by call in one process, which loads `--library`. Every part goes to
benches/results/cpu/PART.json, and benches/results/cpu.md is made from those; no ratio is made from two runs. Needs the packages
of tests/external/requirements*.txt; trl needs bitsandbytes too.
"""

import argparse
import datetime
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from peers_torch import SHAPES

HERE = Path(__file__).resolve().parent
WARMUP = 2  # steps that neither side times: smolten's bench has as many
AVX2 = dict(ONEDNN_MAX_CPU_ISA="AVX2", MKL_ENABLE_INSTRUCTIONS="AVX2", ATEN_CPU_CAPABILITY="avx2")
PROMPT = "Tell a long story about a lighthouse keeper who learns to sail."


def torch_side(role: str, env: dict | None = None, **settings) -> dict:
    command = [sys.executable, HERE / "peers_torch.py", role, json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | (env or {}))
    if done.returncode != 0:
        sys.exit(f"{role} {settings} failed ({done.returncode}):\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def smolten(args, *words, isa: str | None = None) -> dict:
    flags = ["--device", "cpu", "--threads", args.threads, "--json"] + (["--isa", isa] if isa else [])
    command = [str(word) for word in (args.smolten, *words, *flags)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def bench_train(args, *words, isa: str | None = None) -> dict:
    ran = smolten(args, "bench", "train", "--steps", args.steps, "--optimizer", args.optimizer, *words, isa=isa)
    steps = ran["steps"]
    assert ran["warm_up_steps"] == WARMUP and len(steps) == args.steps
    return {key: [step[name] for step in steps] for key, name in [("seconds",) * 2, ("tokens",) * 2, ("losses", "loss")]} | dict(
        peak_memory_bytes=ran["peak_memory_bytes"], parameters=ran["parameters"], versions=dict(smolten=ran["smolten"]))  # fmt: skip


def in_turn(args, sides: dict) -> dict[str, list[dict]]:
    """`rounds` runs of each side, alternating."""
    runs = {name: [] for name in sides}
    for number in range(args.rounds):
        for name, side in sides.items():
            print(f"round {number + 1}: {name}", file=sys.stderr)
            runs[name].append(side())
    return runs


def compare_steps(runs: dict[str, list[dict]], tokens: int | None, tolerance: float) -> dict:
    """A table of sides, the first of which is smolten, and its ratio to each other one."""
    first, rows, ratios = None, [], {}
    for name, rounds in runs.items():
        rates = [(tokens or n) / s for r in rounds for n, s in zip(r.get("tokens", r["seconds"]), r["seconds"])]
        seconds, peak = [s for r in rounds for s in r["seconds"]], max(r["peak_memory_bytes"] for r in rounds)
        rate = statistics.median(rates)
        first = first or dict(rate=rate, peak=peak, loss=rounds[0]["losses"][0])
        loss = rounds[0]["losses"][0]
        if not abs(loss / first["loss"] - 1) < tolerance:
            sys.exit(
                f"losses of the first timed step differ: smolten {first['loss']}, {name} {loss}: not the same work"
            )
        if rows:
            ratios[name] = first["rate"] / rate
        rows.append([name, f"{rate:.1f}", f"{min(rates):.1f} to {max(rates):.1f}", f"{statistics.median(seconds):.3f}",
                     f"{peak / 1e9:.2f}", f"{first['rate'] / rate:.2f} ×", f"{first['peak'] / peak:.2f} ×"])  # fmt: skip
    columns = ["side", "tokens/s, median", "range", "step, s", "peak memory, GB", "smolten's speed", "smolten's memory"]
    return dict(columns=columns, rows=rows, ratios=ratios, timed_steps=len(seconds))


def step(args, ours: str, theirs: list[str], isa: str | None = None, env: dict | None = None) -> dict:
    words = ["--size", args.size, "--rows", args.rows, "--length", args.length]
    sides = {f"smolten {ours}, {args.optimizer}": lambda: bench_train(args, *words, "--precision", ours, isa=isa)}
    names = dict(fp32="PyTorch fp32", bf16="PyTorch bf16", autocast="PyTorch bf16 autocast")
    for p in theirs:
        sides[names[p] + ", fused AdamW"] = lambda p=p: torch_side(
            "step", env, size=args.size, precision=p, rows=args.rows, length=args.length, warmup=WARMUP, steps=args.steps,
            threads=args.threads)  # fmt: skip
    runs = in_turn(args, sides)
    assert len({r["parameters"] for rounds in runs.values() for r in rounds}) == 1
    # Random weights and tokens on both sides: losses are close to each other, not equal.
    table = compare_steps(runs, args.rows * args.length, 0.02)
    what = f"{args.rows} × {args.length} tokens, full rows, {args.size} with random weights; forward, backward, clipping, optimizer"
    note = (
        "AVX-512 and AMX switched off: " + " ".join(f"{k}={v}" for k, v in AVX2.items()) + ", --isa avx2" if isa else ""
    )
    if isa and "bf16" in theirs:
        note += ". PyTorch does not hand products in bf16 to oneDNN then (its log names none), but multiplies by itself."
    return table | dict(what=what, note=note, runs=runs)


def products(args, precision: str) -> dict:
    """In one process on the same operands, call by call in turn: on a machine shared with others rates change within seconds,
    by far more than the two sides are apart."""
    tokens, places = args.rows * args.length, []
    for size in args.sizes:
        of = SHAPES[size]
        c, f, kv = of["hidden_size"], of["intermediate_size"], of["num_key_value_heads"] * of["hidden_size"] // of["num_attention_heads"]
        widths = dict(qkv=(c, c + 2 * kv), o=(c, c), gate=(c, f), gate_up=(c, 2 * f), down=(f, c), head=(c, 49152))
        for name, (inputs, outputs) in widths.items():
            layouts = dict(nt=(tokens, outputs, inputs), nn=(tokens, inputs, outputs), tn=(outputs, inputs, tokens))
            places += [(size, name, layout, *shape) for layout, shape in layouts.items()]
    runs = torch_side("products", dict(OMP_WAIT_POLICY="PASSIVE"), library=str(args.library), shapes=[place[2:] for place in places],
                      precision=precision, rounds=args.rounds, repeats=args.repeats, threads=args.threads)  # fmt: skip
    rows, ratios = [], {}
    for (size, name, layout, m, n, k), ours, theirs in zip(places, runs["smolten_us"], runs["torch_us"], strict=True):
        said = dict(nt="x·wᵀ", nn="dy·w", tn="dyᵀ·x")[layout]
        ratio = statistics.median(their / our for our, their in zip(ours, theirs))
        ratios[f"{size} {name} {said}"] = ratio
        our, their = (2e-3 * m * n * k / statistics.median(side) for side in (ours, theirs))
        rows.append([size, name, said, f"{m}×{n}×{k}", f"{our:.0f}", f"{their:.0f}", f"{ratio:.2f} ×"])
    of_size = lambda size: {name: ratio for name, ratio in ratios.items() if name.startswith(size)}  # noqa: E731
    summary = spread(ratios) + "".join(f" {size}: {spread(of_size(size))}" for size in args.sizes)
    calls = args.rounds * args.repeats
    what = f"{precision}, {tokens} tokens; rates in GFLOP/s of the median of {calls} calls of each, in turn; the ratio is the median of the pairs'"
    note = (
        "Of the two products alone, on the same operands in one process, with other memory written before each call; threads of both "
        "sides asleep before it (OMP_WAIT_POLICY=PASSIVE). gate is what PyTorch's model multiplies where ours has gate and up in one. "
        "Weight gradients are fp32 here and in torch.mm of the operands' type."
    )
    columns = ["size", "weight", "layout", "m×n×k", "smolten", "torch.mm", "smolten's speed"]
    return dict(columns=columns, rows=rows, ratios=ratios, summary=summary, what=what, note=note, runs=runs)


def spread(ratios: dict) -> str:
    """Of speeds beside a peer's: their geometric mean and the lowest."""
    worst = min(ratios, key=ratios.get)
    mean = math.exp(statistics.fmean(map(math.log, ratios.values())))
    below = sum(r < 1 for r in ratios.values())
    return f"geometric mean {mean:.2f} ×, minimum {ratios[worst]:.2f} × ({worst}), {below} of {len(ratios)} below 1."


def trl(args) -> dict:
    shape = dict(rows=2, grad_accum=4, length=512)
    words = [w for key, n in shape.items() for w in (f"--{key.replace('_', '-')}", n)]
    sides = {
        f"smolten bf16, {args.optimizer}": lambda: bench_train(
            args, "--model", args.model, "--data", args.data, "--precision", "bf16", *words),
        "TRL SFTTrainer bf16, adamw_8bit": lambda: torch_side(
            "trl", model=str(args.model), data=str(args.data), warmup=WARMUP, steps=args.steps, threads=args.threads, **shape),
    }  # fmt: skip
    runs = in_turn(args, sides)
    counts = {tuple(r["tokens"]) for rounds in runs.values() for r in rounds}
    if len(counts) != 1:
        sys.exit(f"the two sides did not train on the same tokens: {counts}")
    # The same rows and weights in bf16, two steps after the start.
    table = compare_steps(runs, None, 0.05)
    return table | dict(
        what=f"{args.model.name} on {args.data.name}, 2 × 4 rows of at most 512 tokens a step", runs=runs
    )


def lora(args) -> dict:
    shape, rank = dict(rows=2, grad_accum=4, length=512), 16
    words = ["--model", args.model, "--data", args.data, "--precision", "bf16"]
    words += [w for key, n in shape.items() for w in (f"--{key.replace('_', '-')}", n)]
    theirs = dict(model=str(args.model), data=str(args.data), warmup=WARMUP, steps=args.steps, threads=args.threads, **shape)
    sides = {
        f"smolten bf16, LoRA of rank {rank}": lambda: bench_train(args, *words, "--set", f"lora_rank={rank}"),
        f"TRL with PEFT bf16, LoRA of rank {rank}": lambda: torch_side("trl", lora=rank, **theirs),
        "smolten bf16, all weights": lambda: bench_train(args, *words),
    }
    runs = in_turn(args, sides)
    counts = {tuple(r["tokens"]) for rounds in runs.values() for r in rounds}
    if len(counts) != 1:
        sys.exit(f"the sides did not train on the same tokens: {counts}")
    # Two steps after the start adapters have moved less than all weights have.
    table = compare_steps(runs, None, 0.25)
    return table | dict(
        what=f"{args.model.name} on {args.data.name}, 2 × 4 rows of at most 512 tokens a step, adapters on all seven projections, {args.optimizer}", runs=runs
    )  # fmt: skip


def losses(args) -> dict:
    """How far bf16's losses are from fp32's, step by step, here and in TRL; fp32 AdamW on all sides."""
    shape = dict(rows=args.rows, grad_accum=1, length=args.length)
    words = [w for key, n in shape.items() for w in (f"--{key.replace('_', '-')}", n)]
    same = argparse.Namespace(**vars(args) | dict(optimizer="adamw"))
    ours = {p: bench_train(same, "--model", args.model, "--data", args.data, "--precision", p, *words) for p in ("fp32", "bf16")}
    theirs = {p: torch_side("trl", model=str(args.model), data=str(args.data), warmup=WARMUP, steps=args.steps, threads=args.threads,
                            autocast=p == "bf16", optim="adamw_torch", **shape) for p in ("fp32", "bf16")}  # fmt: skip
    rows, means = [], []
    for name, of in {"smolten, bf16 beside fp32": ours, "TRL, bf16 autocast beside fp32": theirs}.items():
        apart = [abs(b / f - 1) for b, f in zip(of["bf16"]["losses"], of["fp32"]["losses"], strict=True)]
        means.append(statistics.fmean(apart))
        rows.append([name, f"{100 * means[-1]:.2f} %", f"{100 * max(apart):.2f} %", f"{of['fp32']['losses'][-1]:.4f}", f"{of['bf16']['losses'][-1]:.4f}"])  # fmt: skip
    between = [abs(a / b - 1) for a, b in zip(ours["fp32"]["losses"], theirs["fp32"]["losses"], strict=True)]
    rows.append(["smolten fp32 beside TRL fp32", f"{100 * statistics.fmean(between):.2f} %", f"{100 * max(between):.2f} %", "", ""])
    return dict(
        columns=["losses of", "mean difference", "largest", "last in fp32", "last in bf16"], rows=rows,
        ratios={"TRL's mean difference over smolten's": means[1] / means[0]},
        what=f"{args.steps} steps of {args.rows} rows of {args.data.name}, {args.model.name}, fp32 AdamW", runs=dict(smolten=[ours["fp32"], ours["bf16"]], trl=[theirs["fp32"], theirs["bf16"]]),
    )  # fmt: skip


def smolten_decode(args, file: Path, precision: str, answer: dict) -> dict:
    """From the first piece of text to the last: the stream shows each token as it comes."""
    command = [args.smolten, "generate", "--model", file, "--prompt", PROMPT, "--temperature", 0, "--max-new-tokens", args.new,
               "--device", "cpu", "--threads", args.threads, "--precision", precision]  # fmt: skip
    process = subprocess.Popen([str(w) for w in command], stdout=subprocess.PIPE, bufsize=0)
    at = []
    while process.stdout.read(4096):
        at.append(time.perf_counter())
    if process.wait() != 0:
        sys.exit(f"{command} failed")
    return dict(tokens_per_second=(len(answer["new_ids"]) - 1) / (at[-1] - at[0]))


def decode(args) -> dict:
    rows, ratios, all_runs = [], {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, precision in dict(bf16="bf16", q8_0="auto", f32="fp32").items():
            file = Path(folder) / f"{kind}.gguf"
            export = [args.smolten, "export", "--model", args.model, "--out", file, "--format", "gguf", "--type", kind]
            subprocess.run([str(w) for w in export], check=True, stdout=subprocess.DEVNULL)
            words = ["--prompt", PROMPT, "--temperature", 0, "--max-new-tokens", args.new, "--precision", precision]
            answer = smolten(args, "generate", "--model", file, *words)
            runs = in_turn(args, {
                "smolten": lambda: smolten_decode(args, file, precision, answer),
                "llama.cpp": lambda: torch_side("decode", model=str(file), prompt_ids=answer["prompt_ids"],
                                                new=len(answer["new_ids"]), threads=args.threads),
            })  # fmt: skip
            ours, theirs = (statistics.median(r["tokens_per_second"] for r in rounds) for rounds in runs.values())
            ratios[kind], all_runs[kind] = ours / theirs, runs
            rows.append(
                [kind, precision, str(len(answer["new_ids"])), f"{ours:.1f}", f"{theirs:.1f}", f"{ours / theirs:.2f} ×"]
            )
    columns = [
        "weights in the file",
        "smolten computes in",
        "new tokens",
        "smolten, tokens/s",
        "llama.cpp, tokens/s",
        "smolten's speed",
    ]
    what = f"one greedy stream of {args.model.name}, exported; llama-cpp-python built from source for this processor"
    return dict(columns=columns, rows=rows, ratios=ratios, what=what, runs=all_runs)


PARTS = {
    "step-bf16": ("Training steps, bf16", lambda args: step(args, "bf16", ["bf16", "autocast"])),
    "step-fp32": ("Training steps, fp32", lambda args: step(args, "fp32", ["fp32"])),
    "step-avx2": ("Training steps on AVX2", lambda args: step(args, "fp32", ["fp32"], "avx2", AVX2)),
    "step-avx2-bf16": ("Training steps on AVX2, bf16", lambda args: step(args, "bf16", ["bf16"], "avx2", AVX2)),
    "trl": ("Ragged rows, TRL", trl),
    "lora": ("Adapters, TRL with PEFT", lora),
    "losses": ("Losses in bf16 and in fp32", losses),
    "products-bf16": ("Matrix products, bf16", lambda args: products(args, "bf16")),
    "products-fp32": ("Matrix products, fp32", lambda args: products(args, "fp32")),
    "decode": ("Decoding, llama.cpp", decode),
}


def provenance(args) -> dict:
    info = Path("/proc/cpuinfo").read_text()
    field = lambda key: next((line.split(":")[1].strip() for line in info.splitlines() if line.startswith(key)), "")  # noqa: E731
    flags = field("flags").split()
    units = [unit for flag, unit in [("avx2", "AVX2"), ("avx512f", "AVX-512"), ("amx_bf16", "AMX")] if flag in flags]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True
    ).stdout.strip()
    given = " ".join(Path(word).name if "/" in word else word for word in sys.argv[1:])
    return dict(machine=f"{field('model name') or platform.machine()} ({', '.join(units)}), {os.cpu_count()} cores", threads=args.threads,
                date=datetime.date.today().isoformat(), commit=commit, command=f"python benches/peers.py {given}",
                load_before=os.getloadavg()[0])  # fmt: skip


def versions_in(runs) -> dict:
    """Of all programs, wherever they stand."""
    if isinstance(runs, dict):
        return runs.get("versions", {}) | {
            k: v for of in runs.values() for k, v in versions_in(of).items() if of is not runs.get("versions")
        }
    return {k: v for of in runs for k, v in versions_in(of).items()} if isinstance(runs, list) else {}


def write_page(folder: Path, page: Path):
    """All parts that were ever measured, each with its own machine, commit and command."""
    lines = ["# smolten beside its peers on a CPU", "",
             "Written by `benches/peers.py`. Both sides of each ratio ran in the same run, in turn; parts may be of different runs. Times under a load of other work (above 0.5) mean little.", ""]  # fmt: skip
    for part, (title, _) in PARTS.items():
        if not (folder / f"{part}.json").exists():
            continue
        of = json.loads((folder / f"{part}.json").read_text())
        versions = ", ".join(f"{k} {v}" for k, v in sorted(versions_in(of["runs"]).items()))
        lines += [f"## {title}", "", f"{of['what']}.", "", f"{of['machine']}, {of['threads']} threads; {of['date']}, commit {of['commit']}, load before {of['load_before']:.1f}; "
                  f"{versions}; `{of['command']}`", ""]  # fmt: skip
        lines += [f"| {' | '.join(of['columns'])} |", f"|{' --- |' * len(of['columns'])}"]
        lines += [f"| {' | '.join(row)} |" for row in of["rows"]]
        lines += [f"\n{of[key]}" for key in ("summary", "note") if of.get(key)] + [""]
    page.write_text("\n".join(lines))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--smolten", type=Path, default=HERE.parent / "target/release/smolten")
    parser.add_argument("--library", type=Path, default=HERE.parent / "target/release/examples/libproducts.so",
                        help="smolten's products, of `cargo build --release --example products`")  # fmt: skip
    parser.add_argument("--model", type=Path, help="SmolLM2 as a GGUF file, for trl and decode")
    parser.add_argument("--data", type=Path, help="jsonl with prompt and response, for trl")
    parser.add_argument("--size", default="135m", help="of the steps: 135m, 360m, 1.7b [default: 135m]")
    parser.add_argument(
        "--sizes", nargs="+", default=["135m", "360m", "1.7b"], help="of the products [default: all three]"
    )
    parser.add_argument("--rows", type=int, default=2, help="of a step [default: 2]")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row [default: 512]")
    parser.add_argument("--optimizer", default="adamw_8bit", help="smolten's [default: adamw_8bit]")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of both sides [default: all cores]")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each side, in turn [default: 2]")
    parser.add_argument(
        "--steps", type=int, default=5, help="timed steps of a run, after two that are not [default: 5]"
    )
    parser.add_argument("--repeats", type=int, default=9, help="timed calls of a product in a round [default: 9]")
    parser.add_argument("--new", type=int, default=128, help="new tokens of a decoded text, at most [default: 128]")
    parser.add_argument(
        "--out", type=Path, default=HERE / "results", help="folder for cpu/ and cpu.md [default: benches/results]"
    )
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if args.rounds * args.steps < 5 or args.repeats < 5:
        parser.error("fewer than five timed steps or calls; raise --steps, --rounds or --repeats")
    needs = {"trl": args.model and args.data, "lora": args.model and args.data, "losses": args.model and args.data, "decode": args.model}
    # Half an hour: only where it is asked for.
    needs["step-avx2-bf16"] = "step-avx2-bf16" in args.parts
    for part in args.parts or [part for part in PARTS if needs.get(part, True)]:
        if not needs.get(part, True):
            parser.error(f"{part} needs --model{' and --data' * (part != 'decode')}")
        if part.startswith("products") and not args.library.exists():
            parser.error(f"{part} needs {args.library}: cargo build --release --example products, or say where with --library")
        about = provenance(args)
        if about["load_before"] > 0.5:
            print(
                f"warning: other work is running (load {about['load_before']:.1f}); times mean little", file=sys.stderr
            )
        result = about | PARTS[part][1](args)
        folder = args.out / "cpu"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{part}.json").write_text(json.dumps(result, indent=1) + "\n")
        write_page(folder, args.out / "cpu.md")
        print(f"{part}: " + (result.get("summary") or ", ".join(f"{k} {v:.2f} ×" for k, v in result["ratios"].items())))


if __name__ == "__main__":
    main()
