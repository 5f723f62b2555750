"""One table of routers: what each saves on this machine, beside what its paper reports.

Rows are either small models with random weights, whose thresholds are set so that every level keeps its nominal share,
or trained checkpoints as they are. Each is compared with the `LlamaForCausalLM` that shares its weights.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from subllm import SubllmConfig, SubllmForCausalLM
from subllm.atomic import full_disk_reported, written_whole
from subllm.checkpoints.dense import routing_off
from subllm.routing import AtRetention, Override, Router, Selection
from subllm.routing.selection import LevelTokens

from ..errors import AnalysisError
from .benchmark_text import NEW_TOKENS
from .comparison import compare
from .page import page
from .training_step import compare_models

NAMES = {"subllm": "SUBLLM", "mod": "Mixture-of-Depths", "stride": "Zipformer", "colt5": "CoLT5"}
REPORTED = {
    "subllm": "training 1.26×, inference 1.37× (4,096 tokens)",
    "mod": "training 1.60–1.66×, sampling ≥ 1.5× (12.5%)",
    "stride": "2.7× fewer operations than Conformer-L",
    "colt5": "encoder 2.2–2.8× (16,384 tokens)",
}
_RANDOM: dict[str, dict[str, Any]] = {
    "subllm": {"structure": "TT(TTTT)TT", "retention_ratio": 0.64},
    "mod": {"structure": "T(T)T(T)T(T)T(T)", "retention_ratio": 0.125, "router": "mod"},
    "stride": {"structure": "TT(TT)(TT)TT", "retention_ratio": [0.5, 0.25], "router": "stride"},
    "colt5": {"structure": "CCCCCCCC"},
}


@dataclass(frozen=True)
class RouterRow:
    """What one router saves.

    Attributes:
        name: of the system, or of the checkpoint.
        structure: of the model.
        tokens: of the prompt.
        operations: of reading it, over the dense model's.
        prefill, decode: time of the dense model over that of this one.
        prefill_limit, decode_limit: what counted operations allow.
        prefill_rate: tokens per second, reading.
        cache, peak: bytes over the dense model's.
        reported: what the system's paper reports.
        training: time of the dense model's training step over that of this one's, on a sequence as long as the prompt.
        training_limit: what counted operations allow.
        loss: held-out, nats per token; None without a training.
        read: tokens that it had read in training by then; 0 if that is not known.
        run: folder of the training, as it was named; "" without one.
        digest: of its checkpoint; "" without one.
    """

    name: str
    structure: str
    tokens: int
    operations: float
    prefill: float
    prefill_limit: float
    decode: float
    decode_limit: float
    prefill_rate: float
    cache: float
    peak: float
    reported: str
    training: float
    training_limit: float
    loss: float | None = None
    read: int = 0
    run: str = ""
    digest: str = ""


def random_model(router: str, longest: int) -> SubllmForCausalLM:
    """A small model with random weights.

    Args:
        router: "subllm", "mod", "stride" or "colt5".
        longest: tokens that it has positions for.
    """
    torch.manual_seed(0)
    config = SubllmConfig(
        **_RANDOM[router],
        vocab_size=8192,
        hidden_size=256,
        intermediate_size=640,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=longest + NEW_TOKENS,
    )
    return SubllmForCausalLM(config).eval()


class _Nominal:
    """Decides so that every level keeps its nominal share of the tokens of the first pass."""

    def __init__(self, shares: Sequence[float]) -> None:
        self._levels = [AtRetention(share) for share in shares]

    def __call__(self, level: int, router: Router, tokens: LevelTokens) -> Selection:
        return self._levels[level - 1](level, router, tokens)


def measure_random(router: str, tokens: int, repeats: int) -> RouterRow:
    """Measure a small model with random weights and ids.

    Args:
        router: see `random_model`.
        tokens: of the prompt.
        repeats: timed passes.
    """
    model = random_model(router, tokens)
    ids = torch.randint(1, 8192, (1, tokens + NEW_TOKENS), generator=torch.Generator().manual_seed(0))
    nominal = _Nominal(model.config.retention_ratios)
    return _measured(NAMES[router], model, ids, repeats, nominal)


def measure_trained(name: str, model: SubllmForCausalLM, ids: Tensor, repeats: int) -> RouterRow:
    """Measure a trained checkpoint as it is. Its weights change: training steps come last.

    Args:
        name: of the row.
        model: of the checkpoint.
        ids: (1, T) prompt with the tokens to write.
        repeats: timed passes.
    """
    return _measured(name, model, ids, repeats)


def trained_name(folder: Path, config: SubllmConfig, others: Iterable[Path] = ()) -> str:
    """What the table calls a training: the systems whose routers it has, and its folder.

    Args:
        folder: of the run.
        config: of its model.
        others: folders of other runs in the table; with one of the same name, the whole path is said.
    """
    systems = [NAMES[router] for router in dict.fromkeys(config.routers) if router in NAMES]
    alone = all(other.name != folder.name or other == folder for other in others)
    return f"{' and '.join(systems) or 'LLaMA'} ({folder.name if alone else folder})"


def _measured(
    name: str, model: SubllmForCausalLM, ids: Tensor, repeats: int, override: Override | None = None
) -> RouterRow:
    dense = routing_off(model)
    found = compare(model, dense, ids, repeats, override=override)
    steps = compare_models(model, dense, ids[:, : found.tokens], repeats)
    routers = [router for router in model.config.routers if router in REPORTED]
    return RouterRow(
        name,
        found.structure,
        found.tokens,
        1 / found.prefill_limit,
        found.ratio("dense", "subllm"),
        found.prefill_limit,
        found.ratio("dense decode", "subllm decode"),
        found.decode_limit,
        found.throughput("subllm"),
        found.cache_bytes[0] / found.cache_bytes[1],
        found.peak_bytes[0] / found.peak_bytes[1],
        REPORTED[routers[0]] if routers else "–",
        steps.speedup,
        steps.limit,
    )


def load_table(file: Path, facts: dict[str, str]) -> list[RouterRow]:
    """Rows that an earlier run wrote; none if it ran elsewhere, with another version or with other repeats.

    Args:
        file: JSON that `save_table` wrote.
        facts: about machine and run.

    Raises:
        AnalysisError: if the file cannot be read.
    """
    if not file.exists():
        return []
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return [RouterRow(**row) for row in content["rows"]] if content["facts"] == facts else []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AnalysisError(
            "{file} cannot be read ({error}); delete it to measure again.", file=file, error=error
        ) from error


def save_table(file: Path, facts: dict[str, str], rows: Sequence[RouterRow]) -> None:
    """Write the rows as JSON, and as a Markdown table beside it.

    Args:
        file: ".json" file.
        facts: about machine and run.
        rows: of the table.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    page = file.with_suffix(".md")
    with (
        full_disk_reported(file.parent, lambda: f"{file.name} and {page.name} are as they were before this row"),
        written_whole(file) as data,
        written_whole(page) as text,
    ):
        data.write_text(json.dumps({"facts": facts, "rows": [asdict(row) for row in rows]}, indent=1))
        text.write_text(report(facts, rows))


def report(facts: dict[str, str], rows: Sequence[RouterRow]) -> str:
    """Markdown table.

    Args:
        facts: about machine and run.
        rows: of the table.
    """
    lines = [
        "| router | structure | tokens | operations | prefill | limit | reached | decode | limit | training | limit "
        "| cache | peak | held-out loss | after tokens | prefill tokens/s | the paper |",
        f"| --- | --- {'| ---: ' * 14}| --- |",
    ]
    for row in rows:
        loss = "–" if row.loss is None else f"{row.loss:.3f}"
        loss += f" | {row.read / 1e6:.1f} M" if row.read else " | –"
        lines.append(
            f"| {row.name} | `{row.structure}` | {row.tokens:,} | {row.operations:.0%} | {row.prefill:.2f}× "
            f"| {row.prefill_limit:.2f}× | {row.prefill / row.prefill_limit:.0%} | {row.decode:.2f}× "
            f"| {row.decode_limit:.2f}× | {row.training:.2f}× | {row.training_limit:.2f}× | {row.cache:.0%} "
            f"| {row.peak:.0%} | {loss} | {row.prefill_rate:,.0f} | {row.reported} |"
        )
    about = (
        "Measured by `subllm routers`: each model and the `LlamaForCausalLM` with its weights, in turn. Prefill\n"
        "and training (a step on one sequence: forward, backward and AdamW) are medians of the ratios of passes that\n"
        "ran in turn; decode is the ratio of the mean times of a new token. The limits count operations. Operations,\n"
        "cache and peak are shares of the dense model's. Losses are comparable only after as many tokens of one text."
    )
    return page("Routers against LLaMA", about, "\n".join(lines), facts)
