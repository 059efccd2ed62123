#!/usr/bin/env python3
"""Adapters between PEFT and smolten, both ways, on the tiny model.

    check_peft.py --smolten BINARY --model FILE.gguf --saved DIR [--skip-training]

1. PEFT writes adapters (all targets and some, both scales, targets as a regular expression, several element types);
   smolten exports each merged: every tensor must be that of `merge_and_unload` within the rounding of both, the
   exported folder must have the logits of PEFT's model in transformers, and the greedy answers must be the same.
2. DIR/adapter, which tests/adapter/ wrote, loads with AutoPeftModelForCausalLM, and is the same in `smolten export`.
3. `smolten train` with lora_rank trains three steps; its folder the same.
"""

import argparse
import json
import os
import pathlib
import subprocess
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
import torch  # noqa: E402
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402
from transformers.utils import logging  # noqa: E402

logging.disable_progress_bar()
U = 2.0**-24
PROMPT = "hello there, the theory of 12 things"
CONFIGS = {
    "all": dict(r=8, lora_alpha=16, target_modules="all-linear"),
    "some, rsLoRA": dict(r=8, lora_alpha=16, use_rslora=True, target_modules=["q_proj", "v_proj"]),
    "expression": dict(r=3, lora_alpha=5, target_modules=r".*layers\.0\..*\.(k|o|down)_proj"),
    "bf16": dict(r=4, lora_alpha=8, target_modules=["gate_proj", "up_proj"]),
}


def smolten(args, *command):
    done = subprocess.run([args.smolten, *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def scales(model):
    """For each weight that has an adapter: how large the terms of B·A are that are summed, and their number."""
    sizes = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            a, b = module.lora_A["default"].weight.float(), module.lora_B["default"].weight.float()
            name = name.removeprefix("base_model.model.") + ".weight"
            sizes[name] = (abs(module.scaling["default"]) * (b.abs() @ a.abs()), a.shape[0])
    return sizes


@torch.no_grad()
def check(args, adapter: pathlib.Path, model, folder: pathlib.Path, name: str):
    """`model` is PEFT's, with the adapter that lies in `adapter`."""
    model.eval()
    merged = folder / "merged"
    said = smolten(args, "export", "--model", adapter, "--out", merged, "--format", "hf", "--type", "f32")
    assert "adapter: LoRA of rank" in said and "merged into" in said, said
    tokenizer = AutoTokenizer.from_pretrained(merged)
    ids = torch.tensor([tokenizer(PROMPT).input_ids])
    want_logits = model(ids).logits
    sizes = scales(model)
    assert sizes, "no adapter in PEFT's model"
    base = {n.replace(".base_layer", ""): w.clone() for n, w in model.get_base_model().state_dict().items() if "lora_" not in n}
    want = model.merge_and_unload().state_dict()
    got = load_file(merged / "model.safetensors")
    worst = 0.0
    for key, tensor in got.items():
        if key not in sizes:
            assert torch.equal(tensor, want[key].float()), key
            continue
        size, rank = sizes[key]
        # Two sums of rank products, two scales, two last sums; each side rounds (rank + 3) times at most.
        bound = 2 * (rank + 3) * U * (base[key].abs() + size)
        apart = (tensor - want[key].float()).abs()
        assert torch.isfinite(apart).all() and (apart <= bound).all(), f"{name}, {key}: {(apart - bound).max()}"
        assert not torch.equal(tensor, base[key]), f"{name}, {key}: nothing was merged"
        worst = max(worst, (apart / bound).max().item())
    ours = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
    share = ((ours(ids).logits - want_logits).abs().max() / want_logits.abs().max()).item()
    assert share <= 1e-5, f"{name}: logits differ by {share:.2e} of max|logit|"
    text = ours.generate(
        **tokenizer.apply_chat_template([{"role": "user", "content": PROMPT}], add_generation_prompt=True, return_tensors="pt", return_dict=True),
        max_new_tokens=16, do_sample=False,
    )  # fmt: skip
    prompt = len(tokenizer.apply_chat_template([{"role": "user", "content": PROMPT}], add_generation_prompt=True)["input_ids"])
    text = tokenizer.decode(text[0, prompt:], skip_special_tokens=True)
    flags = "--temperature 0 --max-new-tokens 16 --device cpu --precision fp32 --json".split()
    own = json.loads(smolten(args, "generate", "--model", adapter, "--prompt", PROMPT, *flags))["text"]
    assert own.strip() == text.strip(), (own, text)
    print(f"{name}: {len(sizes)} matrices merged, at most {worst:.2f} of the bound apart; logits {share:.1e} of max|logit|; same answer")


def from_peft(args, base: pathlib.Path, folder: pathlib.Path):
    for name, settings in CONFIGS.items():
        here = folder / name.split(",")[0]
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.1, **settings))
        torch.manual_seed(7)
        with torch.no_grad():
            for key, p in model.named_parameters():
                if "lora_B" in key:
                    p.copy_(torch.randn_like(p))
                if name == "bf16" and "lora_" in key:
                    p.data = p.data.bfloat16()
        model.save_pretrained(here / "adapter")
        if name == "bf16":
            kinds = {t.dtype for t in load_file(here / "adapter/adapter_model.safetensors").values()}
            assert kinds == {torch.bfloat16}, kinds
            for key, p in model.named_parameters():
                p.data = p.data.float()
        check(args, here / "adapter", model, here, f"of PEFT, {name}")


def into_peft(args, adapter: pathlib.Path, folder: pathlib.Path, name: str):
    files = {f.name for f in adapter.iterdir()}
    needed = {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert needed <= files and "model.safetensors" not in files, files
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    model = AutoPeftModelForCausalLM.from_pretrained(adapter, dtype=torch.float32)
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.chat_template, tokenizer
    stored = load_file(adapter / "adapter_model.safetensors")
    loaded = {k.replace(".default.", "."): v for k, v in model.state_dict().items() if "lora_" in k}
    assert loaded.keys() == stored.keys() and all(torch.equal(loaded[k], stored[k]) for k in stored), "not all is loaded"
    check(args, adapter, model, folder, name)


def train(args, base: pathlib.Path, folder: pathlib.Path):
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"What is {i} + {i}?", "response": f"It is {2 * i}."}) + "\n" for i in range(20)))
    out = folder / "run"
    sets = ["lora_rank=8", "lora_alpha=16", "lora_dropout=0.1", "lora_rslora=true", "eval_share=0", "sample_every=0"]
    sets = [word for text in sets for word in ("--set", text)]
    smolten(args, "train", "--model", base, "--data", rows, "--out", out, "--steps", 3, "--lr", "1e-2", "--device", "cpu", *sets)
    assert any(t.abs().max() > 0 for n, t in load_file(out / "adapter_model.safetensors").items() if "lora_B" in n), "B is 0"
    into_peft(args, out, folder, "trained by smolten")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smolten", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--saved", required=True, type=pathlib.Path)
    parser.add_argument("--skip-training", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        base = folder / "base"
        smolten(args, "export", "--model", args.model, "--out", base, "--format", "hf", "--type", "f32")
        from_peft(args, base, folder)
        (folder / "written").mkdir()
        into_peft(args, args.saved / "adapter", folder / "written", "written by smolten")
        if not args.skip_training:
            train(args, base, folder)


if __name__ == "__main__":
    main()
