"""Why: what in the prompt made a token's importance score, or the next token, what it is.

Methods are captum's; conductance, here through all blocks at once, is checked against captum's, one block at a time.

The features are the embeddings of the prompt's tokens, alone or merged into words. Routing is a hard choice, so every
method has to say what it holds fixed:

- "kept": which tokens are kept stays as it happened; their weights follow their scores.
- "routing": the weights stay as they happened, too.
- "nothing": the routing is decided anew for every changed input. Gradients do not see such changes, ablations do.

A question about a score of an inner module keeps the token that it is about present in the outer ones.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from captum.attr import FeatureAblation, InputXGradient, IntegratedGradients, Occlusion
from torch import Tensor

from subllm import SubllmForCausalLM
from subllm.checkpoints import dtype_name
from subllm.subsampling import inference_rule

from .errors import AnalysisError
from .measure import free_bytes, peak_bytes
from .record import Progress, frozen, out_of_memory_said, silent
from .roofline import activation_bytes, dense, level_tokens

METHODS = ("integrated gradients", "input x gradient", "ablation", "occlusion", "conductance")
HELD = ("kept", "routing", "nothing")
BASELINES = ("mean", "zero", "end")
_STEPS, _CONDUCTANCE_STEPS = 32, 8


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


@dataclass(frozen=True, eq=False)
class Attribution:
    """How much every part of the prompt contributes.

    Attributes:
        groups: (T,) feature of each token: tokens or words, from 0.
        values: (F,) contribution of each feature to the value, in its unit (score, or nats).
        blocks: (L,) contribution through each block, for conductance; empty otherwise.
        value: of what is explained.
        baseline: the same with every feature at its baseline.
        delta: sum of the contributions minus (value - baseline); 0 for a method that adds up exactly.
        seconds: that it took.
        peak_bytes: most memory of tensors at once; 0 if it was not measured.
    """

    groups: np.ndarray
    values: np.ndarray
    blocks: np.ndarray
    value: float
    baseline: float
    delta: float
    seconds: float
    peak_bytes: int

    @property
    def by_token(self) -> np.ndarray:
        """(T,) contribution of each token's feature, divided among its tokens."""
        return (self.values / np.maximum(np.bincount(self.groups), 1))[self.groups]


class _Found(Exception):  # noqa: N818 - it ends a forward pass that has told what was asked
    pass


class Explained:
    """A value of one prompt as a function of its embeddings.

    Args:
        model: in evaluation mode.
        token_ids: (T,) the prompt.
        question: what is to be explained.
        held: one of `HELD`.

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
            output = self.model.model(inputs_embeds=embeddings, use_cache=False, rule=rule)
        except _Found:
            return found[0]
        logits = self.model.lm_head(output.last_hidden_state[:, self.question.token])
        return logits.float().log_softmax(-1)[:, self.answer]


def attribute(
    model: SubllmForCausalLM,
    token_ids: np.ndarray,
    question: Question,
    method: str = "integrated gradients",
    held: str = "kept",
    *,
    baseline: str = "mean",
    groups: np.ndarray | None = None,
    steps: int = _STEPS,
    window: int = 3,
    measure_memory: bool = False,
    progress: Progress = silent,
) -> Attribution:
    """Explain one value by the prompt's tokens or words.

    Args:
        model: in evaluation mode.
        token_ids: (T,) the prompt.
        question: what is to be explained.
        method: one of `METHODS`.
        held: one of `HELD`.
        baseline: what a feature is replaced with: "mean" embedding, "zero", or the "end" of text token's embedding.
        groups: (T,) feature of each token, from 0; every token by itself if left out.
        steps: of the integral, for integrated gradients.
        window: tokens that occlusion hides at once.
        measure_memory: measure the peak, too, which takes longer.
        progress: told how far it is; may raise to stop.

    Raises:
        AnalysisError: if an argument is none of those allowed, or memory would not suffice.
        RunStopped: when memory runs out all the same.
    """
    if method not in METHODS:
        raise AnalysisError(f"There is no method {method!r}; allowed are {', '.join(METHODS)}.")
    groups = np.arange(len(token_ids)) if groups is None else groups
    read = question.token + 1  # the tokens that can matter
    gradients = method in ("integrated gradients", "input x gradient", "conductance")
    if gradients:
        _check_memory(model, read)
    explained = Explained(model, token_ids, question, held)
    inputs = explained.embeddings
    base = _baseline(model, inputs, baseline)
    blocks = np.zeros(0, dtype=np.float32)
    found: list[Tensor] = []

    def run() -> None:
        nonlocal blocks
        if method == "conductance":
            blocks = _conductance(explained, inputs, base, progress)
            found.append(_integrated(explained, inputs, base, _CONDUCTANCE_STEPS, silent))
        elif method == "integrated gradients":
            found.append(_integrated(explained, inputs, base, steps, progress))
        elif method == "input x gradient":
            found.append(InputXGradient(explained).attribute(inputs.clone().requires_grad_()))
        elif method == "ablation":
            mask = torch.tensor(groups[:read], device=inputs.device)[None, :, None].expand_as(inputs)
            counted = _counted(explained, int(groups[:read].max()) + 2, progress)
            values = FeatureAblation(counted).attribute(inputs, baselines=base, feature_mask=mask)
            found.append(
                values
                / inputs.shape[2]
                / torch.tensor(np.bincount(groups[:read])[groups[:read]])[None, :, None].to(values)
            )
        else:
            width = min(window, inputs.shape[1])
            counted = _counted(explained, inputs.shape[1] - width + 2, progress)
            shape = (width, inputs.shape[2])
            found.append(
                Occlusion(counted).attribute(inputs, sliding_window_shapes=shape, baselines=base) / inputs.shape[2]
            )

    peak = 0
    started = time.perf_counter()
    with frozen(model), out_of_memory_said(len(token_ids)), torch.set_grad_enabled(gradients):
        if measure_memory:
            peak = peak_bytes(run, inputs.device)
        else:
            run()
    seconds = time.perf_counter() - started
    with torch.no_grad():
        value, base_value = (explained(each).item() for each in (inputs, base))
    per_token = np.zeros(len(token_ids))
    per_token[:read] = found[0][0].detach().float().sum(-1).cpu().numpy()
    values = np.bincount(groups, weights=per_token).astype(np.float32)
    return Attribution(
        groups, values, blocks, value, base_value, float(values.sum()) - (value - base_value), seconds, peak
    )


def words_of(prompt: str, starts: Sequence[int], ends: Sequence[int]) -> np.ndarray:
    """(T,) word of each token, from 0: a word begins after white space, or where the kind of character changes.

    Args:
        prompt: the text.
        starts: (T,) first character of each token.
        ends: (T,) character past the last.
    """
    groups = np.zeros(len(starts), dtype=np.int64)
    for token in range(1, len(starts)):
        start, before = int(starts[token]), int(ends[token - 1])
        text, last = prompt[start : int(ends[token])], prompt[before - 1 : before]
        joined = bool(text) and last.isalnum() and text[0].isalnum() and start <= before
        inside = start < before  # several tokens of one character
        groups[token] = groups[token - 1] + (0 if joined or inside else 1)
    return groups


def _integrated(explained: Explained, inputs: Tensor, base: Tensor, steps: int, progress: Progress) -> Tensor:
    counted = _counted(explained, steps, progress)
    return IntegratedGradients(counted).attribute(inputs, base, n_steps=steps, internal_batch_size=1)


def _conductance(explained: Explained, inputs: Tensor, base: Tensor, progress: Progress) -> np.ndarray:
    """(L,) through each block; 0 for those after what is asked.

    As captum's LayerConductance, which takes one block at a time and several inputs at once: here one pass per input
    serves all blocks.
    """
    layers = explained.model.model.layers
    owners = explained.model.config.parsed_structure.block_spans
    found = np.zeros(len(layers), dtype=np.float32)
    streams: dict[int, Tensor] = {}  # after each block, at the tokens that it processed

    def note(block: int) -> Callable[..., None]:
        return lambda _module, _inputs, output: streams.update({block: output})

    hooks = [layer.register_forward_hook(note(block)) for block, layer in enumerate(layers)]
    shares = 0.5 * (1 + np.polynomial.legendre.leggauss(_CONDUCTANCE_STEPS + 1)[0])
    before: dict[int, tuple[Tensor, Tensor]] = {}
    try:
        for done, share in enumerate(shares):
            progress(done / len(shares), "attribution", done=done, total=len(shares))
            streams.clear()
            value = explained((base + float(share) * (inputs - base)).requires_grad_())
            gradients = torch.autograd.grad(value.sum(), list(streams.values()), allow_unused=True)
            for (block, stream), gradient in zip(streams.items(), gradients, strict=True):
                span = owners[block]
                places = slice(None) if span is None else explained.places[span]
                now, slope = (torch.zeros_like(inputs[0]) for _ in range(2))  # (T, D)
                now[places] = stream.detach()[0]
                if gradient is not None:
                    slope[places] = gradient[0]
                if block in before:
                    earlier, earlier_slope = before[block]
                    found[block] += (earlier_slope * (now - earlier)).sum().item()
                before[block] = now, slope
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _counted(function: Explained, total: int, progress: Progress) -> Callable[[Tensor], Tensor]:
    done = 0

    def counted(embeddings: Tensor) -> Tensor:
        nonlocal done
        progress(min(done / total, 1.0), "attribution", done=done, total=total)
        done += len(embeddings)
        return function(embeddings)

    return counted


def _baseline(model: SubllmForCausalLM, inputs: Tensor, which: str) -> Tensor:
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


def _check_memory(model: SubllmForCausalLM, tokens: int) -> None:
    larger, dtype = dense(model.config), dtype_name(model)
    need, free = activation_bytes(larger, level_tokens(larger, tokens), 1, dtype), free_bytes(model.device)
    if need > free:
        raise AnalysisError(
            f"Gradients through {tokens:,} tokens would take about {need / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are "
            "free; use ablation or occlusion, which need none, or shorten the prompt."
        )
