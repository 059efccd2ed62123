"""Full fine-tuning of SmolLM2-135M in float32 on the CPU: smolten against PyTorch, in one run, never at once.

Usage: python benches/train_vs_pytorch.py MODEL.gguf [--smolten target/release/smolten] [--rounds 2] [--steps 8]

Each round runs first one side, then the other, each in its own process, on the same rows: 2 x 512 tokens a step,
every row full, loss on every token, clipping and optimizer included. PyTorch: transformers with sdpa and
torch.optim.AdamW (foreach); smolten: adamw_8bit by default. Reported: median over all steps after the warm-up
steps of each round, and the peak resident memory of each process (VmHWM, as the kernel reports it at its end).
The first loss of both sides must agree within 1e-4, else they did not do the same work. Writes a Markdown table to
standard output and everything measured to benches/results/train_vs_pytorch.json. `--side pytorch` runs one side only.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROW_TOKENS, ROWS = 512, 2
WORDS = (
    "the a one small large river city engine number light answer question model step garden morning table color "
    "moves finds counts makes holds turns reads writes because while although and or then slowly often 3 17 2048"
).split()


def prepare(args):
    """Writes `steps` x 2 rows of text, each of more than 512 tokens, and their first 512 ids for PyTorch."""
    sys.path.insert(0, str(HERE.parent / "tests/external"))
    import smollm2

    tokenizer, generator = smollm2.load_tokenizer(args.gguf), random.Random(0)
    texts, ids = [], []
    for _ in range(args.steps * ROWS):
        text = " ".join(generator.choice(WORDS) for _ in range(2 * ROW_TOKENS))
        row = tokenizer(text).input_ids
        assert len(row) > ROW_TOKENS + 8, "a row is not full"
        texts.append(text)
        ids.append(row[:ROW_TOKENS])
    (args.work / "rows.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    (args.work / "ids.json").write_text(json.dumps(ids))


def pytorch(args):
    """One PyTorch process: trains on ids.json, writes pytorch.json."""
    sys.path.insert(0, str(HERE.parent / "tests/external"))
    import smollm2
    import torch
    import transformers

    torch.set_num_threads(args.threads)
    model = smollm2.load_model(args.gguf, "sdpa").train()
    norms, others = ([p for p in model.parameters() if (p.ndim == 1) == norm] for norm in (True, False))
    groups = [dict(params=others, weight_decay=0.01), dict(params=norms, weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, lr=1e-5, foreach=True)
    rows = torch.tensor(json.loads((args.work / "ids.json").read_text()))
    seconds, losses = [], []
    for step in range(args.steps):
        start = time.perf_counter()
        batch = rows[step * ROWS : (step + 1) * ROWS]
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    out = dict(seconds=seconds, losses=losses, vm_hwm_kib=int(status["VmHWM"].split()[0]),
               versions={m.__name__: m.__version__ for m in (torch, transformers)})  # fmt: skip
    (args.work / "pytorch.json").write_text(json.dumps(out))


def wait_for(command: list[str]) -> int:
    """Runs a process to its end; returns the peak resident memory in bytes that the kernel accounts to it."""
    process = subprocess.Popen(command, stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(f"failed (wait status {status}): {' '.join(command)}")
    return usage.ru_maxrss * 1024


def own_process(role: str, args) -> int:
    return wait_for([sys.executable, __file__, str(args.gguf), "--role", role, "--work", str(args.work),
                     "--steps", str(args.steps), "--threads", str(args.threads)])  # fmt: skip


def run_pytorch(args, _round: int) -> dict:
    peak = own_process("pytorch", args)
    out = json.loads((args.work / "pytorch.json").read_text())
    # The kernel's account and VmHWM are the same counter, read at slightly different moments.
    assert abs(peak / (out["vm_hwm_kib"] * 1024) - 1) < 0.02
    return dict(seconds=out["seconds"], losses=out["losses"], peak_bytes=peak, versions=out["versions"])


def run_smolten(args, round_number: int) -> dict:
    out = args.work / f"smolten-{round_number}"
    settings = {
        "--model": args.gguf, "--data": args.work / "rows.jsonl", "--out": out, "--steps": args.steps,
        "--batch-size": ROWS, "--grad-accum": 1, "--max-length": ROW_TOKENS, "--loss-on": "all", "--lr": "1e-5",
        "--optimizer": args.optimizer, "--device": "cpu", "--threads": args.threads, "--precision": "fp32",
        "--set": "eval_share=0",
    }  # fmt: skip
    flags = [str(word) for pair in settings.items() for word in pair]
    peak = wait_for([str(args.smolten), "train", *flags, "--no-shuffle"])
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]
    assert len(lines) == args.steps and all(line["tokens"] == ROWS * ROW_TOKENS for line in lines)
    version = subprocess.run([str(args.smolten), "--version"], capture_output=True, text=True, check=True).stdout
    return dict(seconds=[line["step_seconds"] for line in lines], losses=[line["loss"] for line in lines],
                peak_bytes=peak, versions={"smolten": version.strip()})  # fmt: skip


def machine() -> dict:
    info = Path("/proc/cpuinfo").read_text()
    name = next((line.split(":")[1].strip() for line in info.splitlines() if "model name" in line), platform.machine())
    return dict(cpu=name, cores=os.cpu_count(), load_before=os.getloadavg()[0])


def report(runs: dict[str, list[dict]], args) -> dict:
    """Prints the table; returns medians, memory and ratios."""
    summary = {}
    for side, rounds in runs.items():
        timed = [s for r in rounds for s in r["seconds"][args.warmup :]]
        median = statistics.median(timed)
        summary[side] = dict(tokens_per_second=ROWS * ROW_TOKENS / median, median_step_seconds=median,
                             fastest_step_seconds=min(timed), timed_steps=len(timed),
                             peak_bytes=max(r["peak_bytes"] for r in rounds))  # fmt: skip
    print("| side | tokens/s (median) | step, s | fastest step, s | peak memory, GB |\n|---|---|---|---|---|")
    for side, s in summary.items():
        print(f"| {side} | {s['tokens_per_second']:.1f} | {s['median_step_seconds']:.2f} | "
              f"{s['fastest_step_seconds']:.2f} | {s['peak_bytes'] / 1e9:.2f} |")  # fmt: skip
    if len(summary) == 2:
        ours, theirs = summary["smolten"], summary["pytorch"]
        summary["speedup"] = ours["tokens_per_second"] / theirs["tokens_per_second"]
        summary["memory_share"] = ours["peak_bytes"] / theirs["peak_bytes"]
        print(f"| ratio | {summary['speedup']:.2f} × | | | {summary['memory_share']:.2f} × |")
        first = [runs[side][0]["losses"][0] for side in ("smolten", "pytorch")]
        if not abs(first[0] / first[1] - 1) < 1e-4:
            sys.exit(f"the first losses differ: smolten {first[0]}, pytorch {first[1]}")
    return summary


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--smolten", type=Path, default=HERE.parent / "target/release/smolten")
    parser.add_argument("--side", choices=["both", "pytorch", "smolten"], default="both")
    parser.add_argument("--optimizer", default="adamw_8bit", help="smolten's [default: adamw_8bit]")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each side, alternating [default: 2]")
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps a run [default: 8]")
    parser.add_argument("--warmup", type=int, default=2, help="steps of each run left out of the median [default: 2]")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE / "results/train_vs_pytorch.json")
    parser.add_argument("--role", choices=["prepare", "pytorch"], help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.role:
        return {"prepare": prepare, "pytorch": pytorch}[args.role](args)
    if args.rounds * (args.steps - args.warmup) < 5:
        parser.error("fewer than five timed steps; raise --steps or --rounds")
    sides = {"pytorch": run_pytorch, "smolten": run_smolten}
    chosen = [side for side in sides if args.side in ("both", side)]
    about = machine()
    with tempfile.TemporaryDirectory() as work:
        args.work = Path(work)
        own_process("prepare", args)
        runs = {side: [] for side in chosen}
        for round_number in range(args.rounds):
            for side in chosen:
                print(f"round {round_number + 1}: {side}", file=sys.stderr)
                runs[side].append(sides[side](args, round_number))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True)
    flags = f"--rounds {args.rounds} --steps {args.steps} --warmup {args.warmup} --optimizer {args.optimizer}"
    result = dict(command=f"python benches/train_vs_pytorch.py {args.gguf.name} {flags} --threads {args.threads}",
                  commit=commit.stdout.strip(), machine=about, summary=report(runs, args), runs=runs)  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
