"""How good a checkpoint is: perplexity by length, agreement with its dense model, needles, and public benchmarks.

Tasks are those of EleutherAI's lm-evaluation-harness, run by its ordinary "hf" model; they need that package and,
unless they are local, network.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from subllm import Probe, SubllmForCausalLM
from subllm.checkpoints.dense import DenseModel
from subllm.checkpoints.device import pick_device, pick_dtype
from subllm.checkpoints.load import Checkpoint
from subllm.convert.fidelity import Fidelity
from subllm.routing import AtRetention
from subllm.text.blocks import Blocks
from subllm.text.packed import META, SPLITS, Packed
from subllm.text.sources import read_pieces

from ..cost.benchmark_text import prompt_of
from ..errors import AnalysisError
from ..guard import Progress, silent

_CALIBRATION_TOKENS = 16_384
_OBJECTS = ("river", "garden", "engine", "letter", "mountain", "window", "teacher", "market", "kitchen", "forest")


@dataclass(frozen=True)
class NeedleResult:
    """Needles at one place of prompts of one length.

    Attributes:
        length: tokens of the prompt.
        depth: share of the prompt before the needle.
        recall: share of needles whose number the SUBLLM finds most likely, every token of it.
        dense_recall: the same for the dense model.
        kept: share of the number's tokens in the needle that each level keeps.
        trials: needles.
    """

    length: int
    depth: float
    recall: float
    dense_recall: float
    kept: list[float]
    trials: int


def held_out_blocks(checkpoint: Checkpoint, paths: Sequence[Path], length: int, count: int) -> Tensor:
    """Text to evaluate on: (N, length) ids, N at most `count`.

    Args:
        checkpoint: whose tokenizer reads it.
        paths: one folder of packed text, whose held-out part is taken; or files, as `subllm.text.sources.read_pieces`
            reads.
        length: of a block.
        count: blocks at most.

    Raises:
        AnalysisError: if the text is shorter than one block, or packed with another tokenizer.
        DataError: if it cannot be read.
    """
    if len(paths) == 1 and (paths[0] / META).is_file():
        packed = Packed.read(paths[0])
        if packed.tokenizer().get_vocab() != checkpoint.tokenizer.get_vocab():
            raise AnalysisError(
                f"{paths[0]} was packed with another tokenizer than the checkpoint's; give text files, or pack them "
                "with the checkpoint's."
            )
        blocks = Blocks(packed, SPLITS[1], length)
        return torch.stack([blocks[index]["input_ids"] for index in range(min(count, len(blocks)))])
    ids: list[int] = []
    for piece in read_pieces(paths):
        ids += checkpoint.tokenizer(piece.text, add_special_tokens=False, verbose=False)["input_ids"]
        if len(ids) >= count * length:
            break
    rows = min(len(ids) // length, count)
    if not rows:
        raise AnalysisError(f"The text has {len(ids):,} tokens, less than one block of {length:,}; give more text.")
    return torch.tensor(ids[: rows * length]).reshape(rows, length)


def at_retention(model: SubllmForCausalLM, blocks: Tensor, retention: float) -> AtRetention | None:
    """The model's routers with every level's threshold moved: one for all blocks, found on the first ones.

    Args:
        model: whose scores are compared with the thresholds; routers that do not score decide as ever.
        blocks: (N, T) token ids.
        retention: share of its tokens that every level is to keep; 0 leaves the thresholds alone.

    Raises:
        AnalysisError: if it is no share.
    """
    if not retention:
        return None
    if not 0 < retention <= 1:
        raise AnalysisError(f"A retention of {retention} cannot be evaluated; it is a share from 0 to 1.")
    override = AtRetention(retention)
    some = blocks[: max(_CALIBRATION_TOKENS // blocks.shape[1], 1)].to(model.device)
    with torch.inference_mode():
        model.model(some, use_cache=False, probe=Probe(override=override))
    return override


def needles(
    checkpoint: Checkpoint,
    dense: DenseModel,
    length: int,
    depths: Sequence[float],
    trials: int = 10,
    progress: Progress = silent,
) -> list[NeedleResult]:
    """Hide a number in text, ask for it at the end, and see which levels kept it.

    Args:
        checkpoint: that reads.
        dense: that reads beside it.
        length: tokens of the prompts.
        depths: shares of the prompt before the needle.
        trials: needles at each depth.
        progress: told how far it is.

    Raises:
        AnalysisError: if the needle does not fit, or a depth is not a share.
    """
    if any(not 0 <= depth <= 1 for depth in depths):
        raise AnalysisError(f"Depths are shares from 0 to 1; found {', '.join(map(str, depths))}.")
    filler = prompt_of(checkpoint, length)[0].tolist()
    rng = random.Random(0)
    results = []
    for at, depth in enumerate(depths):
        right = dense_right = 0
        kept: list[list[float]] = []
        for trial in range(trials):
            progress(
                (at + trial / trials) / len(depths), "needles", done=at * trials + trial, total=len(depths) * trials
            )
            ids, answer, place = needle_prompt(checkpoint, filler, length, depth, rng)
            row, last = torch.tensor([ids + answer], device=checkpoint.model.device), len(answer) + 1
            with torch.inference_mode():
                output = checkpoint.model(row, use_cache=False, probe=Probe(record=True), logits_to_keep=last)
                beside = dense.model(row, use_cache=False, logits_to_keep=last)
            right += output.logits[0, :-1].argmax(-1).tolist() == answer
            dense_right += beside.logits[0, :-1].argmax(-1).tolist() == answer
            kept.append([record.kept[0, place.start : place.stop].float().mean().item() for record in output.routing])
        shares = [sum(column) / trials for column in zip(*kept, strict=True)]
        results.append(NeedleResult(length, depth, right / trials, dense_right / trials, shares, trials))
    return results


def needle_prompt(
    checkpoint: Checkpoint, filler: list[int], length: int, depth: float, rng: random.Random
) -> tuple[list[int], list[int], range]:
    """A prompt with a needle.

    Args:
        checkpoint: whose tokenizer is used.
        filler: ids of the text around the needle.
        length: tokens of the prompt and the answer.
        depth: share of the filler before the needle.
        rng: chooses the number.

    Returns:
        Ids of a prompt that ends in the question; of the answer; and where the answer stands in the needle.

    Raises:
        AnalysisError: if the needle does not fit.
    """

    def encode(text: str) -> list[int]:
        return list(checkpoint.tokenizer(text, add_special_tokens=False)["input_ids"])

    thing, number = rng.choice(_OBJECTS), str(rng.randrange(10_000, 100_000))
    begin, answer = encode(f"\nThe secret number of the {thing} is"), encode(f" {number}")
    end, question = encode(".\n"), encode(f"\nRemember: the secret number of the {thing} is")
    room = length - len(begin) - 2 * len(answer) - len(end) - len(question)
    if room < 0:
        raise AnalysisError(f"A needle does not fit into {length} tokens; at least {length - room} are needed.")
    before = round(depth * room)
    start = before + len(begin)
    ids = [*filler[:before], *begin, *answer, *end, *filler[before:room], *question]
    return ids, answer, range(start, start + len(answer))


def run_tasks(
    folder: Path, tasks: Sequence[str], *, limit: int | None = None, own: Path | None = None
) -> dict[str, Any]:
    """Benchmarks of the lm-evaluation-harness.

    Args:
        folder: of the checkpoint.
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
    arguments = {"pretrained": str(folder), "dtype": pick_dtype(pick_device())}
    found = simple_evaluate(
        "hf", model_args=arguments, tasks=list(tasks), device=pick_device(), batch_size=8, limit=limit,
        task_manager=manager, bootstrap_iters=0, log_samples=False,
    )  # fmt: skip
    return dict(found["results"])


def report(evaluations: dict[tuple[int, float], Fidelity], found: Sequence[NeedleResult], tasks: dict[str, Any]) -> str:
    """Markdown of what was measured.

    Args:
        evaluations: by length and retention asked for, 0 for the model's own.
        found: needles.
        tasks: metrics by task.
    """
    lines: list[str] = []
    if evaluations:
        lines += [
            "| tokens | retention | perplexity | dense | ratio | KL, nats | same likeliest token | kept | tokens |",
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
    if tasks:
        lines += ["", "| task | metric | value |", "| --- | --- | ---: |"]
        lines += [
            f"| {task} | {metric} | {value:.4f} |"
            for task, metrics in tasks.items()
            for metric, value in metrics.items()
            if isinstance(value, float)
        ]
    return "\n".join(lines).strip()


def _asked(retention: float) -> str:
    return f"{retention:.0%}" if retention else "its own"


def _shares(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.0%}" for value in values) or "–"
