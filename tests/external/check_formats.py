#!/usr/bin/env python3
"""Formats against transformers: token ids, chat templates, saved folders, dequantised weights.

    check_formats.py tokens    --gguf FILE [--write]     compares (or writes) tests/fixtures/tokens.json
    check_formats.py templates --gguf FILE [--write]     compares (or writes) tests/fixtures/templates.json
    check_formats.py folder    --gguf FILE --saved DIR   loads the folders that tests/real_model_formats.rs saved

The tokenizer of reference is the published tokenizer.json of SmolLM2. transformers' own GGUF loader cannot serve: it
ignores `tokenizer.ggml.pre`, so it does not split digits and gives other ids for "a  1". The file is built again here
from the GGUF's lists, and its SHA-256 must be that of the published file.
"""

import argparse
import hashlib
import json
import pathlib
import random
import sys
import tempfile

import gguf
import numpy
import transformers

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from chat_templates import CONVERSATIONS, TEMPLATES

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures"
PUBLISHED_SHA256 = "9ca9acddb6525a194ec8ac7a87f24fbba7232a9a15ffa1af0c1224fcd888e47c"

TEXTS = [
    "", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\r", "\t", "\t\t x", " \n \n ", "a", " a", "a ", "  a  ",
    "Hello, world!", "It's they're I'm we've he'll she'd IT'S", "0", "1234567890", "a  1", "a 12 b", "  12  34  ",
    "3.14159 1,000,000 1e-5 0x1F 2nd 10%", "x²+y³ ½ ⅷ ٣٤ ४५ 五 ①", "v1.2.3-rc4", "2024-05-17T10:00:00Z",
    "CamelCaseIdentifier snake_case_name kebab-case", "https://example.org/a?b=c&d=%20#e", "a\u00a0b\u2003c\u3000d\u200bzw",
    "😀 👍🏽 👨\u200d👩\u200d👧\u200d👦 🇩🇪 ❤️ 🏴\u200d☠️", "e\u0301 n\u0303 a\u030a\u0323 Z\u0351\u036b\u0343", "é ñ å Å",
    "日本語のテキスト", "中文字符,标点。", "한국어 문장", "Привет, мир", "שלום עולם", "مرحبا بالعالم", "ไทย", "नमस्ते",
    "\ufeffBOM", "\u202eRTL\u202c", "\x00\x01\x1b[0m\x7f", "\ud7ff\ue000\ufffd\uffff", "\U0010ffff\U0001f9ff",
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "a<|im_end|>b", " <|im_start|> user", "<|im_start|>user\nHi<|im_end|>\n",
    "<|im_start|><|im_start|>", "<|im_start", "|im_end|>", "<| im_end |>", "<|IM_END|>", "<repo_name>x<file_sep>",
    "<issue_start><issue_comment><issue_closed>", "<jupyter_code>1+1<jupyter_output>2<empty_output>", "<s></s><unk><pad>",
    "def f(x):\n    return x ** 2  # square\n", "\tif (a && b) {\r\n\t\treturn;\r\n\t}\r\n", "SELECT * FROM t WHERE a='b';",
    "{\"key\": [1, 2.5, null], \"s\": \"\\u00e9\"}", "<html><body class='x'>&nbsp;</body></html>", "\\frac{a}{b} $x_1^2$ \\[ \\]",
    "| a | b |\n|---|---|\n| 1 | 2 |", "- item\n  - nested\n\n1. one\n2. two", "```rust\nfn main() {}\n```",
    "!!!???...,,,;;;:::---___===+++***///", "(((([[[[{{{{}}}}]]]])))) \"\" '' ``", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    " " * 37, "x" + " " * 64 + "y", "\n" * 19, "\t" * 11 + "z", " \t \t \n\t ", "word\n\n\n\nword", "end of line   \nnext",
    "supercalifragilisticexpialidocious antidisestablishmentarianism", "ALL CAPS TEXT WITH 42 NUMBERS", "mIxEd CaSe",
    "Ünïcödé façade œuvre straße İstanbul ǅ ﬁ", "“quotes” ‘single’ – — … • ™ ® © € £ ¥", "∑∫√∞≠≤≥ αβγ → ⇒ ∀x∈ℝ", "♠♥♦♣ ★☆ ✓✗",
    "Explain AGI in simple terms?", "What is the capital of France? The capital of France is Paris.",
    "Let's think step by step: first 7*8=56, then 56-6=50; so the answer is 50.", "0.1+0.2=0.30000000000000004",
    "line one\nline two\r\nline three\rline four\x0bline five\x0cline six\x85seven\u2028eight\u2029nine",
]


def published_tokenizer(path):
    """The published tokenizer.json, built from the GGUF's lists; checked by its hash."""
    fields = gguf.GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    document = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": i, "content": t, **flags} for i, t in enumerate(tokens) if types[i] == 3],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, level]},
        "post_processor": None,
        "decoder": {**level, "add_prefix_space": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": fields["tokenizer.ggml.merges"].contents(),
        },
    }
    text = json.dumps(document, indent=2, ensure_ascii=False)
    found = hashlib.sha256(text.encode()).hexdigest()
    assert found == PUBLISHED_SHA256, f"tokenizer.json hashes to {found}, published is {PUBLISHED_SHA256}"
    return text


def load_tokenizer(path, **tokens):
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "tokenizer.json"
        file.write_text(published_tokenizer(path), encoding="utf-8")
        return transformers.PreTrainedTokenizerFast(tokenizer_file=str(file), **tokens)


def random_texts(count):
    """Mixtures of scripts, spaces, digits and special tokens; seeded."""
    rng = random.Random(3407)
    alphabets = [
        "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJ", "0123456789", " ", " ", "\n\t\r", ".,;:!?'\"()-", "äöüßéèñçøå",
        "αβγδεζηθ", "абвгдежз", "日本語中文字符", "한국어문장", "אבגדה", "ابتثج", "😀😁🎉👍🏽\u200d\ufe0f", "\u0301\u0308\u0323", "²½Ⅷ٣४",
        "\u00a0\u2003\u200b\u3000", "∑→€™", "\x00\x7f\x85\ufffd",
    ]
    specials = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<file_sep>", "'s", "'LL", "  "]
    texts = []
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(1, 12)):
            if rng.random() < 0.15:
                parts.append(rng.choice(specials))
            else:
                alphabet = rng.choice(alphabets)
                parts.append("".join(rng.choice(alphabet) for _ in range(rng.randint(1, 9))))
        texts.append("".join(parts))
    return texts


def token_cases(path):
    tokenizer = load_tokenizer(path)
    encode = [
        {"text": text, "ids": tokenizer(text, add_special_tokens=True)["input_ids"]} for text in TEXTS + random_texts(150)
    ]
    rng = random.Random(3408)
    decode = []
    for _ in range(60):
        # Any ids at all: most pieces of characters are not UTF-8.
        limit = rng.choice([300, 2000, 49152])
        ids = [rng.randrange(limit) for _ in range(rng.randint(0, 20))]
        decode.append({
            "ids": ids,
            "text": tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False),
            "without_special": tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False),
        })
    return {"versions": versions(), "tokenizer_sha256": PUBLISHED_SHA256, "encode": encode, "decode": decode}


def template_cases(path):
    own = gguf.GGUFReader(path).fields["tokenizer.chat_template"].contents()
    templates = {"smollm2": (own, "<|im_start|>", "<|im_end|>"), **TEMPLATES}
    written = []
    for name, (source, bos, eos) in templates.items():
        tokens = {key: token for key, token in (("bos_token", bos), ("eos_token", eos)) if token}
        tokenizer = load_tokenizer(path, **tokens)
        cases = []
        for messages in CONVERSATIONS:
            for prompt in (False, True):
                case = {"messages": messages, "add_generation_prompt": prompt}
                try:
                    case["text"] = tokenizer.apply_chat_template(
                        messages, chat_template=source, tokenize=False, add_generation_prompt=prompt
                    )
                except Exception as error:  # any failure of the template is a result
                    case["error"] = str(error)
                cases.append(case)
        written.append({"name": name, "template": source, "bos": bos, "eos": eos, "cases": cases})
    return {"versions": versions(), "templates": written}


def versions():
    return {"transformers": transformers.__version__, "tokenizers": __import__("tokenizers").__version__}


def fixture(name, content, write):
    file = FIXTURES / name
    text = json.dumps(content, indent=1, ensure_ascii=True) + "\n"
    if write:
        file.write_text(text)
        print(f"wrote {file} ({len(text)} bytes)")
        return
    stored = json.loads(file.read_text())
    stored.pop("versions")
    content.pop("versions")
    assert stored == content, f"{file} is not what this transformers gives; write it again and look at the difference"
    print(f"{file.name}: equal to transformers {transformers.__version__}")


def llama_rows(array, heads):
    """Undoes the interleaving of q and k, by reshaping rather than by row numbers."""
    rows, cols = array.shape
    return array.reshape(heads, rows // heads // 2, 2, cols).swapaxes(1, 2).reshape(rows, cols)


def reference_weights(path):
    """All tensors under their Hugging Face names, dequantised by the gguf package."""
    reader = gguf.GGUFReader(path)
    heads = {key: reader.fields[f"llama.attention.{key}"].contents() for key in ("head_count", "head_count_kv")}
    parts = {
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    }
    for tensor in reader.tensors:
        array = gguf.dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)
        if tensor.name == "token_embd.weight":
            name = "model.embed_tokens.weight"
        elif tensor.name == "output_norm.weight":
            name = "model.norm.weight"
        else:
            _, layer, part, _ = tensor.name.split(".")
            name = f"model.layers.{layer}.{parts[part]}.weight"
            if part == "attn_q":
                array = llama_rows(array, heads["head_count"])
            if part == "attn_k":
                array = llama_rows(array, heads["head_count_kv"])
        yield name, array


def check_folder(path, saved):
    import torch

    published = json.loads(published_tokenizer(path))
    published["model"]["merges"] = [merge.split(" ") for merge in published["model"]["merges"]]
    for kind, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16), ("f16", torch.float16)):
        folder = pathlib.Path(saved) / kind
        loader = transformers.AutoModelForCausalLM
        model, info = loader.from_pretrained(folder, dtype="auto", output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
        assert model.dtype == dtype, (model.dtype, dtype)
        state = model.state_dict()
        assert state["lm_head.weight"].data_ptr() == state["model.embed_tokens.weight"].data_ptr()
        count = 0
        for name, array in reference_weights(path):
            want = torch.from_numpy(array).to(dtype)
            assert torch.equal(state[name].view(torch.uint8), want.view(torch.uint8)), f"{kind}: {name} differs"
            count += 1
        assert count == len(state) - 1, (count, len(state))
        assert model.config.rope_parameters["rope_theta"] == 100000.0, model.config.rope_parameters
        assert model.config.rms_norm_eps == 1e-5
        assert model.generation_config.eos_token_id == 2, model.generation_config
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
        stored = json.loads((folder / "tokenizer.json").read_text())
        assert stored == published, "tokenizer.json differs from the published one"
        assert len(tokenizer) == 49152, len(tokenizer)
        tokens = json.loads((FIXTURES / "tokens.json").read_text())
        for case in tokens["encode"]:
            assert tokenizer(case["text"])["input_ids"] == case["ids"], case
        templates = json.loads((FIXTURES / "templates.json").read_text())["templates"]
        for case in next(t for t in templates if t["name"] == "smollm2")["cases"]:
            text = tokenizer.apply_chat_template(
                case["messages"], tokenize=False, add_generation_prompt=case["add_generation_prompt"]
            )
            assert text == case["text"], case
        print(f"{folder}: {count} tensors equal in every bit, {len(tokens['encode'])} texts, template")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["tokens", "templates", "folder"])
    parser.add_argument("--gguf", required=True, help="SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--saved", help="folder with f32/, bf16/ and f16/")
    parser.add_argument("--write", action="store_true", help="write the fixture instead of comparing")
    arguments = parser.parse_args()
    if arguments.what == "tokens":
        fixture("tokens.json", token_cases(arguments.gguf), arguments.write)
    elif arguments.what == "templates":
        fixture("templates.json", template_cases(arguments.gguf), arguments.write)
    else:
        check_folder(arguments.gguf, arguments.saved)


if __name__ == "__main__":
    main()
