"""Configuration of a training run: the model, the optimisation, and the intervals of log, evaluation and snapshots."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from ..checkpoints.files import read_json
from ..errors import TrainingError
from ..runs.config import RunConfig

ABLATIONS = ("no-bypass", "stride", "random")
_MODEL = "model."
_SCHEDULES = ("balancer_steps", "bypass_steps")  # fields of a training that become fields of its model


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """Configuration of a training run; see `RunConfig` for the fields that conversions share.

    The learning rate warms up to its peak and then falls along a cosine. With precision "bf16" products are computed in
    bfloat16; the weights stay in float32.

    Attributes:
        model: fields of `SubllmConfig`; those that the tokenizer determines are filled in.
        dense: train a LLaMA of the same size: the structure without its brackets.
        ablation: one of `ABLATIONS`: bypass scales fixed at one; tokens kept at fixed distances; tokens kept at random.
            "stride" selects every k-th token (the router "even"); the router "stride", which merges, is none of these.
        micro_batch_size: sequences per forward pass; divides `batch_size`.
        final_learning_rate: last learning rate, as a share of the peak.
        scorer_learning_rate: learning rate of the scorers of bracket pairs, as a share of the others' (one half in
            Zipformer). The routers of light/heavy blocks learn at the rate of the others.
        warmup_steps: steps until the learning rate reaches its peak.
        weight_decay: weight decay of the matrices; norms, scorers and bypass scales have none.
        clip: largest norm of the gradient.
        gradient_checkpointing: run blocks again in the backward pass, to save memory.
        balancer_steps: steps over which the balancer's probability falls.
        bypass_steps: steps over which the lower limit of the bypass scales falls.
        log_every: steps between lines of the log.
        snapshot_every: steps between records of the routing of `prompts`.
        keep: number of checkpoints that are kept, the latest ones.
        evaluation_blocks: held-out sequences per evaluation.
        prompts: texts whose routing is recorded.

    Raises:
        TrainingError: if the fields contradict each other.
    """

    _positive: ClassVar[tuple[str, ...]] = (
        *RunConfig._positive, "micro_batch_size", "scorer_learning_rate", "log_every", "snapshot_every", "keep",
        "evaluation_blocks", "clip", "balancer_steps", "bypass_steps",
    )  # fmt: skip
    _not_negative: ClassVar[tuple[str, ...]] = (
        *RunConfig._not_negative, "final_learning_rate", "warmup_steps", "weight_decay",
    )  # fmt: skip

    model: dict[str, Any]
    dense: bool = False
    ablation: str | None = None
    steps: int = 2_000
    batch_size: int = 16
    micro_batch_size: int = 8
    final_learning_rate: float = 0.1
    scorer_learning_rate: float = 0.5
    warmup_steps: int = 100
    weight_decay: float = 0.1
    clip: float = 1.0
    gradient_checkpointing: bool = False
    balancer_steps: int = 8_000
    bypass_steps: int = 20_000
    log_every: int = 10
    evaluate_every: int = 200
    save_every: int = 100
    snapshot_every: int = 200
    keep: int = 2
    evaluation_blocks: int = 64
    prompts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.model, dict) or not self.model.get("structure"):
            raise TrainingError(
                f"model is {self.model!r}; it must name at least the structure, such as {{'structure': 'TT(TT)TT'}}."
            )
        doubtful = [name for name in _SCHEDULES if name in self.model]
        if doubtful:
            raise TrainingError(
                f"model has {', '.join(doubtful)}, which the training determines; give fields of the training, "
                f"without {_MODEL!r} before the name."
            )
        if not isinstance(self.prompts, list) or not all(isinstance(prompt, str) for prompt in self.prompts):
            raise TrainingError(f"prompts is {self.prompts!r}; it must be a list of texts.")
        if "" in self.prompts:
            raise TrainingError("prompts has an empty text, which no router could decide about; leave it out.")
        if self.batch_size % self.micro_batch_size:
            raise TrainingError(
                f"batch_size is {self.batch_size} and micro_batch_size {self.micro_batch_size}; the second must divide "
                "the first."
            )
        if self.ablation is not None and (self.dense or self.ablation not in ABLATIONS):
            raise TrainingError(
                f"ablation is {self.ablation!r}{' of a dense model' if self.dense else ''}; allowed are "
                f"{', '.join(ABLATIONS)}, of a SUBLLM."
            )

    @classmethod
    def read(cls, path: Path, **changes: Any) -> "TrainConfig":
        """Read a configuration from a JSON file.

        Args:
            path: path of the file.
            **changes: fields that replace the file's.

        Raises:
            TrainingError: if the file cannot be read, has unknown fields, or contradicts itself.
        """
        try:
            content = read_json(path)
        except (OSError, ValueError) as error:
            raise TrainingError(f"{path} is not a readable JSON file: {error}") from error
        return cls.of(content if isinstance(content, dict) else {}, **changes)

    @classmethod
    def of(cls, content: dict[str, Any], **changes: Any) -> "TrainConfig":
        """Make a configuration of fields.

        Args:
            content: fields by name.
            **changes: fields that replace those in `content`; "model.router" is the field "router" of the model.

        Raises:
            TrainingError: if a field is unknown or the model is missing.
        """
        inner = {name.removeprefix(_MODEL): changes.pop(name) for name in list(changes) if name.startswith(_MODEL)}
        if inner and isinstance(content.get("model"), dict):
            changes["model"] = changes.get("model", content["model"]) | inner
        known = {entry.name for entry in fields(cls)}
        unknown = sorted({*content, *changes} - known)
        if unknown or "model" not in content:
            found = f"unknown fields {', '.join(unknown)}" if unknown else "no 'model'"
            raise TrainingError(f"The configuration has {found}; allowed are {', '.join(sorted(known))}.")
        return cls(**(content | changes))

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, as the JSON file holds them."""
        return asdict(self)
