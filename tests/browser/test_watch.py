"""The page about training runs: the shipped one under its slider, and one that goes on while it is watched."""

import json
import re
from dataclasses import replace

import pytest
from playwright.sync_api import expect

from subllm.runs.routing_snapshot import RoutingSnapshot
from tests.analysis.training.test_run import write_run

from .waiting import settled


@pytest.fixture
def watching(page):
    """The page with the shipped run."""
    page.get_by_role("link", name="Watch training").click()
    page.get_by_role("heading", name="How a model learns what to keep").wait_for()
    page.get_by_text("Perplexity of this prompt at this step").wait_for()
    return page


def test_the_steps_of_a_run_are_walked_through_and_played(watching, pictures):
    kept = watching.get_by_role("radio", name=re.compile("^Level 1"))
    last = kept.inner_text()
    watching.get_by_text("Tokens decided differently here").wait_for()
    watching.screenshot(path=pictures / "watch.png", full_page=True)
    slider = watching.get_by_role("slider").first
    slider.press("Home")
    watching.get_by_text("The first is the chosen step, the second is the step to compare with.").wait_for(
        state="hidden"
    )
    expect(kept).not_to_have_text(last, use_inner_text=True)
    watching.get_by_text("Play", exact=True).click()
    watching.wait_for_function(
        "text => [...document.querySelectorAll('[data-testid=stBidiComponentIsolated]')].some("
        "(part) => part.shadowRoot.textContent.includes(text))",
        arg=last,
    )  # it has come to the last step by itself
    watching.get_by_text("Play", exact=True).click()
    settled(watching)
    slider.press("End")  # it may have gone on to the first step
    watching.get_by_text("Tokens decided differently here").wait_for()


def test_a_run_that_goes_on_moves_by_itself(watching, odd_checkpoints, pictures):
    folder = odd_checkpoints / "watched"
    settled(watching)  # the app remembers for a moment what it found before the run was whole
    write_run(folder)
    watching.reload()
    watching.get_by_role("combobox", name="Training run").click()
    watching.get_by_role("option", name="watched").click()
    watching.get_by_text("20 / 100").wait_for()
    with (folder / "log.jsonl").open("a") as file:  # the line that was being written, and one more
        file.write('ss": 2.5}\n' + json.dumps({"step": 22, "loss": 2.25}) + "\n")
    watching.get_by_text("22 / 100").wait_for()
    watching.get_by_text("2.250").wait_for()
    snapshot = RoutingSnapshot.load(sorted((folder / "snapshots").iterdir())[-1])
    replace(snapshot, step=22).save(folder / "snapshots")
    expect(watching.get_by_role("slider").first).to_have_attribute("aria-valuetext", "22", timeout=30_000)
    watching.screenshot(path=pictures / "watch live.png", full_page=True)
