"""The other side of peers.py: one measurement of PyTorch, TRL or llama.cpp, in a process of its own, as JSON on stdout.

Usage: python benches/peers_torch.py step|products|trl|decode SETTINGS-AS-JSON
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/external"))

FLUSH_BYTES = 64 << 20  # as smolten bench kernels
SHAPES = {
    "135m": dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3),
    "360m": dict(hidden_size=960, intermediate_size=2560, num_hidden_layers=32, num_attention_heads=15, num_key_value_heads=5),
    "1.7b": dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=24, num_attention_heads=32, num_key_value_heads=32),
}  # fmt: skip
SMOLLM2 = dict(vocab_size=49152, max_position_embeddings=8192, rms_norm_eps=1e-5, tie_word_embeddings=True,
               rope_parameters=dict(rope_type="default", rope_theta=100000.0), bos_token_id=1, eos_token_id=2)  # fmt: skip


def peak_bytes() -> int:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def versions(*modules) -> dict:
    return {m.__name__: m.__version__ for m in modules}


def step(size, precision, rows, length, warmup, steps, threads):
    """Whole steps on full rows: forward, backward, clipping, fused AdamW. bf16: weights, gradients and moments in bf16;
    autocast: those in fp32, products in bf16."""
    import torch
    import transformers

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SHAPES[size], **SMOLLM2, attn_implementation="sdpa")
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16 if precision == "bf16" else torch.float32).train()
    assert model.config._attn_implementation == "sdpa"
    norms, others = ([p for p in model.parameters() if (p.ndim == 1) == norm] for norm in (True, False))
    groups = [dict(params=others, weight_decay=0.01), dict(params=norms, weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, lr=2e-4, fused=True)
    ids = torch.randint(config.vocab_size, (rows, length))
    seconds, losses = [], []
    for _ in range(warmup + steps):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
    return dict(seconds=seconds[warmup:], losses=losses[warmup:], peak_memory_bytes=peak_bytes(),
                parameters=sum(p.numel() for p in model.parameters()), versions=versions(torch, transformers))  # fmt: skip


def products(library, shapes, precision, rounds, repeats, threads):
    """Microseconds of smolten's product and of torch.mm for each [layout, m, n, k], call by call in turn on the same operands,
    before each of which a cache's worth of other memory is written and both sides' threads fall asleep."""
    import ctypes

    import torch

    torch.set_num_threads(threads)
    dtype = dict(bf16=torch.bfloat16, fp32=torch.float32)[precision]
    product = getattr(ctypes.CDLL(library), f"product_{precision}")
    product.argtypes = [ctypes.c_size_t, ctypes.c_int, *[ctypes.c_void_p] * 3, ctypes.POINTER(ctypes.c_size_t * 3)]
    flush = ctypes.create_string_buffer(FLUSH_BYTES)

    def microseconds(run):
        ctypes.memset(flush, 1, FLUSH_BYTES)
        time.sleep(0.002)
        start = time.perf_counter()
        run()
        return 1e6 * (time.perf_counter() - start)

    times = [([], []) for _ in shapes]
    for _ in range(rounds):
        for (layout, m, n, k), (ours, theirs) in zip(shapes, times):
            a = torch.randn((k, m) if layout == "tn" else (m, k)).to(dtype)
            b = torch.randn((n, k) if layout == "nt" else (k, n)).to(dtype)
            left, right = a.t() if layout == "tn" else a, b.t() if layout == "nt" else b
            out = torch.empty(m, n, dtype=dtype)
            got = torch.empty(m, n, dtype=torch.float32 if layout == "tn" else dtype)
            pointers = [x.data_ptr() for x in (a, b, got)]
            which, shape = ["nt", "nn", "tn"].index(layout), (ctypes.c_size_t * 3)(m, n, k)
            for i in range(1 + repeats):
                our = microseconds(lambda: product(threads, which, *pointers, ctypes.byref(shape)))
                their = microseconds(lambda: torch.mm(left, right, out=out))
                if i > 0:
                    ours.append(our)
                    theirs.append(their)
            # Both are sums of the same products, rounded once to bf16: at most 2^-8 of each, and sums in another order.
            apart = ((got.float() - out.float()).norm() / out.float().norm()).item()
            if not apart < 2**-8:
                sys.exit(f"{layout} {m}x{n}x{k}: the two sides differ by {apart}")
    return dict(smolten_us=[ours for ours, _ in times], torch_us=[theirs for _, theirs in times], versions=versions(torch))


def trl(model, data, rows, grad_accum, length, warmup, steps, threads, autocast=True, optim="adamw_8bit", lora=0):
    """SFTTrainer's steps on the first rows of a prompt/response file: bf16 autocast or fp32; adamw_8bit of bitsandbytes; with
    `lora` PEFT's adapters of this rank on all projections."""
    import bitsandbytes
    import smollm2
    import torch
    import transformers
    import trl
    from datasets import Dataset
    from reference_trl import read_rows

    class Clock(transformers.TrainerCallback):
        def __init__(self):
            self.starts, self.ends, self.losses, self.tokens = [], [], [], []

        def on_step_begin(self, *_, **__):
            self.starts.append(time.perf_counter())

        def on_step_end(self, *_, **__):
            self.ends.append(time.perf_counter())

        def on_log(self, *_, logs=None, **__):
            if "loss" in logs:
                self.losses.append(logs["loss"])
                self.tokens.append(logs["num_tokens"])

    packages, adapters = [torch, transformers, trl, bitsandbytes], None
    if lora:
        import peft

        adapters = peft.LoraConfig(r=lora, lora_alpha=lora, target_modules="all-linear", task_type="CAUSAL_LM")
        packages.append(peft)
    torch.set_num_threads(threads)
    clock, count = Clock(), (warmup + steps) * rows * grad_accum
    with tempfile.TemporaryDirectory() as scratch:
        config = trl.SFTConfig(
            output_dir=scratch, per_device_train_batch_size=rows, gradient_accumulation_steps=grad_accum,
            max_length=length, learning_rate=2e-4, warmup_steps=0, max_steps=warmup + steps, weight_decay=0.01,
            lr_scheduler_type="constant", optim=optim, max_grad_norm=1.0, bf16=autocast, use_cpu=True,
            gradient_checkpointing=False, completion_only_loss=True, train_sampling_strategy="sequential",
            logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = trl.SFTTrainer(
            model=smollm2.load_model(Path(model)), args=config, train_dataset=Dataset.from_list(read_rows(Path(data), count)),
            processing_class=smollm2.load_tokenizer(Path(model)), callbacks=[clock], peft_config=adapters,
        )  # fmt: skip
        trainer.train()
        optimizer = type(trainer.optimizer.optimizer if hasattr(trainer.optimizer, "optimizer") else trainer.optimizer)
    tokens = [int(b - a) for a, b in zip([0, *clock.tokens], clock.tokens)]
    seconds = [end - start for start, end in zip(clock.starts, clock.ends)]
    return dict(seconds=seconds[warmup:], tokens=tokens[warmup:], losses=clock.losses[warmup:],
                peak_memory_bytes=peak_bytes(), optimizer=f"{optimizer.__module__}.{optimizer.__name__}",
                versions=versions(*packages))  # fmt: skip


def decode(model, prompt_ids, new, threads):
    """Tokens per second of llama.cpp, greedy, from the first new token to the last; it does not stop at an end.

    Without its AMX buffers: with them 0.3.36 dies of an illegal instruction on prompts of several tokens of Q8_0. They
    serve prompts, not single tokens."""
    import llama_cpp

    defaults = llama_cpp.llama_model_default_params

    def plain():
        parameters = defaults()
        parameters.use_extra_bufts = False
        return parameters

    llama_cpp.llama_cpp.llama_model_default_params = plain
    llm = llama_cpp.Llama(model, n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False)
    at = []
    for _ in llm.generate(prompt_ids, temp=0.0):
        at.append(time.perf_counter())
        if len(at) == new:
            break
    return dict(tokens_per_second=(new - 1) / (at[-1] - at[0]), versions=versions(llama_cpp))


if __name__ == "__main__":
    answer = {f.__name__: f for f in (step, products, trl, decode)}[sys.argv[1]](**json.loads(sys.argv[2]))
    print(json.dumps(answer))
