"""Tokens and masks of TRL's SFTTrainer against smolten's, row by row, on the real SmolLM2 tokenizer.

    python tests/external/check_encoding.py --model SmolLM2-135M-Instruct.Q4_1.gguf [--rows FILE.jsonl] [--limit N]
    python tests/external/check_encoding.py --model ... --write     # renews tests/fixtures/encoding.json

TRL prepares the rows exactly as for training, and the Rust test real_model_encoding compares. Without --rows the
rows are those below. Written with trl 1.16.0, transformers 5.24.0.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import transformers
import trl
from datasets import Dataset
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

ROOT = Path(__file__).resolve().parents[2]
FIXTURE = ROOT / "tests" / "fixtures" / "encoding.json"

PAIRS = [
    {"prompt": "What is 12 × 12?", "response": "144, since 12 × 12 = 10 × 12 + 2 × 12 = 120 + 24."},
    {"prompt": "Say hello in Japanese 🙂", "response": "こんにちは 👋🏽"},
    {"prompt": "  spaces around  ", "response": "  kept as they are  "},
    # The newlines may merge with the one that ends the generation prompt.
    {"prompt": "Begin with blank lines.", "response": "\n\nThere were two."},
    {"prompt": "line one\r\nline two", "response": "a\tb\r\n"},
    {"prompt": "Write the end token.", "response": "It is <|im_end|>, spelt out."},
    {"prompt": "Is  30% of 100  30?", "response": "Yes:  30, or 3 0  times 1."},
    {"prompt": "x", "response": "y"},
    {"prompt": "Count up to forty in words. " * 4, "response": "one two three four five six seven eight nine ten " * 4},
    {"prompt": "A prompt far longer than the limit. " * 12, "response": "lost"},
]
LISTS = [
    {
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a colour."}],
        "completion": [{"role": "assistant", "content": "Teal."}],
    },
    {
        "prompt": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello!"},
            {"role": "user", "content": "Bye"},
        ],
        "completion": [{"role": "assistant", "content": "Goodbye."}],
    },
]
TEXTS = [{"text": "Running text, no turns."}, {"text": "It ends itself.<|im_end|>"}, {"text": "long " * 100}]
# ChatML whose assistant turns are in generation tags from their first word to the newline after their end.
TAGGED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>\\n' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Tags that begin and end within tokens, twice a turn, with white space control; a turn's end is not in them.
RAGGED = """{%- for message in messages -%}
    <|im_start|>{{ message.role }}\n
    {%- if message.role == 'assistant' %} I sa
        {%- generation -%} y: {{ message.content }} an {%- endgeneration -%}
        d
        {%- generation %}{{ message.content }}{% endgeneration -%}
    {%- else %} {{ message.content }} {%- endif -%}
    <|im_end|>\n
{%- endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"""
PLAIN = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def talk(*contents, system=None):
    turns = [{"role": "user" if i % 2 == 0 else "assistant", "content": c} for i, c in enumerate(contents)]
    return {"messages": ([{"role": "system", "content": system}] if system else []) + turns}


MULTI_TURN = [
    talk("Hi", "Hello!", "What is 2 + 2?", "4.", "And 3 + 3?", "6, as 3 + 3 = 6."),
    talk("Say it in Japanese 🙂", "こんにちは 👋🏽", "Again?", "はい、こんにちは。", system="Be brief."),
    talk("a\r\nb", "c\td\r\n", "  e  ", "  f  ", "unanswered"),
    talk("It is <|im_end|>, spelt out.", "<|im_start|>user\nno<|im_end|>", "y", "z " * 30, "more", "cut off"),
]
ANSWERED = [
    {"prompt": talk("Hi", "Hello!", "Bye")["messages"], "completion": [{"role": "assistant", "content": "Bye-bye."}]},
    {
        "prompt": talk("2 + 2?", "4", "Sure?")["messages"],
        "completion": talk("Sure?", "Yes.", "Why?", "It is 1 + 1 + 1 + 1.")["messages"][1:],
    },
]
TALKS = [{"messages": row["prompt"] + row["completion"]} for row in LISTS]


def conversational(row):
    """TRL reads a pair of strings as plain text; as messages it goes through the template."""
    if "response" not in row:
        return row
    return {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "completion": [{"role": "assistant", "content": row["response"]}],
    }


def trl_examples(tokenizer, rows, loss_on, max_length, template=None):
    """What SFTTrainer would train on, with another template where one is given. The model is never run."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template or tokenizer.chat_template
    dims = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **dims))
    with tempfile.TemporaryDirectory() as out:
        completion = None if "messages" in rows[0] or "text" in rows[0] else loss_on == "completion"
        config = SFTConfig(
            output_dir=out,
            max_length=max_length,
            completion_only_loss=True if loss_on == "assistant" and "prompt" in rows[0] else completion,
            assistant_only_loss=loss_on == "assistant",
            report_to=[],
            use_cpu=True,
            bf16=False,
        )
        data = Dataset.from_list([conversational(row) for row in rows])
        trainer = SFTTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer)
        prepared = trainer.train_dataset
    examples = []
    for ids, labels in zip(prepared["input_ids"], prepared["labels"]):
        # Position 0 is never a target: the loss shifts the labels.
        supervised = [i > 0 and label != -100 for i, label in enumerate(labels)]
        examples.append({"ids": ids, "supervised": "".join("01"[s] for s in supervised)})
    return examples


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--model", type=Path, required=True)
    args.add_argument("--rows", type=Path)
    args.add_argument("--limit", type=int, default=50)
    args.add_argument("--write", action="store_true")
    args = args.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.model.parent, gguf_file=args.model.name)
    # From a GGUF file transformers builds GPT-2's splitting; SmolLM2's tokenizer.json splits off digits first.
    splitting = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splitting)
    if args.rows:
        lines = args.rows.read_text(encoding="utf-8").splitlines()[: args.limit]
        rows = [json.loads(line) for line in lines]
        sets = [(rows, "completion", 512), (rows, "all", 512), (rows, "completion", 128)]
        if "messages" in rows[0]:
            sets = [(rows, "assistant", 2048, TAGGED, TAGGED), (rows, "assistant", 512, TAGGED, PLAIN)]
    else:
        sets = [
            (PAIRS, "completion", 512),
            (PAIRS, "completion", 64),
            (PAIRS, "all", 64),
            (LISTS, "completion", 512),
            (TEXTS, "completion", 64),
            (TALKS, "all", 512),
            (MULTI_TURN, "assistant", 512, TAGGED, TAGGED),
            (MULTI_TURN, "assistant", 40, TAGGED, TAGGED),
            # Without tags the turns' boundaries mark the same tokens.
            (MULTI_TURN, "assistant", 512, TAGGED, PLAIN),
            (MULTI_TURN, "assistant", 40, TAGGED, PLAIN),
            (MULTI_TURN, "assistant", 512, RAGGED, RAGGED),
            (ANSWERED, "assistant", 512, TAGGED, TAGGED),
            (ANSWERED, "assistant", 512, TAGGED, PLAIN),
        ]
    fixture = {"trl": trl.__version__, "transformers": transformers.__version__, "sets": []}
    # A set may name the template for TRL, and the one for smolten.
    for rows, loss_on, max_length, *templates in sets:
        examples = trl_examples(tokenizer, rows, loss_on, max_length, *templates[:1])
        entry = {"loss_on": loss_on, "max_length": max_length, "rows": rows, "examples": examples}
        if templates:
            entry["template"] = templates[1]
        fixture["sets"].append(entry)
        print(f"{loss_on}, {max_length}: {len(rows)} rows, {len(examples)} examples, "
              f"{sum(len(e['ids']) for e in examples)} tokens, "
              f"{sum(e['supervised'].count('1') for e in examples)} supervised", file=sys.stderr)
    if args.write:
        text = ",\n".join(json.dumps(s, ensure_ascii=False) for s in fixture.pop("sets"))
        head = json.dumps(fixture)[:-1]
        FIXTURE.write_text(f'{head}, "sets": [\n{text}\n]}}\n', encoding="utf-8")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "encoding.json"
        path.write_text(json.dumps(fixture), encoding="utf-8")
        env = os.environ | {"SMOLTEN_TEST_MODEL": str(args.model.resolve()), "SMOLTEN_ENCODING_FIXTURE": str(path)}
        command = ["cargo", "test", "--release", "--test", "real_model_encoding", "--", "--nocapture"]
        return subprocess.run(command, cwd=ROOT, env=env).returncode


sys.exit(main())
