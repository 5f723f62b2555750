"""Rules compared in a real browser: every line of the text has its bars, and markup in the text stays text."""

from analysis.quality.segments import SegmentKind, segments
from tests.browser.test_explore import expected, run, shown  # noqa: F401 - a fixture

from .waiting import settled

TEXT = "the cat <b>sat</b> on the mat\nand then the dog 你好 sat on $x$ the cat " * 3
STATES = """(body) => [...body.querySelectorAll(".token")].map((token) => [
    token.querySelector(".piece").textContent,
    [...token.querySelectorAll("i")].map((bar) => bar.className).join(" "),
])"""
GEOMETRY = """(body) => {
    const lines = new Set([...body.querySelectorAll(".token")].map((token) => token.offsetTop));
    const bar = body.querySelector(".s2").getBoundingClientRect();
    const names = [...body.querySelectorAll(".names")];
    return {lines: lines.size, names: names.length, labels: names[0].children.length, height: bar.height};
}"""


def test_the_kept_tokens_of_every_rule_stand_under_the_text(page, pictures):
    run(page, TEXT)
    shown(page, "the cat <b>sat</b>")
    page.get_by_role("button", name="Compare rules").click()
    body = page.locator(".rules .body")
    body.locator(".token").first.wait_for()
    tokens = body.evaluate(STATES)
    assert "".join(piece for piece, _ in tokens).replace("⏎", "\n").startswith("the cat <b>sat</b> on the mat\n")
    assert {len(states.split()) for _, states in tokens} == {6}
    kept = [sum(states.split()[rule] == "s2" for _, states in tokens) for rule in range(6)]
    assert len({*kept}) == 1 and 0 < kept[0] < len(tokens)  # every rule keeps equally many
    for width in (1300, 700):
        page.set_viewport_size({"width": width, "height": 1000})
        page.wait_for_function(
            "([body]) => (" + GEOMETRY + ")(body).lines === body.querySelectorAll('.names').length",
            arg=[body.element_handle()],
        )
        found = body.evaluate(GEOMETRY)
        assert found["lines"] == found["names"] > 3 and found["labels"] == 6 and found["height"] > 4
        body.scroll_into_view_if_needed()
        page.screenshot(path=pictures / f"compare-rules-{width}.png", full_page=True)
    assert body.locator("b").count() == 0


def test_a_row_of_the_segments_selects_its_place_in_the_text(page, expected, pictures):  # noqa: F811
    text = "The cat sat. <i>Why?</i> The dog sat on the cat.\nAnd then the mat."
    run(page, text)
    shown(page, "The cat sat.")
    grid = page.get_by_test_id("stDataFrame").nth(1)
    grid.scroll_into_view_if_needed()
    page.get_by_role("button", name="Compare rules").scroll_into_view_if_needed()
    settled(page)
    box = grid.bounding_box()
    page.mouse.click(box["x"] + 15, box["y"] + 35 + 35 + 17)  # the box in front of the second row
    trace = expected(text)
    found = segments(trace.prompt, trace.routing, SegmentKind.SENTENCE)
    first = found.places(found.order(1)[1])[0]
    page.locator(".routing .token").filter(has_text=f"Token {first} ").wait_for()
    page.screenshot(path=pictures / "segments.png")
