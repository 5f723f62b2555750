"""Edits at work: budgets and last ones hold however a text is cut into passes, and rows do not disturb each other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.debug.edit_override import EditOverride
from analysis.debug.edits import parse_edits
from subllm import Probe, SubllmCache
from tests.analysis.debug.conftest import prompt_of
from tests.conftest import tiny_model

STRUCTURE = "T(T(T)T)(T)T"
LINES = [
    "budget 5@*",
    "budget 3@1; budget 2@2",
    "keep last 4@*; budget 2@*",
    "dense@*; budget 7@1",
    "keep 3-9@1; drop 5@1; budget 4@1",
    "keep digits@*; budget 3@*; keep last 2@2",
    "drop last 6@1; keep last 2@1",
]


@pytest.fixture(scope="module")
def model():
    return tiny_model(STRUCTURE)


def ids_of(seed, length):
    return torch.randint(1, 97, (length,), generator=torch.Generator().manual_seed(seed))


def read(model, ids, override, cache=None, **options):
    with torch.inference_mode():
        return model(
            ids, past_key_values=cache, use_cache=cache is not None, probe=Probe(True, override=override), **options
        )


def kept_of(model, ids, override):
    return [record.kept[0] for record in read(model, ids[None], override).routing]


def test_a_threshold_moves_from_where_training_left_it():
    model, ids = tiny_model("CT"), ids_of(1, 20)
    prompt = prompt_of(ids.tolist())
    for router in model.model.routers:
        router.threshold.fill_(-0.3)
    unedited = read(model, ids[None], EditOverride((), prompt)).routing
    for line, by in (("threshold 0@*", 0.0), ("threshold 0.2@*", 0.2), ("threshold 0.2@*; threshold -0.6@*", -0.4)):
        records = read(model, ids[None], EditOverride(parse_edits(line), prompt)).routing
        torch.testing.assert_close(records[0].scores, unedited[0].scores)
        for record in records:
            torch.testing.assert_close(record.threshold.flatten(), torch.tensor([-0.3 + by]))
            chosen = record.scores > record.threshold
            chosen[:, 0] |= record is records[1]  # the first token of a text is always a key
            assert torch.equal(record.kept, chosen)
        if not by:
            assert all(torch.equal(a.kept, b.kept) for a, b in zip(records, unedited, strict=True))
    halves = read(model, ids[None], EditOverride(parse_edits("retention 0.5@1; threshold 0@1"), prompt)).routing
    assert halves[0].kept.sum() == 10


@settings(max_examples=40)
@given(
    st.sampled_from([STRUCTURE, "T(TC)T"]),
    st.sampled_from(LINES),
    st.integers(4, 24),
    st.lists(st.integers(1, 5), min_size=1, max_size=12),
)
def test_a_text_that_goes_on_token_by_token_is_kept_as_if_it_was_read_at_once(structure, line, length, further):
    model = tiny_model(structure, 3)
    edits, ids = parse_edits(line), ids_of(length, length + sum(further))
    prompt, cache = prompt_of(ids[:length]), SubllmCache(model.config)
    whole = read(model, ids[None], EditOverride(edits, prompt))
    override, at, logits = EditOverride(edits, prompt), 0, []
    for step in [length, *further]:
        output = read(model, ids[None, at : at + step], override, cache)
        logits.append(output.logits)
        at += step
    torch.testing.assert_close(torch.cat(logits, 1), whole.logits, rtol=1e-4, atol=1e-4)
    assert [level.rows[0] for level in cache.levels[1:]] == [int(record.kept.sum()) for record in whole.routing]


@pytest.mark.parametrize("line", [*LINES, "retention 0.5@*", "retention 0.5@1; keep 'b1'@1; budget 6@*"])
def test_a_row_of_a_batch_is_kept_as_if_it_was_alone(model, line):
    edits, rows = parse_edits(line), [ids_of(seed, length) for seed, length in ((0, 21), (1, 13), (2, 17))]
    longest = max(map(len, rows))
    ids = torch.stack([torch.cat([row, row.new_zeros(longest - len(row))]) for row in rows])
    mask = torch.stack([torch.arange(longest) < len(row) for row in rows])
    together = read(model, ids, EditOverride(edits, [prompt_of(row) for row in rows]), attention_mask=mask.long())
    for number, row in enumerate(rows):
        alone = read(model, row[None], EditOverride(edits, prompt_of(row)))
        torch.testing.assert_close(together.logits[number, : len(row)], alone.logits[0], rtol=1e-4, atol=1e-4)


def test_a_budget_keeps_the_first_tokens_that_the_router_wants_and_no_more(model):
    ids = ids_of(5, 40)
    free = kept_of(model, ids, None)[0]
    kept = kept_of(model, ids, EditOverride(parse_edits("budget 6@1"), prompt_of(ids)))[0]
    assert free.sum() > 6
    assert kept.nonzero()[:, 0].tolist() == free.nonzero()[:6, 0].tolist()


def test_what_an_edit_keeps_is_kept_beyond_a_budget_and_counts(model):
    ids = ids_of(6, 40)
    free = kept_of(model, ids, None)[0]
    kept = kept_of(model, ids, EditOverride(parse_edits("budget 6@1; keep 0-3,38-39@1"), prompt_of(ids)))[0]
    own = [token for token in free.nonzero()[:, 0].tolist() if 3 < token < 38][:2]
    assert kept.nonzero()[:, 0].tolist() == [0, 1, 2, 3, *own, 38, 39]


def test_the_last_tokens_are_kept_at_every_level_with_a_weight_of_1(model):
    ids = ids_of(7, 30)
    records = read(model, ids[None], EditOverride(parse_edits("keep last 5@*"), prompt_of(ids))).routing
    for record in records:
        assert record.kept[0, -5:].all() and (record.weights[0, -5:] == 1).all() and record.edited[0, -5:].all()
        assert not record.edited[0, :-5].any()


def test_a_budget_goes_on_counting_after_tokens_are_taken_back(model):
    ids, prompt = ids_of(8, 30), prompt_of(ids_of(8, 20))
    edits, cache = parse_edits("dense@*; budget 24@1"), SubllmCache(model.config)
    override = EditOverride(edits, prompt)
    read(model, ids[None], override, cache)
    assert cache.levels[1].rows == (24,)
    cache.crop(-8)
    assert cache.levels[1].rows == (22,)
    read(model, ids[None, 22:], override, cache)
    assert cache.levels[1].rows == (24,)
