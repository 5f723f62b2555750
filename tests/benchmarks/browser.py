"""How fast the page is in a real Chromium: a run's trace on screen, clicks, hovering, scrolling, bytes and memory.

    python -m tests.benchmarks.browser --out assets/benchmarks

The model is random and narrow, but has the demo's 30 blocks and three levels of width: what is measured is the page.
"""

import argparse
import json
import random
import re
import sys
import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
from playwright.sync_api import Page, sync_playwright
from transformers import PreTrainedTokenizerFast

from analysis.cost.page import listed
from analysis.cost.sweep import machine
from subllm.checkpoints.dense import routing_off
from subllm.convert.scorers import calibrate, fit_scorers
from tests.browser.server import FLAGS, executable, serve
from tests.conftest import byte_tokenizer, tiny_model

LENGTHS = (512, 2048, 8192, 32768)
_STRUCTURE = "TTTTTT(TTTT(TTTTTT)TTTT)TTTTTTTTTT"
_WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "then",
    "dog",
    "saw",
    "that",
    "moon",
    "over",
    "hills",
    "by",
    "night",
]
_ENDED = re.compile(r"^([\d-]+ [\d:]+,\d+) DEBUG app.engine.runs: a trace ", re.MULTILINE)  # line of the log
_PARTS = "[...document.querySelectorAll('[data-testid=stBidiComponentIsolated]')]"
_VIEW = f"{_PARTS}.map((part) => part.shadowRoot).find((root) => root?.querySelector('.routing'))?.querySelector"

# Date.now() of the first frame after the view shows so many characters
_WATCH = f"""(length) => {{
    window.visibleAt = new Promise((found) => {{
        const look = () => {{
            if ({_VIEW}('.text')?.textContent.length === length) afterFrame(() => found(Date.now()));
            else setTimeout(look, 4);
        }};
        look();
    }});
}}"""
_HELPERS = """
window.afterFrame = (done) => requestAnimationFrame(() => {
    const channel = new MessageChannel();  // its message comes once the frame is painted
    channel.port1.onmessage = done;
    channel.port2.postMessage(0);
});
// Milliseconds from the start of a frame, in which `act` is done, until it is painted.
window.frameCost = (act) => new Promise((found) => requestAnimationFrame(() => {
    const start = performance.now();
    act();
    const channel = new MessageChannel();
    channel.port1.onmessage = () => found(performance.now() - start);
    channel.port2.postMessage(0);
}));
"""
_HOVER = f"""async () => {{
    const cells = {_VIEW}('.cells');
    const box = cells.getBoundingClientRect();
    const costs = [];
    for (let i = 1; i <= 40; i++) costs.push(await frameCost(() => cells.dispatchEvent(new MouseEvent('mousemove', {{
        clientX: box.left + (box.width * i) / 41, clientY: box.top + 20, bubbles: true,
    }}))));
    return costs;
}}"""
_SCROLL = f"""async () => {{
    const text = {_VIEW}('.text');
    const costs = [];
    for (let i = 0; i < 40; i++) costs.push(await frameCost(() => (text.scrollTop += 120)));
    return costs;
}}"""
_CLICK = f"""async ([x, y]) => {{
    const cells = {_VIEW}('.cells');
    const box = cells.getBoundingClientRect();
    const at = {{ clientX: box.left + box.width * x, clientY: box.top + box.height * y, bubbles: true }};
    const press = () => ['mousedown', 'click'].forEach((kind) => cells.dispatchEvent(new MouseEvent(kind, at)));
    return await frameCost(press);
}}"""


def make_checkpoint(folder: Path, positions: int) -> PreTrainedTokenizerFast:
    """Write a random checkpoint with the demo's structure; its tokenizer.

    Args:
        folder: to write to.
        positions: longest prompt.
    """
    tokenizer = byte_tokenizer()
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": len(tokenizer)}
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    model = tiny_model(_STRUCTURE, max_position_embeddings=positions, retention_ratio=0.64, **sizes, **ends)
    text = torch.tensor(tokenizer(make_text(tokenizer, 2048))["input_ids"])[None]
    batches = [text]
    calibrate(model, fit_scorers(model, routing_off(model), batches), batches)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_text(tokenizer: PreTrainedTokenizerFast, tokens: int, seed: int = 0) -> str:
    """Text of exactly so many tokens.

    Args:
        tokenizer: that counts them.
        tokens: wanted.
        seed: gives other words.
    """
    chooser = random.Random(f"{tokens} {seed}")
    text = " ".join(chooser.choice(_WORDS) for _ in range(tokens))
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    return text[: offsets[tokens - 1][1]]


def run_prompt(page: Page, address: str, text: str, checkpoint: str) -> None:
    """Open the page and run a prompt, without comparison and continuation.

    Args:
        page: a new one.
        address: of the app.
        text: of the prompt.
        checkpoint: to choose.
    """
    page.goto(address)
    page.get_by_role("button", name="Run", exact=True).wait_for()
    page.get_by_role("combobox", name="Checkpoint").click()
    page.get_by_role("option", name=checkpoint).click()
    page.get_by_role("slider", name="New tokens to generate").press("Home")
    page.get_by_text("Compare with the dense model").click()
    area = page.get_by_label("Prompt", exact=True)
    area.fill(text)
    area.press("Control+Enter")
    page.wait_for_timeout(1000)  # the server has taken the text
    page.evaluate(_WATCH, len(text))
    page.get_by_role("button", name="Run", exact=True).click()


def measure(new_page: Callable[[], Page], address: str, texts: list[str], log: Path) -> dict[str, list[float]]:
    """One prompt length: milliseconds, bytes and MiB, of every prompt.

    Args:
        new_page: opens a page in a browser that knows nothing yet.
        address: of the app.
        texts: prompts, none of which was run before: the app keeps traces.
        log: of the server, which says when the forward ended.
    """
    found: dict[str, list[float]] = {
        name: [] for name in ("visible", "bytes", "click", "page", "hover", "scroll", "heap")
    }
    for text in texts:
        page = new_page()
        page.add_init_script(_HELPERS)
        received = [0]

        def count(payload: Any, received: list[int] = received) -> None:
            received[0] += len(payload)

        page.on("websocket", lambda socket, count=count: socket.on("framereceived", count))
        ended_before = len(_ENDED.findall(log.read_text()))
        run_prompt(page, address, text, "bench")
        before = received[0]
        visible = page.evaluate("visibleAt")
        found["bytes"].append(received[0] - before)
        ended = _ENDED.findall(log.read_text())[ended_before]
        found["visible"].append(visible - 1000 * datetime.strptime(ended, "%Y-%m-%d %H:%M:%S,%f").timestamp())
        page.wait_for_timeout(1500)  # what the page draws besides is there
        found["hover"] += page.evaluate(_HOVER)
        found["scroll"] += page.evaluate(_SCROLL)
        for share in (0.2, 0.5, 0.8):
            found["click"].append(page.evaluate(_CLICK, [share, 0.3]))
            page.wait_for_timeout(300)
        start = page.evaluate("Date.now()")
        page.evaluate(_CLICK, [0.35, 0.6])
        token = page.evaluate(f"{_VIEW}('.token').textContent.match(/Token ([\\d,]+)/)[1]")
        page.get_by_role("button", name=f"Follow token {token} ").wait_for()
        found["page"].append(page.evaluate("Date.now()") - start)
        session = page.context.new_cdp_session(page)
        session.send("HeapProfiler.collectGarbage")
        found["heap"].append(page.evaluate("performance.memory.usedJSHeapSize") / 2**20)
        page.context.close()
    return found


def tables_folder(text: str) -> Path:
    """A folder for tables, as an option names it; made before anything is measured."""
    path = Path(text)
    path.mkdir(parents=True, exist_ok=True)
    return path


def cell(values: list[float], digits: int = 0) -> str:
    """Median, least and most.

    Args:
        values: measured.
        digits: after the point.
    """
    return f"{median(values):,.{digits}f} ({min(values):,.{digits}f} – {max(values):,.{digits}f})"


def report(rows: dict[int, dict[str, list[float]]], facts: dict[str, str]) -> str:
    """Markdown table of what was measured.

    Args:
        rows: of `measure`, by tokens.
        facts: about the machine.
    """
    blocks = _STRUCTURE.count("T")

    lines = [
        "| prompt tokens | trace to visible, ms | received, KiB | bytes per token and block | click to panel, ms "
        "| click to page, ms | hover to painted, ms | scroll to painted, ms | JavaScript heap, MiB |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for tokens, row in rows.items():
        lines.append(
            f"| {tokens:,} | {cell(row['visible'])} | {median(row['bytes']) / 1024:,.0f} "
            f"| {median(row['bytes']) / tokens / blocks:.1f} | {cell(row['click'], 1)} | {cell(row['page'])} "
            f"| {cell(row['hover'], 1)} | {cell(row['scroll'], 1)} | {cell(row['heap'])} |"
        )
    table = "\n".join(lines)
    return f"""# The page in a browser

Measured by `make bench` in headless Chromium on the machine that also runs the app: medians (least – most). "Trace to
visible" is from the end of the forward pass on the server to the first painted frame with the whole prompt. "Click to
panel" is the main thread's work until the frame with the token's numbers is painted; "click to page" until what Python
draws about the token is there. Hover and scroll are the main thread's work for one frame.

{table}

{listed(facts)}
"""


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.browser", description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), help="prompt lengths, in tokens")
    parser.add_argument("--repeats", type=int, default=3, help="how often the page is opened per length")
    parser.add_argument("--out", type=tables_folder, help="folder for the table and the JSON file")
    arguments = parser.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        tokenizer = make_checkpoint(Path(folder) / "roots" / "bench", max(arguments.lengths))
        chromium = playwright.chromium.launch(executable_path=executable(), args=FLAGS)
        log = Path(folder) / "log"
        variables = {
            "SUBLLM_ROOTS": f"{folder}/roots",
            "SUBLLM_HOME": f"{folder}/home",
            "SUBLLM_MAX_TOKENS": str(max(arguments.lengths)),
            "SUBLLM_MAX_SECONDS": "1200",
            "SUBLLM_LOG_LEVEL": "DEBUG",
        }

        def new_page() -> Page:
            page = chromium.new_context(viewport={"width": 1400, "height": 1000}).new_page()
            page.set_default_timeout(600_000)
            return page

        with serve(log, variables) as address:
            for length in arguments.lengths:
                texts = [make_text(tokenizer, length, seed) for seed in range(arguments.repeats)]
                rows[length] = measure(new_page, address, texts, log)
                print(f"{length}: visible after {median(rows[length]['visible']):.0f} ms", file=sys.stderr)  # noqa: T201
        version = chromium.version
        chromium.close()
    facts = machine(torch.device("cpu")) | {"browser": f"Chromium {version}", "repeats": str(arguments.repeats)}
    text = report(rows, facts)
    print(text)  # noqa: T201
    if arguments.out:
        (arguments.out / "browser.md").write_text(text)
        (arguments.out / "browser.json").write_text(json.dumps({"facts": facts, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
