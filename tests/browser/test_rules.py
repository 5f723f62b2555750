"""Rules in a real browser: edits are saved under a name, and another visitor opens and uses them."""

import json
import re
from urllib.parse import urlencode

from .waiting import settled

TEXT = "the cat sat on the mat and then the dog sat on the cat"
NAME = "Two <b>at most</b>"


def debug(page, server, **fields):
    page.set_viewport_size({"width": 1300, "height": 2400})
    page.goto(f"{server}/debug?{urlencode({'v': 2, 'checkpoint': 'tiny', 'prompt': TEXT, 'chat': 0, **fields})}")
    page.get_by_text("Perplexity of the prompt").wait_for()
    settled(page)
    page.get_by_text("Save the edits as a rule, or use one").click()


def test_a_saved_rule_is_opened_by_another_visitor_and_holds_on_explore(tab, server, browser, pictures, tmp_path):
    debug(tab, server, edits="keep 'cat'@*;budget 2@*")
    save = tab.locator("[data-testid=stDownloadButton] button:visible").filter(has_text="Save the rule")
    assert save.is_disabled()
    for label, text in (("What it does, in a sentence", "Keeps two, and cats."), ("Name of the rule", NAME)):
        tab.get_by_label(label).fill(text)
        tab.get_by_label(label).press("Tab")
    tab.locator("[data-testid=stDownloadButton] button:visible:enabled").filter(has_text="Save the rule").wait_for()
    settled(tab)
    with tab.expect_download() as started:
        save.click()
    file = tmp_path / started.value.suggested_filename
    assert file.name == "two-b-at-most-b.json"
    started.value.save_as(file)
    saved = json.loads(file.read_text())
    assert saved["name"] == NAME and saved["edits"] == ["keep 'cat'@*", "budget 2@*"]

    context = browser.new_context()
    other = context.new_page()
    debug(other, server)
    other.locator("[data-testid=stFileUploader]:visible input[type=file]").set_input_files(file)
    other.get_by_text("Keeps two, and cats.").wait_for()
    settled(other)
    other.get_by_role("button", name="Use it").click()
    other.get_by_text("Edits in force", exact=True).wait_for()
    other.get_by_text("keep at most this many tokens").first.wait_for()
    other.wait_for_url(re.compile("edits=keep"))
    settled(other)
    other.screenshot(path=pictures / "rules.png")
    other.get_by_role("link", name="Explore").click()
    other.get_by_label("Prompt", exact=True).wait_for()
    settled(other)
    other.get_by_role("button", name="Run", exact=True).click()
    other.get_by_text(f"Rule in force: {NAME} (keep 'cat'@*; budget 2@*)").wait_for()
    assert other.locator("b", has_text="at most").count() == 0
    other.wait_for_url(re.compile("rule=Two"))
    other.screenshot(path=pictures / "rule-on-explore.png")
    context.close()
