"""The base of all routers. A router decides which tokens enter a level, and merges their results back.

A router is one module in this folder: it derives from `Router` and joins `ROUTERS` under the name by which
configurations ask for it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from torch import Tensor, nn

from .selection import LevelTokens, Packing, Selection

if TYPE_CHECKING:
    from ..configuration import SubllmConfig


@dataclass(frozen=True)
class RoutingWork:
    """Cost of routing at one level.

    Attributes:
        operations: number of multiplications and additions in matrix products.
        moved: how many numbers of the model's dtype are read and written.
    """

    operations: float
    moved: float


class Router(nn.Module, ABC):
    """Decides which tokens enter one level.

    Args:
        config: configuration of the model.
        level: number of the level that the kept tokens enter, from 1.

    Attributes:
        scores_tokens: whether the decision compares a score of each token with a threshold.
    """

    scores_tokens: ClassVar[bool] = True

    def __init__(self, config: "SubllmConfig", level: int) -> None:
        super().__init__()
        self.level = level
        self.retention_ratio = config.retention_ratios[level - 1]

    @abstractmethod
    def select(self, tokens: LevelTokens, training: bool) -> Selection:
        """Decide which tokens to keep.

        Args:
            tokens: tokens of the level outside.
            training: select by the training rule, which sees whole sequences; else by the causal inference rule.
        """

    @abstractmethod
    def weigh(self, tokens: LevelTokens) -> Tensor:
        """(B, T) float32 weights that the inference rule would give these tokens if the router kept them all."""

    def decide(self, tokens: LevelTokens, scores: Tensor, threshold: float | Tensor = 0.0) -> Selection:
        """Apply the inference rule of a router that scores.

        Args:
            tokens: tokens of the level outside.
            scores: (B, T) scores of these tokens.
            threshold: threshold of the scores, a number or (B, 1).
        """
        raise NotImplementedError(f"{type(self).__name__} does not score tokens.")

    def score(self, hidden_states: Tensor) -> Tensor:
        """(B, T) float32 importance of tokens (B, T, D), before the threshold."""
        raise NotImplementedError(f"{type(self).__name__} does not score tokens.")

    def enter(self, stream: Tensor, packing: Packing) -> Tensor:
        """What the level's blocks receive, (B, K, D), out of the stream outside, (B, T, D)."""
        return packing.gather(stream)

    def leave(self, entered: Tensor, processed: Tensor, selection: Selection, packing: Packing) -> Tensor:
        """What the level contributes at each kept token, before the bypass: a (f(x) - x).

        Args:
            entered: (B, K, D) x, from `enter`.
            processed: (B, K, D) f(x), the same tokens after the level's blocks.
            selection: what the router decided, with the weights a.
            packing: where the kept tokens are.

        Returns:
            (B, K, D).
        """
        return (processed - entered) * packing.gather(selection.weights)[..., None].to(processed.dtype)

    @classmethod
    def work(cls, config: "SubllmConfig", tokens: float, kept: float) -> RoutingWork:
        """Operations and memory traffic of one level, for counting.

        Args:
            config: configuration of the model.
            tokens: number of tokens of the level outside.
            kept: number of tokens that the router keeps.
        """
        width = config.hidden_size
        # gather reads and writes the kept ones; the bypass reads both streams there, adds, and writes
        moved = 2 * kept + 5 * kept
        if not cls.scores_tokens:
            return RoutingWork(0.0, width * moved)
        return RoutingWork(2 * tokens * width, width * (tokens + moved))  # the scorer reads all


class Override(Protocol):
    """Decides in place of a router, which it may consult: edits and rules at equal retention are overrides."""

    def __call__(self, level: int, router: Router, tokens: LevelTokens) -> Selection:
        """Decide which tokens enter a level.

        Args:
            level: number of the level, from 1.
            router: router of the level.
            tokens: tokens of the level outside.
        """


ROUTERS: dict[str, type[Router]] = {}


def register(name: str) -> Callable[[type[Router]], type[Router]]:
    """Register a router under the name that configurations use for it."""

    def add(router: type[Router]) -> type[Router]:
        ROUTERS[name] = router
        return router

    return add
