"""Long prompts: read in the same page, shown while the run goes on, stopped when one wants."""

import re

import pytest
from playwright.sync_api import expect

from tests.benchmarks.browser import make_text
from tests.conftest import byte_tokenizer

from .test_explore import run, shown
from .test_odd_input import choose
from .waiting import settled


@pytest.fixture
def long_page(page):
    """A page with the checkpoint for 8,192 tokens, and no comparison."""
    choose(page, "long")
    page.get_by_text("Compare with the dense model").click()
    return page


def test_8192_tokens_are_shown_found_and_walked(long_page, pictures):
    page = long_page
    text = make_text(byte_tokenizer(), 8192)
    run(page, text)
    view = shown(page, text[:200])
    page.get_by_test_id("stMetricValue").filter(has_text="8,192").wait_for()
    assert view.text_content() == text
    painted = "() => [...CSS.highlights.values()].reduce((n, h) => n + h.size, 0)"
    at_top = page.evaluate(painted)
    assert 0 < at_top < 4000, "tokens out of view are coloured"
    view.press("End")
    assert "Token 8,191 " in page.get_by_role("status").filter(has_text="Token").inner_text()
    assert view.evaluate("e => e.scrollTop + e.clientHeight >= e.scrollHeight - 60")
    last = """() => Math.max(...[...CSS.highlights.values()].flatMap((h) => [...h]).map(
        (r) => [...r.startContainer.parentElement.parentElement.children].indexOf(r.startContainer.parentElement)))"""
    pieces = page.locator(".routing .body span").count()
    assert page.evaluate(last) == pieces - 1, "the end of the text is in view but not coloured"
    for _ in range(4):
        page.get_by_role("button", name="Zoom in").click()
    page.locator(".routing .mini").wait_for(state="visible")
    view.scroll_into_view_if_needed()
    page.screenshot(path=pictures / "8192.png")


def test_the_first_stage_is_shown_while_the_rest_is_made_and_can_be_stopped(page):
    choose(page, "long")
    slider = page.get_by_role("slider", name="New tokens to generate")
    slider.press("End")
    text = make_text(byte_tokenizer(), 3000)
    run(page, text)
    shown(page, text[:200], whole=False)
    page.get_by_text(re.compile("New tokens generated|Measuring|Timing|Comparing")).wait_for()
    stop = page.get_by_role("button", name="Stop", exact=True)
    stop.click()
    page.get_by_role("heading", name="Time, memory and agreement").wait_for()
    page.get_by_text("Nothing was measured").wait_for()
    shown(page, text[:200])
    expect(stop).to_have_count(0)
    expect(page.get_by_text("was interrupted")).to_have_count(0)


def test_a_change_that_interrupts_a_run_is_said_until_another_run(page):
    choose(page, "long")
    text = make_text(byte_tokenizer(), 3000)
    run(page, text)
    shown(page, text[:200], whole=False)
    page.get_by_text(re.compile("New tokens generated|Measuring|Timing|Comparing")).wait_for()
    page.get_by_text("Compare with the dense model").click()
    said = page.get_by_text("The computation was interrupted because the page was changed or left.")
    said.wait_for()
    settled(page)
    page.get_by_role("link", name="Efficiency").click()
    page.get_by_role("heading", name="How much do the dropped tokens save?").wait_for()
    expect(said).to_have_count(0)  # it is of Explore
    page.get_by_role("link", name="Explore").click()
    said.wait_for()
    page.get_by_role("button", name="Run", exact=True).click()
    expect(said).to_have_count(0)
    shown(page, text[:200])
    expect(said).to_have_count(0)


def test_a_prediction_is_read_off_after_every_block(page):
    text = "the cat sat on the mat"
    run(page, text)
    shown(page, text)
    page.get_by_role("button", name="Show what each block would predict").click()
    page.wait_for_url("**/*colour=confidence*")
    assert page.get_by_label("Colour by").input_value() == "confidence"
    cells = page.locator(".routing .cells")
    cells.focus()
    for key in ("Home", "ArrowDown", "ArrowDown"):
        cells.press(key)
    said = page.get_by_role("status").filter(has_text="Token 0 ").inner_text()
    assert re.search(r"block 1: processed, .*confidence after the block 0\.\d+", said)
    assert page.get_by_role("button", name="Show what each block would predict").count() == 0


def test_the_lane_selects_tokens_too(page):
    text = "the cat sat on the mat"
    run(page, text)
    shown(page, text)
    points = page.locator(".routing .points")
    box = points.bounding_box()
    points.click(position={"x": box["width"] - 3, "y": 20})
    assert "Token 5 " in page.get_by_role("status").filter(has_text="Token").inner_text()
    drawn = "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((v) => v)"
    assert points.evaluate(drawn)
