"""What of a run was not measured is absent with a word; what is shown of an edited run is its own."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from analysis.debug.edits import parse_edits
from analysis.figures import summary
from analysis.guard import silent
from analysis.run import RunOptions
from analysis.trace import pairs
from app import engine
from app.settings import Settings
from app.state import Session
from app.strings import table
from tests.analysis.trace.test_trace import PARTS, make_trace

TEXT = "the cat sat on the mat and then the dog sat on the cat"


def page(function, own=None, tab="Overview", **values):
    """A page of one function, run once, with one of the tabs of statistics open."""
    found = AppTest.from_function(function, default_timeout=60, kwargs=values)
    found.session_state["session"] = own or Session()
    found.session_state["statistics"] = tab
    found.run()
    assert not found.exception, found.exception
    return found


def words(found):
    """All text on a page, as a person reads it."""
    elements = [*found.caption, *found.info, *found.text, *found.markdown]
    texts = [element.value for element in elements] + [f"{each.label} {each.value}" for each in found.metric]
    texts += [each.value.to_string() for each in [*found.table, *found.dataframe]]
    return "\n".join(texts).replace("\\", "")


def numbers(trace):
    from app.views.trace import costs, levels

    costs.headline(trace)
    costs.table(trace)
    levels.continuation(trace)


def statistics(trace, level):
    from analysis.figures.routing_view.data import Shown
    from app.views.trace import levels

    levels.show(trace, Shown(level=level))


def pair(first, second):
    from app.views.trace import pairs as beside

    beside.compare(first, second, ("one", "two"))


def beside_of(run, settings):
    from app.views.trace import pairs as beside

    beside.show(run, settings)


def depth(run, shown):
    from app.settings import Settings
    from app.views.trace import token

    token.show(run, shown, Settings.read())


def steps_of(run, settings):
    from app.views.debug import steps

    steps.show(run, settings)


def why_of(run, settings):
    from app.views.debug import why

    why.show(run, settings)


SUBSETS = [each for size in (0, 1, len(PARTS) - 1, len(PARTS)) for each in combinations(PARTS, size)]


@pytest.mark.parametrize("structure", ["TT", "T(T)T", "T(T(T)T)(T)"])
@pytest.mark.parametrize("parts", SUBSETS, ids="+".join)
def test_what_was_not_measured_is_absent_with_a_word(structure, parts):
    trace = make_trace(structure, parts=parts)
    text = words(page(numbers, trace=trace))
    assert "nan" not in text.lower().split()
    why = "Nothing was measured: the comparison was switched off, the run was stopped or interrupted, or the time limit"
    assert (why in text) == ("costs" not in parts)
    assert ("Prefill time" in text) == ("costs" in parts)
    assert ("rank the same next token" in text) == ("agreement" in parts)
    assert ("Perplexity of the prompt" in text) == ({"likelihood", "agreement"} <= {*parts})
    assert ("No continuation was generated" in text) == ("continuation" not in parts)
    both = words(page(pair, first=trace, second=make_trace(structure, parts=PARTS)))
    absent = {"predictions", "likelihood", "continuation"} - {*parts}
    assert both.count("not measured") == len(absent) and "nan" not in both.lower().split()


@pytest.mark.parametrize("level", [1, 2, 3])
def test_the_rule_of_training_is_compared_where_the_router_scores_and_the_others_say_why_not(level):
    trace = make_trace()
    text = words(page(statistics, tab="Scores and threshold", trace=trace, level=level))
    if trace.routing.scores_tokens(level):
        assert f"Tokens kept in this run: {trace.routing.kept[level - 1].sum()}. The training rule" in text
    else:
        silent = "its router, “evenly spaced tokens”, does not score tokens."
        assert f"Level 2 has no scores and no threshold: {silent}" in text


def test_new_tokens_are_counted_by_what_was_kept_whatever_their_scores():
    trace = make_trace("T(T)T")
    kept = replace(trace.continuation, kept=np.asarray([[True, False]]), scores=np.asarray([[-1.0, 2.0]]))
    assert "New tokens kept, out of 2: Level 1: 1" in words(page(numbers, trace=replace(trace, continuation=kept)))


@pytest.fixture(scope="module")
def runs(tiny_checkpoint):
    """A session with a run and with one that has edits."""
    own = Session()
    recipe = engine.Recipe(TEXT, False, engine.ModelSpec("tiny", tiny_checkpoint, "cpu", "float32"))
    *_, (trace, _) = engine.run(recipe, RunOptions(new_tokens=4), silent, truncate=False, limit=512)
    *_, outcome = engine.edited(recipe.model, trace, "", parse_edits("drop 1-12@1; dense@2"), silent, 512)
    own.remember(outcome.trace, recipe, shown=False)
    own.remember(trace, recipe)
    return own


def test_a_run_that_is_made_again_and_stopped_keeps_the_longer_text(tiny_checkpoint):
    recipe = engine.Recipe(TEXT, False, engine.ModelSpec("tiny", tiny_checkpoint, "cpu", "float32"))
    own, found = Session(), {}
    for tokens in (1, 3, 5):
        *_, (found[tokens], _) = engine.run(recipe, RunOptions(new_tokens=tokens), silent, truncate=False, limit=512)
    own.remember(found[3], recipe)
    for tokens, kept, unfinished in ((1, 3, False), (5, 5, True), (3, 5, True)):
        own.remember(found[tokens], recipe, shown=False, unfinished=True)
        (run,) = own.runs
        assert (len(run.trace.continuation.ids), run.unfinished) == (kept, unfinished)


def test_side_by_side_has_no_overlap_where_neither_keeps_a_token(runs):
    first, second = (
        replace(run.trace, routing=replace(run.trace.routing, kept=np.zeros_like(run.trace.routing.kept)))
        for run in runs.runs
    )
    found = pairs.overlap(first.routing, second.routing, pairs.pair(first.prompt, second.prompt))
    assert found["both"].isna().all() and (found["differ"] == 0).all()
    assert set(summary.overlap_table(first, found, table("en"))["Overlap"]) == {"–"}


def test_side_by_side_shows_an_edited_runs_own_numbers(runs):
    plain, edited = runs.runs
    found = page(beside_of, runs, run=plain, settings=Settings.read())
    first, second = found.dataframe[0].value.to_dict("records")
    for shown, run in ((first, plain), (second, edited)):
        trace = run.trace
        likeliest = trace.predictions
        assert shown["Run"] == run.name
        assert shown["Next token"] == f"{str(likeliest.next_pieces[0])!r} {likeliest.next_probabilities[0]:.1%}"
        assert shown["Perplexity"] == f"{trace.likelihood.perplexity:.2f}"
        assert shown["Kept, of the tokens that reach each level"] == ", ".join(
            f"{share:.0%}" for share in trace.routing.retention
        )
    assert first["Next token"] != second["Next token"] and first["Perplexity"] != second["Perplexity"]
    assert first["Greedy continuation"] == plain.trace.continuation.text
    assert second["Greedy continuation"] == "not measured"


@pytest.mark.parametrize("token", [0, 5, 13])
def test_a_token_in_depth_shows_what_was_recorded_of_it_in_the_run_that_is_shown(runs, token):
    from analysis.figures.routing_view.data import Shown

    for run in runs.runs:
        found = page(depth, runs, run=run, shown=Shown(selected=token, until=token))
        found.button(key="follow").click().run()
        assert not found.exception and not found.error
        routing = run.trace.routing
        for row, (_, shown) in enumerate(found.table[0].value.iterrows()):
            state = "kept" if routing.kept[row, token] else "dropped" if routing.reached[row, token] else "not reached"
            assert shown["State"].startswith(state)
            assert shown["State"].endswith("(edited)") == routing.edited[row, token]
            assert shown["Threshold"] == f"{routing.thresholds[row]:+.3f}"
            weight = f"{routing.weights[row, token]:.3f}" if routing.kept[row, token] else "–"
            assert shown["Weight"] == weight
            norms = [float(shown[f"Norm {where}"]) for where in ("before", "inside") if shown[f"Norm {where}"] != "–"]
            assert len(norms) == int(routing.reached[row, token]) + int(routing.kept[row, token])


def test_a_run_is_explained_with_its_edits(runs):
    last = len(runs.runs[0].trace.prompt) - 1
    runs.shown = {"selected": last, "until": last}
    for run in runs.runs:
        asked = page(why_of, runs, run=run, settings=Settings.read())
        assert ("This run has edits" in words(asked)) == bool(run.trace.provenance.edits)
        next(button for button in asked.button if button.label == "Explain").click().run()
        assert not asked.exception and not asked.error
        explained = asked.session_state["session"].found["attribution"][1][2].value
        assert np.exp(explained) == pytest.approx(run.trace.predictions.next_probabilities[0], rel=1e-2)
    next(button for button in asked.button if "attention" in button.label).click().run()
    assert not asked.exception and not asked.error


def test_a_branch_is_generated_in_a_run_of_the_page_with_its_progress(runs, monkeypatch):
    """A callback has no place on the page: what ran in one could not be stopped and showed nothing."""
    told, real = [], engine.branch
    monkeypatch.setattr(engine, "branch", lambda *given: told.append(given[3]) or real(*given))
    found = page(steps_of, runs, run=runs.runs[0], settings=Settings.read())
    next(button for button in found.button if button.label == "One token").click().run()
    own = found.session_state["session"]
    key, (text,) = own.found["texts"]
    other = next(each for each, _ in text.tokens[0].alternatives if each != text.tokens[0].id)
    own.found["branch"] = (key, (0, other))  # as the button of that token notes it
    found.run()
    assert not found.exception and not found.error
    (token,) = own.found["texts"][1][0].tokens
    assert token.id == other and not token.chosen
    assert [type(progress) for progress in told] == [engine.Work]
    found.run()
    assert len(told) == 1, "it is generated once"
