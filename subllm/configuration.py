"""Configuration of a SUBLLM: LLaMA's fields, the structure, and how tokens are selected."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig

from .errors import ConfigurationError
from .structure import BLOCK, Structure, parse_structure

POSITION_MODES = ("original", "parent")


@strict
class SubllmConfig(LlamaConfig):
    """Configuration of a SUBLLM, valid once constructed. All fields of `LlamaConfig` apply.

    Args:
        structure: which blocks run on which tokens, see `subllm.structure`. None means `num_hidden_layers` blocks
            without brackets, which is a LLaMA.
        retention_ratio: share of its parent's tokens that each subsampling module keeps in training, in (0, 1]: one
            number for all, or a list in order of opening. Inference keeps the tokens whose score is positive.
        positions: rotary positions inside a span. "original": a kept token keeps its position in the prompt.
            "parent": its index in the parent sequence, as in the reference's forward pass.
        num_hidden_layers: number of blocks; taken from the structure when left out.

    Raises:
        StructureError: if the structure cannot be read.
        ConfigurationError: if the fields contradict each other.
    """

    model_type = "subllm"

    structure: str | None = None
    retention_ratio: float | int | list[float | int] = 0.64
    positions: str = "original"
    num_hidden_layers: int | None = None  # type: ignore[assignment]

    def __post_init__(self, **kwargs: Any) -> None:
        if self.structure is None:
            self.structure = BLOCK * (32 if self.num_hidden_layers is None else self.num_hidden_layers)
        parsed = parse_structure(self.structure)
        if self.num_hidden_layers is None:
            self.num_hidden_layers = parsed.num_blocks
        if self.num_hidden_layers != parsed.num_blocks:
            raise ConfigurationError(
                f"The structure {self.structure!r} has {parsed.num_blocks} blocks but num_hidden_layers is "
                f"{self.num_hidden_layers}; they must be equal."
            )
        if self.positions not in POSITION_MODES:
            raise ConfigurationError(f"positions is {self.positions!r}; allowed are {POSITION_MODES}.")
        _check_retention(self.retention_ratio, len(parsed.spans), self.structure)
        super().__post_init__(**kwargs)

    @property
    def parsed_structure(self) -> Structure:
        """The structure, parsed."""
        return parse_structure(self.structure)  # type: ignore[arg-type]

    @property
    def retention_ratios(self) -> list[float]:
        """Nominal share of its parent's tokens kept by each subsampling module, in order of opening."""
        if isinstance(self.retention_ratio, (int, float)):
            return [float(self.retention_ratio)] * len(self.parsed_structure.spans)
        return [float(ratio) for ratio in self.retention_ratio]

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "SubllmConfig":
        """Build a configuration from what a checkpoint's config.json holds.

        Raises:
            ConfigurationError: if it names no structure, so that the model would silently be another one.
        """
        if "structure" not in config_dict:
            raise ConfigurationError(
                "The configuration has no 'structure'; a SUBLLM checkpoint needs one, such as 'TT(TT)TT'. "
                f"Found the fields {sorted(config_dict)}."
            )
        return super().from_dict(config_dict, **kwargs)

    def to_diff_dict(self) -> dict[str, Any]:
        """Fields that differ from the defaults, and always those that make a SUBLLM what it is."""
        own = {"structure": self.structure, "retention_ratio": self.retention_ratio, "positions": self.positions}
        return super().to_diff_dict() | own | {"num_hidden_layers": self.num_hidden_layers}


def _check_retention(ratio: float | list[float | int], num_spans: int, structure: str) -> None:
    ratios = [ratio] if isinstance(ratio, (int, float)) else list(ratio)
    if not isinstance(ratio, (int, float)) and len(ratios) != num_spans:
        raise ConfigurationError(
            f"retention_ratio has {len(ratios)} values but the structure {structure!r} has {num_spans} subsampling "
            "modules; give one number for all, or one per '(' in order of opening."
        )
    for value in ratios:
        if not 0.0 < value <= 1.0:
            raise ConfigurationError(
                f"retention_ratio is {ratio}; every value must lie in (0, 1], where 0.64 keeps 64 of 100 tokens."
            )
