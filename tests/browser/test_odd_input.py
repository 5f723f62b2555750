"""Prompts and checkpoints that are not what one expects: every view still says something sensible."""

import pytest
from playwright.sync_api import expect

from .test_explore import read_tokens, run, shown
from .waiting import settled


def choose(page, checkpoint):
    page.get_by_role("combobox", name="Checkpoint").click()
    page.get_by_role("option", name=checkpoint).click()
    settled(page)


@pytest.mark.parametrize(
    "name, text", [("everything", "cat"), ("nothing", "the cat sat on the mat"), ("no-levels", "cat")]
)
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
        expect(page.get_by_role("heading", name="Level by level")).to_have_count(0)
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


def test_control_characters_and_markup_are_text(page):
    dialogs = []
    page.on("dialog", lambda dialog: dialogs.append(dialog.dismiss()))
    for text in (
        "\x1b[31mred\x1b[0m and \x07 bell",
        "null \x00 byte",
        "x" * 300 + "y" * 100,
        "</textarea><script>alert(1)</script>",
        r"$$\frac{1}{2}$$ \href{javascript:alert(1)}{x} ![i](http://x/y.png)",
    ):
        run(page, text)
        expect(page.locator(".routing .text")).to_have_js_property("textContent", text)
        settled(page)
        assert page.locator("script", has_text="alert(1)").count() == 0
        assert page.locator(".katex").count() == 0
        assert not dialogs


def test_a_word_of_ten_thousand_characters(page):
    choose(page, "long")
    run(page, "w" * 10_000)
    page.get_by_text("at most 8,192 fit here").wait_for()
    page.get_by_role("button", name="Run the first 8,192").click()
    view = page.locator(".routing .text")
    page.get_by_test_id("stMetricValue").filter(has_text="8,192").wait_for()
    settled(page)
    assert len(view.text_content()) == 8192
    assert view.evaluate("e => e.scrollWidth <= e.clientWidth")
