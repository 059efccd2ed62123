#!/usr/bin/env python3
"""The greedy text of llama.cpp on GGUF files that smolten exported, against smolten's own on the same files.

    check_llama.py --smolten BINARY --exports DIR        DIR holds f32.gguf and f16.gguf (check_gguf.py wrote them)

For each file and prompt: the tokens of the prompt after the file's chat template, and 32 new ones. Both take fp32 for
activations and cache where they can (llama.cpp rounds activations to fp16 before it multiplies them with an F16 matrix).
Where the texts part, the two best logits of llama.cpp at that place must lie within the rounding that the types allow,
and the parting is printed; smolten's token must be one of the two. The tokens of the whole texts of tests/fixtures are
compared too: a wrong name of the splitting rule shows there.
"""

import argparse
import json
import pathlib
import subprocess

import llama_cpp
import numpy

PROMPTS = [
    "Explain AGI in simple terms?", "What is the capital of France?", "Write a haiku about the sea.",
    "Add 1234 and 4321, step by step.", "Wie heißt die Hauptstadt von Österreich?",
]
NEW = 32
# Share of the largest logit by which two good computations may differ: fp32 paths lie 3e-6 apart; fp16 rounds each
# activation by up to 2^-11, and 30 layers of it add up to some of these.
TIE = {"f32": 1e-5, "f16": 4e-3}


class Model:
    """One file in llama.cpp, with fp32 cache and one sequence."""

    def __init__(self, path):
        llama_cpp.llama_log_set(SILENT, None)
        parameters = llama_cpp.llama_model_default_params()
        parameters.use_mmap = True
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        assert self.model, f"llama.cpp does not load {path}"
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = 512
        parameters.n_threads = parameters.n_threads_batch = 2
        parameters.type_k = parameters.type_v = llama_cpp.GGML_TYPE_F32
        self.context = llama_cpp.llama_init_from_model(self.model, parameters)

    def tokens(self, text):
        data = text.encode()
        out = (llama_cpp.llama_token * (len(data) + 8))()
        n = llama_cpp.llama_tokenize(self.vocab, data, len(data), out, len(out), True, True)
        assert n >= 0
        return list(out[:n])

    def logits(self, ids, past):
        """The logits after `ids`, which follow `past` tokens that were given before."""
        if past == 0:
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        array = (llama_cpp.llama_token * len(ids))(*ids)
        batch = llama_cpp.llama_batch_get_one(array, len(ids))
        assert llama_cpp.llama_decode(self.context, batch) == 0
        width = llama_cpp.llama_vocab_n_tokens(self.vocab)
        return numpy.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self.context, -1), (width,)).copy()


@llama_cpp.llama_log_callback
def SILENT(level, text, data):
    pass


def smolten(binary, path, prompt):
    command = [binary, "generate", "--model", str(path), "--prompt", prompt, "--max-new-tokens", str(NEW), "--json", "--device", "cpu"]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


def check(model, answer, kind):
    """Follows smolten's text token by token; gives how often llama.cpp would have taken another."""
    ids, past, ties = answer["prompt_ids"], 0, 0
    end = [] if answer["stop_reason"] == "length" else [llama_cpp.llama_vocab_eos(model.vocab)]
    for at, token in enumerate(answer["new_ids"] + end):
        logits = model.logits(ids, past)
        past, ids = past + len(ids), [token]
        assert numpy.isfinite(logits).all()
        best = int(logits.argmax())
        if best == token:
            continue
        gap, largest = float(logits[best] - logits[token]), float(abs(logits).max())
        print(f"  token {at}: llama.cpp {best}, smolten {token}; their logits lie {gap:.2e} apart, of {largest:.1f}")
        assert gap <= 2 * TIE[kind] * largest, "and that is no tie"
        ties += 1
    return ties


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smolten", required=True)
    parser.add_argument("--exports", required=True, type=pathlib.Path)
    args = parser.parse_args()
    fixture = pathlib.Path(__file__).parent.parent / "fixtures/smollm2-tokens.json"
    texts = json.loads(fixture.read_text())
    llama_cpp.llama_backend_init()
    for kind in ("f32", "f16"):
        path = args.exports / f"{kind}.gguf"
        model = Model(path)
        if kind == "f32":
            wrong = [e["text"] for e in texts["texts"] if model.tokens(e["text"]) != e["ids"]]
            assert not wrong, f"other tokens: {wrong}"
            for entry in texts["conversations"]:
                assert model.tokens(entry["text"]) == entry["ids"], entry["text"]
            print(f"tokens of {len(texts['texts'])} texts and {len(texts['conversations'])} conversations equal")
        total = ties = 0
        for prompt in PROMPTS:
            answer = smolten(args.smolten, path, prompt)
            ties += check(model, answer, kind)
            total += len(answer["new_ids"])
        equal = "the same greedy text" if ties == 0 else f"{ties} near-ties, shown above"
        print(f"{kind}: {len(PROMPTS)} prompts, {total} tokens: {equal}")


if __name__ == "__main__":
    main()
