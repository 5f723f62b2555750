"""How much a visitor may ask for, and all visitors together: a profile, and variables that override its values.

| variable | meaning | private | class | public |
| --- | --- | --- | --- | --- |
| `SUBLLM_MAX_TOKENS` | longest prompt, in tokens | 8192 | 2048 | 1024 |
| `SUBLLM_MAX_NEW_TOKENS` | tokens that are generated at once | 400 | 200 | 100 |
| `SUBLLM_MAX_SECONDS` | of a device, for one action; waiting does not count | 300 | 60 | 20 |
| `SUBLLM_TURN_SECONDS` | until long work lets the next one in the queue go first | 3 | 2 | 1 |
| `SUBLLM_HOURLY_SECONDS` | of a device, for one visitor in an hour | inf | 900 | 180 |
| `SUBLLM_HOURLY_TOKENS` | read and generated, for one visitor in an hour | inf | 200000 | 30000 |
| `SUBLLM_HOURLY_TEXTS` | prompts, answers, texts and documents, for one visitor in an hour | inf | 400 | 100 |
| `SUBLLM_MAX_VISITORS` | at the same time | inf | 40 | 30 |
| `SUBLLM_MAX_WAITING` | runs in the queue of a device | inf | 40 | 10 |
| `SUBLLM_FEATURES` | what is switched on; or all, or none | all | ablation,devices,uploads | none |
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from subllm import ConfigurationError
from subllm.errors import shortened

_MOST = 10**9


class Feature(StrEnum):
    """What can be switched off; `SUBLLM_FEATURES` has these names."""

    ABLATION = "ablation"  # attribution by ablation and by occlusion: a forward pass for every token
    CALIBRATION = "calibration"  # of this machine, to check predictions
    DEVICES = "devices"  # the choice of device and dtype
    FOLDERS = "folders"  # names of checkpoints that are not in the list
    MEASURING = "measuring"  # of time and memory, in the page Efficiency
    UPLOADS = "uploads"  # of saved runs, measurements, rules and lessons


@dataclass(frozen=True)
class Limits:
    """See the module's docstring, which has them in this order."""

    tokens: int
    new_tokens: int
    seconds: float
    turn_seconds: float
    hourly_seconds: float
    hourly_tokens: float
    hourly_texts: float
    visitors: float
    waiting: float
    features: frozenset[Feature]

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> "Limits":
        """Limits of the profile that `SUBLLM_PROFILE` names, with the values that other variables give.

        Args:
            environment: variables by name.

        Raises:
            ConfigurationError: if one cannot be read; says what is allowed.
        """
        profile = environment.get("SUBLLM_PROFILE", "private")
        if profile not in PROFILES:
            raise ConfigurationError(
                "SUBLLM_PROFILE is {text!r}; it must be private, class or public.", text=shortened(profile)
            )
        limits = PROFILES[profile]
        given: dict[str, Any] = {
            name: _number(variable, environment[variable], whole, endless)
            for name, (variable, whole, endless) in _VARIABLES.items()
            if variable in environment
        }
        if "SUBLLM_FEATURES" in environment:
            given["features"] = _features(environment["SUBLLM_FEATURES"])
        return replace(limits, **given)


_VARIABLES = {  # variable, whether it is a whole number, whether it can be without end
    "tokens": ("SUBLLM_MAX_TOKENS", True, False),
    "new_tokens": ("SUBLLM_MAX_NEW_TOKENS", True, False),
    "seconds": ("SUBLLM_MAX_SECONDS", False, True),
    "turn_seconds": ("SUBLLM_TURN_SECONDS", False, True),
    "hourly_seconds": ("SUBLLM_HOURLY_SECONDS", False, True),
    "hourly_tokens": ("SUBLLM_HOURLY_TOKENS", True, True),
    "hourly_texts": ("SUBLLM_HOURLY_TEXTS", True, True),
    "visitors": ("SUBLLM_MAX_VISITORS", True, True),
    "waiting": ("SUBLLM_MAX_WAITING", True, True),
}
PROFILES = {
    "private": Limits(8192, 400, 300, 3, math.inf, math.inf, math.inf, math.inf, math.inf, frozenset(Feature)),
    "class": Limits(
        2048, 200, 60, 2, 900, 200_000, 400, 40, 40, frozenset({Feature.ABLATION, Feature.DEVICES, Feature.UPLOADS})
    ),
    "public": Limits(1024, 100, 20, 1, 180, 30_000, 100, 30, 10, frozenset()),
}
VARIABLES = ("SUBLLM_PROFILE", "SUBLLM_FEATURES", *(variable for variable, _, _ in _VARIABLES.values()))


def _number(variable: str, text: str, whole: bool, endless: bool) -> float:
    try:
        value = float(text) if endless or not whole else int(text)
    except ValueError:
        value = 0
    if endless and text.strip().lower() in ("inf", "infinity"):
        return math.inf
    if whole and not (0 < value <= _MOST and value == int(value)):
        if endless:
            raise ConfigurationError(
                "{variable} is {text!r}; it must be a whole number from 1 to {most:,}, or inf for no limit.",
                variable=variable,
                text=shortened(text),
                most=_MOST,
            )
        raise ConfigurationError(
            "{variable} is {text!r}; it must be a whole number from 1 to {most:,}.",
            variable=variable,
            text=shortened(text),
            most=_MOST,
        )
    if not 0 < value < math.inf:
        raise ConfigurationError(
            "{variable} is {text!r}; it must be a positive number, or inf for no limit.",
            variable=variable,
            text=shortened(text),
        )
    return int(value) if whole else value


def _features(text: str) -> frozenset[Feature]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["all"]:
        return frozenset(Feature)
    for name in names if names != ["none"] else ():
        if name not in [*Feature]:
            raise ConfigurationError(
                "SUBLLM_FEATURES has {text!r}; allowed are {names}, or all, or none.",
                text=shortened(name),
                names=", ".join(Feature),
            )
    return frozenset(Feature(name) for name in names if name != "none")
