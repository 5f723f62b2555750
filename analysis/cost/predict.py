"""Predicted time and memory of a SUBLLM and its dense model on any hardware, from the configuration alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from subllm import SubllmConfig, parse_structure
from subllm.configuration import LIGHT_HEAVY_FIELDS

from ..errors import AnalysisError
from .roofline import PHASES, Scenario, speedup
from .sizes import BYTES, cache_bytes, level_tokens, parameters, prefill_bytes, training_bytes, without_levels

LONGEST = 1 << 20  # tokens up to which a length is looked for
LARGEST = 1 << 12  # sequences up to which a batch is looked for
HERE = "this machine"


class Line(NamedTuple):
    """One predicted quantity.

    Attributes:
        what: "prefill", "decode" or "training" (time); "weights", "cache", "reading" or "training memory" (memory).
        ours: of the SUBLLM.
        dense: of the same model without brackets.
    """

    what: str
    ours: float
    dense: float

    @property
    def unit(self) -> str:
        """Of both numbers."""
        return "ms" if self.what in PHASES else "MiB"


def predict(config: SubllmConfig, scenario: Scenario) -> list[Line]:
    """Times and memory of a model, and of the same model without levels.

    Raises:
        AnalysisError: if the scenario has no sequences, or no tokens.
    """
    tokens, batch, dtype = scenario.tokens, scenario.batch, scenario.dtype
    if tokens < 1 or batch < 1:
        raise AnalysisError(
            "{batch} × {tokens:,} tokens cannot be predicted; both numbers must be 1 or more.",
            batch=batch,
            tokens=tokens,
        )
    both = (config, without_levels(config))
    levels = [level_tokens(config, tokens, scenario.retention), level_tokens(both[1], tokens)]
    lines = [Line(phase, *(1000 * scenario.seconds(each, phase) for each in both)) for phase in PHASES]
    sizes = {
        "weights": [float(parameters(each) * BYTES[dtype]) for each in both],
        "cache": [cache_bytes(c, level, batch, dtype) for c, level in zip(both, levels, strict=True)],
        "reading": [prefill_bytes(c, level, batch, dtype) for c, level in zip(both, levels, strict=True)],
        "training memory": [sum(training_bytes(c, lv, batch).values()) for c, lv in zip(both, levels, strict=True)],
    }
    return lines + [Line(what, ours / 2**20, theirs / 2**20) for what, (ours, theirs) in sizes.items()]


def needed_bytes(lines: Sequence[Line]) -> float:
    """Memory that the larger of the two models takes while it reads: weights, cache and activations."""
    sizes = {line.what: line.dense for line in lines}
    return (sizes["weights"] + sizes["reading"]) * 2**20


def break_even(config: SubllmConfig, phase: str, scenario: Scenario) -> int | None:
    """Shortest context from which on the SUBLLM is predicted to be no slower than the dense model.

    Returns:
        Tokens, or None if it is slower at `LONGEST` still.
    """
    dense = without_levels(config)
    return _least(LONGEST, lambda tokens: speedup(config, phase, scenario.at(tokens), dense) >= 1)


@dataclass(frozen=True)
class LaunchBound:
    """A pass in which launching kernels takes longer than running them, so that work saved saves little time.

    Attributes:
        phase: one of `PHASES`.
        launching: seconds of the SUBLLM's pass, on the host.
        working: seconds, on the device.
        tokens: per sequence, from which on working takes longer; None if it does not up to `LONGEST`.
        batch: sequences, likewise, up to `LARGEST`.
    """

    phase: str
    launching: float
    working: float
    tokens: int | None
    batch: int | None


def launch_bound(config: SubllmConfig, scenario: Scenario) -> list[LaunchBound]:
    """The phases in which a SUBLLM is too small for the hardware to show what it saves."""
    found = []
    for phase in PHASES:

        def times(changed: Scenario, phase: str = phase) -> tuple[float, float]:
            work = changed.work(config, phase)
            return changed.hardware.launching(work), changed.hardware.working(work, changed.dtype)

        def works(changed: Scenario) -> bool:
            launching, working = times(changed)
            return working >= launching

        if not works(scenario):
            tokens = _least(LONGEST, lambda n: works(scenario.at(n)))
            batch = _least(LARGEST, lambda n: works(replace(scenario, batch=n)))
            found.append(LaunchBound(phase, *times(scenario), tokens, batch))
    return found


def _least(limit: int, holds: Callable[[int], bool]) -> int | None:
    """Least number from 1 to `limit` for which something holds that then holds for all larger ones."""
    if not holds(limit):
        return None
    low, high = 0, limit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def changed(config: SubllmConfig, structure: str, retention: float | None) -> SubllmConfig:
    """The same sizes with another structure and retention.

    Args:
        config: of the model.
        structure: such as "TT(TT)TT"; its levels have the model's router, where all of the model's have the same.
        retention: share that every level keeps; the model's own if left out.

    Raises:
        StructureError: if the structure cannot be read.
        ConfigurationError: if the retention is out of range, or the model's levels differ and the structure has another
            number of them.
    """
    parsed, own = parse_structure(structure), config.parsed_structure
    fields = config.to_dict() | {"structure": structure, "num_hidden_layers": parsed.num_blocks}
    routers = {config.routers[level - 1] for level in own.brackets}
    if len(routers) == 1:
        fields["router"] = routers.pop()
    if not parsed.light_heavy:
        fields |= {name: getattr(SubllmConfig, name) for name in LIGHT_HEAVY_FIELDS}
    if not parsed.brackets:
        fields |= {"retention_ratio": 1.0}
        fields |= {name: getattr(SubllmConfig, name) for name in ("router", "predictor", "router_weight")}
    elif retention is not None:
        fields["retention_ratio"] = retention
    return SubllmConfig.from_dict(fields)
