"""The base of all routers. A router decides which tokens enter a level, and how their results leave it.

A router is one module in this folder: it derives from `Router` and joins `ROUTERS` under the name by which
configurations ask for it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from torch import Tensor, nn

from .lengths import kept_count
from .selection import Carried, Entry, LevelTokens, Selection

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
        has_bypass: whether a bypass scales what the level adds, channel by channel, besides the router's weight.
        merges_tokens: whether the tokens that are not kept enter the level all the same, merged into one that is.
        stride: number of tokens that are merged into one group; 1 for routers that do not merge.
    """

    scores_tokens: ClassVar[bool] = True
    has_bypass: ClassVar[bool] = True
    merges_tokens: ClassVar[bool] = False
    stride: int = 1

    def __init__(self, config: "SubllmConfig", level: int) -> None:
        super().__init__()
        self.level = level
        self.retention_ratio = config.retention_ratios[level - 1]

    @staticmethod
    def quota(retention_ratio: float, lengths: Tensor) -> Tensor:
        """Number of tokens that training keeps of every number in `lengths`, by its retention: ceil(ρT)."""
        return kept_count(retention_ratio, lengths)

    @abstractmethod
    def select(self, tokens: LevelTokens, training: bool) -> Selection:
        """Decide which tokens to keep.

        Args:
            tokens: tokens of the level outside.
            training: select by the training rule, which sees whole sequences; else by the causal inference rule.
        """

    @abstractmethod
    def weigh(self, tokens: LevelTokens, threshold: float | Tensor | None = None) -> Tensor:
        """(B, T) float32 weights that the inference rule would give these tokens if the router kept them all.

        Args:
            tokens: tokens of the level outside.
            threshold: threshold of the scores, a number or (B, 1), where weights depend on it; None for the usual one.
        """

    @property
    def usual_threshold(self) -> float | Tensor:
        """Threshold of the scores at inference, a number or (1, 1); edits move it from there."""
        return 0.0

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

    def enter(self, tokens: LevelTokens, entry: Entry) -> Tensor:
        """What the level's blocks receive, (B, K, D).

        Args:
            tokens: tokens of the level outside.
            entry: what the router decided.
        """
        return entry.packing.gather(tokens.hidden_states)

    def leave(self, tokens: LevelTokens, processed: Tensor, entry: Entry) -> Tensor:
        """The change by the level, f(x) - x, before the selection's weights and the bypass.

        Args:
            tokens: tokens of the level outside, as they were when the level was entered.
            processed: (B, K, D) what `enter` returned, after the level's blocks.
            entry: what the router decided.

        Returns:
            (B, K, D) at the kept tokens; (B, T, D) at all of them from a router that merges tokens.
        """
        return processed - entry.packing.gather(tokens.hidden_states)

    def carry(self, tokens: LevelTokens, processed: Tensor, entry: Entry) -> Carried | None:
        """What the next pass with the same cache gets as `Entry.carried`, if the router merges tokens.

        Args:
            tokens: see `leave`.
            processed: see `leave`.
            entry: see `leave`.
        """
        return None

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
