"""What would have happened otherwise: edits to the routing of a prompt, and what they change.

    python -m analysis.intervene --prompt "..." --drop 3-7@1 --keep 12@0 --threshold 0.3@0 --answer " Paris"

A prompt is read once, untouched, and every edit goes on from the state just before the first subsampling module that it
names: what comes before is not run again. Without edits the result is the untouched one, bit for bit.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from subllm import SubllmError, SubllmForCausalLM
from subllm.checkpoints import dtype_name, load_checkpoint, pick_device, pick_dtype
from subllm.demo import build_demo
from subllm.routing import level_arrays
from subllm.stream import Snapshot
from subllm.structure import BLOCK

from .agreement import agreement
from .edits import EVERY, KINDS, Edit, EditedRouting, check
from .errors import AnalysisError
from .measure import timed
from .operations import prefill_operations
from .prompt import decode_pieces, read_answer, read_prompt
from .record import out_of_memory_said
from .roofline import block_tokens, cache_bytes

NEXT = 10


@dataclass(frozen=True, eq=False)
class Ground:
    """A prompt read without edits: what edits are compared with, and where they go on from.

    Attributes:
        model: in evaluation mode.
        ids: (1, T + A): the prompt, and the answer whose probability is watched.
        answer: A, tokens of the answer.
        snapshots: states before each span.
        hidden: (T + A, D) last hidden states.
        arrays: (S, T) of the routing, named as in a `Trace`.
        seconds: that reading took.
    """

    model: SubllmForCausalLM
    ids: Tensor
    answer: int
    snapshots: dict[int, Snapshot]
    hidden: Tensor
    arrays: dict[str, np.ndarray]
    seconds: float

    @property
    def kept(self) -> np.ndarray:
        """(S, T) True where the span's blocks process the token."""
        return self.arrays["kept"]

    @property
    def scores(self) -> np.ndarray:
        """(S, T) importance; NaN where the token did not reach the span."""
        return self.arrays["scores"]

    @property
    def num_tokens(self) -> int:
        """T, tokens of the prompt."""
        return self.ids.shape[1] - self.answer


@dataclass(frozen=True, eq=False)
class Outcome:
    """A prompt read with edits, and what they changed; pairs are untouched and edited.

    Attributes:
        edits: in force.
        arrays: (S, T) of the routing, named as in a `Trace`.
        flipped: (S, T) 1 where a token that no edit names is kept now and was not, -1 where it is not and was.
        absent: (span, token) that an edit names but that an outer span dropped already.
        next_ids: (K,) likeliest next tokens of both.
        next_probabilities: (2, K).
        answer: log-probability of the answer, nats, both; NaN where none is watched.
        divergence: nats, KL divergence of the edited next-token distribution after the prompt from the untouched one.
        cache_bytes: keys and values of the prompt, both.
        operations: of reading the prompt, both, in full.
        seconds: that the steps from the first edit on took.
        share: of the untouched reading's operations that lie in these steps.
        hidden: (T + A, D) last hidden states.
    """

    edits: tuple[Edit, ...]
    arrays: dict[str, np.ndarray]
    flipped: np.ndarray
    absent: list[tuple[int, int]]
    next_ids: np.ndarray
    next_probabilities: np.ndarray
    answer: tuple[float, float]
    divergence: float
    cache_bytes: tuple[float, float]
    operations: tuple[int, int]
    seconds: float
    share: float
    hidden: Tensor

    @property
    def kept(self) -> np.ndarray:
        """(S, T) True where the span's blocks process the token."""
        return self.arrays["kept"]

    @property
    def emptied(self) -> list[int]:
        """Spans that keep nothing now."""
        return [span for span, row in enumerate(self.kept) if not row.any()]


@torch.no_grad()
def read_ground(model: SubllmForCausalLM, token_ids: np.ndarray, answer_ids: Sequence[int] = ()) -> Ground:
    """Read a prompt without edits.

    Args:
        model: in evaluation mode.
        token_ids: (T,) the prompt.
        answer_ids: (A,) what may follow it.

    Raises:
        RunStopped: when memory runs out.
    """
    ids = torch.tensor([[*map(int, token_ids), *answer_ids]], device=model.device)
    snapshots: dict[int, Snapshot] = {}
    started = time.perf_counter()
    with out_of_memory_said(ids.shape[1]):
        output = model.model(ids, use_cache=False, output_routing=True, snapshots=snapshots)
    hidden = output.last_hidden_state[0]
    arrays = _prompt_arrays(model, output.routing, ids.shape[1], len(token_ids))
    hidden.sum().item()  # wait for the device
    return Ground(model, ids, len(answer_ids), snapshots, hidden, arrays, time.perf_counter() - started)


@torch.inference_mode()
def intervene(ground: Ground, edits: Sequence[Edit]) -> Outcome:
    """Read a prompt with edits, from the first module that they name on.

    Args:
        ground: the prompt without edits.
        edits: to be made, in order.

    Raises:
        AnalysisError: if an edit does not fit the model or the prompt.
        RunStopped: when memory runs out.
    """
    model, length = ground.model, ground.num_tokens
    structure = model.config.parsed_structure
    check(edits, len(structure.spans), length)
    arrays, hidden, seconds, share = ground.arrays, ground.hidden, 0.0, 0.0
    routing = EditedRouting(tuple(edits))
    if edits and structure.spans:
        first = first_span(edits)
        found: list = []

        def run() -> None:
            found.append(
                model.model(
                    ground.ids, use_cache=False, output_routing=True, rule=routing, resume=ground.snapshots[first]
                )
            )

        with out_of_memory_said(length):
            seconds = timed(run, model.device).seconds
        (output,) = found
        hidden = output.last_hidden_state[0]
        arrays = _prompt_arrays(model, output.routing, ground.ids.shape[1], length)
        share = _share_again(ground, first)
    named = np.zeros_like(ground.kept)
    for edit in edits:
        if edit.kind in ("keep", "drop"):
            named[slice(None) if edit.span == EVERY else edit.span, list(edit.tokens)] = True
    before, after = (_last(model, each, length) for each in (ground.hidden, hidden))
    top = torch.cat([before.topk(min(NEXT, len(before))).indices, after.topk(min(NEXT, len(after))).indices])
    next_ids = torch.tensor(list(dict.fromkeys(top.tolist())), device=top.device)
    next_ids = next_ids[after[next_ids].argsort(descending=True)]
    kept = arrays["kept"]
    sizes = [_size(model, each) for each in (ground.kept, kept)]
    return Outcome(
        edits=tuple(edits),
        arrays=arrays,
        flipped=np.where(named, 0, kept.astype(np.int8) - ground.kept.astype(np.int8)),
        absent=[(span, token) for span, tokens in sorted(routing.absent.items()) for token in tokens],
        next_ids=next_ids.cpu().numpy(),
        next_probabilities=torch.stack([before[next_ids], after[next_ids]]).exp().cpu().numpy(),
        answer=(answer_logprob(ground, ground.hidden), answer_logprob(ground, hidden)),
        divergence=max((before.exp() * (before - after)).sum().item(), 0.0),
        cache_bytes=(sizes[0][0], sizes[1][0]),
        operations=(sizes[0][1], sizes[1][1]),
        seconds=seconds,
        share=share,
        hidden=hidden,
    )


def judge(ground: Ground, outcome: Outcome) -> dict[str, np.ndarray]:
    """Predictions at every position, edited against untouched; a head's work per token for each.

    Args:
        ground: the prompt without edits.
        outcome: the prompt with edits.

    Returns:
        As `analysis.agreement.agreement`: `surprisal` (edited), `dense_surprisal` (untouched), `divergence` (T,)
        float32, nats, and `agrees` (T,) bool.
    """
    head, length = ground.model.lm_head, ground.num_tokens
    return agreement(head, outcome.hidden[:length], head, ground.hidden[:length], ground.ids[0, :length])


def reachable(edits: Sequence[Edit], absent: Sequence[tuple[int, int]], parents: Sequence[int | None]) -> list[Edit]:
    """The edits, with those added that keep tokens in the outer spans that drop them now.

    Args:
        edits: in force.
        absent: (span, token) as in `Outcome`.
        parents: enclosing span of each span.
    """
    added: dict[int, set[int]] = {}
    for span, token in absent:
        outer = parents[span]
        while outer is not None:
            added.setdefault(outer, set()).add(token)
            outer = parents[outer]
    return [*(Edit("keep", span, tuple(sorted(tokens))) for span, tokens in added.items()), *edits]


def first_span(edits: Sequence[Edit]) -> int:
    """The subsampling module that comes first among those that edits name.

    Args:
        edits: at least one.
    """
    return max(min(edit.span for edit in edits), 0)  # numbers are in order of opening, and EVERY comes before all


def answer_logprob(ground: Ground, hidden: Tensor) -> float:
    """Log-probability of the answer after the prompt, in nats; NaN without one.

    Args:
        ground: the prompt and its answer.
        hidden: (T + A, D) last hidden states.
    """
    return objective(ground, hidden[None]).item() if ground.answer else float("nan")


def objective(ground: Ground, hidden: Tensor) -> Tensor:
    """(B,) log-probability of the answer, or without one of the token that is likeliest untouched.

    Args:
        ground: the prompt and its answer.
        hidden: (B, T + A, D) last hidden states.
    """
    head, last = ground.model.lm_head, ground.num_tokens - 1
    targets = ground.ids[0, ground.num_tokens :] if ground.answer else head(ground.hidden[last]).argmax()[None]
    rows = hidden[:, last : last + len(targets)]
    found = head(rows).float().log_softmax(-1)
    return found.gather(2, targets[None, :, None].expand(len(hidden), -1, 1)).sum((1, 2))


def _last(model: SubllmForCausalLM, hidden: Tensor, length: int) -> Tensor:
    """(V,) log-probabilities after the prompt."""
    return model.lm_head(hidden[length - 1]).float().log_softmax(-1)


def _prompt_arrays(model: SubllmForCausalLM, records: Any, total: int, length: int) -> dict[str, np.ndarray]:
    return {
        name: array[:, :length] for name, array in level_arrays(model.config.parsed_structure, records, total).items()
    }


def _block_counts(model: SubllmForCausalLM, kept: np.ndarray) -> list[int]:
    """Tokens that each block processes, from what was kept (S, T)."""
    return [int(n) for n in block_tokens(model.config, [kept.shape[1], *kept.sum(1)])]


def _size(model: SubllmForCausalLM, kept: np.ndarray) -> tuple[float, int]:
    """Cache bytes and operations of a prompt, from what was kept."""
    size = cache_bytes(model.config, [kept.shape[1], *kept.sum(1)], 1, dtype_name(model))
    return size, prefill_operations(model.config, _block_counts(model, kept))


def _share_again(ground: Ground, span: int) -> float:
    config, tokens = ground.model.config, _block_counts(ground.model, ground.kept)
    done = config.parsed_structure.text[: ground.snapshots[span].step].count(BLOCK)
    return prefill_operations(config, [0] * done + tokens[done:]) / prefill_operations(config, tokens)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m analysis.intervene", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="folder of a checkpoint; the demo if left out")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--chat", action="store_true", help="put the prompt through the chat template")
    parser.add_argument("--answer", default="", help="text whose probability after the prompt is watched")
    for kind in KINDS:
        what = "MODULE" if kind == "dense" else "TOKENS@MODULE" if kind in ("keep", "drop") else "NUMBER@MODULE"
        parser.add_argument(f"--{kind}", action="append", default=[], metavar=what)
    parser.add_argument("--device", help="such as cpu or cuda; the best one if left out")
    parser.add_argument("--dtype", help="such as float32 or bfloat16; the device's default if left out")
    arguments = parser.parse_args()
    device = arguments.device or pick_device()
    try:
        folder = arguments.checkpoint or build_demo()
        checkpoint = load_checkpoint(folder, device, arguments.dtype or pick_dtype(device))
        model, tokenizer = checkpoint.model, checkpoint.tokenizer
        most = model.config.max_position_embeddings
        prompt = read_prompt(arguments.prompt, tokenizer, most, chat=arguments.chat, truncate=False)
        texts = [f"{kind} {what}" if kind != "dense" else f"dense@{what}" for kind in KINDS
                 for what in getattr(arguments, kind)]  # fmt: skip
        edits = [Edit.parse(text, prompt.text, prompt.starts.tolist(), prompt.ends.tolist()) for text in texts]
        answer = read_answer(arguments.answer, tokenizer, most - len(prompt.token_ids))
        ground = read_ground(model, prompt.token_ids, answer)
        outcome = intervene(ground, edits)
        judged = judge(ground, outcome)
    except (SubllmError, AnalysisError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    print(_report(ground, outcome, judged, decode_pieces(outcome.next_ids, tokenizer)))  # noqa: T201
    return 0


def _report(ground: Ground, outcome: Outcome, judged: dict[str, np.ndarray], pieces: np.ndarray) -> str:
    perplexity = [np.exp(np.nanmean(judged[name])) for name in ("dense_surprisal", "surprisal")]
    lines = [
        f"edits: {', '.join(map(str, outcome.edits)) or 'none'}",
        f"tokens: {ground.num_tokens:,}; read again: {outcome.share:.0%} of the operations, "
        f"{1000 * outcome.seconds:,.0f} ms of {1000 * ground.seconds:,.0f} ms",
        f"perplexity of the prompt: {perplexity[0]:.3f} -> {perplexity[1]:.3f}" if ground.num_tokens > 1 else "",
        f"log-probability of the answer: {outcome.answer[0]:.3f} -> {outcome.answer[1]:.3f} nats"
        if ground.answer
        else "",
        f"divergence after the prompt: {outcome.divergence:.4f} nats",
        f"cache: {outcome.cache_bytes[0]:,.0f} -> {outcome.cache_bytes[1]:,.0f} bytes; "
        f"operations: {outcome.operations[1] / outcome.operations[0] - 1:+.1%}",
    ]
    for span, row in enumerate(outcome.kept):
        flips = ", ".join(
            f"{'+' if sign > 0 else '-'}{token}" for token, sign in enumerate(outcome.flipped[span]) if sign
        )
        lines.append(f"module {span}: keeps {ground.kept[span].sum():,} -> {row.sum():,}; flipped: {flips or 'none'}")
    lines += [
        f"token {token} never reached module {span}: an outer one dropped it; keep it there too"
        for span, token in outcome.absent
    ]
    lines.append("next token:")
    for piece, before, after in zip(pieces, *outcome.next_probabilities, strict=True):
        lines.append(f"  {before:7.2%} -> {after:7.2%}  {piece!r}")
    return "\n".join(line for line in lines if line)


if __name__ == "__main__":
    sys.exit(main())
