"""The training step on one GPU: smolten against PyTorch, in one run, in turn, never at once.

Usage: python3 benches/step_vs_pytorch.py --smolten target/release/smolten --tokenizer DIR [--model DIR] [--out FILE]

The same rows on both sides, every one full, loss on every token, clipping and AdamW with fp32 state included. The model is
a Hugging Face folder, or one of SmolLM2-135M's shape with random weights, which needs a folder with its tokenizer.
PyTorch: a Llama written below with nothing but torch, bf16 autocast, scaled_dot_product_attention, fused AdamW, with
--compile through torch.compile. Reported: the median over all steps behind the warm-up of each round, on both sides. The
first losses must agree, else they did not do the same work. Without torch, or without its CUDA, smolten runs alone.
"""

import argparse
import array
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = (
    "the a one small large river city engine number light answer question model step garden morning table color "
    "moves finds counts makes holds turns reads writes because while although and or then slowly often 3 17 2048"
).split()
# Rows are cut on purpose, so that every one is full.
ALLOW = 'allow=["no_turn_end", "lost_turn_ends"]'
SMOLLM2_135M = dict(
    architectures=["LlamaForCausalLM"], model_type="llama", hidden_act="silu", hidden_size=576, intermediate_size=1536,
    num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, vocab_size=49152, max_position_embeddings=8192,
    rms_norm_eps=1e-5, rope_theta=100000.0, tie_word_embeddings=True, attention_bias=False, mlp_bias=False,
    bos_token_id=1, eos_token_id=2, pad_token_id=2, torch_dtype="bfloat16",
)  # fmt: skip
QUICK = SMOLLM2_135M | dict(hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2,
                            num_key_value_heads=1)  # fmt: skip


def shapes(n: dict) -> dict[str, list[int]]:
    c, f, d = n["hidden_size"], n["intermediate_size"], n["hidden_size"] // n["num_attention_heads"]
    q, kv = n["num_attention_heads"] * d, n["num_key_value_heads"] * d
    of = {"model.embed_tokens.weight": [n["vocab_size"], c], "model.norm.weight": [c]}
    layer = {
        "input_layernorm": [c], "self_attn.q_proj": [q, c], "self_attn.k_proj": [kv, c], "self_attn.v_proj": [kv, c],
        "self_attn.o_proj": [c, q], "post_attention_layernorm": [c], "mlp.gate_proj": [f, c], "mlp.up_proj": [f, c],
        "mlp.down_proj": [c, f],
    }  # fmt: skip
    for index in range(n["num_hidden_layers"]):
        of |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    return of


def write_random_model(folder: Path, tokenizer: Path, config: dict):
    """bf16 weights from a normal distribution, norms 1; a prime number of values again and again, as Python is slow."""
    generator = random.Random(0)
    wide = array.array("f", (generator.gauss(0, 0.02) for _ in range(65537))).tobytes()
    values = b"".join(wide[i + 2 : i + 4] for i in range(0, len(wide), 4))  # the upper half of a float is a bf16
    header, offset = {}, 0
    for name, shape in shapes(config).items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = dict(dtype="BF16", shape=shape, data_offsets=[offset, offset + size])
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = 0
        for name, entry in header.items():
            size = entry["data_offsets"][1] - entry["data_offsets"][0]
            pattern = b"\x80\x3f" if "norm" in name else values[start:] + values[:start]
            file.write((pattern * (size // len(pattern) + 1))[:size])
            start = (start + 2 * 7919) % len(values)  # another beginning for the next weight
    (folder / "config.json").write_text(json.dumps(config))
    for file in tokenizer.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())


def prepare(args, work: Path) -> Path:
    """The model, and rows of text that are longer than is kept of them."""
    model = args.model
    if model is None:
        model = work / "model"
        write_random_model(model, args.tokenizer, QUICK if args.quick else SMOLLM2_135M)
    generator = random.Random(0)
    texts = [" ".join(generator.choice(WORDS) for _ in range(2 * args.length)) for _ in range(args.rows)]
    (work / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    ids = []
    for text in texts:
        command = [args.smolten, "inspect", "--model", model, "--text", text, "--json"]
        row = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["ids"]
        assert len(row) > args.length, "a row is not full"
        ids.append(row[: args.length])
    (work / "ids.json").write_text(json.dumps(ids))
    return model


def run_smolten(args, model: Path, work: Path, number: int) -> dict:
    out = work / f"smolten-{number}"
    settings = {
        "--model": model, "--data": work / "rows.jsonl", "--out": out, "--steps": args.steps, "--batch-size": args.rows,
        "--grad-accum": 1, "--max-length": args.length, "--loss-on": "all", "--lr": "1e-5", "--optimizer": "adamw",
        "--device": "cuda", "--set": "eval_share=0",
    }  # fmt: skip
    flags = [str(word) for pair in settings.items() for word in pair]
    subprocess.run([args.smolten, "train", *flags, "--no-shuffle", "--set", ALLOW, "--set", "sample_every=0"], check=True, stdout=sys.stderr)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]
    assert len(lines) == args.steps and all(line["tokens"] == args.rows * args.length for line in lines)
    return dict(seconds=[line["step_seconds"] for line in lines], losses=[line["loss"] for line in lines])


def read_weights(folder: Path, torch) -> dict:
    """A single safetensors file, as fp32 parameters on the GPU."""
    types = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
    data = bytearray((folder / "model.safetensors").read_bytes())
    end = 8 + int.from_bytes(data[:8], "little")
    weights = {}
    for name, entry in json.loads(data[8:end]).items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            flat = torch.frombuffer(data, dtype=torch.uint8, offset=end + first, count=last - first)
            values = flat.view(types[entry["dtype"]]).view(entry["shape"])
            weights[name] = torch.nn.Parameter(values.to("cuda", torch.float32))
    return weights


def llama_loss(w, n, ids, cos, sin):
    """Mean cross-entropy of the next tokens. `w` are the weights by their names, `n` the config."""
    import torch
    import torch.nn.functional as F

    heads, kv_heads, eps = n["num_attention_heads"], n["num_key_value_heads"], n["rms_norm_eps"]
    (rows, length), c = ids.shape, n["hidden_size"]

    def norm(x, name):
        return F.rms_norm(x, (c,), w[name], eps)

    def turned(x):
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-second, first), dim=-1) * sin

    x = F.embedding(ids, w["model.embed_tokens.weight"])
    for index in range(n["num_hidden_layers"]):
        at = f"model.layers.{index}."
        h = norm(x, at + "input_layernorm.weight")
        q, k, v = (
            F.linear(h, w[f"{at}self_attn.{name}_proj.weight"]).view(rows, length, count, -1).transpose(1, 2)
            for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
        )
        q, k = turned(q).to(v.dtype), turned(k).to(v.dtype)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != kv_heads)
        x = x + F.linear(a.transpose(1, 2).reshape(rows, length, -1), w[at + "self_attn.o_proj.weight"])
        h = norm(x, at + "post_attention_layernorm.weight")
        gate, up = (F.linear(h, w[f"{at}mlp.{name}_proj.weight"]) for name in ("gate", "up"))
        x = x + F.linear(F.silu(gate) * up, w[at + "mlp.down_proj.weight"])
    x = norm(x, "model.norm.weight")
    logits = F.linear(x[:, :-1], w.get("lm_head.weight", w["model.embed_tokens.weight"]))
    return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


def pytorch(args):
    """One PyTorch process."""
    import torch

    n = json.loads((args.model / "config.json").read_text())
    w = read_weights(args.model, torch)
    ids = torch.tensor(json.loads((args.work / "ids.json").read_text()), device="cuda")
    half = n.get("head_dim", n["hidden_size"] // n["num_attention_heads"]) // 2
    frequencies = n["rope_theta"] ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.outer(torch.arange(ids.shape[1], dtype=torch.float64), frequencies)
    cos, sin = (f(angles).float().repeat(1, 2).cuda() for f in (torch.cos, torch.sin))
    groups = [dict(params=[p for p in w.values() if p.ndim > 1], weight_decay=0.01),
              dict(params=[p for p in w.values() if p.ndim == 1], weight_decay=0.0)]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, lr=1e-5, fused=True)
    loss_of = torch.compile(llama_loss) if args.compile else llama_loss
    seconds, losses = [], []
    for _ in range(args.steps):
        torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16):
            loss = loss_of(w, n, ids, cos, sin)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(w.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    out = dict(seconds=seconds, losses=losses, torch=torch.__version__, card=torch.cuda.get_device_name(),
               peak_bytes=torch.cuda.max_memory_allocated())  # fmt: skip
    (args.work / "pytorch.json").write_text(json.dumps(out))


def run_pytorch(args, model: Path, work: Path) -> dict:
    command = [sys.executable, __file__, "--role", "pytorch", "--work", work, "--model", model, "--steps", args.steps]
    subprocess.run([str(word) for word in command] + ["--compile"] * args.compile, check=True)
    return json.loads((work / "pytorch.json").read_text())


def has_torch() -> bool:
    code = "import torch, sys; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def report(runs: dict[str, list[dict]], args) -> dict:
    """Prints the table; returns medians and ratio."""
    tokens, summary = args.rows * args.length, {}
    print(f"{args.rows} rows of {args.length} tokens a step, AdamW with fp32 state, every side {args.rounds} times in turn\n")
    print("| side | tokens/s (median) | step, ms | fastest step, ms |\n| --- | --- | --- | --- |")
    for side, rounds in runs.items():
        timed = [s for r in rounds for s in r["seconds"][args.warmup :]]
        median = statistics.median(timed)
        summary[side] = dict(tokens_per_second=tokens / median, median_step_seconds=median, timed_steps=len(timed))
        print(f"| {side} | {tokens / median:.0f} | {1e3 * median:.2f} | {1e3 * min(timed):.2f} |")
    if len(runs) < 2:
        print("\nno PyTorch with CUDA here: smolten alone, nothing to compare with")
        return summary
    ratio = summary["smolten"]["tokens_per_second"] / summary["pytorch"]["tokens_per_second"]
    summary["ratio"] = ratio
    print(f"| ratio | {ratio:.2f} | | |")
    first = [runs[side][0]["losses"][0] for side in runs]
    summary["first_losses"] = first
    # Losses are means over thousands of tokens: one rounding to bf16 is more than the two may differ by.
    if not abs(first[0] / first[1] - 1) < 2**-8:
        sys.exit(f"the first losses differ: {first[0]} and {first[1]}: this is not the same work")
    return summary


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smolten", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="folder with SmolLM2's tokenizer.json, for random weights")
    parser.add_argument("--model", type=Path, help="a Hugging Face folder with one model.safetensors")
    parser.add_argument("--rows", type=int, default=8, help="rows of a step [default: 8]")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a row [default: 1024]")
    parser.add_argument("--steps", type=int, default=16, help="steps of a run [default: 16]")
    parser.add_argument("--warmup", type=int, default=6, help="of them not timed [default: 6]")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each side, in turn [default: 2]")
    parser.add_argument("--compile", action="store_true", help="PyTorch through torch.compile")
    parser.add_argument("--quick", action="store_true", help="one small layer, few tokens: to try it")
    parser.add_argument("--out", type=Path, help="everything measured, as JSON")
    parser.add_argument("--role", choices=["pytorch"], help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.role:
        return pytorch(args)
    if args.quick:
        args.rows, args.length, args.steps, args.warmup, args.rounds = 1, 16, 2, 1, 1
    runs = {"smolten": []} | ({"pytorch": []} if has_torch() else {})
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model = prepare(args, work)
        for number in range(args.rounds):
            runs["smolten"].append(run_smolten(args, model, work, number))
            if "pytorch" in runs:
                runs["pytorch"].append(run_pytorch(args, model, work))
    result = dict(summary=report(runs, args), runs=runs, arguments=[str(word) for word in sys.argv[1:]])
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
