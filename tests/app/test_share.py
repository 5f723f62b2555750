"""Sharing a run: its link, and a frame of another page that shows nothing but the run."""

import html
import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from streamlit.testing.v1 import AppTest

from analysis.debug.edits import parse_edits
from app.state import Elsewhere, Session
from app.strings import LANGUAGES, table
from app.views.share import frame
from tests.analysis.trace.test_trace import make_trace
from tests.app.scripts import script
from tests.app.test_open_run import opened, saved

MAIN = str(Path(__file__).parents[2] / "app" / "main.py")
TEXT = 'the cat & the "dog" sat on <b>the</b> mat'


@pytest.fixture
def page(tiny_checkpoint, monkeypatch):
    monkeypatch.setenv("SUBLLM_ROOTS", str(tiny_checkpoint.parent))
    app = AppTest.from_file(MAIN, default_timeout=60)
    app.query_params.update({"v": "2", "checkpoint": "tiny", "prompt": TEXT, "level": "2"})
    return app


def shared(page):
    """The link and the line of the section."""
    link, line = [code.value for code in page.code if "?v=" in code.value or "<iframe" in code.value][-2:]
    return link, line


def test_an_address_leads_back_to_what_it_showed_unless_several_runs_have_it():
    own, (first, second) = Session(), (make_trace("T(T)T"), make_trace("TT"))
    for trace in (first, second):
        own.remember(trace, Elsewhere.FILE)
    one, other = own.runs[::-1]
    own.choose(one.trace.run)
    own.shown = {"level": "1", "selected": "2"}
    own.note_place({"prompt": "a"}, one)
    own.edits_of(first).change(parse_edits("drop 1@1"))
    own.note_place({"prompt": "a", "edits": "drop 1@1"}, one)
    own.choose(other.trace.run)
    own.note_place({"long": "1"}, one)
    own.note_place({"long": "1"}, other)
    own.note_place({"long": "1"}, other)
    own.return_to({"long": "1"})
    assert own.run() is other
    own.return_to({"prompt": "a"})
    assert own.run() is one and own.shown == {"level": "1", "selected": "2"}
    assert [*map(str, own.edits_of(first).edits)] == [*first.provenance.edits]
    own.edits_of(first).undo()
    assert [*map(str, own.edits_of(first).edits)] == ["drop 1@1"]
    own.return_to({"prompt": "of another session"})
    assert own.run() is one


def test_the_link_and_the_frame_name_the_run_that_is_shown(page):
    page.run()
    assert not page.exception and not page.error
    link, line = shared(page)
    fields = {key: value for key, (value,) in parse_qs(urlsplit(link).query).items()}
    assert (fields["prompt"], fields["checkpoint"], fields["level"]) == (TEXT, "tiny", "2")
    (source,) = re.findall(r'<iframe src="([^"<>]*)" ', line)
    said = next(caption.value for caption in page.caption if "in another browser" in caption.value)
    assert (
        not {"new", "compare"} & {*fields}
        and "number of new tokens and the comparison, from the settings there" in said
    )
    framed = {key: value for key, (value,) in parse_qs(urlsplit(html.unescape(source)).query).items()}
    assert framed == fields | {"embed": "true"}


def test_an_address_in_the_line_stays_an_address():
    line = frame("https://x/?a=\"><script>alert(1)</script>&b='")
    assert line.count("<") == 2 and line.count('"') == 10 and "<script" not in line


def test_a_run_that_no_link_can_open_says_how_to_send_it(page):
    page.query_params.clear()
    page.run()
    opened(page, saved(make_trace()))
    assert any("No link can open this run" in caption.value for caption in page.caption)
    assert not [code for code in page.code if "<iframe" in code.value]


@pytest.mark.parametrize("language", LANGUAGES)
def test_how_to_send_a_file_names_things_of_the_app_and_no_place_on_one_page(language):
    words = table(language)
    said = words["share_file"]  # on Explore and on Debug
    named = re.findall("“([^”]*)”", said)
    assert {words["take_trace"], words["open_run"], words["whatif_add"]} <= {*named} <= {*words.values()}
    assert "below" not in said and "下方" not in said


def test_a_frame_shows_the_run_and_neither_prompt_nor_sidebar(page, monkeypatch):
    monkeypatch.setattr("streamlit.runtime.context.ContextProxy.is_embedded", property(lambda self: True))
    page.run()
    assert not page.exception and not page.error
    assert page.session_state["session"].run().trace.prompt.text == TEXT
    assert page.metric and not (page.text_area or page.title or page.sidebar.selectbox or page.get("file_uploader"))


def test_a_frame_runs_with_the_rule_of_its_link_and_within_the_operators_limits(page, monkeypatch):
    monkeypatch.setattr("streamlit.runtime.context.ContextProxy.is_embedded", property(lambda self: True))
    monkeypatch.setenv("SUBLLM_MAX_NEW_TOKENS", "3")
    page.query_params.update({"rule": "My own", "edits": "keep last 4@*"})
    page.run()
    assert not page.exception and not page.error
    trace = page.session_state["session"].run().trace
    assert (trace.provenance.rule, trace.provenance.edits) == ("My own", ("keep last 4@*",))
    assert len(trace.continuation.ids) <= 3


def test_the_link_of_a_run_is_measured_as_it_is_sent(page):
    page.query_params["edits"] = 'keep "你好你好你好"@1'
    page.run()
    assert not page.exception and not page.error
    own = page.session_state["session"]
    link, _ = shared(page)
    assert "edits=keep+%22%E4%BD%A0" in link
    own.edits[own.run().trace.run].edits *= 120  # 2,000 characters, and 9,000 as they are sent
    page.run()
    assert any("No link can open this run" in caption.value for caption in page.caption)


def test_a_frame_of_the_page_debug_shows_its_edits_and_no_form(page, monkeypatch):
    monkeypatch.setattr("streamlit.runtime.context.ContextProxy.is_embedded", property(lambda self: True))
    debug = AppTest.from_string(script("debug"), default_timeout=60)
    debug.query_params.update({"v": "2", "checkpoint": "tiny", "prompt": TEXT, "edits": "drop 2@1"})
    debug.run()
    assert not debug.exception and not debug.error
    assert any("Edits in force" in text.value for text in debug.markdown)
    assert not (debug.title or debug.text_area or debug.sidebar.selectbox)
