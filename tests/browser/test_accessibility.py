"""Every page in both themes, checked by axe-core: readable, named, and usable without a mouse."""

import ast

import pytest
from playwright.sync_api import expect

from .server import ROOT
from .waiting import settled

AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
SERIOUS = ("serious", "critical")
PROMPT = "the cat sat on the mat and then the dog sat on the cat"


def faults(page) -> list[str]:
    """What axe-core finds on the page as it is, in either theme, if it is serious."""
    settled(page)
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text(encoding="utf-8"))
    found = []
    for theme, rules in (("light", {}), ("dark", {"runOnly": ["color-contrast"]})):  # the rest has no theme
        page.emulate_media(color_scheme=theme)
        page.wait_for_function(
            "theme => getComputedStyle(document.querySelector('.stApp')).colorScheme === theme", arg=theme
        )
        settled(page)
        said = page.evaluate("rules => axe.run(document, { resultTypes: ['violations'], ...rules })", rules)
        for entry in said["violations"]:
            if entry["impact"] in SERIOUS:
                nodes = [f"{node['html'][:300]}\n    {node['failureSummary']}" for node in entry["nodes"]]
                found.append("\n    ".join([f"{theme}: {entry['help']}", *nodes]))
    return found


@pytest.mark.skipif(not AXE.exists(), reason="axe-core is not installed: npm install brings it")
def test_no_page_has_a_serious_accessibility_fault(tab, server, pictures):
    tab.goto(server)
    tab.locator(".routing .text:visible").wait_for()
    found = {"Explore, as it opens": faults(tab)}
    tab.get_by_role("button", name="Learn it in ten minutes").click()
    tab.get_by_role("button", name="Next").first.wait_for()
    found["Explore, with the lesson"] = faults(tab)
    tab.goto(server)
    tab.get_by_role("combobox", name="Checkpoint").click()
    tab.get_by_role("option", name="tiny").click()
    tab.get_by_role("textbox", name="Prompt", exact=True).fill(PROMPT)
    tab.get_by_role("button", name="Run", exact=True).click()
    tab.get_by_text("tiny ·").first.wait_for()
    text = tab.locator(".routing .text:visible")
    text.click()
    text.press("ArrowRight")
    found["Explore, with a token chosen"] = faults(tab)
    title = tab.get_by_role("heading", level=1)
    links = tab.get_by_test_id("stSidebarNav").get_by_role("link")
    for name in [link.splitlines()[-1] for link in links.all_inner_texts()[1:]]:  # the first line is the icon's
        before = title.inner_text()
        links.filter(has_text=name).click()
        expect(title).not_to_have_text(before)
        found[name] = faults(tab)
        tabs = tab.get_by_role("tablist").first.get_by_role("tab")
        for number in range(1, tabs.count()):
            tabs.nth(number).click()
            found[f"{name}, {tabs.nth(number).inner_text()}"] = faults(tab)
        tab.screenshot(path=pictures / f"{name}, dark.png")
    assert not any(found.values()), "\n".join(f"{name}\n  {line}" for name, lines in found.items() for line in lines)


def test_boxes_with_commands_wrap_and_have_no_colours_of_their_own():
    """A box that scrolls cannot be reached by keyboard, and Streamlit's colours for code are too pale to read."""
    for path in sorted((ROOT / "app").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "code":
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert given.items() >= {"language": "None", "wrap_lines": "True"}.items(), f"{path}:{node.lineno}"
