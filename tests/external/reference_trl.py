"""Losses and gradient norms of TRL's SFTTrainer on SmolLM2-135M-Instruct and the first rows of a prompt/response file.

Usage: python tests/external/reference_trl.py MODEL.gguf ROWS.jsonl --out trl.json [--count 80] [--no-loop]

Batch 2 x accumulation 4, max length 512, loss on the completion, rows in file order, lr 2e-4 with warm-up 5 on a
linear schedule over 60 steps of which the first ten run, weight decay 0.01, clip 1.0, adamw_torch, float32, sdpa.
Then the same steps by a plain PyTorch loop without padding or TRL, one row at a time, as a yardstick: how far two
honest implementations lie apart. Numbers come unrounded from the trainer's log; the learning rate is the one the
optimizer used in that step. mean_token_accuracy and entropy are TRL's: means over micro-batches of
their means. No text of the rows is written.
"""

import argparse
import json
import tempfile
from pathlib import Path

import smollm2
import torch
import transformers
import trl
from datasets import Dataset
from transformers import TrainerCallback, get_linear_schedule_with_warmup
from trl import SFTConfig, SFTTrainer

STEPS, SCHEDULE_STEPS, WARMUP = 10, 60, 5
BATCH, ACCUMULATION, MAX_LENGTH = 2, 4, 512
LR, WEIGHT_DECAY, CLIP = 2e-4, 0.01, 1.0


def read_rows(path: Path, count: int) -> list[dict]:
    """Rows as TRL's conversational prompt/completion."""
    with path.open() as lines:
        rows = [json.loads(line) for _, line in zip(range(count), lines)]
    return [dict(prompt=[dict(role="user", content=r["prompt"])],
                 completion=[dict(role="assistant", content=r["response"])]) for r in rows]  # fmt: skip


class Recorder(TrainerCallback):
    """Keeps every step's numbers as the trainer logs them, and stops after ten."""

    def __init__(self):
        self.steps, self.used_lr = [], None

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.used_lr = optimizer.param_groups[0]["lr"]

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            keep = ("loss", "grad_norm", "num_tokens", "mean_token_accuracy", "entropy", "epoch")
            self.steps.append(dict(learning_rate=self.used_lr, **{k: logs[k] for k in keep}))
            print(f"  {state.global_step}: {self.steps[-1]}", flush=True)

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= STEPS


class CountingTrainer(SFTTrainer):
    """Also notes the loss denominator of every micro-batch's window."""

    denominators: list[int]

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.denominators.append(int(num_items_in_batch))
        return super().training_step(model, inputs, num_items_in_batch=num_items_in_batch)


def run_trl(gguf: Path, rows: list[dict], threads: int) -> tuple[list[dict], list[dict]]:
    """The ten steps' records, and the tokenised rows (input_ids, labels) as TRL prepared them."""
    with tempfile.TemporaryDirectory() as scratch:
        config = SFTConfig(
            output_dir=scratch, per_device_train_batch_size=BATCH, gradient_accumulation_steps=ACCUMULATION,
            max_length=MAX_LENGTH, learning_rate=LR, warmup_steps=WARMUP, max_steps=SCHEDULE_STEPS,
            weight_decay=WEIGHT_DECAY, lr_scheduler_type="linear", optim="adamw_torch", max_grad_norm=CLIP,
            bf16=False, fp16=False, use_cpu=True, gradient_checkpointing=False, completion_only_loss=True,
            train_sampling_strategy="sequential", logging_steps=1, logging_first_step=True, save_strategy="no",
            report_to="none", disable_tqdm=True, dataloader_pin_memory=False, seed=0,
        )  # fmt: skip
        torch.set_num_threads(threads)
        recorder = Recorder()
        trainer = CountingTrainer(
            model=smollm2.load_model(gguf), args=config, train_dataset=Dataset.from_list(rows),
            processing_class=smollm2.load_tokenizer(gguf), callbacks=[recorder],
        )  # fmt: skip
        trainer.denominators = []
        trainer.train()
        for step, count in zip(recorder.steps, trainer.denominators[::ACCUMULATION], strict=True):
            step["supervised_tokens"] = count
        columns = trainer.train_dataset.select_columns(["input_ids", "labels"])
        return recorder.steps, list(columns)


def tokenise(tokenizer, row: dict) -> dict:
    """Ids and labels without TRL: the completion starts where the prompt alone ends."""
    prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"]
    whole = tokenizer.apply_chat_template(row["prompt"] + row["completion"])["input_ids"]
    assert whole[: len(prompt)] == prompt
    labels = [-100] * len(prompt) + whole[len(prompt) :]
    return dict(input_ids=whole[:MAX_LENGTH], labels=labels[:MAX_LENGTH])


def run_loop(gguf: Path, rows: list[dict], threads: int) -> list[dict]:
    """The same ten steps in plain PyTorch, one unpadded row at a time."""
    torch.set_num_threads(threads)
    model = smollm2.load_model(gguf)
    norms, others = ([p for p in model.parameters() if (p.ndim == 1) == norm] for norm in (True, False))
    groups = [dict(params=others, weight_decay=WEIGHT_DECAY), dict(params=norms, weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.999), eps=1e-8)
    schedule = get_linear_schedule_with_warmup(optimizer, WARMUP, SCHEDULE_STEPS)
    steps, window_size = [], BATCH * ACCUMULATION
    for step in range(STEPS):
        window = [rows[(step * window_size + i) % len(rows)] for i in range(window_size)]
        denominator = sum(label != -100 for row in window for label in row["labels"][1:])
        total = 0.0
        for row in window:
            logits = model(torch.tensor([row["input_ids"]])).logits[0, :-1]
            targets = torch.tensor(row["labels"][1:])
            loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum") / denominator
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP).item()
        lr = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        steps.append(dict(loss=total, grad_norm=norm, learning_rate=lr, supervised_tokens=denominator))
        print(f"  {step + 1}: {steps[-1]}", flush=True)
    return steps


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("rows", type=Path, help="jsonl with the fields prompt and response")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=STEPS * BATCH * ACCUMULATION, help="rows read [default: 80]")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-loop", action="store_true", help="leave the plain PyTorch loop out")
    args = parser.parse_args()
    rows = read_rows(args.rows, args.count)
    tokenizer = smollm2.load_tokenizer(args.gguf)
    plain = [tokenise(tokenizer, row) for row in rows]
    print("TRL", trl.__version__)
    steps, prepared = run_trl(args.gguf, rows, args.threads)
    assert prepared == plain, "TRL tokenised or masked otherwise than the plain loop"
    result = dict(
        command=f"python tests/external/reference_trl.py {args.gguf.name} {args.rows.name} --out trl.json",
        versions={m.__name__: m.__version__ for m in (torch, transformers, trl)},
        settings=dict(batch_size=BATCH, grad_accum=ACCUMULATION, max_length=MAX_LENGTH, lr=LR, warmup=WARMUP,
                      schedule_steps=SCHEDULE_STEPS, steps=STEPS, weight_decay=WEIGHT_DECAY, clip=CLIP,
                      rows=len(rows), loss_on="completion", threads=args.threads),
        row_tokens=[len(r["input_ids"]) for r in plain],
        row_supervised=[sum(label != -100 for label in r["labels"]) for r in plain],
        trl=steps,
    )  # fmt: skip
    if not args.no_loop:
        print("plain PyTorch")
        result["plain_loop"] = run_loop(args.gguf, plain, args.threads)
        for key in ("loss", "grad_norm"):
            apart = max(abs(a[key] / b[key] - 1) for a, b in zip(result["plain_loop"], steps))
            result[f"{key}_apart"] = apart
            print(f"largest relative difference of {key}: {apart:.2e}")
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
