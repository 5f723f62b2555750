"""How fast the debugger is: an edit until its result is on screen, attribution, and writing in the app.

    python -m tests.benchmarks.debug --out assets/benchmarks

The model is the demo checkpoint; the page runs in a real Chromium on the machine that also runs the app.
"""

import argparse
import re
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from playwright.sync_api import Page, sync_playwright

from analysis.cost.benchmark_text import prompt_of
from analysis.cost.measure import peak_bytes
from analysis.cost.page import listed
from analysis.cost.sweep import machine
from analysis.debug.attribution import attribute
from analysis.debug.attribution_methods import Method
from analysis.debug.generation import Generation
from analysis.debug.target import Held, Question, Target
from analysis.trace.parts import Prompt
from analysis.trace.tokenize import read_prompt
from app.strings import table
from subllm.checkpoints.load import Checkpoint, load_checkpoint
from subllm.demo import build_demo
from tests.benchmarks.browser import cell, tables_folder
from tests.browser.server import FLAGS, executable, serve

_EDITED, _EXPLAINED, _CONTINUED, _WRITTEN = 2048, 512, 512, 100  # tokens

# Presses a button, and waits for the first frame in which the divergence after the prompt is another one.
_EDIT = """async ([name, caption]) => {
    const captions = () => [...document.querySelectorAll('[data-testid=stCaptionContainer]')];
    const divergence = () => captions().find((each) => each.textContent.includes(caption))?.textContent;
    const before = divergence();
    const buttons = [...document.querySelectorAll('button')].filter((each) => each.offsetParent);
    const started = performance.now();
    buttons.find((each) => each.innerText.includes(name)).click();
    while (divergence() === before) {
        if (performance.now() - started > 120000) throw new Error(`nothing changed after ${name}`);
        await new Promise((go) => setTimeout(go, 4));
    }
    await new Promise((go) => requestAnimationFrame(() => setTimeout(go, 0)));
    return performance.now() - started;
}"""
_WRITE = """async (count) => {
    const button = [...document.querySelectorAll('button')].find((each) => each.innerText.includes('Continue'));
    const started = performance.now();
    button.click();
    const written = () => [...document.querySelectorAll('[data-testid=stCaptionContainer]')].some(
        (each) => each.textContent.startsWith(`${count} tokens, `));
    while (!written()) {
        if (performance.now() - started > 120000) throw new Error('nothing was written');
        await new Promise((go) => setTimeout(go, 4));
    }
    return (performance.now() - started) / 1000;
}"""


def explain(checkpoint: Checkpoint) -> list[str]:
    """Rows of the table of attribution methods.

    Args:
        checkpoint: whose innermost score of a token is explained.
    """
    model = checkpoint.model
    ids = prompt_of(checkpoint, _EXPLAINED)[:, :_EXPLAINED]
    with torch.inference_mode():
        routing = model(ids, use_cache=False, output_routing=True).routing
    reached = routing[-1].reached[0].nonzero()
    question = Question(int(reached[-1]), level=len(routing))
    target = Target(model, ids[0].numpy(), question, Held.KEPT)
    with torch.inference_mode():
        forward = peak_bytes(lambda: target(target.embeddings), model.device)
    rows = []
    for method in Method:
        seconds = attribute(model, ids[0].numpy(), question, method).seconds
        peak = attribute(model, ids[0].numpy(), question, method, measure_memory=True).peak_bytes
        rows.append(f"| {method} | {seconds:,.1f} | {peak / 2**20:,.0f} | {peak / forward:.1f} |")
        print(rows[-1], file=sys.stderr)  # noqa: T201
    return rows


def plain_rate(checkpoint: Checkpoint, prompt: Prompt) -> float:
    """Tokens per second of `generate`, without the reading of the prompt."""
    took, ids = [], torch.tensor(prompt.token_ids)[None]
    for count in (1, _WRITTEN + 1):
        started = time.perf_counter()
        checkpoint.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count, do_sample=False
        )
        took.append(time.perf_counter() - started)
    return _WRITTEN / (took[1] - took[0])


def bare_rate(checkpoint: Checkpoint, prompt: Prompt) -> float:
    """Tokens per second of what the page uses, without the page."""
    text = Generation(checkpoint.model, prompt)
    started = time.perf_counter()
    while len(text.tokens) < _WRITTEN and not text.finished:
        text.step()
    return len(text.tokens) / (time.perf_counter() - started)


def open_prompt(page: Page, address: str, text: str) -> None:
    """Read a prompt on the page for debugging.

    Args:
        page: a new one.
        address: of the app.
        text: of the prompt.
    """
    page.goto(address)
    page.get_by_role("link", name="Debug").click()
    page.get_by_role("heading", name="Why was this token").wait_for()
    area = page.get_by_role("textbox", name="Prompt")
    area.fill(text)
    area.press("Control+Enter")
    page.wait_for_timeout(1000)  # the server has taken the text
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Other tokens whose decision changed: 0").wait_for()
    page.wait_for_timeout(3000)


def edit(page: Page, repeats: int) -> dict[str, list[float]]:
    """Milliseconds from a press until the result is seen, of the layers that ran again, and of the whole prompt.

    Args:
        page: with a prompt read.
        repeats: edits.
    """
    found: dict[str, list[float]] = {"visible": [], "again": [], "whole": []}
    caption = table("en")["whatif_next"].partition("{")[0].strip()
    for repeat in range(repeats):
        box = page.locator(".text .body").last.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + 40, box["y"] + 10 + 27 * repeat)
        page.mouse.down()
        page.mouse.move(box["x"] + 300, box["y"] + 10 + 27 * repeat, steps=4)
        page.mouse.up()
        page.get_by_role("button", name=re.compile(r"Drop \([1-9]")).wait_for()
        page.get_by_text("was computed again").wait_for()
        page.wait_for_timeout(5000)  # what follows the selection is drawn
        found["visible"].append(page.evaluate(_EDIT, ["Drop (", caption]))
        page.wait_for_timeout(8000)  # the numbers at every position are there
        note = page.get_by_text("was computed again").inner_text()
        again, whole = re.findall(r"([\d,]+) ms", note)
        found["again"].append(float(again.replace(",", "")))
        found["whole"].append(float(whole.replace(",", "")))
    return found


def page_rate(page: Page) -> float:
    """Tokens per second of writing on the page, from the press until the last token is shown."""
    page.get_by_role("tab", name="Step by step").click()
    page.get_by_role("button", name="One token").wait_for()
    many = page.get_by_role("spinbutton", name="Tokens per click")
    many.fill(str(_WRITTEN))
    many.press("Enter")
    page.wait_for_timeout(2000)
    taken = page.evaluate(_WRITE, _WRITTEN)
    page.wait_for_timeout(3000)
    page.get_by_role("button", name="Start over").click()
    page.wait_for_timeout(3000)
    return _WRITTEN / taken


def in_browser(checkpoint: Checkpoint, repeats: int) -> tuple[dict[str, list[float]], dict[str, list[float]], int, str]:
    """Edits, and rates of writing alternately with and without the page.

    Args:
        checkpoint: the demo.
        repeats: of each.

    Returns:
        Of `edit`, the rates by name, tokens of the edited prompt, Chromium's version.
    """
    rates: dict[str, list[float]] = {"generate": [], "step": [], "page": []}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable(), args=FLAGS)
        with serve(Path(folder) / "log", {}) as address:

            def read(tokens: int) -> tuple[Page, Prompt]:
                text = checkpoint.tokenizer.decode(prompt_of(checkpoint, tokens)[0, :tokens])
                page = chromium.new_context(viewport={"width": 1300, "height": 2400}).new_page()
                page.set_default_timeout(120_000)
                open_prompt(page, address, text)
                return page, read_prompt(text, checkpoint.tokenizer, checkpoint.model.config.max_position_embeddings)

            page, prompt = read(_EDITED)
            edited = edit(page, repeats)
            page.context.close()
            length = len(prompt)
            page, prompt = read(_CONTINUED)
            for _ in range(repeats):
                rates["generate"].append(plain_rate(checkpoint, prompt))
                rates["step"].append(bare_rate(checkpoint, prompt))
                rates["page"].append(page_rate(page))
        version = chromium.version
        chromium.close()
    return edited, rates, length, version


def report(
    methods: list[str],
    edited: dict[str, list[float]],
    rates: dict[str, list[float]],
    length: int,
    facts: dict[str, Any],
) -> str:
    """Markdown of what was measured.

    Args:
        methods: rows of `explain`.
        edited: of `edit`.
        rates: tokens per second, by what wrote them.
        length: tokens of the edited prompt.
        facts: about the machine.
    """
    visible, again = np.median(edited["visible"]), np.median(edited["again"])
    rows = [
        f"| {name} | {cell(values, 1)} | {median(values) / median(rates['generate']):.2f} |"
        for name, values in rates.items()
    ]
    return f"""# The debugger

Measured by `make bench` with the demo checkpoint, in headless Chromium on the machine that also runs the app: medians
(least – most).

## An edit of {length:,} tokens until its result is seen

From the press of "Drop" to the first frame with the new prediction, next to the layers that had to run again (from the
edited level on) and to the whole prompt.

| press to visible, ms | layers run again, ms | whole prompt, ms | visible - 1.2 × layers, ms |
| ---: | ---: | ---: | ---: |
| {cell(edited["visible"])} | {cell(edited["again"])} | {cell(edited["whole"])} | {visible - 1.2 * again:,.0f} |

## Attribution of an innermost score over {_EXPLAINED} tokens

One run each. Peak memory is of tensors beyond the weights; beside it as a multiple of that of one forward up to the
score, without gradients.

| method | seconds | peak, MiB | × forward |
| --- | ---: | ---: | ---: |
{chr(10).join(methods)}

## Writing {_WRITTEN} tokens after {_CONTINUED}

`generate` is transformers' own, greedy, without the reading of the prompt; "step" is what the page uses, alone; "page"
is from the press until the last token is shown.

| by | tokens per second | of `generate` |
| --- | ---: | ---: |
{chr(10).join(rows)}

{listed(facts)}
"""


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.debug", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="of every measurement")
    parser.add_argument("--out", type=tables_folder, help="folder for the table")
    arguments = parser.parse_args()
    checkpoint = load_checkpoint(build_demo(), "cpu", "float32")
    edited, rates, length, version = in_browser(checkpoint, arguments.repeats)
    print(edited, rates, file=sys.stderr)  # noqa: T201
    methods = explain(checkpoint)
    facts = machine(torch.device("cpu")) | {"browser": f"Chromium {version}", "repeats": str(arguments.repeats)}
    text = report(methods, edited, rates, length, facts)
    print(text)  # noqa: T201
    if arguments.out:
        (arguments.out / "debug.md").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
