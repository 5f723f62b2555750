"""Time and memory, measured while nobody else runs on the device."""

from analysis.cost.benchmark_text import prompt_of
from analysis.cost.calibration import this_machine
from analysis.cost.comparison import Comparison, Setting, baseline, compare
from analysis.cost.hardware import Hardware
from analysis.guard import Progress

from .models import ModelSpec
from .queue import turn
from .work import admit


def compare_setting(model: ModelSpec, setting: Setting, against: str, repeats: int, progress: Progress) -> Comparison:
    """Time and memory of prompts, next to a dense model.

    Args:
        model: to measure.
        setting: what to measure.
        against: baseline, as `analysis.cost.comparison.baseline` takes it.
        repeats: timed passes of each model.
        progress: receives what is being done.

    Raises:
        AnalysisError: if the checkpoint or the baseline cannot read such prompts, or memory does not suffice.
        RunStopped: at a limit.
        CheckpointError: if the baseline cannot be loaded.
    """
    checkpoint, _ = model.load(progress)
    ids = prompt_of(checkpoint, setting.tokens, setting.batch)
    admit(progress, setting.tokens * setting.batch, texts=1)
    with turn(model.device, progress):
        progress(0.0, "loading")
        dense = baseline(checkpoint, against)
        return compare(checkpoint.model, dense, ids, repeats, progress, retention=setting.retention)


def calibrate(device: str, dtype: str, progress: Progress) -> Hardware:
    """This machine as a row of the hardware table, measured while nobody else runs on the device.

    Args:
        device: one of `devices`.
        dtype: one of `dtypes`.
        progress: receives the number of runs ahead.
    """
    with turn(device, progress):
        progress(0.0, "calibrating")
        return this_machine(device, dtype)
