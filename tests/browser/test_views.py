"""Journeys through the views: colour, search, zoom, links, languages, themes, screens, two people at once."""

import re

import pytest

from .test_explore import read_tokens, run, shown
from .test_sessions import wait_for_address
from .waiting import settled

TEXT = "the cat sat on the mat and then the dog sat on the cat"


def status(page):
    return page.get_by_role("status").filter(has_text="Token ")


def test_colouring_changes_the_shades_and_not_who_was_kept(page):
    run(page, TEXT)
    shown(page, TEXT)
    count = "() => [...CSS.highlights].map(([name, ranges]) => `${name} ${ranges.size}`).join()"
    before, kept = page.evaluate(count), read_tokens(page)
    page.get_by_label("Colour by").select_option("bypass contribution")
    assert read_tokens(page) == kept
    page.get_by_label("Colour by").select_option("surprisal, nats")
    assert read_tokens(page) == kept
    assert page.evaluate(count) != before


def test_colouring_by_kept_alone_gives_all_kept_tokens_one_shade(page):
    run(page, TEXT)
    shown(page, TEXT)
    page.get_by_label("Colour by").select_option("kept")
    painted = "() => [...CSS.highlights].filter(([name, h]) => name.includes('kept') && h.size).map(([name]) => name)"
    assert {name[:-1] for name in page.evaluate(painted)} == {"routing-kept-4"}


def test_search_walks_through_what_it_finds(page):
    run(page, TEXT)
    view = shown(page, TEXT)
    view.press("/")
    search = page.get_by_role("searchbox", name="Search the text")
    search.fill("THEN the dog")  # over several tokens, upper or lower case
    found = """() => [...CSS.highlights.get('routing-found')].map(
        (r) => r.startContainer.data.slice(r.startOffset, r.endOffset)).join('')"""
    assert page.evaluate(found) == " then the dog"
    search.fill("cat")
    assert page.evaluate(found) == " cat cat"
    page.get_by_text("2 found").wait_for()
    for _ in range(3):
        search.press("Enter")
    assert '"cat"' in status(page).inner_text() or '" cat"' in status(page).inner_text()


def test_white_space_can_be_made_visible_and_the_text_is_the_prompt_again_after(page):
    text = "the cat\nsat on\tthe mat"
    run(page, text)
    view = shown(page, "the cat")
    page.get_by_label("Show white space and special tokens").check()
    assert "⏎" in view.text_content()
    assert "·" in view.text_content()
    page.get_by_label("Show white space and special tokens").uncheck()
    assert view.text_content() == text


def test_the_map_zooms_around_a_token_and_shows_where_it_is(page):
    run(page, "the cat sat on the mat " * 30)
    shown(page, "the cat sat").press("End")
    mini = page.locator(".routing .mini")
    assert mini.is_hidden()
    page.get_by_role("button", name="Zoom in").click()
    mini.wait_for(state="visible")
    cells = page.locator(".routing .cells")
    box = cells.bounding_box()
    cells.click(position={"x": box["width"] / 2, "y": 20})
    first = status(page).inner_text()
    page.get_by_role("button", name="Show all tokens").click()
    mini.wait_for(state="hidden")
    cells.click(position={"x": box["width"] / 2, "y": 20})
    assert status(page).inner_text() != first


def test_hovering_the_map_marks_the_token_in_the_text(page):
    run(page, TEXT)
    shown(page, TEXT)
    cells = page.locator(".routing .cells")
    cells.hover(position={"x": 3, "y": 5})
    marked = """c => {
        const {data, width} = c.getContext('2d').getImageData(0, 0, c.width, c.height);
        return [...data.keys()].filter((i) => i % 4 === 3 && data[i]).map((i) => ((i - 3) / 4) % width);
    }"""
    columns = page.locator(".routing .marks").evaluate(marked)
    assert columns
    assert max(columns) < 60, "more than the first word is marked"
    status(page).filter(has_text="block 0: processed").wait_for()


def test_a_link_restores_the_view_in_another_browser(page, browser):
    run(page, TEXT)
    view = shown(page, TEXT)
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowDown"):
        view.press(key)
    page.get_by_label("Colour by").select_option("weight")
    wait_for_address(page, level="2", selected="2", colour="weight")
    said = status(page).inner_text()
    other = browser.new_context().new_page()
    other.goto(page.url)
    shown(other, TEXT)
    assert status(other).inner_text() == said
    assert other.get_by_role("radio", name="Level 2").get_attribute("aria-checked") == "true"
    assert other.get_by_label("Colour by").input_value() == "weight"
    assert read_tokens(other) == read_tokens(page)
    other.context.close()


def test_a_token_is_followed_through_every_block(page):
    run(page, TEXT)
    view = shown(page, TEXT)
    view.press("Home")
    while "Level 1: kept" not in status(page).inner_text():
        view.press("ArrowRight")
    settled(page)
    page.get_by_role("button", name=re.compile("Follow token")).click()
    page.get_by_text("most likely token").wait_for()
    page.get_by_text("What each level added").wait_for()


def test_earlier_runs_stay_one_click_away(page):
    run(page, TEXT)
    shown(page, TEXT)
    run(page, "another prompt")
    shown(page, "another prompt")
    page.get_by_role("combobox", name="Earlier runs in this session").click()
    page.get_by_role("option", name="the cat sat").click()
    shown(page, TEXT)


def test_two_people_do_not_see_each_others_prompts(page, browser, server):
    run(page, "the secret cat")
    shown(page, "the secret cat")
    other = browser.new_context().new_page()
    other.goto(server)
    other.get_by_text("This is an example that comes with the app").wait_for()
    assert "secret" not in other.content()
    other.context.close()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("wide", {"viewport": {"width": 1500, "height": 1000}}),
        ("dark", {"viewport": {"width": 1300, "height": 1000}, "color_scheme": "dark"}),
        ("narrow", {"viewport": {"width": 400, "height": 850}}),
        ("chinese", {"viewport": {"width": 1300, "height": 1000}, "locale": "zh-CN"}),
    ],
)
def test_every_theme_screen_and_language_shows_the_run(browser, server, pictures, name, options):
    context = browser.new_context(**options)
    page = context.new_page()
    page.goto(f"{server}/?checkpoint=tiny&prompt=the+cat+sat+on+the+mat&v=2&level=2&selected=2")
    shown(page, "the cat sat on the mat").scroll_into_view_if_needed()
    title = "这个大模型丢弃了哪些词元？" if name == "chinese" else "What does this LLM drop?"
    assert page.get_by_role("heading", name=title).count() == 1
    dark = page.evaluate("() => getComputedStyle(document.querySelector('.stApp')).backgroundColor")
    assert (sum(map(int, dark[4:-1].split(","))) < 200) == (name == "dark")
    view = page.locator(".routing")
    frame = page.viewport_size["width"]
    assert view.bounding_box()["x"] + view.bounding_box()["width"] <= frame
    page.screenshot(path=pictures / f"{name}.png")
    context.close()
