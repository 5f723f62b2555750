"""Rules in the app: chosen on Explore, saved and used in What if, and carried by links."""

import pytest
from streamlit.testing.v1 import AppTest

from analysis import AnalysisError
from analysis.debug.edits import parse_edits
from analysis.debug.rules import Rule
from app.shipped_rules import rule_description, rule_name, shipped
from app.state import Session
from app.strings import table
from tests.app.scripts import script

EXPLORE = script("explore")
DEBUG = script("debug")
TEXT = "the 3 Cats sat on the mat at 12 and then the dog sat on the cat"


@pytest.fixture
def open_page(tiny_checkpoint, monkeypatch):
    """Opens a page by a link to a prompt."""
    monkeypatch.setenv("SUBLLM_ROOTS", str(tiny_checkpoint.parent))

    def opened(script, **fields):
        page = AppTest.from_string(script, default_timeout=60)
        page.query_params.update({"v": "2", "checkpoint": "tiny", "prompt": TEXT, **fields})
        page.run()
        assert not page.exception
        return page

    return opened


def trace_of(page):
    return page.session_state["session"].run().trace


def address_of(page):
    return {key: values[0] if isinstance(values, list) else values for key, values in page.query_params.items()}


def button(page, label):
    return next(each for each in page.button if each.label == label)


def test_a_rule_is_chosen_for_the_next_run_which_names_it(open_page):
    page = open_page(EXPLORE)
    assert trace_of(page).provenance.rule == ""
    page.selectbox(key="rule").set_value("protect-last-32")
    button(page, "Run").click().run()
    assert not page.exception and not page.error
    where = trace_of(page).provenance
    assert (where.rule, where.edits) == ("Protect the last 32 tokens", ("keep last 32@*",))
    assert trace_of(page).routing.kept.all()
    assert any("Rule in force: Protect the last 32 tokens" in text.value.replace("\\", "") for text in page.caption)
    assert address_of(page)["rule"] == where.rule and address_of(page)["edits"] == "keep last 32@*"


def test_a_link_opens_the_run_with_its_rule(open_page):
    page = open_page(EXPLORE, rule="My own", edits="keep digits@*;budget 2@*")
    assert not page.error
    where = trace_of(page).provenance
    assert (where.rule, where.edits) == ("My own", ("keep digits@*", "budget 2@*"))
    assert page.selectbox(key="rule").value == "own:My own"
    assert address_of(page)["rule"] == "My own"


@pytest.mark.parametrize(
    "fields", [{"rule": "x" * 61, "edits": "dense@1"}, {"rule": "a\nb", "edits": "dense@1"}, {"rule": "x"}]
)
def test_a_link_with_an_odd_rule_opens_the_run_without_it_and_says_so(open_page, fields):
    page = open_page(EXPLORE, **fields)
    assert trace_of(page).provenance.rule == "" and "rule" not in address_of(page)
    said = [error.value.replace("\\", "") for error in page.error]
    assert len(said) == 1 and ("so it is made without them" in said[0] or "not under the name" in said[0])
    assert [error.value for error in page.run().error] == [error.value for error in page.error], (
        "until there is another run"
    )
    page.text_area(key="prompt").set_value("the dog")
    button(page, "Run").click().run()
    assert not page.error


def again(page, script, open_page):
    """The run that the address of a page opens in another browser, on the page of a script."""
    fields = address_of(page)
    other = open_page(script, **fields)
    assert not other.error and address_of(other) == fields
    return other


@pytest.mark.parametrize("script", [EXPLORE, DEBUG])
def test_a_link_opens_the_edited_run_that_is_shown_whoever_made_its_edits(open_page, script):
    """Runs under edits that nobody named come from Side by side, and from answers."""
    for edits, dropped in (("drop 2-4@1", slice(2, 5)), ("retention 0@1", slice(None))):
        page = open_page(script, made=edits, edits=edits)
        where = trace_of(page).provenance
        assert (where.rule, where.edits) == ("", (edits,)) and not page.error
        assert not trace_of(page).routing.kept[0, dropped].any()
        assert trace_of(again(page, script, open_page)).provenance.edits == where.edits
        said = any(edits in caption.value.replace("\\", "") for caption in page.caption)
        assert said or script == DEBUG, "the page Explore says what the run was made with"
    page = open_page(EXPLORE, rule="My own", edits="keep digits@*")
    own = page.session_state["session"]
    own.edits_of(trace_of(page)).change([])  # in What if
    assert address_of(page.run())["made"] == "keep digits@*" and "edits" not in address_of(page)
    other = again(page, EXPLORE, open_page)
    found = trace_of(other)
    assert (found.provenance.rule, found.provenance.edits) == ("My own", ("keep digits@*",))
    assert other.session_state["session"].edits_of(found).edits == [], "as in What if of the one who sent it"
    page = open_page(script, rule="The model's own", edits="keep digits@*")
    where = trace_of(page).provenance
    assert (where.rule, where.edits) == ("", ("keep digits@*",)), "a name that is taken, and its edits all the same"
    assert "not under the name of its rule" in page.error[0].value


def test_a_rule_that_does_not_fit_the_model_is_a_message(open_page):
    page = open_page(EXPLORE)
    page.session_state["session"].keep_rule(Rule("Deep", "", tuple(parse_edits("dense@9"))))
    page.run().selectbox(key="rule").set_value("own:Deep")
    button(page, "Run").click().run()
    assert not page.exception
    assert "does not fit this model" in page.error[0].value and trace_of(page).provenance.rule == ""


def test_a_rule_takes_the_place_of_the_edits_and_holds_on_explore(open_page):
    page = open_page(DEBUG, edits="drop 2-4@1")
    page.selectbox(key="rule to use").set_value("protect-capitals-and-numbers").run()
    button(page, "Use it").click().run()
    assert not page.exception and not page.error
    own = page.session_state["session"]
    assert [str(edit) for edit in own.edits_of(trace_of(page)).edits] == ["keep capitals@*", "keep digits@*"]
    assert page.session_state["rule"] == "protect-capitals-and-numbers"
    button(page, "").click().run()  # undo
    assert [str(edit) for edit in own.edits_of(trace_of(page)).edits] == ["drop 2-4@1"]


def test_an_opened_rule_can_be_used_and_a_broken_one_is_a_message(open_page):
    page = open_page(DEBUG)
    rule = Rule("Mine", "Keeps articles.", tuple(parse_edits("keep 'the'@*; keep 'not there'@1")))
    page.file_uploader(key="rule file").upload("rule.json", rule.written(), "application/json").run()
    assert not page.exception and page.selectbox(key="rule to use").value == "own:Mine"
    button(page, "Use it").click().run()
    assert [str(edit) for edit in page.session_state["session"].edits_of(trace_of(page)).edits] == ["keep 'the'@*"]
    page.file_uploader(key="rule file").upload("other.json", b'{"format": 3}', "application/json").run()
    assert not page.exception and "the format 3" in page.error[0].value.replace("\\", "")


def test_what_cannot_be_uploaded_is_not_offered(open_page, monkeypatch):
    monkeypatch.setenv("SUBLLM_FEATURES", "none")
    page = open_page(DEBUG)
    assert not page.file_uploader and page.selectbox(key="rule to use").value


def test_a_visitor_keeps_the_last_rules():
    own = Session()
    edits = tuple(parse_edits("dense@1"))
    keys = [own.keep_rule(Rule(f"rule {number}", "", edits)) for number in range(12)]
    assert [*own.rules] == keys[4:]
    assert own.keep_rule(Rule("rule 5", "", edits)) == keys[5] == [*own.rules][-1]


@pytest.mark.parametrize(
    "name", ["The model's own", "模型自身的规则", "Protect the last 32 tokens", " protect the LAST 32 tokens"]
)
def test_a_rule_cannot_pass_for_one_of_the_app(name):
    with pytest.raises(AnalysisError, match="that of a rule of this app"):
        Session().keep_rule(Rule(name, "", tuple(parse_edits("drop digits@*"))))


def test_names_like_keys_are_names_like_all_others():
    own, edits = Session(), tuple(parse_edits("dense@1"))
    for name in ("at-most-256", "own:x", "x"):
        assert own.keep_rule(Rule(name, "", edits)) not in shipped()
    assert len(own.rules) == 3


def test_a_link_with_a_shipped_rule_chooses_the_shipped_rule(open_page):
    page = open_page(EXPLORE, rule="Protect capitalised words and numbers", edits="keep digits@*")
    assert not page.error and page.selectbox(key="rule").value == "protect-capitals-and-numbers"
    assert page.session_state["session"].rules == {}


def test_shipped_rules_have_their_words_in_the_table_of_strings(monkeypatch):
    for stem, rule in shipped().items():
        assert (rule_name(rule.name), rule_description(rule)) == (rule.name, rule.description)
        assert table("zh")[f"rule_{stem}"] != rule.name and table("zh")[f"rule_about_{stem}"] != rule.description


def test_a_shipped_rule_is_named_in_the_language_of_the_page(open_page):
    page = open_page(EXPLORE, rule="Protect the last 32 tokens", edits="keep last 32@*", lang="zh")
    assert any("保护末尾 32 个词元（keep last 32@*）" in text.value.replace("\\", "") for text in page.caption)
    assert any("每一级都保留提示词末尾的 32 个词元" in text.value for text in page.caption)
