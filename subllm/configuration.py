"""Configuration of a SUBLLM: LLaMA's fields, the structure, and how tokens are selected."""

from dataclasses import field
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig

from .errors import ConfigurationError
from .routing import ROUTERS
from .structure import BLOCK, Structure, parse_structure

POSITION_MODES = ("original", "parent")
OWN_FIELDS = (
    "structure", "retention_ratio", "positions", "router",
    "balancer_probability", "balancer_steps", "bypass_minimum", "bypass_steps",
)  # fmt: skip
"""Fields that a LLaMA's configuration does not have."""


@strict
class SubllmConfig(LlamaConfig):
    """Configuration of a SUBLLM, valid once constructed. All fields of `LlamaConfig` apply.

    Args:
        structure: which blocks run on which tokens, see `subllm.structure`. None means `num_hidden_layers` blocks
            without brackets, which is a LLaMA.
        retention_ratio: share of its parent's tokens that each router keeps in training, in (0, 1]: one number for
            all, or a list in order of opening. Inference keeps the tokens whose score is positive.
        positions: rotary positions inside a level. "original": a kept token keeps its position in the prompt.
            "parent": its index in the parent sequence, as in the reference's forward pass.
        router: router of each level, a key of `subllm.routing.ROUTERS`: one for all levels, or a list in their order.
        balancer_probability: probability that a training pass balances the scores, at the first step and from step
            `balancer_steps` on.
        balancer_steps: optimisation steps over which that probability changes.
        bypass_minimum: lower limit of the bypass scales in training, at the first step and from step `bypass_steps` on.
        bypass_steps: optimisation steps over which that limit changes.
        num_hidden_layers: number of blocks; taken from the structure when left out.

    Raises:
        StructureError: if the structure cannot be read.
        ConfigurationError: if the fields contradict each other.
    """

    model_type = "subllm"

    structure: str | None = None
    retention_ratio: float | int | list[float | int] = 0.64
    positions: str = "original"
    router: str | list[str] = "subllm"
    balancer_probability: list[float | int] = field(default_factory=lambda: [1.0, 0.25])
    balancer_steps: int = 8_000
    bypass_minimum: list[float | int] = field(default_factory=lambda: [0.9, 0.2])
    bypass_steps: int = 20_000
    num_hidden_layers: int | None = None  # type: ignore[assignment]

    def __post_init__(self, **kwargs: Any) -> None:
        if self.structure is None:
            self.structure = BLOCK * (32 if self.num_hidden_layers is None else self.num_hidden_layers)
        parsed = parse_structure(self.structure)
        if self.num_hidden_layers is None:
            self.num_hidden_layers = parsed.num_blocks
        if self.num_hidden_layers != parsed.num_blocks:
            raise ConfigurationError(
                "The number of blocks in the structure {structure!r} is {blocks}, but num_hidden_layers is {layers}; "
                "they must be equal.",
                structure=self.structure,
                blocks=parsed.num_blocks,
                layers=self.num_hidden_layers,
            )
        if self.positions not in POSITION_MODES:
            raise ConfigurationError(
                "positions is {positions!r}; allowed are {modes}.", positions=self.positions, modes=POSITION_MODES
            )
        _check_retention(self.retention_ratio, parsed.num_levels, self.structure)
        _check_router(self.router, parsed.num_levels, self.structure)
        for name in ("balancer_probability", "bypass_minimum"):
            bounds = getattr(self, name)
            if len(bounds) != 2 or not all(0 <= bound <= 1 for bound in bounds):
                raise ConfigurationError(
                    "{name} is {bounds}; it must be two numbers from 0 to 1: first and last.", name=name, bounds=bounds
                )
        for name in ("balancer_steps", "bypass_steps"):
            if getattr(self, name) < 0:
                raise ConfigurationError(
                    "{name} is {value}; it must be 0 or more.", name=name, value=getattr(self, name)
                )
        super().__post_init__(**kwargs)

    @property
    def parsed_structure(self) -> Structure:
        """The structure, parsed."""
        return parse_structure(self.structure)  # type: ignore[arg-type]

    @property
    def retention_ratios(self) -> list[float]:
        """Nominal share of its parent's tokens that each router keeps, in order of the levels."""
        if isinstance(self.retention_ratio, (int, float)):
            return [float(self.retention_ratio)] * self.parsed_structure.num_levels
        return [float(ratio) for ratio in self.retention_ratio]

    @property
    def routers(self) -> list[str]:
        """Name of the router of each level, in order of the levels."""
        return [self.router] * self.parsed_structure.num_levels if isinstance(self.router, str) else list(self.router)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "SubllmConfig":
        """Build a configuration from what a checkpoint's config.json holds.

        In a checkpoint older than the training schedules, the schedules are taken to have ended.

        Raises:
            ConfigurationError: if it names no structure, so that the model would silently be another one.
        """
        if "structure" not in config_dict:
            raise ConfigurationError(
                "The configuration has no 'structure'; a SUBLLM checkpoint needs one, such as 'TT(TT)TT'. "
                "Found the fields {fields}.",
                fields=sorted(config_dict),
            )
        missing = {name: 0 for name in ("balancer_steps", "bypass_steps") if name not in config_dict}
        return super().from_dict(config_dict | missing, **kwargs)

    def to_diff_dict(self) -> dict[str, Any]:
        """Fields that differ from the defaults, and always those that make a SUBLLM what it is."""
        return super().to_diff_dict() | {name: getattr(self, name) for name in (*OWN_FIELDS, "num_hidden_layers")}


def _check_retention(ratio: float | list[float | int], num_levels: int, structure: str) -> None:
    ratios = [ratio] if isinstance(ratio, (int, float)) else list(ratio)
    if not isinstance(ratio, (int, float)) and len(ratios) != num_levels:
        raise ConfigurationError(
            "The number of values in retention_ratio is {values}, but the number of levels in the structure "
            "{structure!r} is {levels}; give one number for all levels, or one per '(' in order of opening.",
            values=len(ratios),
            structure=structure,
            levels=num_levels,
        )
    for value in ratios:
        if not 0.0 < value <= 1.0:
            raise ConfigurationError(
                "retention_ratio is {ratio}; every value must lie in (0, 1], where 0.64 keeps 64 of 100 tokens.",
                ratio=ratio,
            )


def _check_router(router: str | list[str], num_levels: int, structure: str | None) -> None:
    names = [router] if isinstance(router, str) else list(router)
    if not isinstance(router, str) and len(names) != num_levels:
        raise ConfigurationError(
            "The number of names in router is {names}, but the number of levels in the structure {structure!r} is "
            "{levels}; give one name for all levels, or one per '(' in order of opening.",
            names=len(names),
            structure=structure,
            levels=num_levels,
        )
    unknown = [name for name in names if name not in ROUTERS]
    if unknown:
        raise ConfigurationError(
            "There is no router {name!r}; routers are {routers}.", name=unknown[0], routers=", ".join(sorted(ROUTERS))
        )
