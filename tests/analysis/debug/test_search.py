"""The search for decisions that matter, whoever decides: exact effects are those of edits, and levels have to exist."""

import numpy as np
import pytest

from analysis import AnalysisError
from analysis.debug.edits import Edit
from analysis.debug.intervene import intervene, run_unedited
from analysis.debug.search import candidates, estimate_effects, measure_effects
from subllm.routing import ROUTERS
from tests.analysis.debug.test_intervene import checkpoint_of, prompt_of
from tests.conftest import tiny_model

IDS = [5, 9, 33, 7, 60, 12, 2, 81, 44, 20, 31, 8]


@pytest.fixture(scope="module", params=sorted(name for name, router in ROUTERS.items() if not router.merges_tokens))
def unedited(request):
    model = tiny_model("T(T(T)T)(T)T", router=request.param)
    return run_unedited(checkpoint_of(model), prompt_of(IDS), [5, 9])


@pytest.mark.parametrize("level", [1, 2, 3])
def test_flipping_a_decision_is_what_an_edit_does_whoever_decides(unedited, level):
    routing = unedited.trace.routing
    found = estimate_effects(unedited, level)
    assert found.level == level
    np.testing.assert_array_equal(found.tokens, np.flatnonzero(routing.reached[level - 1]))
    *_, final = measure_effects(unedited, found, range(len(found.tokens)))
    for token, exact in zip(final.tokens, final.exact, strict=True):
        kind = "drop" if routing.kept[level - 1, token] else "keep"
        answer = intervene(unedited, [Edit(kind, level, str(token))]).answer
        assert exact == pytest.approx(answer.edited - answer.unedited, abs=1e-4)


@pytest.mark.parametrize("level", [-1, 0, 4])
def test_a_level_that_is_not_there_is_refused(unedited, level):
    with pytest.raises(AnalysisError, match=f"There is no Level {level}; the number of levels of this model is 3"):
        candidates(unedited, level)


@pytest.mark.parametrize("kept", [True, False], ids=["all keys routed", "as the router decides"])
def test_keys_that_no_query_reads_have_no_effect(kept):
    model = tiny_model("TCT")
    routers = model.model.layers[1].routers
    routers["query"].threshold.fill_(1e9)
    if kept:
        routers["key_value"].threshold.fill_(-1e9)
    unedited = run_unedited(checkpoint_of(model), prompt_of(IDS), [5, 9])
    assert not unedited.trace.routing.kept[0].any() and (unedited.trace.routing.kept[1].all() or not kept)
    found = estimate_effects(unedited, 2)
    assert not found.estimate.any()
    *_, final = measure_effects(unedited, found, range(len(found.tokens)))
    np.testing.assert_array_equal(final.exact, np.zeros(len(found.tokens)))
