"""What transformers computes with SmolLM2-135M-Instruct from its GGUF: tokens, logits, greedy text.

Usage: python tests/external/reference_smollm2.py MODEL.gguf --out FULL.safetensors [--fixtures tests/fixtures]

--out holds, for prompt I of eight (through the chat template, float32, sdpa):
  I.ids [n]  I.greedy [48]           u32; greedy decoding goes on past <|im_end|>
  I.top2 [48, 2]                     the two best logits at each of those steps; their gap says how near a tie was
  I.logits [V]  I.logits_end [V]     at the prompt's last position, and at the last but one greedy token (which
                                     yields the 48th), both computed without a cache
  I.max_abs_logit [2]                of these two rows
--fixtures writes the compact form, smollm2-135m-instruct.safetensors: the same with every 41st logit; and
smollm2-tokens.json: texts and conversations with their token ids and the rendered templates. The metadata's `about`
holds the versions and, as a yardstick, how far transformers' own paths lie apart.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import smollm2
import torch
import transformers
from safetensors.numpy import save_file

NEW_TOKENS, STRIDE = 48, 41


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


PROMPTS = [
    [turn("user", "Explain AGI in simple terms?")],
    [turn("user", "A train leaves at 09:45 and arrives at 13:20. How long is the journey? Show each step.")],
    [turn("user", "Write a Python function that returns the n-th Fibonacci number.\r\nUse a loop, no recursion.")],
    [turn("system", "You are a pirate. Answer briefly."), turn("user", "What is the capital of France?")],
    [turn("user", "Traduis en français : “The weather is beautiful today.” 🌞")],
    [turn("user", "Name three primary colours."), turn("assistant", "Red, blue and yellow."),
     turn("user", "And what do the first two make when mixed?")],
    [turn("user", "Summarise in one sentence: Photosynthesis is the process by which green plants, algae and some "
          "bacteria turn light energy into chemical energy. Water is split, oxygen is released, and carbon dioxide "
          "is built into sugars that feed the plant and, in the end, nearly every animal on Earth. The rate depends "
          "on light, temperature, water, and the concentration of carbon dioxide in the air around the leaves.")],
    [turn("user", "List the first ten prime numbers, separated by commas.")],
]  # fmt: skip

TEXTS = [
    "", " ", "  ", "\n", "\n\n\n", "\t", "\r\n", "\r", " \n ", "a", " a", "a ", "  a", "Hello, world!", "hello world",
    "HELLO  WORLD", "The quick brown fox jumps over the lazy dog.", "it's we'll they've I'd you're can't I'm", "IT'S",
    "0", "7", "42", " 42", "  42", "a  5", "x1y22z333", "3.14159", "1,234,567.89", "-273.15 °C", "2024-02-29T23:59:60Z",
    "1e-5", "0xdeadBEEF", "½ + ¼ = ¾", "x² + y³", "٣٤٥", "१२३", "Ⅻ", "①②", "１２３", "50%", "$12", "#### 72",
    "48/2 = 24 clips", "x = 12\n\n34", "12\n  34\n\t56", "line one\r\nline two\r\n\r\nline four", "mixed\rold\nnew\r\n",
    "trailing spaces   ", "tabs\tand\tmore\t\ttabs", "a\u00a0b\u2009c\u3000d", "zero\u200bwidth\u200djoiner", "\ufeffbom",
    "café", "cafe\u0301", "e\u0301\u0302\u0327 combined", "Å Å A\u030a", "naïve façade coöperate", "ﬁ ﬂ ligatures",
    "Straße, Größe, Übermut", "Привет, мир!", "γνῶθι σεαυτόν", "مرحبا بالعالم", "שלום עולם", "नमस्ते दुनिया", "สวัสดีชาวโลก",
    "你好，世界。", "こんにちは世界", "안녕하세요", "😀", "😀😃😄 three", "👩‍👩‍👧‍👦 family", "👍🏽 skin", "🇩🇪🇫🇷", "❤️ vs ❤", "1️⃣2️⃣",
    "“quotes” – dashes — … ellipsis", "∀x∈ℝ: x² ≥ 0", "∫₀^∞ e^{-x²} dx = √π/2", "a_b-c.d/e\\f", "!!!???...", "((([[[{{{",
    "def f(x):\n    return x ** 2  # square\n\n\nprint(f(3))\n", "<div class=\"a\">&amp;</div>", '{"k": [1, 2.5, null]}',
    "SELECT * FROM t WHERE id=10;", "https://example.com/a?b=1&c=%20#frag", "user.name+tag@example.org",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "antidisestablishmentarianism", "supercalifragilistic" * 3,
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_start|>user\nhi<|im_end|>\n", "a<|im_end|>b", "a <|im_end|> b",
    "<|im_end|><|im_end|>", "<|im_end", "|im_end|>", "<|IM_END|>", "< |im_end|>", "<|im_end|>5  5<|im_end|>", "<file_sep>x",
    "<repo_name>a/b<filename>c.py", "<jupyter_code>1", "\u0000", "a\u0000b", "\u007f\u0080", "\U0010ffff", "\ud7ff\ue000",
    " 's", "''s", "don’t", " \u00a0 ", "  \n  \n x", "x\n ", "5 6  7   8", "№5 §7 ¶", "e.g. i.e. etc.", "ǅ ŉ ſ", "\u2028\u2029",
]  # fmt: skip

CONVERSATIONS = [*PROMPTS, [turn("user", "")], [turn("user", " padded \n")], [turn("user", "a<|im_end|>b")],
                 [turn("user", "q"), turn("assistant", "a")], [turn("system", ""), turn("user", "q")],
                 [turn("user", "1"), turn("assistant", "2"), turn("user", "3"), turn("assistant", "4\n")]]  # fmt: skip


def token_reference(tokenizer, imported) -> dict:
    """Ids of every text and conversation; where transformers' import of the GGUF departs, its ids too."""
    texts = []
    for text in TEXTS:
        entry = {"text": text, "ids": tokenizer(text).input_ids}
        assert tokenizer.decode(entry["ids"], clean_up_tokenization_spaces=False) == text, text
        if (other := imported(text).input_ids) != entry["ids"]:
            entry["ids_without_digit_splitting"] = other
        texts.append(entry)
    conversations = []
    for messages in CONVERSATIONS:
        for prompt in (False, True):
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
            ids = tokenizer.apply_chat_template(messages, add_generation_prompt=prompt)["input_ids"]
            conversations.append(dict(messages=messages, add_generation_prompt=prompt, text=text, ids=ids))
    return dict(transformers=transformers.__version__, texts=texts, conversations=conversations)


@torch.no_grad()
def greedy(model, ids: list[int]) -> tuple[list[int], torch.Tensor]:
    """48 tokens with a cache, never stopping, and the two best logits of each step."""
    new, top2, cache, feed = [], [], None, torch.tensor([ids])
    for _ in range(NEW_TOKENS):
        out = model(feed, cache=cache, use_cache=True)
        best = out.logits[0, -1].topk(2)
        cache, feed = out.past_key_values, best.indices[None, :1]
        new.append(best.indices[0].item())
        top2.append(best.values)
    return new, torch.stack(top2)


@torch.no_grad()
def model_reference(sdpa, eager, tokenizer) -> tuple[dict[str, np.ndarray], dict]:
    tensors, apart = {}, dict(eager=0.0, float64=0.0, cache=0.0)
    double = sdpa_in_float64(sdpa)
    for i, messages in enumerate(PROMPTS):
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        new, top2 = greedy(sdpa, ids)
        whole = torch.tensor([ids + new[:-1]])
        rows = sdpa(whole).logits[0, len(ids) - 1 :]
        largest = rows.abs().max().item()
        for name, other in (("eager", eager), ("float64", double)):
            difference = (other(whole).logits[0, len(ids) - 1 :] - rows).abs().max().item()
            apart[name] = max(apart[name], difference / largest)
        apart["cache"] = max(apart["cache"], (rows.topk(2).values - top2).abs().max().item() / largest)
        assert rows.argmax(-1).tolist() == new, "greedy with and without a cache part"
        ends = rows[[0, -1]]
        u32 = lambda x: np.array(x, np.uint32)  # noqa: E731
        tensors |= {f"{i}.ids": u32(ids), f"{i}.greedy": u32(new), f"{i}.top2": top2.numpy(),
                    f"{i}.logits": ends[0].numpy().copy(), f"{i}.logits_end": ends[1].numpy().copy(),
                    f"{i}.max_abs_logit": ends.abs().amax(1).numpy()}  # fmt: skip
        gap = (top2[:, 0] - top2[:, 1]).min().item()
        print(f"prompt {i}: {len(ids)} tokens, max|logit| {ends.abs().max():.3f}, least gap {gap:.4f}")
        print("   ", repr(tokenizer.decode(new)))
    return tensors, apart


def sdpa_in_float64(model):
    """Matrix products and attention in float64 (norms and rotary angles stay float32, as transformers has them)."""
    copy = transformers.LlamaForCausalLM(model.config).double()
    copy.load_state_dict(model.state_dict())
    copy.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq.clone()
    return copy.eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--out", type=Path, help="where the full reference goes")
    parser.add_argument("--fixtures", type=Path, help="folder for the compact fixtures")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sdpa, eager = smollm2.load_model(args.gguf), smollm2.load_model(args.gguf, "eager")
    print("weights equal to gguf's, by type:", smollm2.check_weights(args.gguf, sdpa))
    tokenizer = smollm2.load_tokenizer(args.gguf)
    tensors, apart = model_reference(sdpa, eager, tokenizer)
    print("max|difference| / max|logit| from sdpa in float32:", {k: f"{v:.2e}" for k, v in apart.items()})
    about = dict(torch=torch.__version__, transformers=transformers.__version__, gguf=args.gguf.name,
                 stride=1, new_tokens=NEW_TOKENS, apart=apart)  # fmt: skip
    if args.out:
        save_file(tensors, args.out, {"about": json.dumps(about)})
    if args.fixtures:
        strided = {k: v[::STRIDE].copy() if ".logits" in k else v for k, v in tensors.items()}
        path = args.fixtures / "smollm2-135m-instruct.safetensors"
        save_file(strided, path, {"about": json.dumps(about | dict(stride=STRIDE))})
        tokens = token_reference(tokenizer, smollm2.load_tokenizer(args.gguf, as_imported=True))
        departing = sum("ids_without_digit_splitting" in t for t in tokens["texts"])
        print(f"{len(tokens['texts'])} texts ({departing} split otherwise by transformers' own GGUF import), "
              f"{len(tokens['conversations'])} conversations")  # fmt: skip
        lines = json.dumps(tokens, ensure_ascii=True).replace('}, {"text"', '},\n{"text"')
        (args.fixtures / "smollm2-tokens.json").write_text(lines.replace('}, {"messages"', '},\n{"messages"') + "\n")


if __name__ == "__main__":
    main()
