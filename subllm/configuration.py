"""Configuration of a SUBLLM: LLaMA's fields, the structure, and how tokens are selected."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import field
from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import LlamaConfig

from .errors import ConfigurationError, SubllmError, first_line
from .routing import LIGHT_HEAVY_ROUTER, ROUTERS, Router, router_class
from .routing.mod import ROUTER_WEIGHTS
from .routing.stride import stride_of
from .structure import BLOCK, BRACKETS, LIGHT_HEAVY_SITES, Structure, parse_structure

POSITION_MODES = ("original", "parent", "packed")
LIGHT_HEAVY_FIELDS = ("light_heads", "light_intermediate_size", "window", "routed", "epsilon")
OWN_FIELDS = (
    "structure", "retention_ratio", "positions", "router",
    "balancer_probability", "balancer_steps", "bypass_minimum", "bypass_steps",
    "predictor", "router_weight", "router_loss",
    *LIGHT_HEAVY_FIELDS,
)  # fmt: skip
"""Fields that a LLaMA's configuration does not have."""

_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim",
    "max_position_embeddings",
)  # fmt: skip
_WINDOW = 128  # a token and those before it; the paper's 127 on either side, as far as they are known
_ROUTED = {"query": 1 / 8, "key_value": 1 / 4, "mlp": 1 / 8}
_EPSILON = 1.0


@strict
class SubllmConfig(LlamaConfig):
    """Configuration of a SUBLLM, valid once constructed. All fields of `LlamaConfig` apply.

    Args:
        structure: which blocks run on which tokens, see `subllm.structure`. None means `num_hidden_layers` blocks
            without brackets, which is a LLaMA.
        retention_ratio: share of its parent's tokens that each router keeps in training, in (0, 1]: one number for
            all, or a list in order of opening. Inference keeps the tokens whose score is positive.
        positions: rotary positions inside a level. "original": a kept token keeps its position in the prompt.
            "parent": its index in the parent sequence, as in the reference's forward pass. "packed": its index among
            the tokens of the level, as in Zipformer.
        router: router of each level, a key of `subllm.routing.ROUTERS`: one for all levels, or a list in their order.
        balancer_probability: probability that a training pass balances the scores, at the first step and from step
            `balancer_steps` on.
        balancer_steps: optimisation steps over which that probability changes.
        bypass_minimum: lower limit of the bypass scales in training, at the first step and from step `bypass_steps` on.
        bypass_steps: optimisation steps over which that limit changes.
        predictor: a level with the router "mod" decides at inference by a learned predictor of the choice in training,
            and not by the router weight.
        router_weight: "score": a level with the router "mod" multiplies what it adds with the router weight.
            "unit": with 1, whose gradient is that of the router weight; a conversion starts so.
        router_loss: factor of what routers add to the loss in training: for each level with the router "mod", the
            binary cross-entropy of what decides at inference against the choice in training.
        light_heads: number of query heads of the light branch of a block "C", which see the window. They are the first
            ones, with their key/value heads, whole groups; the others are heavy. By default a quarter.
        light_intermediate_size: number of hidden units of the light branch of its MLP, the first ones. By default a
            ninth, as in the paper.
        window: number of tokens that a light head sees: the token itself and those before it.
        routed: share of the tokens that a block "C" routes to its heavy branches in training, in (0, 1], by "query",
            "key_value" and "mlp". Inference routes the tokens whose score is above the threshold learned in training.
        epsilon: softness of the weights of routed tokens, above 0; see `subllm.routing.soft_topk`.
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
    predictor: bool = False
    router_weight: str = "score"
    router_loss: float | int = 0.01
    light_heads: int | None = None
    light_intermediate_size: int | None = None
    window: int | None = None
    routed: dict[str, float | int] | None = None
    epsilon: float | int = _EPSILON
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
        _check_retention(self.retention_ratio, len(parsed.brackets), self.structure)
        _check_router(self.router, len(parsed.brackets), self.structure)
        self._check_depth_routers()
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
        self._check_sizes()
        super().__post_init__(**kwargs)
        if self.head_dim is not None and self.head_dim % 2:
            raise ConfigurationError(
                "The size of a head is {size}; it must be even, as rotary positions turn pairs of numbers.",
                size=self.head_dim,
            )
        self._check_light_heavy(parsed)  # of numbers that the configuration of a LLaMA fills in
        _ = self.strides  # which refuses groups of no whole number of tokens

    def _check_sizes(self) -> None:
        if not 0 <= (self.attention_dropout or 0.0) < 1:
            raise ConfigurationError(
                "attention_dropout is {value}; it must lie in [0, 1), where 0 drops nothing.",
                value=self.attention_dropout,
            )
        for name in _SIZES:
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ConfigurationError("{name} is {value}; it must be 1 or more.", name=name, value=size)
        heads, groups = self.num_attention_heads, self.num_key_value_heads
        if groups is not None and heads % groups:
            raise ConfigurationError(
                "The number of attention heads is {heads} and that of key/value heads {groups}; the second must "
                "divide the first.",
                heads=heads,
                groups=groups,
            )

    def _check_light_heavy(self, structure: Structure) -> None:
        """Check the fields of light/heavy blocks, and fill in those that were left out."""
        if not structure.light_heavy:
            given = [name for name in LIGHT_HEAVY_FIELDS if getattr(self, name) != getattr(type(self), name)]
            if given:
                raise ConfigurationError(
                    "{name} is {value!r}, which is of blocks 'C' only, but the structure {structure!r} has none; leave "
                    "{name} out, or write a 'C' in place of a 'T'.",
                    name=given[0],
                    value=getattr(self, given[0]),
                    structure=structure.text,
                )
            return
        assert self.num_key_value_heads is not None
        heads, group = self.num_attention_heads, self.num_attention_heads // self.num_key_value_heads
        if heads // group < 2 or self.intermediate_size < 2:
            raise ConfigurationError(
                "A block 'C' divides its heads into light and heavy ones, but the number of key/value heads is "
                "{groups} and that of hidden units {units}; it needs at least two of both.",
                groups=heads // group,
                units=self.intermediate_size,
            )
        if self.light_heads is None:
            self.light_heads = max(heads // 4 // group, 1) * group
        if self.light_intermediate_size is None:
            self.light_intermediate_size = max(self.intermediate_size // 9, 1)
        self.window = _WINDOW if self.window is None else self.window
        self.routed = _ROUTED | (self.routed or {})
        if self.light_heads % group or not 0 < self.light_heads < heads:
            raise ConfigurationError(
                "light_heads is {value}; it must be a multiple of {group}, the number of heads that share a key/value "
                "head, from {group} to {most}, so that the heavy branch has heads, too.",
                value=self.light_heads,
                group=group,
                most=heads - group,
            )
        if not 0 < self.light_intermediate_size < self.intermediate_size:
            raise ConfigurationError(
                "light_intermediate_size is {value}; it must be from 1 to {most}, so that the heavy branch has hidden "
                "units, too.",
                value=self.light_intermediate_size,
                most=self.intermediate_size - 1,
            )
        if self.window < 1:
            raise ConfigurationError("window is {value}; it must be 1 token or more.", value=self.window)
        if not 0 < self.epsilon < math.inf:
            raise ConfigurationError("epsilon is {value}; it must be a number above 0.", value=self.epsilon)
        for name, share in self.routed.items():
            if name not in LIGHT_HEAVY_SITES:
                raise ConfigurationError(
                    "routed has a share for {name!r}; allowed are {allowed}.",
                    name=name,
                    allowed=", ".join(LIGHT_HEAVY_SITES),
                )
            if not 0 < share <= 1:
                raise ConfigurationError(
                    "The share of {name!r} in routed is {share}; it must lie in (0, 1], where 0.125 routes one token "
                    "of eight.",
                    name=name,
                    share=share,
                )

    def _check_depth_routers(self) -> None:
        if self.router_weight not in ROUTER_WEIGHTS:
            raise ConfigurationError(
                "router_weight is {value!r}; allowed are {allowed}.",
                value=self.router_weight,
                allowed=", ".join(ROUTER_WEIGHTS),
            )
        if not 0 <= self.router_loss < math.inf:
            raise ConfigurationError("router_loss is {value}; it must be a number from 0 on.", value=self.router_loss)
        given = {"predictor": self.predictor, "router_weight": self.router_weight}
        for name, value in given.items():
            if value != getattr(type(self), name) and "mod" not in self.routers:
                raise ConfigurationError(
                    "{name} is {value!r}, which is of the router 'mod' only, but the routers are {routers}; leave "
                    "{name} out, or give a level the router 'mod'.",
                    name=name,
                    value=value,
                    routers=", ".join(self.routers) or "none",
                )

    @property
    def parsed_structure(self) -> Structure:
        """The structure, parsed."""
        return parse_structure(self.structure)  # type: ignore[arg-type]

    @property
    def retention_ratios(self) -> list[float]:
        """Nominal share of its parent's tokens that each router keeps, in order of the levels.

        That of a router that merges s tokens is 1/s, however many digits of it are written.
        """
        written = [float(share) for share in self._by_level(self.retention_ratio, self.routed or {})]
        routers = zip(self.router_classes, written, strict=True)
        return [1 / stride_of(ratio) if router.merges_tokens else ratio for router, ratio in routers]

    @property
    def routers(self) -> list[str]:
        """Name of the router of each level, in order of the levels."""
        return self._by_level(self.router, dict.fromkeys(LIGHT_HEAVY_SITES, LIGHT_HEAVY_ROUTER))

    @property
    def router_classes(self) -> list[type[Router]]:
        """Class of the router of each level, in order of the levels."""
        return [router_class(name) for name in self.routers]

    def _by_level(self, field: Any, light_heavy: Mapping[str, Any]) -> list[Any]:
        """A value for each level: of bracket pairs from a field with one for all or one for each, else by the kind."""
        structure = self.parsed_structure
        of_pairs = iter(field if isinstance(field, list) else [field] * len(structure.brackets))
        return [next(of_pairs) if site.kind == BRACKETS else light_heavy[site.kind] for site in structure.sites]

    @property
    def strides(self) -> list[int]:
        """Number of tokens that each level's router merges into one, in order of the levels; 1 if it does not merge."""
        routers = zip(self.router_classes, self.retention_ratios, strict=True)
        return [stride_of(ratio) if router.merges_tokens else 1 for router, ratio in routers]

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "SubllmConfig":
        """Build a configuration from what a checkpoint's config.json holds, and fields that replace it.

        In a checkpoint older than the training schedules, the schedules are taken to have ended.

        Raises:
            ConfigurationError: if it names no structure, so that the model would silently be another one, or the fields
                contradict each other.
        """
        old = "structure" in config_dict
        known = {*LlamaConfig.__annotations__, *SubllmConfig.__annotations__}  # transformers sets others unchecked
        config_dict = config_dict | {name: kwargs.pop(name) for name in known & kwargs.keys()}
        if config_dict.get("structure") is None:
            raise ConfigurationError(
                "The configuration has no 'structure'; a SUBLLM checkpoint needs one, such as 'TT(TT)TT'. "
                "Found the fields {fields}.",
                fields=sorted(name for name in config_dict if name != "structure"),
            )
        missing = {name: 0 for name in ("balancer_steps", "bypass_steps") if old and name not in config_dict}
        return super().from_dict(config_dict | missing, **kwargs)

    def to_diff_dict(self) -> dict[str, Any]:
        """Fields that differ from the defaults, and always those that make a SUBLLM what it is."""
        return super().to_diff_dict() | {name: getattr(self, name) for name in (*OWN_FIELDS, "num_hidden_layers")}


@contextmanager
def misfits_reported() -> Iterator[None]:
    """Report fields that a configuration, or the model built of it, cannot have, as transformers finds them.

    Raises:
        ConfigurationError: if there is one.
    """
    try:
        yield
    except SubllmError:
        raise
    except (StrictDataclassError, ValueError, KeyError, ImportError) as error:  # the last of kernels
        reason = f"there is no {error}" if isinstance(error, KeyError) else first_line(error.__cause__ or error)
        raise ConfigurationError(
            "The fields of the model do not fit: {reason}. Correct the configuration.", reason=reason.rstrip(".")
        ) from error


def _check_retention(ratio: float | list[float | int], num_levels: int, structure: str) -> None:
    ratios = [ratio] if isinstance(ratio, (int, float)) else list(ratio)
    if not isinstance(ratio, (int, float)) and len(ratios) != num_levels:
        raise ConfigurationError(
            "The number of values in retention_ratio is {values}, but the number of '(' in the structure "
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
            "The number of names in router is {names}, but the number of '(' in the structure {structure!r} is "
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
