"""A person's way through the page: type a prompt, run it, read which tokens were kept and dropped."""

import pytest
from playwright.sync_api import expect

from analysis.run import RunOptions, record_trace
from analysis.trace.tokenize import read_prompt
from subllm.checkpoints.load import load_checkpoint

from .waiting import settled

HIGHLIGHTS = """() => {
    const cut = (r) => [r.startOffset, r.startContainer.data.slice(r.startOffset, r.endOffset)];
    const entries = [...CSS.highlights].filter(([, ranges]) => ranges.size);
    return Object.fromEntries(entries.map(([name, ranges]) => [name, [...ranges].map(cut)]));
}"""


def run(page, text):
    area = page.get_by_label("Prompt", exact=True)
    area.fill(text)
    area.press("Control+Enter")
    page.get_by_role("button", name="Run", exact=True).click()


def shown(page, text, whole=True):
    """Wait for the text in the view, and for the whole run: its later stages move the page."""
    view = page.locator(".routing .text")
    view.filter(has_text=text).wait_for()
    if whole:
        settled(page)
    return view


def read_tokens(page):
    """Kept and dropped tokens as the page paints them: sets of (first character, text)."""
    painted = page.evaluate(HIGHLIGHTS)
    groups = {"kept": set(), "dropped": set(), "absent": set()}
    for name, ranges in painted.items():
        kind = name.split("-")[1]
        if kind in groups:
            groups[kind] |= {tuple(entry) for entry in ranges}
    return groups


def test_no_key_is_said_to_apply_a_prompt_that_only_a_click_runs(page):
    area = page.get_by_label("Prompt", exact=True)
    area.click()
    area.press_sequentially("typed")
    hint = page.get_by_test_id("InputInstructions")
    expect(hint).to_have_count(1)
    expect(hint).to_be_hidden()


@pytest.fixture(scope="module")
def expected(tiny_checkpoint):
    """What the model did with a text, worked out without the app."""
    checkpoint = load_checkpoint(tiny_checkpoint, "cpu", "float32")

    def record(text):
        return record_trace(checkpoint, read_prompt(text, checkpoint.tokenizer, 512), RunOptions(new_tokens=0))

    return record


def tokens(trace, mask):
    text, starts, ends = trace.prompt.text, trace.prompt.starts, trace.prompt.ends
    return {(int(starts[i]), text[starts[i] : ends[i]]) for i in mask.nonzero()[0]}


def test_kept_and_dropped_tokens_are_read_from_the_page_at_every_level(page, expected):
    text = "the cat sat on the mat and then the dog sat on the cat"
    run(page, text)
    shown(page, text)
    trace = expected(text)
    buttons = page.get_by_role("radiogroup", name="Level to show").get_by_role("radio")
    for row, level in enumerate(trace.routing.levels):
        buttons.nth(row).click()
        found = read_tokens(page)
        assert found["kept"] == tokens(trace, trace.routing.kept[row])
        assert found["dropped"] == tokens(trace, trace.routing.dropped[row])
        assert found["absent"] == tokens(trace, ~trace.routing.reached[row])
        kept, reached = int(trace.routing.kept[row].sum()), int(trace.routing.reached[row].sum())
        assert f"Level {level}: {kept} of {reached} kept" in buttons.nth(row).inner_text()


def test_the_keyboard_walks_the_tokens_and_reads_their_numbers(page, expected):
    text = "the dog sat on the mat and then the cat sat"
    run(page, text)
    view = shown(page, text)
    trace = expected(text)
    view.focus()
    status = page.get_by_role("status").filter(has_text="Token")
    for index in range(4):
        view.press("ArrowRight")
        said = status.inner_text()
        assert f"Token {index} " in said
        state = "kept" if trace.routing.kept[0, index] else "dropped"
        assert f"Level 1: {state}, score {trace.routing.scores[0, index]:.3f}" in said
    view.press("End")
    assert f"Token {trace.num_tokens - 1} " in status.inner_text()


def test_a_click_on_text_and_map_selects_a_token(page, expected):
    text = "the mat sat on the cat and then the dog sat"
    run(page, text)
    view = shown(page, text)
    view.click(position={"x": 20, "y": 20})
    status = page.get_by_role("status").filter(has_text="Token")
    status.filter(has_text="Token 0 ").wait_for()
    cells = page.locator(".routing .cells")
    cells.scroll_into_view_if_needed()
    area = cells.bounding_box()
    cells.click(position={"x": area["width"] - 3, "y": 10})
    assert f"Token {expected(text).num_tokens - 1} " in status.inner_text()
    pixels = cells.evaluate("c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((v) => v)")
    assert pixels, "the map is empty"


@pytest.mark.parametrize(
    "text",
    ["<img src=x onerror=alert(1)> $x$ **b**", "مرحبا بالعالم", "emoji 🦙👨‍👩‍👧 你好", "tab\tand `code` :smile:"],
)
def test_any_text_is_shown_as_text(page, expected, text):
    dialogs = []
    page.on("dialog", lambda dialog: dialogs.append(dialog.dismiss()))
    run(page, text)
    view = shown(page, text.split()[0])
    assert view.text_content() == text
    found = read_tokens(page)
    assert page.locator("img[src=x]").count() == 0
    assert not dialogs
    assert found["kept"] | found["dropped"]


def test_bad_prompts_are_said_and_the_last_result_stays(page):
    text = "the cat and the dog"
    run(page, text)
    shown(page, text)
    run(page, "   ")
    page.get_by_text("white space only").wait_for()
    shown(page, text)
    run(page, "xyz " * 400)
    page.get_by_text("at most 512 fit here").wait_for()
    page.get_by_role("button", name="Run the first 512").click()
    page.get_by_test_id("stMetricValue").filter(has_text="512").wait_for()
    shown(page, "xyz xyz")


def test_an_example_fills_the_prompt(page):
    page.get_by_role("radio", name="Code").or_(page.get_by_role("button", name="Code", exact=True)).first.click()
    page.wait_for_function("() => [...document.querySelectorAll('textarea')].some((t) => t.value.startsWith('def '))")


def test_a_checkpoint_that_is_not_allowed_is_refused(page):
    box = page.get_by_role("combobox", name="Checkpoint")
    box.click()
    box.fill("/etc")
    box.press("Enter")
    run(page, "the cat")
    page.get_by_text("neither a folder below the configured roots").wait_for()
