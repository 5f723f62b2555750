"""This machine in the hardware table."""

import pytest

from analysis import AnalysisError
from analysis.cost.calibration import this_machine
from analysis.cost.roofline import prefill_work
from analysis.cost.sizes import level_tokens
from tests.conftest import tiny_config


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)],
)
def test_this_machine_predicts(device):
    machine = this_machine(device, "float32")
    assert machine.operations["float32"] > 1e8
    assert machine.bandwidth > 1e7
    assert machine.memory > 1e8
    assert 1e-7 < machine.launch_seconds < 1e-3
    config = tiny_config("T(T)T", retention_ratio=0.5)
    assert machine.seconds(prefill_work(config, level_tokens(config, 64), dtype="float32"), "float32") > 0


def test_an_unknown_dtype_is_refused():
    with pytest.raises(AnalysisError, match="'int8' cannot be predicted"):
        this_machine("cpu", "int8")
