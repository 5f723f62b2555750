"""A score, or the log-probability of a next token, as a function of the prompt's embeddings.

Routing is a discrete choice, so an attribution has to say what is held fixed while the embeddings change (`Held`). For
a question about a score at an inner level, the outer levels always keep the token in question.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
import torch
from torch import Tensor

from subllm import Event, Probe, RoutingRecord, Selection, SubllmForCausalLM
from subllm.routing import LevelTokens, Override, Router
from subllm.routing.overrides import Replay
from subllm.structure import WHOLE

from ..errors import AnalysisError
from ..guard import ids_on_device
from .edit_override import EditOverride
from .generation import end_tokens


class Held(StrEnum):
    """What stays as it was on the unchanged prompt."""

    KEPT = "kept"
    """Which tokens are kept; their weights follow their scores, by the router's own rule."""
    ROUTING = "routing"
    """Which tokens are kept, and their weights."""
    NOTHING = "nothing"
    """The routers decide anew for every changed input. Ablations see such changes, gradients do not."""


class Baseline(StrEnum):
    """The embedding that stands for an absent token."""

    MEAN = "mean"
    """The mean of all embeddings."""
    ZERO = "zero"
    END = "end"
    """The embedding of the end-of-text token."""


@dataclass(frozen=True)
class Question:
    """The number that is to be explained.

    Attributes:
        token: index of a token of the prompt.
        level: level whose importance score of the token is explained; None explains the token that follows it.
        answer: id of the following token whose log-probability is explained; None for the likeliest.
        instead: what the number is contrasted with, by taking the same number of it away: id of another following
            token or, for a score, index of another token of the prompt. None for no contrast.
    """

    token: int
    level: int | None = None
    answer: int | None = None
    instead: int | None = None

    @property
    def tokens(self) -> tuple[int, ...]:
        """Tokens of the prompt that it is about."""
        return (self.token,) if self.level is None or self.instead is None else (self.token, self.instead)

    @property
    def read(self) -> int:
        """Number of tokens of the prompt that matter."""
        return max(self.tokens) + 1


class _Found(Exception):  # noqa: N818 - it ends a forward pass once the score is known
    pass


class Target:
    """A number about one prompt as a function of the prompt's embeddings.

    Args:
        model: a model in evaluation mode.
        token_ids: (T,) the prompt.
        question: the number.
        held: what is held fixed while the embeddings change.
        override: edits of the run that is explained; none if left out.

    Attributes:
        embeddings: (1, T, D) embeddings of the prompt, up to the last token in question.
        routing: one record per level of the unchanged prompt, with the edits.
        answer: id of the token whose log-probability is explained, unless the question is about a score.

    Raises:
        AnalysisError: if there is no such token, level or score, no such value of `Held`, or nothing to contrast.
        PromptError: if the model has no embedding for a token.
    """

    def __init__(
        self,
        model: SubllmForCausalLM,
        token_ids: np.ndarray,
        question: Question,
        held: Held | str,
        override: EditOverride | None = None,
    ) -> None:
        structure, level = model.config.parsed_structure, question.level
        for token in question.tokens:
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
        if level is not None and not model.config.router_classes[level - 1].scores_tokens:
            raise AnalysisError(
                "Level {level} has no scores: its router is {router!r}, which does not score "
                "tokens. Ask about the next token.",
                level=level,
                router=model.config.routers[level - 1],
            )
        if held not in [*Held]:
            raise AnalysisError(
                "{held!r} cannot be held fixed; allowed are {allowed}.", held=held, allowed=", ".join(Held)
            )
        self.model, self.question = model, question
        # nothing after it matters, except to an edit that reaches a retention on the whole prompt
        ids = ids_on_device(model, token_ids[: question.read] if override is None else token_ids)
        with torch.no_grad():
            self.embeddings = model.model.embed_tokens(ids[:, : question.read])
            output = model(ids, use_cache=False, probe=Probe(record=True, override=override))
        self.routing: tuple[RoutingRecord, ...] = output.routing
        self._decide: Override = _routers if override is None else override
        kept = [record.kept[0] for record in self.routing]
        if held == Held.KEPT and override is not None:
            self._decide = replace(override, held=kept)
        elif held != Held.NOTHING:
            self._decide = Replay(
                kept, [record.weights[0] for record in self.routing] if held == Held.ROUTING else None
            )
        self._outer: list[int] = []  # levels around the one in question, from the outermost inwards
        while level is not None and structure.parents[level - 1] != WHOLE:
            level = structure.parents[level - 1]
            self._outer.insert(0, level)
        for level in self._outer:
            for token in question.tokens:
                self._check_kept(level, token)
        likeliest = int(output.logits[0, question.token].argmax())
        self.answer = likeliest if question.answer is None else question.answer
        if question.instead == (self.answer if question.level is None else question.token):
            raise AnalysisError("A token is contrasted with itself here; name another one.")

    def _check_kept(self, level: int, token: int) -> None:
        """Check that a level around the one in question keeps a token, so that it has a score there."""
        if self.routing[level - 1].kept[0, token]:
            return
        if self.model.config.router_classes[level - 1].merges_tokens:
            raise AnalysisError(
                "Token {token:,} has no score at Level {asked} because Level {level} merged it into another "
                "one. Ask about a token that reaches that level.",
                token=token,
                asked=self.question.level,
                level=level,
            )
        raise AnalysisError(
            "Token {token:,} has no score at Level {asked} because Level {level} dropped it. Ask about a "
            "token that reaches that level.",
            token=token,
            asked=self.question.level,
            level=level,
        )

    def __call__(self, embeddings: Tensor, observe: Callable[[Event], None] | None = None) -> Tensor:
        """(B,) the number, for embeddings (B, T, D).

        Args:
            embeddings: embeddings of the prompt, up to the last token in question.
            observe: receives the events of the forward pass, as in `Probe`.
        """
        found: list[Tensor] = []

        def decide(level: int, router: Router, tokens: LevelTokens) -> Selection:
            own, *others = (tokens.positions == token for token in self.question.tokens)
            if level == self.question.level:
                scores = router.score(tokens.hidden_states)
                value = (scores * own).sum(1)
                found.append(value - (scores * others[0]).sum(1) if others else value)
                raise _Found
            selection = self._decide(level, router, tokens)
            if level not in self._outer:
                return selection
            kept = selection.kept | own | others[0] if others else selection.kept | own
            return replace(selection, kept=kept, packing=None)

        probe = Probe(observe=observe, override=decide)
        try:
            output = self.model.model(inputs_embeds=embeddings, use_cache=False, probe=probe)
        except _Found:
            return found[0]
        logits = self.model.lm_head(output.last_hidden_state[:, self.question.token])
        log_probabilities = logits.float().log_softmax(-1)
        value = log_probabilities[:, self.answer]
        return value if self.question.instead is None else value - log_probabilities[:, self.question.instead]


def _routers(level: int, router: Router, tokens: LevelTokens) -> Selection:
    """The router's own decision."""
    return router.select(tokens, training=False)


def baseline_of(model: SubllmForCausalLM, inputs: Tensor, which: Baseline | str) -> Tensor:
    """(1, T, D) embeddings of a prompt whose tokens are all absent.

    Args:
        model: the model whose embeddings they are.
        inputs: (1, T, D) embeddings of the prompt.
        which: the embedding that stands for an absent token.

    Raises:
        AnalysisError: if there is no such baseline, or the model names no end-of-text token.
    """
    table = model.model.embed_tokens.weight.detach()
    if which == Baseline.ZERO:
        return torch.zeros_like(inputs)
    if which == Baseline.MEAN:
        return table.float().mean(0).to(inputs.dtype).expand_as(inputs).contiguous()
    if which == Baseline.END:
        ends = end_tokens(model)
        if not ends:
            raise AnalysisError("The model has no end-of-text token; use the mean embedding or zero as the baseline.")
        return table[ends[0]].expand_as(inputs).contiguous()
    raise AnalysisError(
        "There is no baseline {which!r}; allowed are {baselines}.", which=which, baselines=", ".join(Baseline)
    )
