"""Predicted time and memory of a SUBLLM and its dense model on any hardware, from the configuration alone."""

from collections.abc import Sequence
from typing import NamedTuple

from subllm import SubllmConfig

from ..errors import AnalysisError
from .roofline import PHASES, Scenario, speedup
from .sizes import BYTES, cache_bytes, level_tokens, parameters, prefill_bytes, training_bytes, without_levels

LONGEST = 1 << 20  # tokens up to which a break-even length is looked for
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

    def pays(tokens: int) -> bool:
        return speedup(config, phase, scenario.at(tokens)) >= 1

    if not pays(LONGEST):
        return None
    low, high = 0, LONGEST  # slower at the one, not at the other
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if pays(middle) else (middle, high)
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
    fields = config.to_dict() | {"structure": structure, "num_hidden_layers": structure.count("T")}
    if len(set(config.routers)) == 1:
        fields["router"] = config.routers[0]
    if "(" not in structure:
        fields |= {"retention_ratio": 1.0, "router": SubllmConfig.router}
    elif retention is not None:
        fields["retention_ratio"] = retention
    return SubllmConfig.from_dict(fields)
