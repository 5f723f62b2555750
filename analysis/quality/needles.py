"""Numbers hidden in text: does the model find one that its levels had to carry to the end?"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from subllm import Probe
from subllm.checkpoints.dense import DenseModel
from subllm.checkpoints.load import Checkpoint

from ..cost.benchmark_text import prompt_of
from ..debug.rules import Rule
from ..errors import AnalysisError
from ..guard import Progress, ids_on_device, silent

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


def needles(
    checkpoint: Checkpoint,
    dense: DenseModel,
    length: int,
    depths: Sequence[float],
    trials: int = 10,
    progress: Progress = silent,
    *,
    rule: Rule | None = None,
) -> list[NeedleResult]:
    """Hide a number in text, ask for it at the end, and see which levels kept it.

    Args:
        checkpoint: that reads.
        dense: that reads beside it.
        length: tokens of the prompts.
        depths: shares of the prompt before the needle.
        trials: needles at each depth.
        progress: told how far it is.
        rule: that decides in place of the routers; None for the model's own.

    Raises:
        AnalysisError: if there is none, or it does not fit, or a depth is not a share, or the rule does not fit the
            model.
    """
    if trials < 1:
        raise AnalysisError(f"There are {trials} needles at each depth; give 1 or more.")
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
            row, last = ids_on_device(checkpoint.model, ids + answer), len(answer) + 1
            override = None if rule is None else rule.override(checkpoint, row[:, : len(ids)])
            with torch.inference_mode():
                output = checkpoint.model(
                    row, use_cache=False, probe=Probe(True, override=override), logits_to_keep=last
                )
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
