"""A prompt of some pages travels after the # of the address, which Streamlit itself neither reads nor keeps."""

import re

from playwright.sync_api import expect

from app.packed_prompt import unpack

from .test_explore import run, shown
from .waiting import settled

TEXT = "the cat sat on the mat & the dog's “other” 猫 # sat? " * 16
LONG = re.compile(r"[?&]long=1.*#p=[\w-]+$")


def test_a_link_with_a_long_prompt_opens_it_and_what_is_chosen_stays_in_the_address(page, browser, server):
    run(page, TEXT)
    view = shown(page, "the cat sat")
    expect(view).to_have_js_property("textContent", TEXT)
    page.wait_for_url(LONG)
    assert unpack(page.url.split("#")[1]) == TEXT
    page.get_by_role("radio", name="Level 2").click()
    settled(page)  # Streamlit takes away what follows the #, and the app puts it there again
    page.wait_for_url(re.compile(r"level=2.*#p="))
    assert unpack(page.url.split("#")[1]) == TEXT
    other = browser.new_context(viewport={"width": 1300, "height": 1000}).new_page()
    other.goto(page.url)
    expect(other.locator(".routing .text")).to_have_js_property("textContent", TEXT)
    expect(other.get_by_role("radio", name="Level 2")).to_have_attribute("aria-checked", "true")
    other.wait_for_url(re.compile(r"level=2.*#p="))
    expect(other.get_by_label("Prompt", exact=True)).to_have_value(TEXT)
    other.get_by_role("link", name="Debug").click()
    expect(other.locator(".routing .text:visible")).to_have_js_property("textContent", TEXT)
    other.wait_for_url(re.compile(r"/debug\?.*#p="))
    other.get_by_role("link", name="Efficiency").click()
    other.wait_for_url(lambda url: "/efficiency" in url and "#" not in url)
    lost = page.url.split("#")[0]
    for address in (lost, lost.replace("/?", "/debug?")):
        other.goto("about:blank")
        other.goto(address)
        expect(other.locator(".routing .text:visible")).not_to_be_empty()  # the run that ships
        settled(other)
        expect(other.get_by_role("alert").filter(has_text="The link has lost its prompt")).to_be_visible()
    run(page, "a short prompt")
    page.wait_for_url(lambda url: "prompt=a+short+prompt" in url and "#" not in url)
    other.context.close()
