"""What a training run is: the model, the optimisation, and how often it is looked at."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import TrainingError

ABLATIONS = ("no-bypass", "stride", "random")
PRECISIONS = ("float32", "bf16")


@dataclass(frozen=True)
class TrainConfig:
    """One run.

    Attributes:
        model: fields of `SubllmConfig`; the tokenizer's are filled in.
        dense: train a LLaMA of the same size: the structure without its brackets.
        ablation: one of `ABLATIONS`: bypass scales fixed at one; tokens kept at fixed distances; tokens kept at random.
        steps: optimisation steps.
        batch_size: sequences per step, over all processes.
        micro_batch_size: sequences of one forward pass.
        length: tokens per sequence.
        learning_rate: peak; warm-up, then cosine to `final_learning_rate` of it.
        final_learning_rate: as a share of the peak.
        scorer_learning_rate: of the scorers, as a share of the others' (Zipformer's is a half).
        warmup_steps: of the learning rate.
        weight_decay: of the matrices; norms, scorers and bypass scales have none.
        clip: largest norm of the gradient.
        precision: one of `PRECISIONS`; bf16 keeps the weights in float32.
        gradient_checkpointing: run blocks again in the backward pass, to save memory.
        balancer_steps: over which the balancer's probability falls.
        bypass_steps: over which the lower limit of the bypass scales falls.
        log_every: steps between lines of the log.
        evaluate_every: steps between evaluations.
        save_every: steps between checkpoints.
        snapshot_every: steps between records of the routing of `prompts`.
        keep: checkpoints that are kept, the last ones.
        evaluation_blocks: held-out sequences of an evaluation.
        prompts: texts whose routing is recorded.
        seed: of weights, order of the text, and everything random.
    """

    model: dict[str, Any]
    dense: bool = False
    ablation: str | None = None
    steps: int = 2_000
    batch_size: int = 16
    micro_batch_size: int = 8
    length: int = 512
    learning_rate: float = 1e-3
    final_learning_rate: float = 0.1
    scorer_learning_rate: float = 0.5
    warmup_steps: int = 100
    weight_decay: float = 0.1
    clip: float = 1.0
    precision: str = "float32"
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
    seed: int = 0

    def __post_init__(self) -> None:
        positive = (
            "steps", "batch_size", "micro_batch_size", "length", "learning_rate", "scorer_learning_rate",
            "log_every", "evaluate_every",
            "save_every", "snapshot_every", "keep", "evaluation_blocks", "clip", "balancer_steps", "bypass_steps",
        )  # fmt: skip
        for name in positive:
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or value <= 0:
                raise TrainingError(f"{name} is {value!r}; it must be more than 0.")
        if self.batch_size % self.micro_batch_size:
            raise TrainingError(
                f"batch_size is {self.batch_size} and micro_batch_size {self.micro_batch_size}; the second must divide "
                "the first."
            )
        if self.precision not in PRECISIONS:
            raise TrainingError(f"precision is {self.precision!r}; allowed are {', '.join(PRECISIONS)}.")
        if self.ablation is not None and (self.dense or self.ablation not in ABLATIONS):
            raise TrainingError(
                f"ablation is {self.ablation!r}{' of a dense model' if self.dense else ''}; allowed are "
                f"{', '.join(ABLATIONS)}, of a SUBLLM."
            )

    @classmethod
    def read(cls, path: Path, **changes: Any) -> "TrainConfig":
        """A run's configuration from a JSON file.

        Args:
            path: of the file.
            **changes: fields to use in place of the file's.

        Raises:
            TrainingError: if it cannot be read, has unknown fields, or contradicts itself.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TrainingError(f"{path} is not a readable JSON file: {error}") from error
        return cls.of(content if isinstance(content, dict) else {}, **changes)

    @classmethod
    def of(cls, content: dict[str, Any], **changes: Any) -> "TrainConfig":
        """A run's configuration from fields.

        Args:
            content: fields by name.
            **changes: fields to use in place of those.

        Raises:
            TrainingError: if a field is unknown or the model is missing.
        """
        known = {entry.name for entry in fields(cls)}
        unknown = sorted({*content, *changes} - known)
        if unknown or "model" not in content:
            found = f"unknown fields {', '.join(unknown)}" if unknown else "no 'model'"
            raise TrainingError(f"The configuration has {found}; allowed are {', '.join(sorted(known))}.")
        return cls(**(content | changes))

    def to_dict(self) -> dict[str, Any]:
        """As the JSON file has it."""
        return asdict(self)
