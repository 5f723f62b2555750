"""Generation token by token: which levels kept each new token, what it cost, and what else was likely."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import InitVar, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from subllm import Probe, RoutingRecord, SubllmCache, SubllmForCausalLM
from subllm.routing import routing_arrays

from ..cost.measure import timed
from ..errors import AnalysisError
from ..guard import Progress, ids_on_device, out_of_memory_reported, silent, steps_reported
from ..trace.parts import Prompt
from .edit_override import EditOverride, kinds_of
from .edits import Edit, check

ALTERNATIVES = 8


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p: samples from the smallest set of tokens that together have this probability; 1 for all tokens.
        top_k: samples from this many of the likeliest tokens; 0 for all.
        repetition_penalty: penalty of tokens that occurred before; 1 for none.
        seed: random seed. Every token has a generator of its own, so that a branch draws what a new run would.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, fits, allowed in (
            ("temperature", self.temperature >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("repetition_penalty", self.repetition_penalty > 0, "more than 0"),
        ):
            if not fits:
                raise AnalysisError(
                    "{name} is {value}; it must be {allowed}.", name=name, value=getattr(self, name), allowed=allowed
                )

    def choose(self, ids: Sequence[int], logits: Tensor) -> tuple[int, Tensor]:
        """Choose the token after `ids`, from logits (V,).

        Also returns the probabilities (V,) that it was chosen by, on the CPU.
        """
        seen = list(ids) if self.repetition_penalty != 1 else []  # nothing else looks at them
        row: Any = torch.tensor([seen], dtype=torch.long, device=logits.device)
        scores: Any = logits[None].double()
        if self.repetition_penalty != 1:
            scores = RepetitionPenaltyLogitsProcessor(self.repetition_penalty)(row, scores)
        if self.temperature:
            scores = (scores - scores.max()) / self.temperature  # the best stays 0, however small the temperature is
            if self.top_k:
                scores = TopKLogitsWarper(self.top_k)(row, scores)
            if self.top_p < 1:
                scores = TopPLogitsWarper(self.top_p)(row, scores)
        probabilities = scores[0].softmax(-1).float().cpu()  # what follows reads it several times
        if not self.temperature:
            return int(probabilities.argmax()), probabilities
        generator = torch.Generator().manual_seed(hash((self.seed, len(ids))) % 2**63)
        return int(torch.multinomial(probabilities, 1, generator=generator)), probabilities


@dataclass(frozen=True)
class NewToken:
    """One token that was generated and fed back. Tuples over levels start at Level 1, and are empty for a LLaMA.

    Attributes:
        id: id of the token.
        chosen: False if a person chose it in place of the model.
        alternatives: (id, probability) of the likeliest tokens in its place, including this one.
        reached: whether it reached each level's router.
        kept: whether each level's blocks processed it.
        weights: the weights that were used; 0 where nothing was added.
        scores: importance scores; None where it did not reach the router, or the router does not score.
        blocks: number of blocks that processed it.
        seconds: time of feeding it back.
        level_bytes: cache of every level after it, the whole sequence first.
    """

    id: int
    chosen: bool
    alternatives: tuple[tuple[int, float], ...]
    reached: tuple[bool, ...]
    kept: tuple[bool, ...]
    weights: tuple[float, ...]
    scores: tuple[float | None, ...]
    blocks: int
    seconds: float
    level_bytes: tuple[int, ...]


@dataclass
class Generation:
    """A text that grows token by token, and can be taken back.

    Attributes:
        model: a SUBLLM or a LLaMA in evaluation mode.
        prompt: the tokenised prompt.
        sampling: how tokens are chosen.
        edits: edits to the routing of a SUBLLM. All apply to the prompt; those that name no tokens, or the last ones,
            also to new tokens.
        tokens: tokens generated so far.
        prefilled: cache and logits (V,) after the prompt, if the prompt was run already, and what applied the edits.
        progress: receives the progress of running the prompt, after every step; may raise to stop.

    Raises:
        AnalysisError: if the prompt is empty or fills all positions, or an edit does not fit.
        PromptError: if the model has no embedding for a token.
        RunStopped: when memory runs out.
    """

    model: Any
    prompt: Prompt
    sampling: Sampling = field(default_factory=Sampling)
    edits: tuple[Edit, ...] = ()
    tokens: list[NewToken] = field(default_factory=list)
    prefilled: InitVar[tuple[SubllmCache, Tensor, EditOverride | None] | None] = None
    progress: InitVar[Progress] = silent

    def __post_init__(
        self, prefilled: tuple[SubllmCache, Tensor, EditOverride | None] | None, progress: Progress
    ) -> None:
        if not len(self.prompt):
            raise AnalysisError("There is no prompt to continue; type some text.")
        config = self.model.config
        self._sparse = isinstance(self.model, SubllmForCausalLM)
        if len(self.prompt) >= config.max_position_embeddings:
            raise AnalysisError(
                "The prompt has {tokens:,} tokens and fills the model's {positions:,} positions; shorten it to "
                "continue it.",
                tokens=len(self.prompt),
                positions=config.max_position_embeddings,
            )
        if self._sparse:
            check(self.edits, kinds_of(self.model), self.prompt)
        override = EditOverride(self.edits, self.prompt) if self.edits else None
        self._cache: Any
        if prefilled is not None:
            self._cache, self._logits, override = prefilled
        self._probe = Probe(record=True, override=override)
        if prefilled is None:
            self._cache = SubllmCache(config) if self._sparse else DynamicCache(config=config)
            self._logits = self._feed(self.prompt.token_ids.tolist(), progress)[0]

    @property
    def ids(self) -> list[int]:
        """Ids of prompt and new tokens."""
        return [*self.prompt.token_ids.tolist(), *(token.id for token in self.tokens)]

    @property
    def finished(self) -> bool:
        """Whether the text has ended, or no positions are left."""
        full = len(self.prompt) + len(self.tokens) >= self.model.config.max_position_embeddings
        return full or bool(self.tokens and self.tokens[-1].id in end_tokens(self.model))

    @property
    def likeliest(self) -> int:
        """Id of the likeliest next token."""
        return int(self._logits.argmax())

    def step(self, choice: int | None = None) -> NewToken:
        """Generate one token, and feed it back.

        Args:
            choice: id of a token to use in place of the model's choice.

        Raises:
            AnalysisError: if the text has ended.
            RunStopped: when memory runs out.
        """
        if self.finished:
            raise AnalysisError("The text has ended; go back some tokens to continue from there.")
        with self._memory():
            chosen, probabilities = self.sampling.choose(self.ids, self._logits)
        best = probabilities.topk(min(ALTERNATIVES, probabilities.numel()))
        alternatives = dict(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        written = chosen if choice is None else choice
        alternatives.setdefault(written, probabilities[written].item())
        self._logits, records, seconds = self._feed([written])
        arrays = routing_arrays(records, 1)
        routing = {name: arrays[name][:, 0].tolist() for name in ("reached", "kept", "weights", "scores")}
        token = NewToken(
            id=written,
            chosen=choice is None,
            alternatives=tuple(alternatives.items()),
            reached=tuple(routing["reached"]),
            kept=tuple(routing["kept"]),
            weights=tuple(routing["weights"]),
            scores=tuple(None if math.isnan(score) else score for score in routing["scores"]),
            blocks=self._blocks([True, *routing["kept"]]),
            seconds=seconds,
            level_bytes=tuple(self._sizes()),
        )
        self.tokens.append(token)
        return token

    def take_back(self, length: int) -> None:
        """Remove all new tokens but the first `length`."""
        length = max(length, 0)
        removed = len(self.tokens) - length
        if removed <= 0:
            return
        del self.tokens[length:]
        if self._sparse and not self._cache.is_croppable:  # a level merges tokens: read the text again
            self._cache.reset()
            self._logits = self._feed(self.ids)[0]
        else:
            self._cache.crop(-(removed + 1))
            self._logits = self._feed(self.ids[-1:])[0]

    def restore(self, tokens: Sequence[NewToken]) -> None:
        """Return to a text that was generated earlier, by this object or another one.

        Args:
            tokens: new tokens after the same prompt. Those that this text begins with already are not run again.
        """
        at = first_difference([token.id for token in self.tokens], [token.id for token in tokens])
        common = min(len(self.tokens), len(tokens)) if at is None else at
        self.take_back(common)
        self.tokens[:] = tokens[:common]
        rest = tokens[common:]
        if rest:
            self._logits = self._feed([token.id for token in rest])[0]
            self.tokens.extend(rest)

    def branch(self, length: int, choice: int) -> NewToken:
        """Keep the first `length` new tokens, and continue with the token `choice`."""
        self.take_back(length)
        return self.step(choice)

    @torch.inference_mode()
    def _feed(self, ids: list[int], progress: Progress = silent) -> tuple[Tensor, tuple[RoutingRecord, ...], float]:
        """Feed tokens; returns the logits (V,) after them, their routing, and the time in seconds."""
        options: dict[str, Any] = {}
        if self._sparse:
            report = steps_reported(progress, self.model.config.parsed_structure, len(ids))
            options["probe"] = replace(self._probe, observe=None if progress is silent else lambda event: report())
        row = ids_on_device(self.model, ids)
        outputs: list[Any] = []

        def run() -> None:
            outputs.append(self.model(row, past_key_values=self._cache, logits_to_keep=1, **options))

        with self._memory():
            seconds = timed(run, self.model.device).seconds
        (output,) = outputs
        return output.logits[0, -1], output.routing if self._sparse else (), seconds

    def _memory(self) -> AbstractContextManager[None]:
        return out_of_memory_reported(len(self.prompt) + len(self.tokens), self.model)

    def _blocks(self, present: list[bool]) -> int:
        """Number of blocks that run on a token, by whether it is present at each level, level 0 first."""
        if not self._sparse:
            return self.model.config.num_hidden_layers
        return sum(present[level] for level in self.model.config.parsed_structure.block_levels)

    def _sizes(self) -> list[int]:
        if self._sparse:
            return self._cache.level_bytes
        return [sum(t.numel() * t.element_size() for layer in self._cache.layers for t in (layer.keys, layer.values))]


def end_tokens(model: PreTrainedModel) -> tuple[int, ...]:
    """Ids of the tokens that end a text, in the order of the model's generation config."""
    ends = model.generation_config.eos_token_id
    return () if ends is None else tuple(ends) if isinstance(ends, list) else (ends,)


def first_difference(first: Sequence[int], second: Sequence[int]) -> int | None:
    """First index at which two sequences of ids differ; None if one begins with the other."""
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return index
    return None
