"""The page about savings: measure, then ask what another machine would do."""

import re

from analysis.cost.hardware import load_hardware
from analysis.cost.paper import papers

from .waiting import settled


def test_savings_are_measured_and_predicted(page, pictures):
    page.get_by_label("Prompt", exact=True).fill("a prompt to come back to")
    page.get_by_label("Prompt", exact=True).press("Control+Enter")
    page.get_by_text("Press Ctrl+Enter to apply").wait_for(state="detached")
    settled(page)
    page.get_by_role("link", name="Efficiency").click(
        delay=100
    )  # at once, the page would change before the text counts
    page.get_by_role("heading", name="How much do the dropped tokens save?").wait_for()
    page.get_by_label("Remove 2048").or_(page.get_by_role("button", name="2048")).first.click()
    page.get_by_role("button", name="Measure", exact=True).click()
    page.get_by_text("These measurements come with the app").wait_for(state="detached")
    page.get_by_text("medians of the ratios").wait_for()
    row = page.get_by_test_id("stTable").first.get_by_role("row").filter(has_text="512")
    assert re.search(r"\d\.\d\d×", row.inner_text())
    page.screenshot(path=pictures / "measured.png", full_page=True)
    page.get_by_role("tab", name="Predicted").click()
    page.get_by_role("heading", name="What the papers report").wait_for()
    (first,) = [hardware for hardware in load_hardware() if hardware.name == "NVIDIA H200 SXM"]
    for paper in papers(first):
        for figure in paper.figures:
            row = page.get_by_role("row").filter(has_text=figure.system)
            for what, ratio in figure.predicted.items():
                shown = f"{ratio.low:.1%}" if what == "cache" else f"{ratio}×"
                row.filter(has_text=shown).first.wait_for()
    page.screenshot(path=pictures / "predicted.png", full_page=True)
    page.get_by_text("CoLT5", exact=True).first.scroll_into_view_if_needed()
    page.screenshot(path=pictures / "papers.png")
    structure = page.get_by_role("textbox", name="Structure")
    structure.fill("TT(T")
    structure.press("Enter")
    page.get_by_role("alert").filter(has_text="bracket").wait_for()
    page.get_by_role("link", name="Explore").click()
    page.get_by_role("button", name="Run", exact=True).wait_for()
    settled(page)
    assert page.get_by_label("Prompt", exact=True).input_value() == "a prompt to come back to"
    assert page.get_by_role("combobox", name="Checkpoint").input_value() == "tiny" or page.get_by_text("tiny").count()
