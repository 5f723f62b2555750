"""The component alone, in a real Chromium: draws what the trace says, keeps the selection, and says what it shows."""

import base64
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import expect

from analysis.figures.routing_view import element
from analysis.figures.routing_view.data import Shown, view_data
from app.strings import table
from tests.analysis.trace.test_trace import make_trace

from .server import COMMAND, serve
from .waiting import settled

FOLDER = Path(element.__file__).parent
PAGE = """<!doctype html><style>:host, :root {{ --st-text-color: #222; }} body {{ color: #222; }} {css}</style>
<div id="root">{html}</div><script type="module">{js}
const said = [];
window.said = said;
window.show = (text) => {{
  const data = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const parentElement = document.getElementById("root");
  parentElement.elementFromPoint ??= document.elementFromPoint.bind(document);
  show({{ data, parentElement, setStateValue: (_, value) => said.push(value) }});
}};
window.ready = true;
</script>"""


@pytest.fixture
def view(browser):
    """Shows a trace on an empty page; the page."""
    page = browser.new_page(viewport={"width": 900, "height": 900})
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    source = element.JS.replace("export default function (component)", "function show(component)")
    page.set_content(PAGE.format(css=element.CSS.replace(":host", ":root"), html=element.HTML, js=source))
    page.wait_for_function("window.ready")

    def show(trace, shown=None, language="en"):
        data = view_data(trace, shown or Shown(), table(language))
        page.evaluate("(text) => show(text)", base64.b64encode(data).decode())
        page.wait_for_function("text => said.at(-1)?.id === text", arg=trace.subject)
        return page

    yield show
    assert faults == []
    page.close()


def marked(page, name):
    """Texts that have a highlight."""
    return page.evaluate(
        """(name) => [...CSS.highlights.get(`routing-${name}`)].map(
        (range) => range.startContainer.data.slice(range.startOffset, range.endOffset))""",
        name,
    )


def texts(trace, tokens):
    return [trace.prompt.text[trace.prompt.starts[n] : trace.prompt.ends[n]] for n in np.flatnonzero(tokens)]


def legend(page):
    return page.locator(".legend li").all_inner_texts()


def said(page, expected):
    """Wait for what the view says; a part of it is given."""
    page.wait_for_function(
        "expected => Object.entries(expected).every(([key, value]) => said.at(-1)?.[key] === value)", arg=expected
    )


@pytest.mark.parametrize("level", [1, 2, 3])
def test_text_and_legend_tell_kept_dropped_unreached_and_edited_apart_as_recorded(view, level):
    trace = make_trace(tokens=12, seed=3)
    page = view(trace, Shown(level=level))
    routing = trace.routing
    row = level - 1
    assert marked(page, "edited") == texts(trace, routing.edited[row])
    assert marked(page, "dropped") == texts(trace, routing.dropped[row])
    assert marked(page, "absent") == texts(trace, ~routing.reached[row])
    assert legend(page)[1:] == [
        "dropped at this level",
        *(["dropped at an outer level"] if level == 2 else []),
        "edited",
    ]


def test_a_colour_without_fifths_is_explained_without_them(view):
    page = view(make_trace(tokens=12), Shown(colour="kept"))
    first, title = page.locator(".legend li").first, page.locator(".title").first
    assert first.inner_text().strip() == "kept" and first.locator("i").count() == 1
    assert "darker" not in title.inner_text()
    page.locator(".colour").select_option("weight")
    assert first.inner_text().strip() == "kept, shaded in fifths (weight)" and first.locator("i").count() == 5
    assert "a darker blue means a higher weight" in title.inner_text()


def test_without_edits_nothing_is_marked_as_edited(view):
    trace = make_trace(tokens=12)
    none = replace(trace, routing=replace(trace.routing, edited=np.zeros_like(trace.routing.edited)))
    page = view(none)
    assert marked(page, "edited") == []
    assert legend(page)[1:] == ["dropped at this level"]
    coloured = """(canvas) => {
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        let count = 0;
        for (let i = 0; i < data.length; i += 4) {
          count += data[i] === 176 && data[i + 1] === 39 && data[i + 2] === 154 && data[i + 3] === 255;
        }
        return count;
    }"""
    assert page.locator(".cells").evaluate(coloured) == 0
    view(trace)
    assert page.locator(".cells").evaluate(coloured) > 0


def test_a_tokens_numbers_are_the_recorded_ones(view):
    trace = make_trace(tokens=12, seed=3)
    routing = trace.routing
    token = int((routing.kept[0] & routing.kept[2] & routing.edited[0]).nonzero()[0][0])
    page = view(trace, Shown(selected=token))
    shown = page.locator(".token").inner_text().splitlines()
    assert len(shown) == 4
    assert shown[1].startswith("Level 1: kept (edited), score")
    assert f"score {routing.scores[0, token]:.3f} (threshold 0.1, rank" in shown[1]
    assert f"weight {routing.weights[0, token]:.3f}" in shown[1]
    assert "score" not in shown[2], "the router of Level 2 does not score"
    assert f"score {routing.scores[2, token]:.3f} (threshold 0, rank" in shown[3]
    assert f"weight {routing.weights[2, token]:.3f}" in shown[3]


def test_the_lane_names_the_recorded_threshold_and_none_where_there_is_none(view):
    trace = make_trace(tokens=12)
    page = view(trace)
    title = page.locator(".laneTitle")
    assert title.inner_text().endswith("the dashed line is the threshold 0.1, Level 1")
    page.get_by_role("radio").nth(1).click()
    assert "dashed" not in title.inner_text()
    page.get_by_role("radio").nth(2).click()
    assert title.inner_text().endswith("the dashed line is the threshold 0, Level 3")
    page.locator(".colour").select_option("weight")
    assert "dashed" not in title.inner_text()


def test_the_lane_of_kept_tokens_compresses_nothing_and_speaks_one_language(view):
    page = view(make_trace(tokens=12), language="zh")
    title = page.locator(".laneTitle")
    assert "（较大的数值已压缩）" in title.inner_text() and title.inner_text().endswith("，第 1 级")
    page.locator(".colour").select_option("kept")
    assert "压缩" not in title.inner_text()


def test_levels_that_an_edit_changed_say_so(view):
    trace = make_trace()
    trace = replace(trace, provenance=replace(trace.provenance, edits=("threshold 0.3@2", "drop 1@1")))
    page = view(trace)
    edited = [title.endswith("(edited)") for title in page.get_by_role("radio").all_inner_texts()]
    assert edited == [False, True, False]


def test_what_is_selected_survives_an_edit_and_what_the_page_tells_is_taken_over(view):
    trace = make_trace(tokens=12)
    kept = trace.routing.kept & (np.arange(12) != 5)
    edited = replace(
        trace,
        routing=replace(trace.routing, kept=kept, weights=trace.routing.weights * kept),
        provenance=replace(trace.provenance, edits=("drop 5@*",)),
    )
    begin = Shown(level=1, selected=2, until=2)
    page = view(trace, begin)
    said(page, {"level": 1, "selected": 2, "until": 2, "colour": "score"})
    page.get_by_role("radio").nth(2).click()
    page.locator(".text").press("ArrowRight")
    said(page, {"level": 3, "selected": 3, "until": 3})
    assert page.evaluate("said.at(-1).told") == vars(begin)
    view(edited, begin)
    said(page, {"level": 3, "selected": 3, "until": 3})
    assert len(marked(page, "dropped")) == edited.routing.dropped[2].sum()
    told = Shown(level=2, selected=4, until=6, colour="weight")
    view(edited, told)
    said(page, vars(told))
    assert page.evaluate("said.at(-1).told") == vars(told)
    page.locator(".text").press("Escape")
    said(page, {"selected": None, "until": None})
    another = make_trace(tokens=7, seed=5)
    view(another, Shown())
    said(page, {"id": another.subject, **vars(Shown())})


def test_a_trace_without_levels_is_shown_without_controls_for_them(view):
    page = view(make_trace("TT", tokens=8))
    assert page.locator(".legend").inner_text() == table("en")["view_dense"]
    assert page.locator(".lane").is_hidden()
    page.locator(".colour").select_option("surprisal")
    assert page.locator(".lane").is_visible()
    page.locator(".text").press("ArrowDown")
    said(page, {"level": 1, "colour": "surprisal"})


SCRIPT = """
from dataclasses import replace

import streamlit as st

from analysis.figures.routing_view.data import Shown
from app.components.routing_view import routing_view
from app.strings import table
from tests.analysis.trace.test_trace import make_trace

trace = make_trace(tokens=12)
edited = replace(trace, provenance=replace(trace.provenance, edits=("threshold 0.3@1",)))
shown = st.session_state.setdefault("shown", Shown(selected=2, until=2))
place = st.radio("Place", ["first", "second"])
if st.button("Select token 7"):
    shown = Shown(2, 7, 8, "weight")
key = "one" if place == "first" else "two"
views = st.session_state.setdefault("views", {})
exchange = routing_view(edited if st.toggle("Edit") else trace, shown, views.get(key), table("en"), key)
if st.query_params.get("interrupt") and st.session_state.get("interrupted") != place:
    st.session_state["interrupted"] = place
    st.rerun()  # as a request does that comes too soon
views[key] = exchange
shown = st.session_state["shown"] = views[key].received
st.text(f"{place}: {shown.level} {shown.selected} {shown.until} {shown.colour}")
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    (folder / "page.py").write_text(SCRIPT)
    with serve(folder / "log", {"SUBLLM_HOME": str(folder)}, [*COMMAND[:-1], str(folder / "page.py")]) as address:
        yield address
    assert "Traceback" not in (folder / "log").read_text()


@pytest.mark.parametrize("query", ["", "?interrupt=1"], ids=["at leisure", "interrupted at each change of place"])
def test_the_selection_stays_through_edits_and_other_places_and_the_page_can_change_it(browser, served, query):
    page = browser.new_page(viewport={"width": 1000, "height": 900})
    page.goto(served + query)

    def both_show(level, selected, until, colour="score", place="first"):
        """The page and the browser say the same."""
        page.get_by_text(f"{place}: {level} {selected} {until} {colour}", exact=True).wait_for()
        expect(page.locator(".routing .text")).to_have_count(1)  # that of the place before has gone
        page.get_by_role("status").filter(has_text=f"Token {selected} ").wait_for()
        expect(page.get_by_role("radio", name=f"Level {level}")).to_have_attribute("aria-checked", "true")

    both_show(1, 2, 2)
    text = page.locator(".routing .text")
    text.press("ArrowRight")
    both_show(1, 3, 3)
    text.press("ArrowDown")
    both_show(2, 3, 3)
    page.get_by_text("Edit", exact=True).click()
    page.get_by_role("radio", name="(edited)").wait_for()
    both_show(2, 3, 3)
    page.get_by_text("second", exact=True).click()
    both_show(2, 3, 3, place="second")
    text.press("ArrowRight")
    both_show(2, 4, 4, place="second")
    page.get_by_text("first", exact=True).click()
    both_show(2, 4, 4)
    page.get_by_role("button", name="Select token 7").click()
    both_show(2, 7, 8, "weight")
    text.press("ArrowLeft")
    both_show(2, 6, 6, "weight")
    for place in ("second", "first"):  # nothing is selected in between
        page.get_by_text(place, exact=True).click()
        both_show(2, 6, 6, "weight", place)
    settled(page)  # a page that is closed while the server sends makes a traceback
    page.close()


def merging_trace():
    """Groups of four: token 0, then 1 to 4, 5 to 8, and 9 to 11, which is not complete."""
    trace = make_trace("T(T)T", tokens=12, seed=3, parts=())
    kept = (np.arange(12) % 4 == 0)[None]
    nowhere = np.full((1, 12), np.nan, dtype=np.float32)
    ones = np.ones((1, 12), dtype=np.float32)
    routing = replace(
        trace.routing, routers=np.asarray(["stride"]), strides=np.asarray([4]), thresholds=nowhere[:, 0],
        reached=np.ones_like(kept), kept=kept, edited=np.zeros_like(kept), weights=ones, scores=nowhere,
        stream_norm=2 * ones, difference_norm=ones, contribution_norm=ones, work=kept[[0] * 3].astype(np.float16),
    )  # fmt: skip
    text = "abcdefghijkl"
    prompt = replace(trace.prompt, text=text, pieces=np.asarray([*text]))
    return replace(trace, prompt=prompt, routing=routing, provenance=replace(trace.provenance, edits=()))


def light_heavy_trace():
    """Block 1 of three is a light/heavy block; token 5 takes its light branch only."""
    trace = make_trace("T(T(T)T)(T)", tokens=12, seed=3, parts=())
    kept = np.stack([np.arange(12) % 2 == 0, np.arange(12) < 3, np.arange(12) % 3 == 0])
    kept[:, 5] = False
    work = np.ones((3, 12), dtype=np.float16)
    work[1] = 0.4 + 0.2 * kept.sum(0)
    norms = np.where(kept, 0.5, 0).astype(np.float32)
    norms[1] = np.nan
    routing = replace(
        trace.routing, routers=np.full(3, "colt5"), parents=np.zeros(3, dtype=int), block_levels=np.zeros(3, dtype=int),
        site_kinds=np.asarray(["query", "key_value", "mlp"]), site_blocks=np.ones(3, dtype=int), kept=kept,
        reached=np.ones_like(kept), edited=np.zeros_like(kept), weights=kept.astype(np.float32), work=work,
        scores=np.where(kept, 1, -1).astype(np.float32), thresholds=np.zeros(3, dtype=np.float32),
        bypass_scale=np.full((3, 4), np.nan, dtype=np.float32),
        stream_norm=np.ones_like(norms), difference_norm=norms, contribution_norm=norms,
    )  # fmt: skip
    return replace(trace, routing=routing, provenance=replace(trace.provenance, edits=()))


def colours(page, canvas):
    """Counts of the colours of merged cells (green), of processed ones and of the light branch (blue), and hatched."""
    return page.locator(canvas).evaluate(
        """(canvas) => {
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        const found = { green: 0, blue: 0, orange: 0 };
        for (let i = 0; i < data.length; i += 4) {
          const [r, g, b, a] = data.slice(i, i + 4);
          if (a < 10) continue;
          if (g > r + 60 && g > b + 15) found.green++;
          if (b > r + 60 && b > g + 40) found.blue++;
          if (r > b + 60) found.orange++;
        }
        return found;
    }"""
    )


def test_merged_tokens_are_tied_to_their_carrier_and_look_neither_kept_nor_dropped(view, pictures):
    trace = merging_trace()
    page = view(trace, Shown(selected=6))
    assert marked(page, "merged") == ["b", "c", "d", "f", "g", "h", "j", "k", "l"]
    assert marked(page, "dropped") == marked(page, "absent") == []
    assert legend(page)[0].startswith("carries a group") and legend(page)[1:] == ["merged into the next carrier"]
    assert page.locator(".levels").inner_text() == "Level 1: 12 merged into 3"
    shown = page.locator(".token").inner_text().splitlines()
    assert shown[1] == "Level 1: merged into token 8; gets the result of token 4, bypass contribution 50.0%"
    assert "Green lines" in page.locator(".title").first.inner_text()
    cells = colours(page, ".cells")
    assert cells["green"] and cells["blue"] and not cells["orange"]
    assert colours(page, ".textFrame .marks")["green"], "a dashed line ties the group in the text"
    page.screenshot(path=pictures / "merged.png")
    page.locator(".text").press("ArrowRight")
    page.locator(".text").press("ArrowRight")
    expect(page.locator(".token")).to_contain_text("Level 1: carries its group; gets the result of token 8")
    page.locator(".text").press("ArrowRight")
    expect(page.locator(".token")).to_contain_text("waits for its group to be complete; gets the result of token 8")
    assert not colours(page, ".textFrame .marks")["green"], "an open group has no carrier yet"


def test_light_heavy_blocks_group_their_routers_and_mark_tokens_of_the_light_branch_only(view, pictures):
    trace = light_heavy_trace()
    page = view(trace, Shown(selected=5))
    assert page.locator(".levels .block").inner_text().startswith("Block 1")
    names = [button.get_attribute("aria-label") for button in page.locator(".levels button").all()]
    assert names == [
        "Block 1 · queries: 6 of 12 heavy", "Block 1 · keys and values: 3 of 12 heavy", "Block 1 · MLP: 4 of 12 heavy",
    ]  # fmt: skip
    assert marked(page, "light") == texts(trace, ~trace.routing.kept[0]) and marked(page, "dropped") == []
    assert legend(page)[1:] == ["light branch only"]
    shown = page.locator(".token").inner_text().splitlines()
    assert [line.split(",")[0] for line in shown[1:]] == [
        f"Block 1 · {part}: light branch only" for part in ("queries", "keys and values", "MLP")
    ]
    assert "bypass" not in page.locator(".routing").inner_text()
    page.locator(".cells").focus()
    page.locator(".cells").press("ArrowDown")
    page.locator(".cells").press("ArrowDown")
    expect(page.locator(".token")).to_contain_text("block 1: light branch only, 40% of a dense block's work")
    page.screenshot(path=pictures / "light-heavy.png")
    page.locator(".levels button").first.press("ArrowRight")
    said(page, {"level": 2})
    assert marked(page, "light") == texts(trace, ~trace.routing.kept[1])
    assert page.locator(".levels button").nth(1).evaluate("button => button === document.activeElement")
