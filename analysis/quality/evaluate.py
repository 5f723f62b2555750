"""How good a checkpoint is: perplexity by length, agreement with its dense model, and public benchmarks.

Tasks are those of EleutherAI's lm-evaluation-harness, run by its ordinary "hf" model; they need that package and,
unless they are local, network.
"""

import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from subllm import Probe, SubllmForCausalLM
from subllm.checkpoints.device import dtype_name
from subllm.checkpoints.load import Checkpoint
from subllm.convert.fidelity import Fidelity
from subllm.routing import AtRetention
from subllm.text.blocks import Blocks
from subllm.text.packed import META, SPLITS, Packed
from subllm.text.sources import read_pieces

from ..cost.comparison import check_scores
from ..errors import AnalysisError
from ..guard import check_ids
from .chats import NEW_TOKENS, REPEATED, Answer
from .needles import NeedleResult

_CALIBRATION_TOKENS = 16_384


def held_out_blocks(checkpoint: Checkpoint, paths: Sequence[Path], length: int, count: int) -> Tensor:
    """Text to evaluate on: (N, length) ids, N at most `count`.

    Args:
        checkpoint: whose tokenizer reads it.
        paths: one folder of packed text, whose held-out part is taken; or files, as `subllm.text.sources.read_pieces`
            reads.
        length: of a block.
        count: blocks at most.

    Raises:
        AnalysisError: if there can be no such blocks (see `check_blocks`), or the text is shorter than one, or packed
            with another tokenizer.
        DataError: if it cannot be read.
        PromptError: if the model has no embedding for one of its tokens.
    """
    check_blocks(checkpoint.model, count, length)
    if len(paths) == 1 and (paths[0] / META).is_file():
        packed = Packed.read(paths[0])
        if packed.tokenizer().get_vocab() != checkpoint.tokenizer.get_vocab():
            raise AnalysisError(
                f"{paths[0]} was packed with another tokenizer than the checkpoint's; give text files, or pack them "
                "with the checkpoint's."
            )
        blocks = Blocks(packed, SPLITS[1], length)
        found = torch.stack([blocks[index]["input_ids"] for index in range(min(count, len(blocks)))])
    else:
        ids: list[int] = []
        for piece in read_pieces(paths):
            ids += checkpoint.tokenizer(piece.text, add_special_tokens=False, verbose=False)["input_ids"]
            if len(ids) >= count * length:
                break
        rows = min(len(ids) // length, count)
        if not rows:
            raise AnalysisError(f"The text has {len(ids):,} of the {length:,} tokens of one block; give more text.")
        found = torch.tensor(ids[: rows * length]).reshape(rows, length)
    check_ids(checkpoint.model, found.numpy())
    return found


def check_blocks(model: SubllmForCausalLM, count: int, length: int) -> None:
    """See that predictions can be measured on blocks of text: each has a token to predict, and fits the model.

    Args:
        model: that reads them.
        count: blocks.
        length: tokens of each.

    Raises:
        AnalysisError: if there are none, or they are too short, or longer than the model's positions.
    """
    most = model.config.max_position_embeddings
    if count < 1 or not 2 <= length <= most:
        raise AnalysisError(
            f"Quality cannot be measured on {count:,} blocks of {length:,} tokens; give 1 block or more, of 2 to "
            f"{most:,} tokens, the model's positions."
        )


def at_retention(model: SubllmForCausalLM, blocks: Tensor, retention: float) -> AtRetention | None:
    """The model's routers with every level's threshold moved: one for all blocks, found on the first ones.

    Args:
        model: whose scores are compared with the thresholds; a level that does not score decides as ever.
        blocks: (N, T) token ids.
        retention: share of its tokens that every level is to keep; 0 leaves the thresholds alone.

    Raises:
        AnalysisError: if it is no share, or no level scores tokens.
    """
    if not retention:
        return None
    if not 0 < retention <= 1:
        raise AnalysisError(f"A retention of {retention} cannot be evaluated; it is a share from 0 to 1.")
    check_scores(model)
    override = AtRetention(retention)
    some = blocks[: max(_CALIBRATION_TOKENS // blocks.shape[1], 1)].to(model.device)
    with torch.inference_mode():
        model.model(some, use_cache=False, probe=Probe(override=override))
    return override


def run_tasks(
    checkpoint: Checkpoint, tasks: Sequence[str], *, limit: int | None = None, own: Path | None = None
) -> dict[str, Any]:
    """Benchmarks of the lm-evaluation-harness.

    Args:
        checkpoint: whose folder the harness loads, on the same device and in the same dtype.
        tasks: by the harness's names.
        limit: examples of each task at most.
        own: folder with tasks of one's own.

    Returns:
        Metrics by task.

    Raises:
        AnalysisError: if the harness is not installed, or knows no such task.
    """
    try:
        from lm_eval import simple_evaluate  # noqa: PLC0415 - large, and only needed here
        from lm_eval.tasks import TaskManager  # noqa: PLC0415
    except ImportError as error:
        raise AnalysisError("Tasks need the lm-evaluation-harness: pip install lm-eval") from error
    manager = TaskManager(include_path=None if own is None else str(own))
    unknown = sorted(set(tasks) - set(manager.all_tasks))
    if unknown:
        raise AnalysisError(f"The lm-evaluation-harness has no task {', '.join(unknown)}; see: lm-eval ls tasks")
    arguments = {"pretrained": str(checkpoint.folder), "dtype": dtype_name(checkpoint.model)}
    found = simple_evaluate(
        "hf", model_args=arguments, tasks=list(tasks), device=str(checkpoint.model.device), batch_size=8, limit=limit,
        task_manager=manager, bootstrap_iters=0, log_samples=False,
    )  # fmt: skip
    return dict(found["results"])


def report(
    evaluations: dict[tuple[int, float], Fidelity],
    found: Sequence[NeedleResult],
    chats: Sequence[Answer],
    tasks: dict[str, Any],
) -> str:
    """Markdown of what was measured.

    Args:
        evaluations: by length and retention asked for, 0 for the model's own.
        found: needles.
        chats: answers to everyday questions.
        tasks: metrics by task.
    """
    lines: list[str] = []
    if evaluations:
        lines += [
            "| tokens | retention | perplexity | dense | ratio | KL, nats | top-1 agreement | kept | tokens |",
            "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: |",
        ]
        lines += [
            f"| {length:,} | {_asked(retention)} | {e.perplexity:.2f} | {e.dense_perplexity:.2f} "
            f"| {e.perplexity_ratio:.3f} | {e.divergence:.3f} | {e.agreement:.1%} | {_shares(e.retention)} "
            f"| {e.tokens:,} |"
            for (length, retention), e in evaluations.items()
        ]
    if found:
        lines += [
            "",
            "| tokens | depth of the needle | recall | dense | needle kept per level | needles |",
            "| ---: | ---: | ---: | ---: | --- | ---: |",
        ]
        lines += [
            f"| {n.length:,} | {n.depth:.0%} | {n.recall:.0%} | {n.dense_recall:.0%} | {_shares(n.kept)} | {n.trials} |"
            for n in found
        ]
    if chats:
        lines += [
            "",
            f"Greedy answers of {NEW_TOKENS} tokens at most. Repeats are {REPEATED}-grams that occurred before.",
            "",
            "| question | answer | repeats | answer of the dense model | repeats |",
            "| --- | --- | ---: | --- | ---: |",
        ]
        lines += [
            f"| {c.question} | {in_a_cell(c.text)} | {c.repeats} | {in_a_cell(c.dense_text)} | {c.dense_repeats} |"
            for c in chats
        ]
    if tasks:
        lines += ["", "| task | metric | value |", "| --- | --- | ---: |"]
        lines += [
            f"| {task} | {metric} | {value:.4f} |"
            for task, metrics in tasks.items()
            for metric, value in metrics.items()
            if isinstance(value, float)
        ]
    return "\n".join(lines).strip()


def in_a_cell(text: str) -> str:
    """Text as a cell of a Markdown table: on one line, with the marks of HTML and Markdown escaped."""
    plain = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_~$|\[\]])", r"\\\1", plain)


def _asked(retention: float) -> str:
    return f"{retention:.0%}" if retention else "its own"


def _shares(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.0%}" for value in values) or "–"
