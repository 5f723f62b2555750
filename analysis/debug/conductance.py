"""Ways on which a value of `Explained` comes about: through each block's output, and past each level.

The stream after a level is the stream before it, unchanged, plus what the level added to its kept tokens; for a dropped
token the unchanged stream is all there is. How much of the value came on a way is the integral of its gradient over the
changes of what flows there, while the prompt's embeddings grow from the baseline to what they are: conductance
(arXiv 1805.12233), as captum's LayerConductance has it for one block at a time. Here one pass per step serves all ways.
"""

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from subllm import Closed, Event, Ran

from ..guard import Progress
from .target import Explained


@dataclass(frozen=True, eq=False)
class Flow:
    """How much of a value came on which way, in its unit. L blocks, S levels, T tokens up to the one asked about.

    Attributes:
        blocks: (L,) through each block's output; 0 for those after what is asked.
        carried: (S, T) by the stream that passes the level unchanged.
        added: (S, T) by what the level added to it. At levels that lie in no other, all carried and all added are the
            whole difference from the baseline.
    """

    blocks: np.ndarray
    carried: np.ndarray
    added: np.ndarray


@dataclass(frozen=True, eq=False)
class _Way:
    by: Tensor  # (1, N, D) of the graph, with respect to which the gradient is taken
    flowing: Tensor  # (1, N, D) whose changes count
    places: Tensor  # (N,) of these tokens in the prompt


def conductance(explained: Explained, inputs: Tensor, base: Tensor, steps: int, progress: Progress) -> Flow:
    """Follow a value through blocks and past levels.

    Args:
        explained: the value.
        inputs: (1, T, D) embeddings of the prompt.
        base: (1, T, D) the baseline.
        steps: of the integral.
        progress: told how far it is; may raise to stop.
    """
    structure = explained.model.config.parsed_structure
    found = _integrate(explained, inputs, base, steps, progress)
    nothing = np.zeros(inputs.shape[1], dtype=np.float32)
    blocks = [found.get(("block", block), nothing).sum() for block in range(structure.num_blocks)]
    carried, added = (
        np.array([found.get((way, site.level), nothing) for site in structure.sites]).reshape(-1, len(nothing))
        for way in ("carried", "added")
    )
    return Flow(np.array(blocks, dtype=np.float32), carried, added)


def _integrate(
    explained: Explained, inputs: Tensor, base: Tensor, steps: int, progress: Progress
) -> dict[Hashable, np.ndarray]:
    """(T,) per way."""
    found: dict[Hashable, Tensor] = {}
    before: dict[Hashable, tuple[Tensor, Tensor]] = {}
    ways: dict[Hashable, _Way] = {}  # of one pass

    def note(event: Event) -> None:
        after, places = event.after.hidden_states, event.after.positions[0]
        if isinstance(event, Ran):
            ways["block", event.block] = _Way(after, after, places)
        elif isinstance(event, Closed):
            stream = event.before.hidden_states
            ways["carried", event.level] = _Way(after, stream, places)
            ways["added", event.level] = _Way(after, (after - stream).detach(), places)

    shares = 0.5 * (1 + np.polynomial.legendre.leggauss(steps + 1)[0])
    for done, share in enumerate(shares):
        progress(done / len(shares), "attribution", done=done, total=len(shares))
        ways.clear()
        value = explained((base + float(share) * (inputs - base)).requires_grad_(), note)
        points = list({id(way.by): way.by for way in ways.values()}.values())
        if not points:  # nothing lies between the embeddings and the score of a level that opens at once
            continue
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
