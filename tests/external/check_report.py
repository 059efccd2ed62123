"""The pages that smolten writes, in Chromium: those that tests/report.rs left, and one of a run made here. No error, no
request, every text as it is, light, dark and on a phone; axe finds nothing that keeps people out."""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

NAMES = ["chromium", "chromium-browser", "google-chrome"]
SIZES = {"light": (1280, 900, "light"), "dark": (1280, 900, "dark"), "phone": (390, 844, "light"), "phone-dark": (390, 844, "dark")}
BACKGROUND = {"light": "rgb(255, 255, 255)", "dark": "rgb(17, 20, 24)"}


def browser():
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    return found or sys.exit("no Chromium: install it (Debian: apt-get install chromium), or set CHROMIUM to its path")


def watched(browser, width, height, scheme):
    """A page on which errors and requests are written down."""
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    page.wrong = []
    page.on("console", lambda m: page.wrong.append(f"console: {m.text}"))
    page.on("pageerror", lambda e: page.wrong.append(f"error: {e}"))
    page.on("request", lambda r: page.wrong.append(f"request: {r.url}") if r.url != page.asked else None)
    page.on("dialog", lambda d: (page.wrong.append(f"dialog: {d.message}"), d.dismiss()))
    return context, page


def open_page(page, path):
    page.asked = path.resolve().as_uri()
    page.goto(page.asked)
    page.wait_for_load_state("networkidle")


def check_layout(page, path, size):
    width, _, scheme = SIZES[size]
    got = page.evaluate("document.scrollingElement.scrollWidth")
    assert got <= width, f"{path.name}, {size}: {got} pixels wide, and {width} are there"
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == BACKGROUND[scheme], f"{path.name}, {size}: background {background}"
    outside = page.evaluate("""() => [...document.querySelectorAll('.plot span, .figures dd, .bar span')]
        .filter(e => e.textContent.trim() && (e.getBoundingClientRect().right > innerWidth + 1 || e.getBoundingClientRect().left < 0))
        .map(e => e.textContent)""")
    assert not outside, f"{path.name}, {size}: outside of the screen: {outside}"
    overlaps = page.evaluate("""() => [...document.querySelectorAll('.plot')].flatMap(plot => {
        const of = (name) => [...plot.querySelectorAll('span.' + name)].map(e => [e.textContent, e.getBoundingClientRect()]);
        return ['x', 'y', 'end'].flatMap(name => of(name).flatMap(([a, p], i, all) => all.slice(i + 1)
            .filter(([, q]) => p.left < q.right - 1 && q.left < p.right - 1 && p.top < q.bottom - 1 && q.top < p.bottom - 1)
            .map(([b]) => `${a} over ${b}`)));
    })""")
    assert not overlaps, f"{path.name}, {size}: {overlaps}"


def check_pointer(page, path):
    """The read-out follows the pointer, and falls back."""
    for figure in page.query_selector_all("figure.chart"):
        plot, readout = figure.query_selector(".plot"), figure.query_selector(".readout")
        if not figure.query_selector("path.strong, path.thin, path.dots"):
            continue
        plot.scroll_into_view_if_needed()
        box, before = plot.bounding_box(), readout.text_content()
        page.mouse.move(box["x"] + box["width"] - 0.01, box["y"] + box["height"] / 2)
        values = json.loads(page.text_content("#values"))[figure.get_attribute("id")]
        if any(line["steps"] for line in values):
            assert "step" in readout.text_content(), f"{path.name}: {readout.text_content()}"
            step = max(line["steps"][-1] for line in values if line["steps"])
            assert f"{step:,}" in readout.text_content(), f"{path.name}: {step} is not in {readout.text_content()}"
        page.mouse.move(1, 1)
        assert readout.text_content() == before, f"{path.name}: {readout.text_content()}"


def check_texts(page, path):
    """What the run said stands there letter by letter."""
    beside = path.with_suffix(".json")
    if not beside.exists():
        return 0
    texts = json.loads(beside.read_text(encoding="utf-8"))
    shown = page.evaluate("[...document.querySelectorAll('blockquote, q')].map(e => e.textContent)")
    for text in texts:
        assert text in shown, f"{path.name}: {text!r} is not among {shown}"
    return len(texts)


def check(browser, path, shots):
    for size, (width, height, scheme) in SIZES.items():
        context, page = watched(browser, width, height, scheme)
        open_page(page, path)
        check_layout(page, path, size)
        page.screenshot(path=shots / f"{path.stem}-{size}.png", full_page=True)
        if size in ("light", "dark"):
            page.eval_on_selector_all("details", "all => all.forEach(d => d.open = true)")
            found = [f"{v['id']}: {v['nodes'][0]['html'][:200]}" for v in Axe().run(page).response["violations"]]
            assert not found, f"{path.name}, {size}: axe says {found}"
        if size == "light":
            check_pointer(page, path)
            texts = check_texts(page, path)
        assert not page.wrong, f"{path.name}, {size}: {page.wrong}"
        context.close()
    print(f"{path.name}: {len(SIZES)} sizes, {texts} texts, {path.stat().st_size // 1000} kB")


def real_run(smolten, folder, shots):
    """Two runs by the program, and their comparison."""
    root = pathlib.Path(__file__).parents[2]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rows = [{"prompt": f"What is {i} + {i}?", "response": f"It is {2 * i}."} for i in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    hostile = "</script><script>alert(1)</script> & <b>\"'"
    for name, lr in [("one", "1e-2"), ("two", "3e-3")]:
        flags = ["--steps", "30", "--lr", lr, "--device", "cpu", "--out", folder / name]
        sets = ["eval_share=0.2", "eval_every=5", "sample_every=10", f"sample_prompt={json.dumps(hostile)}"]
        model = root / "tests/fixtures/tiny-smollm.gguf"
        command = [smolten, "train", "--model", model, "--data", folder / "rows.jsonl", *flags]
        command += [word for s in sets for word in ("--set", s)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        samples = [line for line in map(json.loads, (folder / name / "metrics.jsonl").open()) if "sample" in line]
        (folder / name / "report.json").write_text(json.dumps([hostile, samples[-1]["sample"].strip() or "(an empty answer)"]))
    page = folder / "compare.html"
    subprocess.run([smolten, "compare", folder / "one", folder / "two", "--out", page], check=True, stdout=subprocess.DEVNULL)
    return [folder / "one" / "report.html", page]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smolten", required=True)
    parser.add_argument("--pages", type=pathlib.Path, required=True, help="folder that tests/report.rs wrote")
    a = parser.parse_args()
    pages = sorted(a.pages.glob("*.html"))
    assert pages, f"no page in {a.pages}: cargo test --release --test report writes them"
    shots = a.pages / "shots"
    shots.mkdir(exist_ok=True)
    pages += real_run(a.smolten, a.pages / "runs", shots)
    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=browser(), args=["--no-sandbox"])
        print(f"Chromium {chromium.version}")
        for path in pages:
            check(chromium, path, shots)
        chromium.close()


if __name__ == "__main__":
    main()
