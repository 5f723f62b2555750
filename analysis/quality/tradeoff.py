"""Quality against savings: what a checkpoint loses, and what it saves, as its levels keep more or fewer tokens."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from subllm.checkpoints.dense import DenseModel
from subllm.checkpoints.load import Checkpoint
from subllm.convert.fidelity import measure_fidelity

from ..cost.benchmark_text import prompt_of
from ..cost.comparison import Timed, compare
from ..errors import AnalysisError
from .evaluate import at_retention, check_blocks


@dataclass(frozen=True)
class Point:
    """A checkpoint at one retention.

    Attributes:
        asked: share that every level is made to keep; 0 for the checkpoint's own thresholds.
        kept: share of its parent's tokens that each level kept of the text that quality was measured on.
        ratio: perplexity over the dense model's.
        divergence: mean KL divergence from the dense model's predictions, nats.
        agreement: share of positions where both models find the same next token likeliest.
        speed_up: time of the dense model over that of this one, reading one prompt: median of passes in turn.
        limit: what counted operations allow.
    """

    asked: float
    kept: list[float]
    ratio: float
    divergence: float
    agreement: float
    speed_up: float
    limit: float


@dataclass(frozen=True)
class Curve:
    """A checkpoint at several retentions.

    Attributes:
        name: of the checkpoint.
        structure: of its model.
        tokens: that quality was measured on.
        prompt: tokens of the prompt that time was measured on.
        facts: about machine and run.
        points: by retention, in the order asked for.
    """

    name: str
    structure: str
    tokens: int
    prompt: int
    facts: dict[str, str]
    points: list[Point]


def measure_points(
    checkpoint: Checkpoint, dense: DenseModel, blocks: Tensor, tokens: int, retentions: Sequence[float], repeats: int
) -> Iterator[Point]:
    """Measure quality on text and time on a prompt, retention by retention.

    Args:
        checkpoint: that is measured.
        dense: it is measured against.
        blocks: (N, T) ids of text.
        tokens: of the prompt.
        retentions: shares that every level is to keep; 0 for the checkpoint's own thresholds.
        repeats: timed passes of each model.

    Raises:
        AnalysisError: if a retention is no share, or no level scores tokens, or the blocks or the prompt do not fit
            the model.
    """
    model = checkpoint.model
    check_blocks(model, *blocks.shape)
    ids = prompt_of(checkpoint, tokens, 1)
    for asked in retentions:
        quality = measure_fidelity(model, dense.model, blocks, at_retention(model, blocks, asked))
        time = compare(model, dense.model, ids, repeats, retention=asked)
        yield Point(
            asked,
            quality.retention,
            quality.perplexity_ratio,
            quality.divergence,
            quality.agreement,
            time.ratio(Timed.DENSE, Timed.SUBLLM),
            time.prefill_limit,
        )


def written(curves: Sequence[Curve]) -> str:
    """JSON of curves, which `read_curves` reads.

    Args:
        curves: of checkpoints.
    """
    return json.dumps([asdict(curve) for curve in curves], indent=1) + "\n"


def read_curves(file: Path) -> list[Curve]:
    """Curves that `written` wrote; none if there is no such file.

    Args:
        file: to read.

    Raises:
        AnalysisError: if it cannot be read.
    """
    if not file.exists():
        return []
    try:
        return [_curve(entry) for entry in json.loads(file.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise AnalysisError(
            "{file} cannot be read ({error}); delete it to measure again.", file=file, error=error
        ) from error


def _curve(entry: dict[str, Any]) -> Curve:
    return Curve(**(entry | {"points": [Point(**point) for point in entry["points"]]}))


def report(curves: Sequence[Curve]) -> str:
    """Markdown table.

    Args:
        curves: of checkpoints.
    """
    lines = [
        "| checkpoint | structure | retention | kept | perplexity over dense | KL | agreement | speed-up | limit |",
        "| --- | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for curve in curves:
        for point in curve.points:
            asked = f"{point.asked:.0%}" if point.asked else "its own"
            kept = ", ".join(f"{share:.0%}" for share in point.kept)
            lines.append(
                f"| {curve.name} | `{curve.structure}` | {asked} | {kept} | {point.ratio:.3f} | {point.divergence:.3f} "
                f"| {point.agreement:.1%} | {point.speed_up:.2f}× | {point.limit:.2f}× |"
            )
    return "\n".join(lines)
