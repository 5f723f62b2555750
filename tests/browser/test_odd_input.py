"""Prompts and checkpoints that are not what one expects: every view still says something sensible."""

from urllib.parse import urlencode

import pytest

from .test_debug import settled
from .test_explore import read_tokens, run, shown


def choose(page, checkpoint):
    settled(page)  # no person chooses twice before the page has answered once
    page.get_by_role("combobox", name="Checkpoint").click()
    page.get_by_role("option", name=checkpoint).click()
    settled(page)


@pytest.mark.parametrize("text", ["cat", "the cat sat on the mat"])
@pytest.mark.parametrize("name", ["everything", "nothing", "no-levels"])
def test_levels_that_keep_all_or_nothing_or_are_not_there(page, pictures, name, text):
    choose(page, name)
    run(page, text)
    view = shown(page, text)
    page.get_by_role("heading", name="Time, memory and agreement").wait_for()
    view.press("Home")
    status = page.get_by_role("status").filter(has_text="Token 0 ")
    found = read_tokens(page)
    if name == "no-levels":
        assert not any(found.values())
        page.get_by_text("This checkpoint has no levels").wait_for()
        assert page.get_by_role("heading", name="Level by level").count() == 0
    else:
        kept = "kept" if name == "everything" else "dropped"
        assert found[kept]
        assert not found["dropped" if kept == "kept" else "kept"]
        assert f"Level 1: {kept}" in status.inner_text()
        for tab in page.get_by_role("tab").all():
            tab.click()
            page.get_by_role("tabpanel").filter(visible=True).locator("p, table").first.wait_for()
    page.get_by_role("button", name="Follow token 0").click()
    page.get_by_text("What the model would predict from the hidden state").wait_for()
    page.screenshot(path=pictures / f"{name}.png", full_page=True)
    assert page.get_by_test_id("stException").count() == 0
    assert page.get_by_role("alert").count() == 0


@pytest.mark.parametrize(
    "text",
    [
        "\x1b[31mred\x1b[0m and \x07 bell",
        "null \x00 byte",
        "x" * 300 + "y" * 100,
        "</textarea><script>alert(1)</script>",
        r"$$\frac{1}{2}$$ \href{javascript:alert(1)}{x} ![i](http://x/y.png)",
    ],
    ids=["ansi", "nul", "one long word", "script", "latex"],
)
def test_control_characters_and_markup_are_text(page, text):
    dialogs = []
    page.on("dialog", lambda dialog: dialogs.append(dialog.dismiss()))
    run(page, text)
    view = page.locator(".routing .text")
    view.wait_for()
    page.wait_for_function("() => document.querySelector('[data-testid=stBidiComponentIsolated]')")
    page.get_by_role("heading", name="Time, memory and agreement").wait_for()
    assert view.text_content() == text
    assert page.locator("script", has_text="alert(1)").count() == 0
    assert page.locator(".katex").count() == 0
    assert not dialogs


@pytest.mark.parametrize(
    "edits",
    ["drop" + " " * 2500 + "x", "keep " + ",".join(["0-999999"] * 300) + "@0", "drop 1@" + "1" * 5000],
    ids=["spaces", "ranges", "digits"],
)
def test_a_link_with_edits_that_are_a_lot_of_work_is_refused_and_the_server_goes_on(page, server, edits):
    page.goto(f"{server}/debug?{urlencode({'prompt': 'the cat', 'edits': edits})}")
    page.get_by_role("alert").filter(has_text="The").wait_for()
    assert page.get_by_text("Something went wrong").count() == 0
    page.goto(server)
    run(page, "the cat sat")
    shown(page, "the cat sat")


def test_a_word_of_ten_thousand_characters(page):
    choose(page, "long")
    run(page, "w" * 10_000)
    page.get_by_text("at most 8,192 fit here").wait_for()
    page.get_by_role("button", name="Run the first 8,192").click()
    view = page.locator(".routing .text")
    page.get_by_test_id("stMetricValue").filter(has_text="8,192").wait_for()
    assert len(view.text_content()) == 8192
    assert view.evaluate("e => e.scrollWidth <= e.clientWidth")
