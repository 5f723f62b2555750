"""The lesson with the keyboard alone, on the run that ships; a teacher's link; answers as a file."""

import csv
import io
import re
import time

from playwright.sync_api import expect

from app.shipped_run import shipped_trace

from .test_sessions import wait_for_address
from .waiting import settled

ACTIVE = """() => {
  let at = document.activeElement;
  while (at?.shadowRoot?.activeElement) at = at.shadowRoot.activeElement;
  const name = at.getAttribute("aria-label") || at.closest("label")?.innerText || at.innerText || "";
  return name.length < 200 ? name : ""; // the page itself can have the focus, too
}"""
MOST = 60  # seconds: Streamlit loads some elements when they are first drawn


def tab_to(page, name, key="Tab"):
    """Move the focus, round the page if need be, until it is on what has a name."""
    end = time.monotonic() + MOST
    while time.monotonic() < end:
        if re.search(rf"{re.escape(name)}(?!\w)", page.evaluate(ACTIVE)):
            return
        page.keyboard.press(key)
    raise AssertionError(f"the keyboard does not get to {name}")


def press(page, name, key="Enter", direction="Tab"):
    tab_to(page, name, direction)
    page.keyboard.press(key)


def cells():
    """Cells of blocks by tokens that the run that ships saves, and those that it works on."""
    trace = shipped_trace()
    worked = sum(trace.routing.block_tokens)
    return trace.num_tokens * trace.routing.num_blocks - worked, worked


def heading(page, name):
    expect(page.get_by_role("heading", name=name)).to_be_visible()
    settled(page)  # what the view tells the page meanwhile would end the run that a button begins


def test_the_lesson_is_taken_with_the_keyboard_and_its_answers_are_a_file(tab, server):
    tab.goto(server)
    tab.get_by_role("button", name="Learn it in ten minutes").wait_for()
    press(tab, "Learn it in ten minutes")
    heading(tab, "You are the editor")
    view = tab.locator(".st-key-lesson-routing")
    expect(tab.locator(".st-key-routing")).to_have_count(0)
    expect(view.locator(".map")).to_be_hidden()  # what the model did gives the answer away
    tab_to(tab, "Prompt text")
    for _ in range(3):
        tab.keyboard.press("ArrowRight")
        tab.keyboard.press("Enter")
    expect(view.locator(".token")).to_contain_text("3 of 29 marked")
    press(tab, "Check", direction="Shift+Tab")
    expect(tab.get_by_text("Mark 29 tokens in the text first; 3 are marked.")).to_be_visible()
    tab_to(tab, "Prompt text")
    for _ in range(26):
        tab.keyboard.press("ArrowRight")
        tab.keyboard.press("Enter")
    expect(view.locator(".token")).to_contain_text("29 of 29 marked")
    expect(tab.get_by_text("Mark 29 tokens in the text first")).to_have_count(0)
    press(tab, "Check", direction="Shift+Tab")
    expect(tab.get_by_text("of the 29 tokens that you marked")).to_be_visible()
    expect(view.locator(".map")).to_be_visible()
    assert "lesson=editor" in tab.url
    press(tab, "Next", direction="Shift+Tab")
    heading(tab, "Every token pays at every block")
    tab_to(tab, "Your number")
    saved, worked = cells()
    tab.keyboard.type(str(saved))
    tab.keyboard.press("Enter")
    expect(tab.get_by_text("Right.")).to_be_visible()
    expect(tab.get_by_text(f"Your run saves {saved} cells and works on {worked:,}")).to_be_visible()
    tab.goto(f"{server}/?lesson=score")
    heading(tab, "One score per token")
    tab_to(tab, "importance score")
    expect(view.locator(".lane")).to_have_class("lane lit")
    press(tab, "' keeper' (3)", "ArrowDown")  # of two tokens, the arrow chooses the second one
    press(tab, "Check")
    expect(tab.get_by_text("Right.")).to_be_visible()
    tab.goto(f"{server}/?lesson=end")
    expect(tab.get_by_test_id("stRadio")).to_have_count(5)
    settled(tab)
    for question in tab.get_by_test_id("stRadio").all():
        question.get_by_role("radio").nth(1).focus()
        tab.keyboard.press("Space")
    press(tab, "Check all answers")
    expect(tab.get_by_text("Your result: 3 of 5 right").first).to_be_visible()
    settled(tab)
    tab_to(tab, "Your name")
    tab.keyboard.type("Ada, =1")
    with tab.expect_download() as found:
        tab.keyboard.press("Enter")
    assert found.value.suggested_filename == "answers-Ada-1.csv"
    rows = [*csv.DictReader(io.StringIO(found.value.path().read_text(encoding="utf-8-sig")))]
    assert [row["right"] for row in rows] == ["yes", "yes", "no", "yes", "no"]
    assert {row["learner"] for row in rows} == {"Ada, =1"}


def test_a_teachers_link_shows_the_lesson_and_nothing_else(tab, server):
    tab.goto(f"{server}/?lesson=threshold&pin=1&lang=zh")
    heading(tab, "阈值")
    expect(tab.locator(".routing .text")).to_be_visible()
    expect(tab.locator("[data-testid=stSidebarNav], textarea, [data-testid=stFileUploader]")).to_have_count(0)
    expect(tab.get_by_role("button", name="离开")).to_have_count(0)
    tab.get_by_role("button", name="下一站").first.click()
    heading(tab, "各级层层嵌套")
    wait_for_address(tab, pin="1", lesson="nesting")


def test_a_stop_runs_the_prompt_with_an_edit_and_goes_back(page):
    page.get_by_role("textbox", name="Prompt").fill("the cat sat on the mat and then the dog")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.get_by_text("This is an example that comes with the app")).to_have_count(0)
    settled(page)
    page.get_by_role("button", name="Learn it in ten minutes").click()
    heading(page, "You are the editor")
    page.get_by_role("button", name="Next").click()
    heading(page, "Every token pays at every block")
    page.get_by_role("button", name="Turn routing off").click()
    expect(page.get_by_text("dense@*")).to_be_visible()
    settled(page)
    assert "edits" not in page.url
    page.get_by_role("button", name="Back to my run").click()
    expect(page.get_by_role("button", name="Turn routing off")).to_be_visible()
    settled(page)
    page.get_by_role("button", name="Leave").click()
    expect(page.get_by_role("heading", name="What does this LLM drop?")).to_be_visible()
    expect(page.get_by_text("dense@*")).to_have_count(0)


def test_a_person_is_shown_around_a_page_and_the_focus_comes_back(tab, server):
    tab.goto(f"{server}/efficiency")
    start = tab.get_by_role("button", name="Show me around")
    start.press("Enter")
    words = tab.get_by_role("dialog", name="Show me around")
    for number in (1, 2, 3):
        expect(words).to_contain_text(f"{number} of 3")
        tab.keyboard.press("Enter")
    expect(words).to_have_count(0)
    expect(start).to_be_focused()
    start.press("Enter")
    expect(words).to_contain_text("1 of 3")
    tab.keyboard.press("Escape")
    expect(words).to_have_count(0)


PRESS = """(text, [key, button]) => {
  text.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, composed: true }));
  button.click();
}"""


def test_a_press_right_after_a_mark_or_a_selection_knows_of_it(tab, server):
    tab.goto(f"{server}/?lesson=editor")
    heading(tab, "You are the editor")
    view, text = tab.locator(".st-key-lesson-routing"), tab.locator(".st-key-lesson-routing .text")
    text.press("Home")
    for _ in range(28):
        text.press("Shift+ArrowRight")
    check = tab.get_by_role("button", name="Check", exact=True)
    text.evaluate(PRESS, ["Enter", check.element_handle()])  # at once: no timer runs in between
    expect(tab.get_by_text("of the 29 tokens that you marked")).to_be_visible()
    tab.get_by_role("button", name="Next").first.click()
    heading(tab, "Every token pays at every block")
    for key in ("ArrowRight", "ArrowLeft"):
        text.press(key)  # what is lit follows the selection
        settled(tab)
    text.evaluate(PRESS, ["ArrowRight", tab.get_by_role("button", name="Leave").element_handle()])
    expect(tab.get_by_role("heading", name="What does this LLM drop?")).to_be_visible()
    expect(view).to_have_count(0)
    wait_for_address(tab, selected="1")


def test_back_in_the_browser_goes_to_the_stop_before(tab, server):
    tab.goto(f"{server}/?lesson=editor")
    heading(tab, "You are the editor")
    wait_for_address(tab, lesson="editor")
    settled(tab)
    tab.get_by_role("button", name="Next").first.click()
    heading(tab, "Every token pays at every block")
    settled(tab)
    tab.go_back()
    heading(tab, "You are the editor")
    wait_for_address(tab, lesson="editor")
    tab.go_forward()
    heading(tab, "Every token pays at every block")
