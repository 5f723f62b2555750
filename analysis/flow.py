"""Ways on which a value of `Explained` comes about: through each block's output, and past each level.

The stream after a level is the stream before it, unchanged, plus what the level added to its kept tokens; for a dropped
token the unchanged stream is all there is. How much of the value came on a way is the integral of its gradient over the
changes of what flows there, while the prompt's embeddings grow from the baseline to what they are: conductance
(arXiv 1805.12233), as captum's LayerConductance has it for one block at a time. Here one pass per step serves all ways.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from subllm.routing import StreamState
from subllm.structure import CLOSE, OPEN

from .explained import Explained
from .record import Progress


@dataclass(frozen=True, eq=False)
class Flow:
    """How much of a value came on which way, in its unit. L blocks, S spans, T tokens up to the one asked about.

    Attributes:
        blocks: (L,) through each block's output; 0 for those after what is asked.
        carried: (S, T) by the stream that passes the span unchanged.
        added: (S, T) by what the span added to it. At spans that lie in no other, all carried and all added are the
            whole difference from the baseline.
    """

    blocks: np.ndarray
    carried: np.ndarray
    added: np.ndarray


@dataclass(frozen=True, eq=False)
class _Way:
    by: Tensor  # (1, N, D) of the graph, with respect to which the gradient is taken
    flowing: Tensor  # (1, N, D) whose changes count
    places: Tensor | slice  # of its N tokens in the prompt


def conductance(explained: Explained, inputs: Tensor, base: Tensor, steps: int, progress: Progress) -> Flow:
    """Follow a value through blocks and past levels.

    Args:
        explained: the value.
        inputs: (1, T, D) embeddings of the prompt.
        base: (1, T, D) the baseline.
        steps: of the integral.
        progress: told how far it is; may raise to stop.
    """
    layers, structure = explained.model.model.layers, explained.model.config.parsed_structure
    ways: dict[Hashable, _Way] = {}

    def after_block(block: int, owner: int | None) -> Callable[..., None]:
        def note(_module: object, _inputs: object, output: Tensor) -> None:
            places = slice(None) if owner is None else explained.places[owner]
            ways["block", block] = _Way(output, output, places)

        return note

    hooks = [
        layer.register_forward_hook(after_block(block, owner))
        for block, (layer, owner) in enumerate(zip(layers, structure.block_spans, strict=True))
    ]
    explained.observer = _levels(ways)
    try:
        found = _integrate(explained, inputs, base, ways, steps, progress)
    finally:
        explained.observer = None
        for hook in hooks:
            hook.remove()
    nothing = np.zeros(inputs.shape[1], dtype=np.float32)
    blocks = [found.get(("block", block), nothing).sum() for block in range(len(layers))]
    carried, added = (
        np.array([found.get((way, span.index), nothing) for span in structure.spans]).reshape(-1, len(nothing))
        for way in ("carried", "added")
    )
    return Flow(np.array(blocks, dtype=np.float32), carried, added)


def _levels(ways: dict[Hashable, _Way]) -> Callable[[StreamState], None]:
    """An observer that notes what passes every span and what it adds."""
    before: list[tuple[int, StreamState]] = []
    last: StreamState | None = None

    def note(state: StreamState) -> None:
        nonlocal last
        if state.symbol == OPEN:
            assert last is not None and state.span is not None
            before.append((state.span, last))
        elif state.symbol == CLOSE:
            span, outside = before.pop()
            stream, after = outside.hidden_states, state.hidden_states
            ways["carried", span] = _Way(after, stream, outside.positions[0])
            ways["added", span] = _Way(after, (after - stream).detach(), outside.positions[0])
        elif not state.symbol:
            before.clear()  # of a pass that ended inside of a span
        last = state

    return note


def _integrate(
    explained: Explained,
    inputs: Tensor,
    base: Tensor,
    ways: dict[Hashable, _Way],
    steps: int,
    progress: Progress,
) -> dict[Hashable, np.ndarray]:
    """(T,) per way; `ways` is filled anew by every pass."""
    found: dict[Hashable, Tensor] = {}
    before: dict[Hashable, tuple[Tensor, Tensor]] = {}
    shares = 0.5 * (1 + np.polynomial.legendre.leggauss(steps + 1)[0])
    for done, share in enumerate(shares):
        progress(done / len(shares), "attribution", done=done, total=len(shares))
        ways.clear()
        value = explained((base + float(share) * (inputs - base)).requires_grad_())
        points = list({id(way.by): way.by for way in ways.values()}.values())
        gradients = torch.autograd.grad(value.sum(), points, allow_unused=True)
        slopes = {id(point): gradient for point, gradient in zip(points, gradients, strict=True)}
        for key, way in ways.items():
            now, slope = (torch.zeros_like(inputs[0]) for _ in range(2))  # (T, D)
            now[way.places] = way.flowing.detach()[0]
            gradient = slopes[id(way.by)]
            if gradient is not None:
                slope[way.places] = gradient[0]
            if key in before:
                earlier, earlier_slope = before[key]
                found[key] = found.get(key, 0) + (earlier_slope * (now - earlier)).sum(-1)
            before[key] = now, slope
    return {key: values.float().cpu().numpy() for key, values in found.items()}
