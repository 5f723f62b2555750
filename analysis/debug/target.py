"""A score, or the log-probability of a next token, as a function of the prompt's embeddings.

Routing is a hard choice, so whoever asks has to say what is held fixed:

- "kept": which tokens are kept stays as it happened; their weights follow their scores, by the router's own rule.
- "routing": the weights stay as they happened, too.
- "nothing": the routing is decided anew for every changed input. Gradients do not see such changes, ablations do.

A question about a score at an inner level keeps the token that it is about present at the outer ones.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from subllm import Event, Probe, RoutingRecord, Selection, SubllmForCausalLM
from subllm.routing import ROUTERS, LevelTokens, Router
from subllm.structure import WHOLE

from ..errors import AnalysisError
from .generation import end_tokens

HELD = ("kept", "routing", "nothing")
BASELINES = ("mean", "zero", "end")


@dataclass(frozen=True)
class Question:
    """What is to be explained.

    Attributes:
        token: of the prompt: whose score, or after which the next one is predicted.
        level: at which its score is meant; None for the next token.
        answer: id of the next token whose log-probability is meant; None for the likeliest.
    """

    token: int
    level: int | None = None
    answer: int | None = None


class _Found(Exception):  # noqa: N818 - it ends a forward pass that has told what was asked
    pass


class Explained:
    """A value of one prompt as a function of its embeddings.

    Args:
        model: in evaluation mode.
        token_ids: (T,) the prompt.
        question: what is to be explained.
        held: one of `HELD`.

    Attributes:
        embeddings: (1, T, D) of the prompt up to the token in question.
        routing: of the prompt as it is, one record per level.

    Raises:
        AnalysisError: if there is no such token, level or score.
    """

    def __init__(self, model: SubllmForCausalLM, token_ids: np.ndarray, question: Question, held: str) -> None:
        structure, token, level = model.config.parsed_structure, question.token, question.level
        if not 0 <= token < len(token_ids):
            raise AnalysisError(
                "There is no token {token:,}; the tokens of the prompt are 0 to {last:,}.",
                token=token,
                last=len(token_ids) - 1,
            )
        if level is not None and not 1 <= level <= structure.num_levels:
            raise AnalysisError(
                "There is no Level {level}; the number of levels of this model is {levels}.",
                level=level,
                levels=structure.num_levels,
            )
        if held not in HELD:
            raise AnalysisError(
                "{held!r} cannot be held fixed; allowed are {allowed}.", held=held, allowed=", ".join(HELD)
            )
        if level is not None and not ROUTERS[model.config.routers[level - 1]].scores_tokens:
            raise AnalysisError(
                "Level {level} has no scores: its router is {router!r}, which does not score "
                "tokens. Ask about the next token.",
                level=level,
                router=model.config.routers[level - 1],
            )
        self.model, self.question, self.held = model, question, held
        ids = torch.tensor(token_ids[: token + 1], device=model.device)[None]  # nothing after it matters
        with torch.no_grad():
            self.embeddings = model.model.embed_tokens(ids)
            output = model(ids, use_cache=False, probe=Probe(record=True))
        self.routing: tuple[RoutingRecord, ...] = output.routing
        self._outer: list[int] = []  # levels around the one in question, from the outermost inwards
        while level is not None and structure.parents[level - 1] != WHOLE:
            level = structure.parents[level - 1]
            self._outer.insert(0, level)
        for level in self._outer:
            if not self.routing[level - 1].kept[0, token]:
                raise AnalysisError(
                    "Token {token:,} has no score at Level {asked} because Level {level} dropped it. Ask about a "
                    "token that reaches that level.",
                    token=token,
                    asked=question.level,
                    level=level,
                )
        likeliest = int(output.logits[0, token].argmax())
        self.answer = likeliest if question.answer is None else question.answer

    def __call__(self, embeddings: Tensor, observe: Callable[[Event], None] | None = None) -> Tensor:
        """(B,) the value.

        Args:
            embeddings: (B, T, D).
            observe: told of the events of the pass up to what is asked.
        """
        found: list[Tensor] = []

        def decide(level: int, router: Router, tokens: LevelTokens) -> Selection:
            own = tokens.positions == self.question.token
            if level == self.question.level:
                found.append((router.score(tokens.hidden_states) * own).sum(1))
                raise _Found
            if self.held == "nothing":
                selection = router.select(tokens, training=False)
            else:
                record = self.routing[level - 1]
                kept, weights = record.kept[0][tokens.positions], record.weights[0][tokens.positions]
                selection = Selection.of(tokens, kept, weights if self.held == "routing" else router.weigh(tokens))
            return replace(selection, kept=selection.kept | own) if level in self._outer else selection

        probe = Probe(observe=observe, override=decide)
        try:
            output = self.model.model(inputs_embeds=embeddings, use_cache=False, probe=probe)
        except _Found:
            return found[0]
        logits = self.model.lm_head(output.last_hidden_state[:, self.question.token])
        return logits.float().log_softmax(-1)[:, self.answer]


def baseline_of(model: SubllmForCausalLM, inputs: Tensor, which: str) -> Tensor:
    """What embeddings are replaced with when they are taken away.

    Args:
        model: whose embeddings they are.
        inputs: (1, T, D) embeddings.
        which: one of `BASELINES`: the "mean" embedding, "zero", or the "end" of text token's.

    Returns:
        (1, T, D).

    Raises:
        AnalysisError: if it is none of those, or the model names no end of text.
    """
    table = model.model.embed_tokens.weight.detach()
    if which == "zero":
        return torch.zeros_like(inputs)
    if which == "mean":
        return table.float().mean(0).to(inputs.dtype).expand_as(inputs).contiguous()
    if which == "end":
        ends = end_tokens(model)
        if not ends:
            raise AnalysisError("The model has no end-of-text token; use the mean embedding or zero as the baseline.")
        return table[ends[0]].expand_as(inputs).contiguous()
    raise AnalysisError(
        "There is no baseline {which!r}; allowed are {baselines}.", which=which, baselines=", ".join(BASELINES)
    )
