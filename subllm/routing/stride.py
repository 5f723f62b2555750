"""Zipformer's fixed stride (arXiv 2310.11230): every s tokens are merged into one, and its result goes to s tokens.

Nothing depends on the content: a group is the softmax of s learned numbers over its tokens. Zipformer merges a token
with those after it, which a language model must not see. Here a group ends with the token that carries it, so that the
groups are {0}, {1 … s}, {s+1 … 2s}, …; and its result is added to the carrier and the s - 1 tokens that follow.

The router "even" is something else: it selects every s-th token and leaves the others out.
"""

import math
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigurationError
from .lengths import Lengths
from .router import Router, RoutingWork, register
from .selection import Carried, Entry, LevelTokens, Packing, Selection, gather

if TYPE_CHECKING:
    from ..configuration import SubllmConfig

_TOLERANCE = 2e-3  # of 1/ρ from a whole number: 0.333 means 1/3, but 0.3 does not


def stride_of(retention_ratio: float) -> int:
    """Number of tokens in a group, s, where the ratio is 1/s to the digits that are written.

    Raises:
        ConfigurationError: if it is not, or a group would be one token.
    """
    stride = round(1 / retention_ratio)
    exponent = Decimal(repr(float(retention_ratio))).as_tuple().exponent
    digits = -exponent if isinstance(exponent, int) else 0
    near = abs(1 / retention_ratio - stride) <= _TOLERANCE * stride
    if stride < 2 or not near or round(1 / stride, digits) != retention_ratio:
        fewer = max(math.floor(1 / retention_ratio), 2)
        more = max(math.ceil(1 / retention_ratio), fewer + 1)
        raise ConfigurationError(
            "The router 'stride' merges a whole number of tokens, at least two, into one, but its retention_ratio is "
            "{ratio}, which is 1/{tokens}; use {above} for groups of {fewer} or {below} for groups of {more}.",
            ratio=retention_ratio,
            tokens=round(1 / retention_ratio, 3),
            above=float(f"{1 / fewer:.4g}"),
            fewer=fewer,
            below=float(f"{1 / more:.4g}"),
            more=more,
        )
    return stride


@register("stride")
class StrideRouter(Router):
    """Merges s tokens into one, and adds its result to s tokens.

    The carriers, whose index in their level is a multiple of s, are what the level keeps. A carrier's group are the
    tokens after the carrier before it, and itself, s of them at most; a smaller group is weighted by the softmax of the
    last numbers of `bias`. Where an edit keeps every token, each is therefore a group of its own.

    Attributes:
        bias: (s,) for the tokens of a group in their order; its softmax weights them.
    """

    scores_tokens = False
    merges_tokens = True

    def __init__(self, config: "SubllmConfig", level: int) -> None:
        super().__init__(config, level)
        self.stride = stride_of(self.retention_ratio)
        self.bias = nn.Parameter(torch.empty(self.stride))

    def forward(self, sizes: Tensor) -> Tensor:
        """(B, K, s) float32 weights of the tokens of groups of the given sizes (B, K), which are 1 to s."""
        outside = torch.arange(self.stride, device=sizes.device) < self.stride - sizes[..., None]
        return self.bias.float().to(sizes.device).expand_as(outside).masked_fill(outside, -math.inf).softmax(-1)

    def select(self, tokens: LevelTokens, training: bool) -> Selection:
        """Keep the carriers; see `Router.select`."""
        kept = (tokens.indices % self.stride == 0).expand_as(tokens.positions)
        selection = Selection.of(tokens, kept, self.weigh(tokens), everywhere=True)
        return replace(selection, packing=self._packing(tokens))

    def _packing(self, tokens: LevelTokens) -> Packing | None:
        """Where the carriers are, if they are at the same places in all rows."""
        past, (batch, length) = tokens.past.column, tokens.positions.shape
        if tokens.mask is not None or tokens.texts is not None or not isinstance(past, int):
            return None
        first = min(-past % self.stride, length)
        carriers = torch.arange(first, length, self.stride, device=tokens.positions.device)
        return Packing(carriers.expand(batch, -1), None, Lengths.even(len(carriers), batch))

    def weigh(self, tokens: LevelTokens, threshold: float | Tensor | None = None) -> Tensor:
        """Give every token a weight of 1; see `Router.weigh`."""
        return torch.ones(tokens.positions.shape, device=tokens.positions.device)

    def enter(self, tokens: LevelTokens, entry: Entry) -> Tensor:
        """Merge the groups of the carriers; see `Router.enter`."""
        carriers, stream, carried = entry.packing.indices, tokens.hidden_states, entry.carried
        if not carriers.shape[1]:
            return entry.packing.gather(stream)
        past = self._known_past(tokens, entry)
        whole = torch.full_like(carriers[:1, (0 if past else 1) :], self.stride)  # sizes of groups
        if past == 0 and carried is None:
            rest = stream[:, 1 : 1 + whole.shape[1] * self.stride].unflatten(1, (-1, self.stride))
            return torch.cat([stream[:, :1], self._merged(rest, whole)], 1)
        if carried is not None:
            stream = torch.cat([carried.recent.to(stream), stream], 1)
        if past:
            first = -past % self.stride
            groups = stream[:, first : first + whole.shape[1] * self.stride]
            return self._merged(groups.unflatten(1, (-1, self.stride)), whole)
        before = self.stride - 1  # tokens of a group before its carrier
        members = carriers[..., None] + torch.arange(-before, 1, device=carriers.device)  # (B, K, s)
        members = members.clamp(min=0) if carried is None else members + before
        groups = gather(stream, members.flatten(1)).unflatten(1, members.shape[1:])
        return self._merged(groups, self._sizes(tokens, entry))

    def _known_past(self, tokens: LevelTokens, entry: Entry) -> int | None:
        """Number of cached tokens of every row, if all that happened so far followed from it alone; else None."""
        past = tokens.past.column
        carried = True if entry.carried is None else isinstance(entry.carried.since, int)
        return past if isinstance(past, int) and carried and entry.selection.packing is not None else None

    def _merged(self, groups: Tensor, sizes: Tensor) -> Tensor:
        """(B, K, D) weighted sums of groups (B, K, s, D), of which the last ones count, `sizes` (B or 1, K) of them."""
        weights = self(sizes).to(groups)  # a call, in which hooks fetch a bias that lies elsewhere
        return (groups * weights[..., None]).sum(2)

    def _sizes(self, tokens: LevelTokens, entry: Entry) -> Tensor:
        """(B, K) number of tokens in the group of each carrier."""
        carriers = entry.packing.indices
        before = carriers[:, :1] + 1 + (0 if entry.carried is None else entry.carried.since)
        sizes = torch.cat([before, carriers.diff(dim=1)], 1)
        own = entry.packing.gather(tokens.indices.expand_as(tokens.positions)) + 1  # the level's, or the text's, so far
        return sizes.minimum(own).clamp(1, self.stride)

    def leave(self, tokens: LevelTokens, processed: Tensor, entry: Entry) -> Tensor:
        """Subtract every token from the result of the last group at it; see `Router.leave`."""
        return gather(self._results(processed, entry), entry.selection.kept.cumsum(1)) - tokens.hidden_states

    def carry(self, tokens: LevelTokens, processed: Tensor, entry: Entry) -> Carried:
        """What the next pass needs of the tokens so far; see `Router.carry`."""
        stream, carried, carriers = tokens.hidden_states, entry.carried, entry.packing.indices
        batch, length, width = stream.shape
        recent = stream.new_zeros(batch, self.stride - 1, width) if carried is None else carried.recent.to(stream)
        recent = torch.cat([recent, stream], 1)
        past = self._known_past(tokens, entry)
        if past is not None:
            if carriers.shape[1]:
                result = processed[:, -1].clone()  # a graph of the level's blocks writes to its own at every replay
            else:
                result = stream.new_zeros(batch, width) if carried is None else carried.result
            recent = recent[:, length:]
            recent = recent.clone() if length > self.stride else recent  # a view would keep all of it
            return Carried(recent, max(past + length - 1, 0) % self.stride, result)
        if tokens.mask is None:
            counts = torch.full((batch, 1), length, device=stream.device)
        else:
            counts = tokens.mask.sum(1, keepdim=True)
        groups = entry.selection.kept.sum(1, keepdim=True)
        since = counts + (0 if carried is None else carried.since)
        if carriers.shape[1]:
            since = torch.where(groups > 0, counts - 1 - carriers.gather(1, (groups - 1).clamp(min=0)), since)
        recent = gather(recent, counts + torch.arange(self.stride - 1, device=stream.device))
        return Carried(recent, since, gather(self._results(processed, entry), groups)[:, 0])

    def _results(self, processed: Tensor, entry: Entry) -> Tensor:
        """(B, 1 + K, D) result of the last group of the passes before, 0 before the first, and of the new ones."""
        if entry.carried is None:
            return F.pad(processed, (0, 0, 1, 0))
        return torch.cat([entry.carried.result.to(processed)[:, None], processed], 1)

    @classmethod
    def work(cls, config: "SubllmConfig", tokens: float, kept: float) -> RoutingWork:
        """Operations and memory traffic; see `Router.work`."""
        width = config.hidden_size
        entering = tokens + 2 * tokens + kept  # gathers all, weighs and adds them
        leaving = (
            2 * kept + 2 * tokens + 2 * tokens
        )  # results beside that of the passes before; spread; minus the stream
        return RoutingWork(0.0, width * (entering + leaving + 4 * tokens))  # the bypass reads both, adds and writes
