"""The page for debugging: one journey through each of its four parts."""

import re
from urllib.parse import urlencode

import pytest

from .waiting import settled

TEXT = "the cat sat on the mat and then the dog sat on the cat"


@pytest.fixture
def debug(tab, server):
    """The page, with a prompt read."""
    tab.set_viewport_size({"width": 1300, "height": 2400})
    tab.goto(f"{server}/debug?{urlencode({'v': 2, 'checkpoint': 'tiny', 'prompt': TEXT, 'chat': 0})}")
    tab.get_by_text("No edits are in force").wait_for()
    tab.get_by_text("Other tokens whose decision changed: 0").wait_for()
    settled(tab)
    return tab


def drag(page, start, end):
    """Select from one place of the text's first line to another."""
    settled(page)
    box = page.locator(".text .body").last.bounding_box()
    page.mouse.move(box["x"] + start, box["y"] + 10)
    page.mouse.down()
    page.mouse.move(box["x"] + end, box["y"] + 10, steps=4)
    page.mouse.up()


def test_tokens_are_dropped_undone_and_restored_by_a_link(debug, browser, pictures):
    drag(debug, 10, 300)
    drop = debug.get_by_role("button", name=re.compile(r"Drop \([1-9]"))
    drop.click()
    debug.get_by_text("Edits in force", exact=True).wait_for()
    debug.get_by_text("Perplexity of the prompt").wait_for()
    debug.get_by_role("button", name="Add to Side by side").wait_for()
    debug.screenshot(path=pictures / "whatif.png")
    debug.wait_for_url(re.compile("edits=drop"))
    link = debug.url
    settled(debug)
    debug.locator(".st-key-undo button:visible").first.click()
    debug.get_by_text("No edits are in force").wait_for()
    settled(debug)
    debug.locator(".st-key-redo button:visible").first.click()
    debug.get_by_text("Edits in force", exact=True).wait_for()
    debug.get_by_role("button", name="Search Level 1").click()
    debug.get_by_text("Rank correlation").wait_for()
    other = browser.new_context()
    restored = other.new_page()
    restored.goto(link)
    restored.get_by_text("Edits in force", exact=True).wait_for()
    other.close()


def test_a_drag_that_ends_beside_the_text_selects_up_to_there(debug):
    drag(debug, 10, 150)
    debug.get_by_role("button", name=re.compile(r"Drop \([1-9]")).click()
    debug.get_by_text("Edits in force", exact=True).wait_for()
    debug.get_by_text("Perplexity of the prompt").wait_for()
    drag(debug, 10, 900)
    debug.get_by_role("button", name=f"Drop ({len(TEXT.split())})").wait_for()


def test_edits_that_cannot_be_are_said(debug):
    debug.get_by_role("combobox", name="Edit").click()
    debug.get_by_role("option", name="drop", exact=True).click()
    debug.get_by_role("textbox", name="Tokens").fill("zebras")
    debug.get_by_role("button", name="Add", exact=True).click()
    debug.get_by_role("alert").filter(has_text="names no tokens").wait_for()
    settled(debug)
    debug.get_by_role("textbox", name="Tokens").fill("words")
    debug.get_by_role("button", name="Add", exact=True).click()
    debug.get_by_role("alert").filter(has_text="no token is left in").wait_for()


def test_a_prediction_is_explained(debug, pictures):
    debug.get_by_role("tab", name="Why").click()
    debug.get_by_text("Select a token above").wait_for()
    drag(debug, 40, 40)
    debug.get_by_role("button", name="Explain").click()
    debug.get_by_text("convergence delta").wait_for()
    debug.get_by_role("combobox", name="Method").click()
    debug.get_by_role("option", name="conductance").click()
    debug.get_by_role("button", name="Explain").click()
    debug.get_by_text("What bypassed each level, and what the level added").wait_for()
    debug.get_by_role("button", name="Show the attention").click()
    debug.get_by_role("combobox", name="Heads").wait_for()
    settled(debug)
    debug.screenshot(path=pictures / "why.png")


def test_a_text_is_written_taken_back_and_branched(debug, pictures):
    debug.get_by_role("tab", name="Step by step").click()
    debug.get_by_text("Also run the dense model").click()
    debug.get_by_role("button", name="One token").click()
    debug.get_by_text(re.compile("^1 token,")).first.wait_for()
    debug.get_by_role("button", name="Start over").click()
    debug.get_by_text(re.compile("^1 token,")).first.wait_for(state="detached")
    debug.get_by_role("button", name="Continue").click()
    debug.get_by_text(re.compile("^40 tokens|The model has ended its text")).first.wait_for()
    debug.get_by_text(re.compile("They diverge at new token|Both models have generated the same")).wait_for()
    settled(debug)
    debug.screenshot(path=pictures / "steps.png")
    debug.get_by_role("button", name="Start over").click()
    debug.get_by_text(re.compile("^40 tokens")).first.wait_for(state="detached")


def test_a_run_and_its_edits_stand_side_by_side(debug, pictures):
    debug.get_by_role("combobox", name="Edit").click()
    debug.get_by_role("option", name="switch the level's routing off").click()
    settled(debug)
    debug.get_by_role("button", name="Add", exact=True).click()
    debug.get_by_role("button", name="Add to Side by side").click()
    debug.get_by_text("The edited run was added").wait_for()
    debug.get_by_role("tab", name="Side by side").click()
    debug.get_by_text("Correlation of scores").wait_for()
    debug.get_by_text(re.compile("Tokens decided differently here: [1-9]")).wait_for()
    debug.screenshot(path=pictures / "beside.png")


def test_a_state_of_another_prompt_is_put_in_before_every_level(debug, pictures):
    debug.get_by_role("tab", name="Patching").click()
    debug.get_by_text("Select a token above.").wait_for()
    settled(debug)
    box = debug.locator(".text .body").last.bounding_box()
    debug.mouse.click(box["x"] + 55, box["y"] + 10)
    debug.get_by_text("The state of token").wait_for()
    debug.get_by_role("textbox", name="Other prompt").fill(TEXT.replace("cat", "dog", 1))
    debug.get_by_role("button", name="Put it in before every level").click()
    debug.get_by_text("The run with the state put in before Level 1").wait_for()
    debug.get_by_text("Text and map of the run with the state put in").wait_for()
    settled(debug)
    debug.screenshot(path=pictures / "patching.png", full_page=True)
    debug.set_viewport_size({"width": 390, "height": 2400})
    debug.wait_for_function("document.documentElement.scrollWidth <= 390")
    debug.screenshot(path=pictures / "patching_narrow.png", full_page=True)
