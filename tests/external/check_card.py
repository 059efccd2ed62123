#!/usr/bin/env python3
"""The model card of a run as huggingface_hub and a Markdown parser read it, and its example run as it stands.

    check_card.py --smolten BINARY --model FILE.gguf

Rows, prompts and file names hold what breaks Markdown. Resumed and edited cards too.
"""

import argparse
import contextlib
import io
import json
import os
import pathlib
import subprocess
import tempfile
import tomllib
import unicodedata

import markdown_it
from huggingface_hub import ModelCard

PROMPT = 'Say:\n```\n---\n# No heading\n| a | b |\n````\n<b>"\\"</b>'


def train(args, folder, out, more):
    rows = folder / "ro`ws`|#.jsonl"
    line = lambda i: json.dumps({"prompt": f"{PROMPT} {i}", "response": f"````\n## {i}\n```"}) + "\n"
    rows.write_text("".join(map(line, range(20))))
    flags = f"--steps 30 --lr 1e-2 --device cpu --set eval_share=0.2 --set sample_every=10".split()
    sets = ["--set", "sample_prompt=" + json.dumps(PROMPT), "--set", "system=" + json.dumps("Be `brief`.")]
    command = [args.smolten, "train", "--model", args.model, "--data", str(rows), "--out", str(out), *flags, *sets, *more]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout


def records(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def check(out, folder):
    card = ModelCard.load(out / "README.md")
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "text-generation", card.data
    assert card.data.tags == ["smolten", "sft"], card.data.tags
    assert str(folder) not in card.content and os.path.expanduser("~") not in card.content, "a path of this machine"
    tokens = markdown_it.MarkdownIt().enable("table").parse(card.text)
    headings = [tokens[i + 1] for i, t in enumerate(tokens) if t.type == "heading_open"]
    titles = [h.content for h in headings[1:]]
    assert titles == ["Results", "Before and after", "Data", "Training", "Use", "Limits"], titles
    assert [t.tag for t in tokens if t.type == "heading_open"] == ["h1"] + ["h2"] * 6
    assert sum(t.type == "table_open" for t in tokens) == 1 and not any(t.type == "hr" for t in tokens)
    html = [t.content for t in tokens if t.type == "html_block"]
    assert len(html) == 1 and html[0].startswith("<!-- written by smolten"), html
    fences = [(t.info, t.content) for t in tokens if t.type == "fence"]
    assert [info for info, _ in fences] == ["text"] * 3 + ["toml", "python"], fences
    samples = [r for r in records(out) if "sample" in r]
    texts = [samples[0]["sample_prompt"], samples[0]["sample"], samples[-1]["sample"]]
    shown = lambda text: "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc").rstrip()
    assert [content.rstrip() for _, content in fences[:3]] == [shown(text) for text in texts], (fences[:3], texts)
    evaluations = [r for r in records(out) if "eval_loss" in r]
    assert f"| {evaluations[0]['eval_loss']:.4f} | {evaluations[-1]['eval_loss']:.4f} |" in card.text
    record = json.loads((out / "run.json").read_text())
    assert record["data"]["sha256"][0] in card.text and f"{record['data']['audit']['rows']} rows" in card.text
    recipe = tomllib.loads(fences[3][1])
    for key, value in recipe.items():
        assert key in ("model", "data") or value == record["recipe"][key], (key, value)
    return card, fences[4][1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smolten", required=True)
    parser.add_argument("--model", required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        out = folder / "run"
        screen = train(args, folder, out, [])
        assert "model card: " in screen, screen
        card, python = check(out, folder)
        assert "base_model" not in card.data.to_dict() and "license" not in card.data.to_dict(), "what is not known is left out"

        # The example, as somebody would paste it, beside smolten's own answer.
        os.chdir(out)
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(python, "README.md", "exec"), {})  # noqa: S102
        generate = [args.smolten, "generate", "--model", ".", "--prompt", PROMPT, "--system", "Be `brief`."]
        own = subprocess.run(generate + "--temperature 0 --max-new-tokens 128 --device cpu --precision fp32 --json".split(), capture_output=True, check=True)
        assert said.getvalue().rstrip("\n") == json.loads(own.stdout)["text"].rstrip("\n"), (said.getvalue(), own.stdout)

        # A base model with a card of its own; an edited card.
        base = folder / "base"
        subprocess.run([args.smolten, "export", "--model", args.model, "--out", base, "--format", "hf"], check=True, stdout=subprocess.DEVNULL)
        (base / "README.md").write_text("---\nlicense: other\nlicense_name: tiny-1.0\nlicense_link: LICENSE\n---\n# Tiny\n")
        args.model = str(base)
        kept = folder / "kept"
        kept.mkdir()
        (kept / "README.md").write_text("# Mine\n")
        screen = train(args, folder, kept, [])
        assert (kept / "README.md").read_text() == "# Mine\n" and "it stays as it is" in screen, screen
        licensed = folder / "licensed"
        train(args, folder, licensed, [])
        card, _ = check(licensed, folder)
        assert (card.data.license, card.data.license_name, card.data.license_link) == ("other", "tiny-1.0", "LICENSE"), card.data
    print("model card: loads in huggingface_hub, nothing breaks out of it, its example runs, its figures are the run's; an edited one stays")


if __name__ == "__main__":
    main()
