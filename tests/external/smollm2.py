"""Loads SmolLM2 from its GGUF file into transformers, in float32, for the reference scripts beside this file.

Usage: python tests/external/smollm2.py MODEL.gguf        checks the import and prints what was found

Two things are verified or mended on the way, because a reference must not inherit a converter's error:
the weights equal what the `gguf` package dequantises, with llama.cpp's reordering of q and k rows undone here in
another way than transformers does it; and the pre-tokeniser is SmolLM2's (single digits, then byte-level), where
transformers' GGUF import leaves the digits out, so that "a  5" would split otherwise than in training.
"""

import argparse
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from gguf import GGUFReader, dequantize  # noqa: E402
from tokenizers import pre_tokenizers  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM  # noqa: E402

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

LAYER_NAMES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
OTHER_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def load_tokenizer(gguf: Path, as_imported: bool = False):
    """The tokenizer of the file; `as_imported` leaves transformers' pre-tokeniser as it came."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if not as_imported:
        digits = pre_tokenizers.Digits(individual_digits=True)
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    return tokenizer


def load_model(gguf: Path, attention: str = "sdpa"):
    """The model in float32, evaluation mode; `attention` is sdpa or eager.

    A plain model gets the weights: one that came from a GGUF counts as quantised, and Trainer refuses it.
    """
    imported = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    settings = imported.config.to_dict()
    settings.pop("quantization_config", None)
    config = LlamaConfig(**settings)
    config._attn_implementation = attention
    model = LlamaForCausalLM(config)
    model.load_state_dict(imported.state_dict())
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert model.config._attn_implementation == attention
    return model.eval()


def hugging_face_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    parts = name.removesuffix(".weight").split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{LAYER_NAMES[parts[2]]}.weight"
    return f"{OTHER_NAMES[parts[0]]}.weight"


def unpermuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of one head lie interleaved (0, D/2, 1, D/2 + 1, ...) in the file; back to halves, index by index."""
    per_head = rows.shape[0] // heads
    order = [h * per_head + i for h in range(heads) for i in [*range(0, per_head, 2), *range(1, per_head, 2)]]
    return rows[order]


def check_weights(gguf: Path, model) -> dict[str, int]:
    """Asserts every weight equal, bit for bit, to the `gguf` package's; returns how many tensors of each type."""
    heads = {"attn_q": model.config.num_attention_heads, "attn_k": model.config.num_key_value_heads}
    weights, types = dict(model.named_parameters()), {}
    for tensor in GGUFReader(gguf).tensors:
        want = dequantize(tensor.data, tensor.tensor_type)
        for part, count in heads.items():
            if f".{part}." in tensor.name:
                want = unpermuted(want, count)
        name = hugging_face_name(tensor.name)
        got = weights.pop(name).detach().numpy()
        assert got.shape == want.shape and (got.view(np.uint32) == want.view(np.uint32)).all(), name
        types[tensor.tensor_type.name] = types.get(tensor.tensor_type.name, 0) + 1
    assert not weights, f"not in the file: {sorted(weights)}"
    return types


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    args = parser.parse_args()
    model = load_model(args.gguf)
    print(f"{sum(p.numel() for p in model.parameters()):,} weights equal to gguf's: {check_weights(args.gguf, model)}")
    print(model.config.to_json_string())
    ours, imported = load_tokenizer(args.gguf), load_tokenizer(args.gguf, as_imported=True)
    for text in ("a  5", "x = 12\n\n34", "½ cup, ٣ eggs"):
        print(repr(text), ours(text).input_ids, "as imported:", imported(text).input_ids)


if __name__ == "__main__":
    main()
