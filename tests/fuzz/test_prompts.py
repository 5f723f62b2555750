"""Prompts and answers of any kind are read whole, or refused with a message that says why."""

import io

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analysis import AnalysisError, Trace
from analysis.debug.generation import Sampling
from analysis.guard import silent
from analysis.run import RunOptions
from app import engine
from app.strings import _messages
from subllm import SubllmError

_LIMIT = 48  # tokens, few enough for prompts to be too long
FAMILY = "\N{MAN}\N{ZERO WIDTH JOINER}\N{WOMAN}\N{ZERO WIDTH JOINER}\N{GIRL}"
ODD = [
    *("\0", "\ufeff", "\u202e", "\ud83d", "\udc00", "🦙", FAMILY, "e\u0301", "\x1b[31m", "<eos>", "<user>", "{{7*7}}"),
    *("</script>", "$x$", "a" * 300, " " * 300, "\r\n", "\u2028", "عربي", "猫", "\U0010ffff"),
]
PIECES = st.one_of(
    st.sampled_from(ODD),
    st.text(st.characters(exclude_categories=()), max_size=12),
    st.sampled_from(["the cat ", "sat "]),
)
TEXTS = st.lists(PIECES, max_size=10).map("".join)
few = settings(max_examples=20, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
many = settings(few, max_examples=500)


@pytest.fixture(scope="module")
def spec(tiny_checkpoint):
    return engine.ModelSpec("tiny", tiny_checkpoint, "cpu", "float32")


def try_one(spec, text, answer, *, chat, truncate):
    """True if the prompt was read."""
    recipe = engine.Recipe(text, chat, spec)
    try:
        *_, (trace, _) = engine.run(recipe, RunOptions(2, False), silent, truncate=truncate, limit=_LIMIT)
    except (SubllmError, AnalysisError) as error:
        assert said_well(error), (text, error)
        return False
    prompt = trace.prompt
    assert 0 < len(prompt) <= _LIMIT
    assert chat or (text.startswith(prompt.text) if truncate else prompt.text == text)
    assert (prompt.starts <= prompt.ends).all() and prompt.ends.max() <= len(prompt.text)
    assert np.isfinite(trace.predictions.next_probabilities).all()
    file = io.BytesIO()
    trace.save(file)
    file.seek(0)
    assert Trace.load(file).prompt.text == prompt.text
    try:
        *_, outcome = engine.edited(spec, trace, answer, [], silent, _LIMIT)
        engine.finished(engine.Text(spec, prompt, Sampling(), (), False), silent)
    except (SubllmError, AnalysisError) as error:
        assert said_well(error), (answer, error)
    else:
        assert (outcome.answer is None) == (not answer)
    return True


def said_well(error):
    """In a line or two, with a translation."""
    return len(str(error)) < 600 and error.message in _messages("zh")


@few
@given(text=TEXTS, answer=TEXTS, chat=st.booleans(), truncate=st.booleans())
def test_any_prompt_is_read_whole_or_refused_with_a_message(spec, text, answer, chat, truncate):
    try_one(spec, text, answer, chat=chat, truncate=truncate)


@pytest.mark.soak
@many
@given(text=TEXTS, answer=TEXTS, chat=st.booleans(), truncate=st.booleans())
def test_any_of_five_hundred_prompts_is_read_whole_or_refused_with_a_message(spec, text, answer, chat, truncate):
    try_one(spec, text, answer, chat=chat, truncate=truncate)


@pytest.mark.parametrize(("tokens", "read"), [(_LIMIT, True), (_LIMIT + 1, False)])
def test_the_longest_prompt_is_read_and_one_token_more_is_not(spec, tokens, read):
    tokenizer = spec.load()[0].tokenizer
    text = next(text for n in range(400) if len(tokenizer(text := "x" * n)["input_ids"]) == tokens)
    assert try_one(spec, text, "", chat=False, truncate=False) == read
