"""Links, as a person gets them from another: what they name is opened, and what they cannot name is said."""

from urllib.parse import urlencode

import pytest
from playwright.sync_api import expect

from app.views.chooser import first_form

from .test_sessions import PROMPTS, Model, check_debug, check_explore, wait_for_address
from .waiting import settled

TEXT = PROMPTS[-1]
ODD = {
    "long": "x" * 5000,
    "surrogate": "\ud800",
    "newline": "evil\n2026-01-01 ERROR app: x/../tiny",
    "outside": "../outside",
    "markup": "<img src=x> $x$ **b**",
}


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return Model(tiny_checkpoint)


@pytest.fixture
def follow(browser, server):
    """Open a link in a browser of its own, in a language."""
    contexts = []

    def open_(path="", locale="en-US", **fields):
        contexts.append(browser.new_context(viewport={"width": 1300, "height": 2400}, locale=locale))
        page = contexts[-1].new_page()
        page.goto(f"{server}/{path}?{urlencode(fields, errors='surrogatepass')}")
        return page

    yield open_
    for context in contexts:
        context.close()


@pytest.mark.parametrize("chat", [False, True])
def test_a_link_to_the_page_debug_opens_its_checkpoint_prompt_and_edits(follow, model, pictures, chat):
    edits = ["keep 2-4@1", "threshold 0.1@2", "dense@2"]
    page = follow("debug", v=2, checkpoint="tiny", prompt=TEXT, chat=int(chat), edits=";".join(edits))
    trace = model.trace(TEXT, chat)
    expect(page.locator(".routing .text:visible")).to_have_js_property("textContent", trace.prompt.text)
    check_debug(page, model, TEXT, edits, chat)
    expect(page.get_by_role("combobox", name="Checkpoint")).to_have_value("tiny")
    assert page.get_by_role("alert").count() == 0
    page.goto(page.url)
    check_debug(page, model, TEXT, edits, chat)
    page.screenshot(path=pictures / f"link to debug, chat {chat}.png")


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_edits_that_do_not_fit_are_said_and_can_be_removed(follow, model, pictures, locale):
    edits = ["drop 1@8", "keep 2-4@1", "keep 900@*", "dense@3"]
    page = follow("debug", locale, v=2, checkpoint="tiny", prompt=TEXT, edits=";".join(edits))
    said = {
        "en-US": "Level 8: drop 1; every level: keep 900; Level 3: switch the level's routing off (dense)",
        "zh-CN": "第 8 级：丢弃 1；每一级：保留 900；第 3 级：关闭该级路由（稠密）",
    }
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text(said[locale])
    page.get_by_text({"en-US": "Perplexity of the prompt", "zh-CN": "提示词的困惑度"}[locale]).wait_for()
    settled(page)
    page.screenshot(path=pictures / f"edits that do not fit, {locale}.png")
    page.get_by_role(
        "button", name={"en-US": "Remove the edits that are not in force", "zh-CN": "移除未生效的改动"}[locale]
    ).click()
    alert.wait_for(state="detached")
    if locale == "en-US":
        check_debug(page, model, TEXT, ["keep 2-4@1"])


def test_edits_for_a_model_without_levels_can_be_removed(follow):
    page = follow("debug", v=2, checkpoint="no-levels", prompt=TEXT, edits="drop 1@1")
    page.get_by_text("This checkpoint has no levels").wait_for()
    page.get_by_role("alert").filter(has_text="Level 1: drop 1").wait_for()
    page.get_by_role("button", name="Remove the edits that are not in force").click()
    page.get_by_role("alert").filter(has_text="Level 1: drop 1").wait_for(state="detached")
    page.get_by_text("This checkpoint has no levels").wait_for()


@pytest.mark.parametrize(
    "edits",
    ["drop" + " " * 2500 + "x", "keep " + ",".join(["0-999999"] * 300) + "@1", "dense@1;" * 300],
    ids=["spaces", "ranges", "many"],
)
def test_edits_that_cannot_be_read_leave_the_prompt_to_be_debugged(follow, model, edits):
    page = follow("debug", v=2, checkpoint="tiny", prompt=TEXT, edits=edits)
    alert = page.get_by_role("alert").filter(has_text="The edits in this link cannot be read")
    alert.wait_for()
    check_debug(page, model, TEXT, [])
    page.get_by_role("button", name="Remove the edits that are not in force").click()
    alert.wait_for(state="detached")


@pytest.mark.parametrize("path", ["", "debug"])
@pytest.mark.parametrize("name", ODD)
def test_a_link_for_a_checkpoint_that_is_not_offered_is_refused(follow, pictures, path, name):
    page = follow(path, checkpoint=ODD[name], prompt="a prompt to go on with", edits="drop 1@1")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("This link asks for a checkpoint that is not available here")
    settled(page)
    assert alert.count() == 1 and len(alert.inner_text()) < 400
    expect(page.get_by_role("textbox", name="Prompt", exact=True)).to_have_value("a prompt to go on with")
    assert page.locator("img[src=x]").count() == 0 and page.locator(".katex").count() == 0
    if name == "markup":
        page.screenshot(path=pictures / f"a link that is refused, {path or 'explore'}.png")


def test_a_refused_link_says_so_in_chinese(follow):
    page = follow("debug", "zh-CN", checkpoint="../outside", prompt=TEXT)
    expect(page.get_by_role("alert")).to_contain_text("此链接指定的检查点在此不可用")


def test_a_typed_name_that_the_operator_allows_is_opened(follow, model, tiny_checkpoint):
    page = follow("", checkpoint=str(tiny_checkpoint), prompt=TEXT)
    expect(page.locator(".routing .text:visible")).to_have_js_property("textContent", TEXT)
    wait_for_address(page, checkpoint=str(tiny_checkpoint), prompt=TEXT)


def test_a_link_to_the_first_page_opens_what_it_names(follow, model):
    page = follow("", v=2, checkpoint="tiny", prompt=TEXT, chat=0, level=1)
    check_explore(page, model.trace(TEXT), TEXT)


def test_a_link_from_before_levels_counted_from_1_opens_what_it_named(follow, model):
    page = follow("debug", checkpoint="tiny", prompt=TEXT, level=0, edits="keep 2-4@0;dense@1")
    check_debug(page, model, TEXT, ["keep 2-4@1", "dense@2"])
    wait_for_address(page, v="2", level="1")


def test_a_link_with_a_chat_message_is_read_in_the_template(follow, model):
    page = follow("", checkpoint="tiny", prompt=TEXT, chat=1)
    expect(page.locator(".routing .text:visible")).to_have_js_property(
        "textContent", model.trace(TEXT, True).prompt.text
    )
    page.get_by_role("link", name="Debug").click()  # the same run is there, and its link says that it is a message
    wait_for_address(page, prompt=TEXT, chat="1")


@pytest.mark.parametrize("path", ["", "debug"])
def test_a_link_to_a_checkpoint_alone_runs_the_first_example(follow, path):
    text = first_form().text
    page = follow(path, checkpoint="tiny")
    expect(page.locator(".routing .text:visible")).to_have_js_property("textContent", text)
    wait_for_address(page, v="2", checkpoint="tiny", prompt=text)


def test_a_link_that_has_lost_its_prompt_says_so_and_runs_nothing(follow):
    page = follow("", v=2, checkpoint="tiny", long=1, chat=0)
    expect(page.get_by_role("alert")).to_contain_text("has lost its prompt")
    page.get_by_text("This is an example that comes with the app").wait_for()
