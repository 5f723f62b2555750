"""The search for decisions that matter, whoever decides: exact effects are those of edits, and levels have to exist."""

import numpy as np
import pytest

from analysis import AnalysisError
from analysis.debug.edits import Edit
from analysis.debug.intervene import intervene, read_ground
from analysis.debug.search import candidates, estimate, measure
from subllm.routing import ROUTERS
from tests.analysis.debug.test_intervene import checkpoint_of, prompt_of
from tests.conftest import tiny_model

IDS = [5, 9, 33, 7, 60, 12, 2, 81, 44, 20, 31, 8]


@pytest.fixture(scope="module", params=sorted(ROUTERS))
def ground(request):
    model = tiny_model("T(T(T)T)(T)T", router=request.param)
    return read_ground(checkpoint_of(model), prompt_of(IDS), [5, 9])


@pytest.mark.parametrize("level", [1, 2, 3])
def test_flipping_a_decision_is_what_an_edit_does_whoever_decides(ground, level):
    routing = ground.trace.routing
    found = estimate(ground, level)
    assert found.level == level
    np.testing.assert_array_equal(found.tokens, np.flatnonzero(routing.reached[level - 1]))
    *_, final = measure(ground, found, range(len(found.tokens)))
    for token, exact in zip(final.tokens, final.exact, strict=True):
        kind = "drop" if routing.kept[level - 1, token] else "keep"
        before, after = intervene(ground, [Edit(kind, level, str(token))]).answer
        assert exact == pytest.approx(after - before, abs=1e-4)


@pytest.mark.parametrize("level", [-1, 0, 4])
def test_a_level_that_is_not_there_is_refused(ground, level):
    with pytest.raises(AnalysisError, match=f"There is no Level {level} to search; the model has 3"):
        candidates(ground, level)
