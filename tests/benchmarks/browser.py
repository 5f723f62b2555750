"""How fast the page is in a real Chromium, without the model: traces that were made before are shown again.

    python -m tests.benchmarks.browser --out assets/benchmarks

A random 30-block model reads two prompts of every length. Then the page switches between them: from the click to the
painted text and map. Click, hover and scroll are measured inside of the browser, bytes on its websocket.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from playwright.sync_api import Page, sync_playwright

from tests.browser.server import FLAGS, serve
from tests.conftest import byte_tokenizer, tiny_model

LENGTHS = (512, 2048, 8192, 32768)
BLOCKS = 30
_STRUCTURE = "TTTTTT(TTTT(TTTTTT)TTTT)TTTTTTTTTT"
_REPEATS = 5
_PART = """window.part = (name) => [...document.querySelectorAll('*')]
    .map((element) => element.shadowRoot?.querySelector(`.routing ${name}`)).find(Boolean);"""
_PAINTED = """(text) => new Promise((done) => {
    const begin = performance.now();
    const look = () => {
        const view = window.part('.text');
        if (view?.textContent.startsWith(text)) {
            requestAnimationFrame(() => setTimeout(() => done(performance.now() - begin)));
        } else requestAnimationFrame(look);
    };
    look();
})"""
_FRAMES = """async () => {
    const view = window.part('.text');
    const times = [];
    let last = await new Promise(requestAnimationFrame);
    for (let i = 0; i < 30; i++) {
        view.scrollTop += 40;
        const now = await new Promise(requestAnimationFrame);
        times.push(now - last);
        last = now;
    }
    return times.sort((a, b) => a - b)[15];
}"""
_EVENT = """async ([kind, share]) => {
    const cells = window.part('.cells');
    const box = cells.getBoundingClientRect();
    const options = { clientX: box.left + share * box.width, clientY: box.top + 20, bubbles: true };
    await new Promise(requestAnimationFrame);
    const begin = performance.now();
    if (kind === 'click') cells.dispatchEvent(new MouseEvent('mousedown', options));
    cells.dispatchEvent(new MouseEvent(kind, options));
    const handled = performance.now() - begin;
    await new Promise(requestAnimationFrame);
    return handled;
}"""


def measure(page: Page, length: int, received: list[int]) -> dict[str, float]:
    """Run two prompts of a length, then switch between them and use the page."""
    prompts = [f"{word} " * (length // 2) for word in ("cat the", "dog the")]
    for prompt in prompts:
        page.get_by_label("Prompt", exact=True).fill(prompt)
        page.get_by_label("Prompt", exact=True).press("Control+Enter")
        page.get_by_role("button", name="Run").click()
        page.evaluate(_PAINTED, prompt[:20])
    tokens = int(page.locator("[data-testid=stMetricValue]").first.inner_text().split()[0].replace(",", ""))
    times, sizes = [], []
    for repeat in range(_REPEATS):
        prompt = prompts[repeat % 2]
        page.get_by_role("combobox", name="Earlier runs of this session").click()
        option = page.get_by_role("option", name=prompt.strip()[:30]).first
        option.wait_for()
        received.clear()
        option.click(no_wait_after=True)
        times.append(page.evaluate(_PAINTED, prompt[:20]))
        sizes.append(sum(received))
    return {
        "tokens": tokens,
        "visible_seconds": median(times) / 1000,
        "visible_spread": max(times) / min(times),
        "bytes_per_token_and_block": median(sizes) / tokens / BLOCKS,
        "click_ms": median(page.evaluate(_EVENT, ["click", 0.1 + 0.15 * i]) for i in range(_REPEATS)),
        "hover_ms": median(page.evaluate(_EVENT, ["mousemove", 0.07 + 0.15 * i]) for i in range(_REPEATS)),
        "scroll_frame_ms": page.evaluate(_FRAMES),
        "heap_mb": page.evaluate("() => performance.memory.usedJSHeapSize / 1e6"),
    }


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        tokenizer = byte_tokenizer()
        fields = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
        tiny_model(_STRUCTURE, max_position_embeddings=max(arguments.lengths) * 2, **fields).save_pretrained(
            root / "tiny"
        )
        tokenizer.save_pretrained(root / "tiny")
        variables = {"SUBLLM_ROOTS": str(root), "SUBLLM_HOME": str(root / "home"), "SUBLLM_MAX_TOKENS": "70000"}
        address = stack.enter_context(serve(root / "log", variables))
        playwright = stack.enter_context(sync_playwright())
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        stack.callback(chromium.close)
        rows = []
        for length in arguments.lengths:
            page = chromium.new_page(viewport={"width": 1300, "height": 1000})
            page.set_default_timeout(600_000)
            page.add_init_script(_PART)
            received: list[int] = []
            page.on("websocket", lambda ws, seen=received: ws.on("framereceived", lambda data: seen.append(len(data))))
            page.goto(f"{address}/?checkpoint=tiny&prompt=the+cat")
            page.evaluate(_PAINTED, "the cat")
            page.get_by_text("Measure against the dense model").click()
            rows.append(measure(page, length, received))
            print(json.dumps(rows[-1]), file=sys.stderr)  # noqa: T201
            page.close()
        version = chromium.version
    facts = {"browser": f"Chromium {version}, headless", "cores": os.cpu_count(), "python": platform.python_version()}
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "browser.json").write_text(json.dumps({"facts": facts, "rows": rows}, indent=1) + "\n")
    (arguments.out / "browser.md").write_text(report(facts, rows))
    return 0


def report(facts: dict[str, object], rows: list[dict[str, float]]) -> str:
    """Markdown of what was measured."""
    lines = [
        "# The page in the browser",
        "",
        "Measured by `make bench` in a real Chromium. Visible: from choosing an earlier run to its painted text and",
        "map. Click and hover: until the handlers are done; the next frame shows it.",
        "",
        "| prompt tokens | visible, s (spread) | bytes per token and block | click, ms | hover, ms | scroll frame, ms "
        "| heap, MB |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row['tokens']:,} | {row['visible_seconds']:.2f} ({row['visible_spread']:.2f}) "
        f"| {row['bytes_per_token_and_block']:.1f} | {row['click_ms']:.1f} | {row['hover_ms']:.1f} "
        f"| {row['scroll_frame_ms']:.1f} | {row['heap_mb']:.0f} |"
        for row in rows
    ]
    return "\n".join([*lines, "", *(f"- {key}: {value}" for key, value in facts.items()), ""])


if __name__ == "__main__":
    started = time.monotonic()
    code = main()
    print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)  # noqa: T201
    sys.exit(code)
