"""Hidden states of single tokens around one level: what its score and its bypass are made of, channel by channel."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from subllm import Closed, Event, Probe, SubllmForCausalLM
from subllm.routing import LevelTokens, Override, Router, Selection
from subllm.routing.scorer import LinearRouter

from ..guard import Progress, ids_on_device, out_of_memory_reported, silent, steps_reported


@dataclass(frozen=True, eq=False)
class LevelStates:
    """Hidden states of N tokens around a level, width D, float32.

    Attributes:
        before: (N, D) x, what the router saw; NaN where the token did not reach it.
        inside: (N, D) f(x), after the level's last block; NaN where the level dropped the token, and for a router of a
            light/heavy block.
        after: (N, D) the stream after the level; NaN where the token did not reach it, and in a light/heavy block.
        weight: (D,) w of the score x·w; None if the score is not such a product.
    """

    before: np.ndarray
    inside: np.ndarray
    after: np.ndarray
    weight: np.ndarray | None

    def terms(self, row: int) -> np.ndarray:
        """(D,) what each channel adds to the score of a token.

        Args:
            row: of the token in the arrays.
        """
        assert self.weight is not None
        products: np.ndarray = self.before[row] * self.weight
        return products


@torch.inference_mode()
def level_states(
    model: SubllmForCausalLM,
    token_ids: np.ndarray,
    level: int,
    tokens: Sequence[int],
    override: Override,
    progress: Progress = silent,
) -> LevelStates:
    """Read hidden states around a level in one pass over the prompt up to the last of the tokens.

    Args:
        model: a model in evaluation mode.
        token_ids: (T,) the prompt.
        level: number of the level.
        tokens: indices of N tokens in the prompt.
        override: decides in place of the routers, as in `Probe`; a `Replay` of what a trace recorded.
        progress: receives the progress, after every step; may raise to stop.

    Raises:
        PromptError: if the model has no embedding for a token.
        RunStopped: when memory runs out.
    """
    ids = ids_on_device(model, token_ids[: max(tokens) + 1])
    before, inside, after = (
        np.full((len(tokens), model.config.hidden_size), np.nan, dtype=np.float32) for _ in range(3)
    )
    report = steps_reported(progress, model.config.parsed_structure, ids.shape[1])

    def read(found: LevelTokens, into: np.ndarray) -> None:
        places = found.positions[0].tolist()
        for row, token in enumerate(tokens):
            if token in places:
                into[row] = found.hidden_states[0, places.index(token)].float().cpu().numpy()

    asked = level

    def decide(level: int, router: Router, tokens: LevelTokens) -> Selection:
        if level == asked:
            read(tokens, before)
        return override(level, router, tokens)

    def observe(event: Event) -> None:
        report()
        if isinstance(event, Closed) and event.level == level:
            read(event.inside, inside)
            read(event.after, after)

    with out_of_memory_reported(ids.shape[1], model):
        model.model(ids, use_cache=False, probe=Probe(observe=observe, override=decide))
    return LevelStates(before, inside, after, _weight(model.model.routers[level - 1]))


def _weight(router: Router) -> np.ndarray | None:
    """The vector that a token's score is the product with; None if a predictor decides, or no score."""
    if not isinstance(router, LinearRouter) or getattr(router, "predictor", None) is not None:
        return None
    weight: Tensor = router.weight.detach()
    found: np.ndarray = weight.float().cpu().numpy()
    return found
