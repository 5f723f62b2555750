"""What is computed is stopped by the one button, also where a fragment of the page computes it."""

import sys

import pytest
from playwright.sync_api import expect

from .server import serve

SCRIPT = """
import time
import streamlit as st
from app.components import stop
from app.messages import ProgressBar

stop.show()

def compute(where):
    progress = ProgressBar()
    if st.button(f"Begin in {where}"):
        with progress:
            while True:  # only the button ends it
                progress(0.5, "waiting", ahead=1)
                time.sleep(0.02)

compute("the page")
st.fragment(compute)("a fragment")
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stop")
    (folder / "page.py").write_text(SCRIPT)
    with serve(folder / "log", {}, [sys.executable, "-m", "streamlit", "run", str(folder / "page.py")]) as found:
        yield found


@pytest.mark.parametrize("where", ["the page", "a fragment"])
def test_a_press_on_stop_ends_what_is_computed(tab, address, where):
    tab.goto(address)
    begin, stop = (tab.get_by_role("button", name=name, exact=True) for name in (f"Begin in {where}", "Stop"))
    begin.wait_for()
    for _ in range(2):
        expect(stop).to_have_count(0)
        begin.click()
        expect(tab.get_by_role("progressbar")).to_be_visible()
        expect(stop).to_be_in_viewport()
        stop.click()
        expect(tab.get_by_role("progressbar")).to_have_count(0)
    expect(stop).to_have_count(0)
