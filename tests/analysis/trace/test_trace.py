"""The trace: parts that are there or not, arrays that cannot be changed, files that are read without the model."""

import io
import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, asdict, fields, replace
from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import analysis
from analysis import (
    Agreement,
    AnalysisError,
    Blocks,
    Continuation,
    Cost,
    Costs,
    Likelihood,
    Predictions,
    Prompt,
    Provenance,
    Routing,
    Trace,
    TraceError,
)
from analysis.trace import files
from analysis.trace.parts import SITE_KINDS

PARTS = ("blocks", "predictions", "likelihood", "continuation", "agreement", "costs")
STRUCTURES = {  # block levels, parents
    "TT": ([0, 0], []),
    "T(T)T": ([0, 1, 0], [0]),
    "T(T(T)T)(T)": ([0, 1, 2, 1, 3], [0, 1, 0]),
}
NORMS = ("stream_norm", "difference_norm", "contribution_norm")


def norms_of(rng, reached, kept):
    """Norms as a level leaves them: NaN where not reached, 0 where dropped."""
    return {
        name: np.where(reached, rng.random(kept.shape) * (kept | (name == "stream_norm")), np.nan).astype(np.float32)
        for name in NORMS
    }


def make_trace(structure="T(T(T)T)(T)", tokens=5, parts=PARTS, seed=0):
    """A trace of no model, whose arrays fit each other; every second token of a level is edited."""
    rng = np.random.default_rng(seed)
    block_levels, parents = STRUCTURES[structure]
    levels, blocks = len(parents), len(block_levels)
    reached, kept = np.ones((levels, tokens), dtype=bool), np.zeros((levels, tokens), dtype=bool)
    for row, parent in enumerate(parents):
        reached[row] = kept[parent - 1] if parent else True
        kept[row] = reached[row] & (rng.random(tokens) < 0.7)
    text = "".join(rng.choice([*"ab 🦙你\n"], tokens))
    new = {"reached": np.ones((levels, 2), bool), "kept": np.ones((levels, 2), bool)}
    new |= {"weights": rng.random((levels, 2)), "scores": np.where(rng.random((levels, 2)) < 0.5, np.nan, 0.5)}
    processed = np.concatenate([np.ones((1, tokens), bool), kept])[block_levels]
    surprisal = np.r_[np.nan, rng.random(tokens - 1)].astype(np.float32)
    every = {
        "blocks": Blocks(np.where(processed, 0.5, np.nan).astype(np.float16), rng.random((blocks, tokens))),
        "predictions": Predictions(np.arange(3), np.asarray([0.5, 0.25, 0.125]), np.asarray(["a", "\n", "你"])),
        "likelihood": Likelihood(surprisal),
        "continuation": Continuation("a🦙", np.asarray([5, 6]), np.asarray(["a", "🦙"]), **new),
        "agreement": Agreement("twin", surprisal, rng.random(tokens), rng.random(tokens) < 0.5),
        "costs": Costs(Cost((0.1, 0.2), 1000, 10), Cost((0.3,), 2000, 20)),
    }
    return Trace(
        prompt=Prompt(
            text, rng.integers(0, 99, tokens), np.arange(tokens), np.arange(tokens) + 1, np.asarray([*text], np.str_)
        ),
        routing=Routing(
            routers=np.asarray(["subllm", "even", "subllm"][:levels], dtype=np.str_),
            parents=np.asarray(parents, dtype=np.int64),
            retention_ratios=np.full(levels, 0.7),
            block_levels=np.asarray(block_levels),
            bypass_scale=rng.random((levels, 4)).astype(np.float32),
            thresholds=np.asarray([0.1, np.nan, 0.0][:levels], dtype=np.float32),
            reached=reached,
            kept=kept,
            edited=reached & (np.arange(tokens) % 2 == 0),
            weights=(kept * rng.random((levels, tokens))).astype(np.float32),
            scores=np.where(reached & (np.arange(levels) != 1)[:, None], rng.normal(size=kept.shape), np.nan),
            **norms_of(rng, reached, kept),
        ),
        provenance=Provenance("c", "sha", structure, "cpu", "float32", "sdpa", "twin", "torch", ("bypass 0@1",)),
        **{name: every[name] for name in parts},
    )


def arrays_of(trace):
    """Every array of a trace, by part and field."""
    return {
        (part.name, field.name): getattr(getattr(trace, part.name), field.name)
        for part in fields(trace)
        if hasattr(getattr(trace, part.name), "arrays")
        for field in fields(getattr(trace, part.name))
        if isinstance(getattr(getattr(trace, part.name), field.name), np.ndarray)
    }


def assert_equal(first, second):
    assert arrays_of(first).keys() == arrays_of(second).keys()
    for name, array in arrays_of(first).items():
        np.testing.assert_array_equal(arrays_of(second)[name], array, err_msg=str(name), strict=True)
    for name in PARTS:
        assert (getattr(first, name) is None) == (getattr(second, name) is None)
    assert (first.prompt.text, first.provenance, first.costs) == (second.prompt.text, second.provenance, second.costs)
    for name, own in (("continuation", "text"), ("agreement", "reference")):
        assert getattr(getattr(first, name), own, None) == getattr(getattr(second, name), own, None)


def saved(trace):
    file = io.BytesIO()
    trace.save(file)
    return file.getvalue()


def content(trace):
    """What a saved trace holds: what is no array, and the arrays."""
    with np.load(io.BytesIO(saved(trace))) as file:
        arrays = dict(file)
    return json.loads(arrays.pop("meta").tobytes()), arrays


def write(path, meta, arrays):
    encoded = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
    np.savez_compressed(path, meta=encoded, **arrays)
    return path


@pytest.mark.parametrize("parts", chain.from_iterable(combinations(PARTS, n) for n in range(len(PARTS) + 1)))
def test_every_combination_of_parts_is_saved_and_loaded_and_the_others_stay_absent(parts):
    trace = make_trace(parts=parts)
    loaded = Trace.load(io.BytesIO(saved(trace)))
    assert_equal(trace, loaded)
    assert loaded.digest == trace.digest


@given(
    structure=st.sampled_from([*STRUCTURES]),
    tokens=st.integers(1, 9),
    parts=st.sets(st.sampled_from(PARTS)),
    seed=st.integers(0, 99),
)
def test_traces_of_any_shape_load_equal(structure, tokens, parts, seed):
    trace = make_trace(structure, tokens, parts, seed)
    loaded = Trace.load(io.BytesIO(saved(trace)))
    assert_equal(trace, loaded)
    assert (loaded.digest, loaded.run, loaded.subject) == (trace.digest, trace.run, trace.subject)


def test_a_saved_trace_of_a_model_loads_equal_without_torch(trace, tmp_path):
    trace.save(tmp_path / "trace.npz")
    assert_equal(trace, Trace.load(tmp_path / "trace.npz"))
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path; from analysis import Trace; from analysis.trace.pairs import overlap, pair\n"
        "trace = Trace.load(Path(sys.argv[1])); pairing = pair(trace.prompt, trace.prompt)\n"
        "assert not overlap(trace.routing, trace.routing, pairing)['differ'].any(); print(trace.digest)"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "trace.npz"], capture_output=True, text=True)
    assert done.stdout.strip() == trace.digest, done.stderr


@pytest.mark.parametrize(
    "module", ["analysis", "analysis.trace.trace", "analysis.trace.pairs", "analysis.figures.trace"]
)
def test_the_light_parts_import_without_torch(module):
    script = f"import sys, {module}; assert 'torch' not in sys.modules and 'streamlit' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_public_name_of_the_package_is_there():
    assert all(hasattr(analysis, name) for name in analysis.__all__)
    assert dir(analysis) == sorted(analysis.__all__) == analysis.__all__
    with pytest.raises(AttributeError, match="no_such_name"):
        analysis.no_such_name  # noqa: B018


def changed_value(array, value):
    """Another value of the same kind that is allowed in its place."""
    if array.dtype.kind == "f":
        return 7.0 if np.isnan(value) else np.nan
    if array.dtype.kind == "U":
        return "mlp" if value in SITE_KINDS else value[:-1] + chr(ord(value[-1]) + 1)
    if array.dtype.kind == "b":
        return not value
    return 2 if value == 1 else abs(int(value) - 1)


@pytest.mark.parametrize("part, field", arrays_of(make_trace()))
def test_a_change_of_any_array_changes_the_digest(part, field):
    trace = make_trace(tokens=3)
    whole, digests = getattr(trace, part), set()
    array = getattr(whole, field)
    for place in np.ndindex(array.shape):
        other = array.copy()
        other[place] = changed_value(array, array[place])
        try:
            changed = replace(trace, **{part: replace(whole, **{field: other})})
        except TraceError:
            continue  # such as a token that is kept where it did not arrive
        digests.add(changed.digest)
        assert Trace.load(io.BytesIO(saved(changed))).digest == changed.digest
    assert digests and trace.digest not in digests


def test_a_change_of_any_text_or_measurement_or_part_changes_the_digest():
    trace = make_trace()
    others = [replace(trace, **{name: None}) for name in PARTS]
    others.append(replace(trace, prompt=replace(trace.prompt, text=trace.prompt.text + "!")))
    others.append(replace(trace, continuation=replace(trace.continuation, text="other")))
    others.append(replace(trace, agreement=replace(trace.agreement, reference="untouched")))
    for name, value in asdict(trace.provenance).items():
        more = {"edits": ("dense@*",), "answer_from": 1}.get(name, "!")
        other = not value if name == "predictor" else value + more
        others.append(replace(trace, provenance=replace(trace.provenance, **{name: other})))
    for which in ("subllm", "dense"):
        for name, value in asdict(getattr(trace.costs, which)).items():
            other = (*value, 9.0) if name == "seconds" else value + 1
            cost = replace(getattr(trace.costs, which), **{name: other})
            others.append(replace(trace, costs=replace(trace.costs, **{which: cost})))
    blocks = trace.blocks
    others.append(replace(trace, blocks=replace(blocks, confidence=None)))
    others.append(replace(trace, blocks=replace(blocks, change=blocks.confidence, confidence=blocks.change)))
    digests = [other.digest for other in others]
    assert len({trace.digest, *digests}) == len(digests) + 1


def test_the_name_of_a_run_stays_while_parts_are_added_and_its_subject_through_edits_too():
    bare, whole = make_trace(parts=()), make_trace()
    assert bare.run == whole.run
    assert bare.digest != whole.digest
    where = whole.provenance
    for change in ({"edits": ()}, {"dtype": "bfloat16"}, {"device": "cuda"}, {"checkpoint": "renamed"}):
        other = replace(whole, provenance=replace(where, **change))
        assert other.run != whole.run
        assert other.subject == whole.subject
    text, ids = replace(whole.prompt, text=whole.prompt.text + " "), replace(whole.prompt, token_ids=np.arange(5))
    for other in (
        replace(whole, prompt=text),
        replace(whole, prompt=ids),
        replace(whole, provenance=replace(where, digest="other")),
    ):
        assert other.run != whole.run
        assert other.subject != whole.subject


def test_neither_fields_nor_arrays_can_be_changed():
    mine = np.zeros(5)
    trace = replace(make_trace(), likelihood=Likelihood(mine))
    mine[:] = 1
    assert not trace.likelihood.surprisal.any()
    with pytest.raises(FrozenInstanceError):
        trace.prompt = "other"
    for array in arrays_of(trace).values():
        with pytest.raises(ValueError, match="read-only"):
            array[:] = array


@pytest.mark.parametrize(
    "part, fields, message",
    [
        (
            "routing",
            {"kept": np.zeros((3, 4), bool)},
            r"kept has shape \(3, 4\); it must be \(S, T\) with S = 3, T = 5",
        ),
        ("routing", {"scores": np.zeros(3)}, r"scores has shape \(3,\); it must be \(S, T\)"),
        ("routing", {"kept": np.zeros((3, 5))}, "kept holds float64; it must hold booleans"),
        ("routing", {"scores": None}, "scores holds object; it must hold floating-point numbers"),
        ("routing", {"parents": np.asarray([0, 2, 0])}, "Level 2 lies in level 2; that must be a lower level, or 0"),
        ("routing", {"block_levels": np.asarray([0, 4]), "work": None}, "Block 1 is at level 4; there are 0 to 3"),
        ("routing", {"reached": np.zeros((3, 5), bool)}, "Level 1 keeps token 0, which did not reach it"),
        ("prompt", {"ends": np.full(5, 99)}, "Token 0 stands at characters 0 to 99; the text has 5"),
        ("prompt", {"text": None}, "text is None; it must be text"),
        (
            "predictions",
            {"next_ids": np.arange(2)},
            r"next_probabilities has shape \(3,\); it must be \(K\) with K = 2",
        ),
    ],
)
def test_arrays_that_do_not_fit_their_part_are_named(part, fields, message):
    with pytest.raises(TraceError, match=message):
        replace(getattr(make_trace(), part), **fields)


def test_parts_that_do_not_fit_each_other_are_named():
    trace = make_trace()
    with pytest.raises(TraceError, match="likelihood has T = 4, prompt has 5"):
        replace(trace, likelihood=Likelihood(np.zeros(4)))
    with pytest.raises(TraceError, match="blocks has L = 2, routing has 5"):
        replace(trace, blocks=Blocks(np.zeros((2, 5))))


def test_levels_without_scores_say_whose_they_are():
    routing = make_trace().routing
    assert [routing.scores_tokens(level) for level in routing.levels] == [True, False, True]
    np.testing.assert_array_equal(routing.scores_of(3), routing.scores[2])
    with pytest.raises(AnalysisError, match="Level 2 has no importance scores: its router, even, does not score"):
        routing.scores_of(2)


def test_merged_tokens_are_neither_kept_nor_dropped_and_know_their_carriers():
    kept = np.asarray([[True, False, False, True, False]])
    routing = replace(
        make_trace(structure="T(T)T").routing,
        strides=np.asarray([3]),
        kept=kept,
        reached=np.ones_like(kept),
    )
    np.testing.assert_array_equal(routing.merged, ~kept)
    assert not routing.dropped.any()
    assert routing.merged_into.tolist() == [[0, 3, 3, 3, -1]]
    assert routing.updated_from.tolist() == [[0, 0, 0, 3, 3]]
    plain = replace(routing, strides=np.asarray([1]))
    np.testing.assert_array_equal(plain.dropped, ~kept)
    assert not plain.merged.any()
    assert (plain.merged_into == -1).all() and (plain.updated_from == -1).all()


@pytest.mark.parametrize("fields", [{"site_kinds": np.asarray(["block"])}, {"strides": np.asarray([0])}])
def test_unknown_kinds_of_levels_and_empty_groups_are_refused(fields):
    with pytest.raises(TraceError, match="Level 1 "):
        replace(make_trace(structure="T(T)T").routing, **fields)


def test_files_of_format_4_from_before_light_and_heavy_blocks_get_defaults(tmp_path):
    trace = make_trace()
    meta, arrays = trace._content()
    later = ("site_kinds", "site_blocks", "strides", "work")
    files.write(tmp_path / "old.npz", meta, {k: v for k, v in arrays.items() if k.rpartition(".")[2] not in later})
    read = Trace.load(tmp_path / "old.npz")
    assert_equal(read, trace)
    assert set(read.routing.site_kinds) == {"level"} and set(read.routing.site_blocks) == {-1}
    assert set(read.routing.strides) == {1}
    np.testing.assert_array_equal(read.routing.work, read.routing.processed)


def test_levels_nest_and_blocks_process_what_their_level_kept(trace):
    routing = trace.routing
    assert trace.provenance.structure == "TT(T(T)T)T"
    assert routing.parents.tolist() == [0, 1]
    np.testing.assert_array_equal(routing.reached[1], routing.kept[0])
    assert routing.reached[0].all()
    everyone = np.ones(trace.num_tokens, dtype=bool)
    expected = [everyone, everyone, routing.kept[0], routing.kept[1], routing.kept[0], everyone]
    np.testing.assert_array_equal(routing.processed, np.stack(expected))
    np.testing.assert_array_equal(routing.block_tokens, np.stack(expected).sum(1))
    np.testing.assert_array_equal(routing.level_tokens, [trace.num_tokens, *routing.kept.sum(1)])
    np.testing.assert_allclose(routing.retention, routing.kept.sum(1) / routing.level_tokens[:2])
    np.testing.assert_allclose(routing.processed_share[0], routing.weights[0] * routing.bypass_scale[0].mean())
    assert np.isnan(routing.processed_share[~routing.reached]).all()


def test_dropped_tokens_get_no_weight_and_no_contribution(trace):
    routing = trace.routing
    assert routing.dropped.any()
    assert not routing.weights[~routing.kept].any()
    assert not routing.contribution_norm[routing.dropped].any()
    assert (routing.contribution_norm[routing.kept] > 0).all()


def format_3(structure, trace):
    """A file as the version before wrote it: levels from 0, no decisions but `kept`, NaN for what was not measured."""
    routing, tokens = trace.routing, trace.num_tokens
    none, unknown = np.zeros(0, dtype=np.int64), np.full(tokens, np.nan, dtype=np.float32)
    scores = np.where(routing.reached, np.where(routing.kept, 0.5, -0.5), np.nan).astype(np.float32)
    scores[0, routing.kept[0].nonzero()[0][0]] = 3.0
    arrays = {
        "token_ids": trace.prompt.token_ids, "starts": trace.prompt.starts, "ends": trace.prompt.ends,
        "pieces": trace.prompt.pieces, "scores": scores, "kept": routing.kept,
        "stream_norm": routing.stream_norm, "difference_norm": routing.difference_norm,
        "contribution_norm": routing.contribution_norm, "change": trace.blocks.change,
        "confidence": np.full(trace.blocks.change.shape, np.nan, dtype=np.float16),
        "bypass_scale": routing.bypass_scale, "surprisal": unknown, "dense_surprisal": unknown, "divergence": unknown,
        "agrees": np.zeros(tokens, dtype=bool), "block_spans": routing.block_levels - 1,
        "span_parents": routing.parents - 1, "retention_ratios": routing.retention_ratios, "next_ids": np.arange(2),
        "next_probabilities": np.asarray([0.75, 0.25], dtype=np.float32), "next_pieces": np.asarray(["x", "y"]),
        "new_ids": none, "new_pieces": none.astype(np.str_), "new_scores": np.zeros((len(scores), 0), np.float32),
    }  # fmt: skip
    where = asdict(trace.provenance)
    del where["edits"]
    meta = {
        "format": 3,
        "prompt": trace.prompt.text,
        "continuation": "",
        "provenance": where | {"structure": structure},
    }
    return meta | {"cost": None, "dense_cost": None}, arrays


def test_a_file_of_format_3_is_read_with_levels_from_1_and_without_parts_that_were_not_measured(tmp_path):
    structure, trace = "T(T(T)T)(T)", make_trace(tokens=9)
    meta, arrays = format_3(structure, trace)
    found = Trace.load(write(tmp_path / "old.npz", meta, arrays))
    routing = found.routing
    assert routing.parents.tolist() == [0, 1, 0]
    assert routing.block_levels.tolist() == [0, 1, 2, 1, 3]
    for name in ("reached", "kept"):
        np.testing.assert_array_equal(getattr(routing, name), getattr(trace.routing, name))
    np.testing.assert_array_equal(routing.weights, np.where(routing.kept, np.minimum(arrays["scores"], 1), 0))
    assert routing.thresholds.tolist() == [0, 0, 0]
    assert routing.routers.tolist() == ["subllm"] * 3
    assert not routing.edited.any()
    assert found.provenance == replace(trace.provenance, edits=())
    assert found.blocks.confidence is None
    assert found.predictions.next_pieces.tolist() == ["x", "y"]
    for name in ("likelihood", "continuation", "agreement", "costs"):
        assert getattr(found, name) is None
    again = Trace.load(io.BytesIO(saved(found)))
    assert again.digest == found.digest


def test_a_whole_file_of_format_3_keeps_all_that_was_measured(tmp_path):
    trace = make_trace()
    meta, arrays = format_3("T(T(T)T)(T)", trace)
    cost = {"seconds": [0.1], "peak_bytes": 1, "cache_bytes": 2}
    meta |= {"continuation": "ab", "cost": cost, "dense_cost": cost}
    new_scores = np.asarray([[0.25, -1], [2, np.nan], [-1, 1]], dtype=np.float32)
    arrays |= {"new_ids": np.asarray([1, 2]), "new_pieces": np.asarray(["a", "b"]), "new_scores": new_scores}
    arrays |= {name: np.full(5, value, np.float32) for value, name in enumerate(["surprisal", "dense_surprisal"])}
    arrays |= {"divergence": np.ones(5, np.float32), "confidence": np.ones_like(arrays["change"])}
    found = Trace.load(write(tmp_path / "old.npz", meta, arrays))
    assert found.continuation.text == "ab"
    assert found.continuation.kept.tolist() == [[True, False], [True, False], [False, True]]
    assert found.continuation.reached.tolist() == [[True, True], [True, False], [True, True]]
    assert found.continuation.weights.tolist() == [[0.25, 0], [1, 0], [0, 1]]
    assert (found.perplexity, found.agreement.perplexity) == pytest.approx((1, np.e))
    assert found.agreement.reference == "twin"
    assert found.blocks.confidence.all()
    assert found.costs == Costs(Cost((0.1,), 1, 2), Cost((0.1,), 1, 2))


def test_an_edited_run_of_format_3_is_refused_for_it_does_not_say_what_the_edits_did(tmp_path):
    meta, arrays = format_3("T(T(T)T)(T)", make_trace())
    meta["provenance"]["checkpoint"] = "demo [threshold 0.3@0; bypass 0@*]"
    with pytest.raises(TraceError, match=r"named.npz is a run with edits.*make the run again"):
        Trace.load(write(tmp_path / "named.npz", meta, arrays))
    meta["provenance"]["checkpoint"] = "demo"
    arrays["kept"] = ~np.isnan(arrays["scores"])
    with pytest.raises(TraceError, match=r"forced.npz is a run with edits.*make the run again"):
        Trace.load(write(tmp_path / "forced.npz", meta, arrays))


def without(name):
    return lambda meta, arrays: arrays.pop(name)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda meta, arrays: meta.update(format=5), "has trace format 5; this version reads 3 and 4: update the app"),
        (lambda meta, arrays: meta.update(format=2), "has trace format 2; .* make it again"),
        (lambda meta, arrays: meta.update(format="x" * 999), "has trace format 'x+; .* make it again"),
        (lambda meta, arrays: meta.pop("format"), "is not a readable trace .'format'."),
        (lambda meta, arrays: meta["provenance"].pop("dtype"), "is not a readable trace .*'dtype'"),
        (lambda meta, arrays: meta["costs"]["dense"].update(seconds=["a"]), "is not a readable trace .*'a'"),
        (without("routing.kept"), "is not a whole trace: It lacks the array routing.kept. Save it again"),
        (without("prompt.ends"), "It lacks the array prompt.ends"),
        (lambda meta, arrays: meta.pop("likelihood"), "None of its parts has the array 'likelihood.surprisal'"),
        (
            lambda meta, arrays: [meta.pop("routing"), *map(arrays.pop, [*arrays])],
            "It lacks the array prompt.token_ids",
        ),
        (lambda meta, arrays: arrays.update({"routing.extra": np.zeros(1)}), "None of its parts has .*'routing.extra'"),
        (
            lambda meta, arrays: arrays.update({"prompt.starts": np.zeros(9, int)}),
            "Prompt.starts has shape .9,.; it must",
        ),
        (
            lambda meta, arrays: arrays.update({"likelihood.surprisal": np.zeros(2)}),
            "likelihood has T = 2, prompt has 5",
        ),
        (lambda meta, arrays: arrays.update({"routing.kept": np.zeros((3, 5))}), "Routing.kept holds float64"),
        (lambda meta, arrays: meta["prompt"].update(text=5), "Prompt.text is 5; it must be text"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, damage, message):
    meta, arrays = content(make_trace())
    damage(meta, arrays)
    with pytest.raises(TraceError, match=f"bad.npz .*{message}"):
        Trace.load(write(tmp_path / "bad.npz", meta, arrays))


def test_what_is_no_file_of_a_trace_is_refused(tmp_path):
    whole = saved(make_trace())
    (tmp_path / "cut.npz").write_bytes(whole[:-200])
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty.npz").write_text("")
    np.savez(tmp_path / "objects.npz", meta=np.asarray([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "array.npz.npy", np.zeros(3))
    np.savez(tmp_path / "list.npz", meta=np.frombuffer(b"[4]", dtype=np.uint8))
    for name in ("cut", "half", "text", "empty", "objects", "list", "missing"):
        with pytest.raises(TraceError, match=f"{name}.npz is not a readable trace .*; save it again"):
            Trace.load(tmp_path / f"{name}.npz")
    with pytest.raises(TraceError, match="not a readable trace"):
        Trace.load(tmp_path / "array.npz.npy")
    with pytest.raises(TraceError, match="The file is not a readable trace"):
        Trace.load(io.BytesIO(whole[:100]))


WHOLE = saved(make_trace(tokens=2))


@given(place=st.integers(0, len(WHOLE) - 1), flipped=st.integers(1, 255))
def test_a_damaged_byte_is_found_or_does_not_matter(place, flipped):
    damaged = bytearray(WHOLE)
    damaged[place] ^= flipped
    try:
        found = Trace.load(io.BytesIO(damaged))
    except TraceError:
        return
    assert found.digest == Trace.load(io.BytesIO(WHOLE)).digest


def test_a_run_made_again_keeps_what_was_measured_of_it_before():
    whole = make_trace()
    bare = replace(whole, continuation=None, costs=None, agreement=None, likelihood=None)
    assert bare.completed(whole).digest == whole.digest
    assert whole.completed(bare) is whole and bare.completed(bare) is bare
