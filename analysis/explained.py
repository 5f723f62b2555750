"""A score, or the log-probability of a next token, as a function of the prompt's embeddings.

Routing is a hard choice, so whoever asks has to say what is held fixed:

- "kept": which tokens are kept stays as it happened; their weights follow their scores.
- "routing": the weights stay as they happened, too.
- "nothing": the routing is decided anew for every changed input. Gradients do not see such changes, ablations do.

A question about a score of an inner module keeps the token that it is about present in the outer ones.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from subllm import SubllmForCausalLM
from subllm.modeling import Observer
from subllm.subsampling import inference_rule

from .errors import AnalysisError

HELD = ("kept", "routing", "nothing")
BASELINES = ("mean", "zero", "end")


@dataclass(frozen=True)
class Question:
    """What is to be explained.

    Attributes:
        token: of the prompt: whose score, or after which the next one is predicted.
        span: number of the subsampling module whose score is meant; -1 for the next token.
        answer: id of the next token whose log-probability is meant; -1 for the likeliest.
    """

    token: int
    span: int = -1
    answer: int = -1


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
        observer: of the stream, called as `SubllmModel.forward` calls its own.

    Raises:
        AnalysisError: if there is no such token, module or score.
    """

    def __init__(self, model: SubllmForCausalLM, token_ids: np.ndarray, question: Question, held: str) -> None:
        spans = model.config.parsed_structure.spans
        if not 0 <= question.token < len(token_ids):
            raise AnalysisError(f"There is no token {question.token:,}; the prompt has 0 to {len(token_ids) - 1:,}.")
        if question.span >= len(spans):
            raise AnalysisError(f"There is no subsampling module {question.span}; the model has {len(spans)}.")
        if held not in HELD:
            raise AnalysisError(f"{held!r} cannot be held fixed; allowed are {', '.join(HELD)}.")
        self.model, self.question, self.held = model, question, held
        ids = torch.tensor(token_ids[: question.token + 1], device=model.device)[None]  # nothing after it matters
        with torch.no_grad():
            self.embeddings = model.model.embed_tokens(ids)
            output = model(ids, use_cache=False, output_routing=True)
        self.kept = torch.zeros(len(spans), ids.shape[1], dtype=torch.bool, device=model.device)
        self.weights = torch.zeros(len(spans), ids.shape[1], device=model.device)
        for span, record in enumerate(output.routing):
            self.kept[span, record.kept[0]] = True
            self.weights[span, record.kept[0]] = record.weights[0]
        parent = spans[question.span].parent if question.span >= 0 else None
        if parent is not None and not self.kept[parent, question.token]:
            raise AnalysisError(
                f"Token {question.token:,} has no score at module {question.span}: module {parent} dropped it. "
                "Ask for its score there."
            )
        self.observer: Observer | None = None
        self.places: dict[int, Tensor] = {}  # tokens that each span's blocks processed last, of all rows
        self.outer = []
        while parent is not None:
            self.outer.append(parent)
            parent = spans[parent].parent
        logits = output.logits[0, question.token]
        self.answer = question.answer if question.answer >= 0 else int(logits.argmax())

    def __call__(self, embeddings: Tensor) -> Tensor:
        """(B,) the value.

        Args:
            embeddings: (B, T, D).
        """
        found: list[Tensor] = []

        def rule(span: int, scores: Tensor, positions: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
            own = positions == self.question.token
            if span == self.question.span:
                found.append((scores * own).sum(1))
                raise _Found
            if self.held == "nothing":
                kept, weights = inference_rule(scores)
            else:
                kept = self.kept[span][positions]
                weights = self.weights[span][positions] if self.held == "routing" else scores.clamp(0, 1)
            kept = kept | own if span in self.outer else kept
            self.places[span] = positions[kept]
            return kept, weights

        try:
            output = self.model.model(inputs_embeds=embeddings, use_cache=False, rule=rule, observer=self.observer)
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
        ends = model.generation_config.eos_token_id
        end = ends[0] if isinstance(ends, list) else ends
        if end is None:
            raise AnalysisError("The model names no end-of-text token; use the baseline 'mean' or 'zero'.")
        return table[end].expand_as(inputs).contiguous()
    raise AnalysisError(f"There is no baseline {which!r}; allowed are {', '.join(BASELINES)}.")
