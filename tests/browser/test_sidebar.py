"""The selectors that pages share: what is chosen there holds, however soon a person goes to another page."""

import re
from urllib.parse import urlsplit

from playwright.sync_api import expect

from .test_sessions import wait_for_address
from .waiting import settled


def go(tab, name, path):
    tab.get_by_role("link", name=name).first.click()
    tab.wait_for_url(lambda url: urlsplit(url).path == f"/{path}")


def test_a_choice_just_before_a_change_of_page_holds(tab, server):
    tab.goto(server)
    tab.get_by_role("button", name="Run", exact=True).wait_for()
    for checkpoint, path in (("tiny", "debug"), ("everything", "efficiency"), ("tiny", "watch"), ("nothing", "")):
        selector = tab.get_by_role("combobox", name="Checkpoint")
        if path == "":  # Watch training has no checkpoints
            go(tab, "Corpus", "corpus")
            settled(tab)
            expect(selector).to_have_value("tiny")
        selector.click()
        tab.get_by_role("option", name=checkpoint).click()
        go(tab, re.compile(path or "explore", re.IGNORECASE), path)
        settled(tab)
        if path == "efficiency":  # what the server knows
            expect(tab.get_by_test_id("stCode").filter(has_text="--checkpoint everything")).not_to_have_count(0)
        elif path != "watch":
            expect(selector).to_have_value(checkpoint)
    tab.get_by_role("button", name="Run", exact=True).click()
    wait_for_address(tab, checkpoint="nothing")
    tab.get_by_role("combobox", name="Language").click()
    tab.get_by_role("option", name="中文").click()
    go(tab, re.compile("Debug|调试"), "debug")
    tab.get_by_role("heading", name="词元为什么被保留").wait_for()
    expect(tab.get_by_role("combobox", name="检查点")).to_have_value("nothing")


def test_a_link_that_is_replaced_while_it_is_pressed_is_followed(tab, server):
    tab.goto(server)
    tab.get_by_role("button", name="Run", exact=True).wait_for()
    settled(tab)
    for before, language, after, path in (("Debug", "中文", "调试", "/debug"), ("探索", "English", "Explore", "/")):
        link = tab.get_by_role("link", name=before).first
        link.hover()
        pressed = link.element_handle()
        tab.mouse.down()
        selector = tab.get_by_role("combobox", name=re.compile("Language|语言"))
        selector.focus()
        selector.fill(language)
        selector.press("Enter")  # all links get other names
        tab.get_by_role("link", name=after).first.wait_for()
        settled(tab)
        assert not pressed.evaluate("link => link.isConnected"), "nothing was replaced"
        tab.mouse.up()
        tab.wait_for_url(lambda url, path=path: urlsplit(url).path == path)
        settled(tab)


def test_a_click_right_after_typing_opens_the_other_page_and_the_text_stays(tab, server):
    tab.goto(server)
    tab.get_by_role("button", name="Run", exact=True).wait_for()
    settled(tab)
    field = tab.get_by_role("textbox", name="Prompt")
    for name, path in (("Explore", ""), ("Debug", "debug")):
        go(tab, name, path)
        settled(tab)
        for other in ("Corpus", "Efficiency", "Corpus"):
            typed = f"typed on {name}, before {other}"
            field.fill(typed)
            go(tab, other, other.lower())  # as quick as a tap
            settled(tab)
            go(tab, name, path)
            settled(tab)
            expect(field).to_have_value(typed)


def test_a_token_selected_right_before_a_change_of_page_stays_selected(tab, server):
    tab.goto(server)
    text = tab.locator(".routing .text")
    text.wait_for()
    settled(tab)
    for token in (0, 1):
        text.press("ArrowRight")
        go(tab, "Efficiency", "efficiency")  # before the view tells the page by itself
        settled(tab)
        go(tab, "Explore", "")
        settled(tab)
        tab.get_by_role("status").filter(has_text=f"Token {token} ").wait_for()


def test_what_a_view_tells_after_a_click_on_a_link_does_not_bring_the_page_back(tab, server):
    tab.goto(server)
    text = tab.locator(".routing .text")
    text.wait_for()
    settled(tab)
    press = """(text, link) => {
      link.click();
      text.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true, composed: true }));
      document.body.click();  // the view tells at once what is selected
    }"""
    for _ in range(3):
        text.evaluate(press, tab.get_by_role("link", name="Efficiency").first.element_handle())
        tab.wait_for_url(lambda url: urlsplit(url).path == "/efficiency")
        settled(tab)
        expect(tab.get_by_role("heading", name="How much do the dropped tokens save?")).to_be_visible()
        go(tab, "Explore", "")
        settled(tab)
        text.press("ArrowRight")  # what is selected is told again
        wait_for_address(tab, selected="0")
        text.press("Escape")
        settled(tab)
