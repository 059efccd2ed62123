"""Loads a folder that smolten saved with transformers and checks that it is the same model.

Usage: python tests/external/check_saved.py FOLDER CHECK.json [--tokens smollm2-tokens.json] [--stops-within N]

CHECK.json, written by smolten or a test:
  {"ids": [..], "logits": [[.. V ..], ..],            logits of the last rows of `ids`, one list per position
   "messages": [{"role": .., "content": ..}, ..],     and the text smolten's template makes of them, with the
   "chat_text": "..", "chat_ids": [..]}               generation prompt, and its tokens
--tokens compares the saved tokenizer with the fixture's texts and conversations too. --stops-within asks the model
itself to end its greedy reply to `messages` in so many tokens. Prints what was checked; any difference is a failure.
"""

import argparse
import json
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor  # noqa: E402
from transformers.utils import logging  # noqa: E402

logging.disable_progress_bar()
END_OF_TURN = "<|im_end|>"


class EndAfter(LogitsProcessor):
    """Forces the end of the turn as the third new token, so that stopping is tested whatever the model says."""

    def __init__(self, prompt_tokens: int, end: int):
        self.at, self.end = prompt_tokens + 2, end

    def __call__(self, ids, scores):
        scores = scores.clone()
        if ids.shape[1] == self.at:
            scores[:, self.end] = scores.max() + 1
        elif ids.shape[1] < self.at:
            scores[:, self.end] = -torch.inf
        return scores


@torch.no_grad()
def check_logits(model, check: dict):
    want = torch.tensor(check["logits"])
    got = model(torch.tensor([check["ids"]])).logits[0, -len(want) :].float()
    assert got.shape == want.shape, f"logits {tuple(got.shape)}, smolten gave {tuple(want.shape)}"
    assert torch.isfinite(got).all() and torch.isfinite(want).all()
    share = ((got - want).abs().max() / got.abs().max()).item()
    assert share <= 1e-5, f"logits differ by {share:.2e} of max|logit|"
    print(f"logits: {share:.2e} of max|logit| apart over {len(want)} positions")


def check_tokenizer(tokenizer, model, check: dict):
    end = tokenizer.convert_tokens_to_ids(END_OF_TURN)
    assert tokenizer.eos_token == END_OF_TURN, tokenizer.eos_token
    assert tokenizer.pad_token_id is not None and tokenizer.bos_token_id is not None
    for name, config in (("config", model.config), ("generation_config", model.generation_config)):
        ends = config.eos_token_id
        assert end in (ends if isinstance(ends, list) else [ends]), f"{name}: eos_token_id {ends}"
        assert config.bos_token_id == tokenizer.bos_token_id, f"{name}: bos_token_id {config.bos_token_id}"
        assert config.pad_token_id == tokenizer.pad_token_id, f"{name}: pad_token_id {config.pad_token_id}"
    text = tokenizer.apply_chat_template(check["messages"], tokenize=False, add_generation_prompt=True)
    assert text == check["chat_text"], f"chat template: {text!r}"
    ids = tokenizer.apply_chat_template(check["messages"], add_generation_prompt=True)["input_ids"]
    assert ids == check["chat_ids"], f"chat tokens: {ids}"
    print(f"chat template and tokens equal; bos {tokenizer.bos_token_id}, eos {end}, pad {tokenizer.pad_token_id}")


def check_corpus(tokenizer, path: Path):
    corpus = json.loads(path.read_text())
    for entry in corpus["texts"]:
        assert tokenizer(entry["text"]).input_ids == entry["ids"], repr(entry["text"])
        assert tokenizer.decode(entry["ids"], clean_up_tokenization_spaces=False) == entry["text"]
    for entry in corpus["conversations"]:
        prompt = entry["add_generation_prompt"]
        text = tokenizer.apply_chat_template(entry["messages"], tokenize=False, add_generation_prompt=prompt)
        ids = tokenizer.apply_chat_template(entry["messages"], add_generation_prompt=prompt)["input_ids"]
        assert (text, ids) == (entry["text"], entry["ids"]), entry["messages"]
    print(f"corpus: {len(corpus['texts'])} texts and {len(corpus['conversations'])} conversations equal")


def check_stop(tokenizer, model, check: dict, within: int | None):
    end = tokenizer.convert_tokens_to_ids(END_OF_TURN)
    prompt = torch.tensor([check["chat_ids"]])
    ask = dict(input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False)
    forced = model.generate(**ask, max_new_tokens=16, logits_processor=[EndAfter(prompt.shape[1], end)])
    new = forced[0, prompt.shape[1] :].tolist()
    assert len(new) == 3 and new[-1] == end, f"generation went on past {END_OF_TURN}: {new}"
    print("generation stops at the end of the turn")
    if within:
        new = model.generate(**ask, max_new_tokens=within)[0, prompt.shape[1] :].tolist()
        assert new[-1] == end, f"no end of turn within {within} tokens: {tokenizer.decode(new)!r}"
        print(f"the model ends its reply after {len(new)} tokens: {tokenizer.decode(new)!r}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("check", type=Path)
    parser.add_argument("--tokens", type=Path, help="tests/fixtures/smollm2-tokens.json")
    parser.add_argument("--stops-within", type=int, help="tokens the model's own reply may take")
    args = parser.parse_args()
    check = json.loads(args.check.read_text())
    tokenizer = AutoTokenizer.from_pretrained(args.folder)
    model, info = AutoModelForCausalLM.from_pretrained(args.folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), f"weights missing, unexpected or of another shape: {info}"
    model.eval()
    check_logits(model, check)
    check_tokenizer(tokenizer, model, check)
    if args.tokens:
        check_corpus(tokenizer, args.tokens)
    check_stop(tokenizer, model, check, args.stops_within)


if __name__ == "__main__":
    main()
