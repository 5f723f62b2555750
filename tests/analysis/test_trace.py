"""The trace: arrays that cannot be changed, saved and loaded without the model."""

import io
import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields

import numpy as np
import pytest

from analysis import Trace, TraceError


def test_a_saved_trace_loads_equal(trace, tmp_path):
    trace.save(tmp_path / "trace.npz")
    loaded = Trace.load(tmp_path / "trace.npz")
    for field in fields(Trace):
        expected, found = getattr(trace, field.name), getattr(loaded, field.name)
        if isinstance(expected, np.ndarray):
            np.testing.assert_array_equal(found, expected)
            assert found.dtype == expected.dtype
        else:
            assert found == expected
    assert loaded.digest == trace.digest


def test_neither_fields_nor_arrays_can_be_changed(trace):
    with pytest.raises(FrozenInstanceError):
        trace.prompt = "other"
    with pytest.raises(ValueError, match="read-only"):
        trace.scores[0, 0] = 1.0


def test_levels_nest_and_blocks_process_what_their_level_kept(trace):
    assert trace.provenance.structure == "TT(T(T)T)T"
    np.testing.assert_array_equal(trace.kept, np.nan_to_num(trace.scores, nan=-1) > 0)
    np.testing.assert_array_equal(trace.present[1], trace.kept[0])
    assert trace.present[0].all()
    everyone = np.ones(trace.num_tokens, dtype=bool)
    expected = [everyone, everyone, trace.kept[0], trace.kept[1], trace.kept[0], everyone]
    np.testing.assert_array_equal(trace.processed, np.stack(expected))
    np.testing.assert_array_equal(trace.block_tokens, np.stack(expected).sum(1))
    np.testing.assert_allclose(trace.retention, trace.kept.sum(1) / [trace.num_tokens, trace.kept[0].sum()])
    np.testing.assert_allclose(trace.processed_share[0], trace.weights[0] * trace.bypass_scale[0].mean())


def test_dropped_tokens_get_no_weight_and_no_contribution(trace):
    dropped = trace.present & ~trace.kept
    assert dropped.any()
    assert not trace.weights[~trace.kept].any()
    assert not trace.contribution_norm[dropped].any()
    assert (trace.contribution_norm[trace.kept] > 0).all()


def test_damaged_files_are_refused(trace, tmp_path):
    whole = io.BytesIO()
    trace.save(whole)
    (tmp_path / "cut.npz").write_bytes(whole.getvalue()[:-200])
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "other.npz", meta=np.frombuffer(json.dumps({"format": 99}).encode(), dtype=np.uint8))
    np.savez(tmp_path / "objects.npz", meta=np.asarray([{}], dtype=object), allow_pickle=True)
    for name, message in (("cut", "not a readable"), ("text", "not a readable"), ("other", "format 99; this version")):
        with pytest.raises(TraceError, match=message):
            Trace.load(tmp_path / f"{name}.npz")
    with pytest.raises(TraceError, match="not a readable trace"):
        Trace.load(tmp_path / "objects.npz")
    with pytest.raises(TraceError, match="not a readable trace"):
        Trace.load(tmp_path / "missing.npz")


@pytest.mark.parametrize("module", ["analysis", "analysis.trace", "analysis.figures"])
def test_the_light_parts_import_without_torch(module):
    script = f"import sys, {module}; assert 'torch' not in sys.modules and 'streamlit' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
