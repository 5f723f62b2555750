"""Conductance: how much of a target's value passed through each block, and past each level.

The stream after a level is the stream before it, unchanged, plus what the level added to its kept tokens; for a dropped
token the unchanged stream is all there is. The conductance of a path is the integral of the target's gradient over the
changes of the activations there, while the prompt's embeddings move from the baseline to their values (arXiv
1805.12233). captum's LayerConductance computes it for one block at a time, with the gradient at the beginning of each
step; here one pass per step serves all paths, and the gradients at both ends count, which needs far fewer steps.
"""

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from subllm import Closed, Event, Ran

from ..guard import Progress
from .target import Target


@dataclass(frozen=True, eq=False)
class Conductance:
    """Conductance of all paths, in the unit of the value. L blocks, S levels, T tokens up to the one asked about.

    Attributes:
        blocks: (L,) through each block's output; 0 for blocks after what is asked.
        carried: (S, T) through the stream that passes the level unchanged; in a light/heavy block, through all but
            what the heavy branch adds. NaN at levels that do not end before what is asked (those of a light/heavy
            block end with it), and at those of keys and values, which add nothing to the stream.
        added: (S, T) through what the level added to it; NaN as above. At an outermost level, the sums of `carried` and
            `added` make up the whole difference from the baseline.
    """

    blocks: np.ndarray
    carried: np.ndarray
    added: np.ndarray


@dataclass(frozen=True, eq=False)
class _Path:
    """One path in one pass: N tokens at some place in the graph.

    Attributes:
        by: (1, N, D) tensor of the graph that the gradient is taken with respect to.
        flowing: (1, N, D) activations whose changes count.
        places: (N,) positions of the tokens in the prompt.
    """

    by: Tensor
    flowing: Tensor
    places: Tensor


def conductance(target: Target, inputs: Tensor, base: Tensor, steps: int, progress: Progress) -> Conductance:
    """Follow a value through blocks and past levels.

    Args:
        target: the value as a function of the embeddings.
        inputs: (1, T, D) embeddings of the prompt.
        base: (1, T, D) the baseline.
        steps: steps of the integral.
        progress: receives the progress; may raise to stop.
    """
    structure = target.model.config.parsed_structure
    found = _integrate(target, inputs, base, steps, progress)
    unknown = np.full(inputs.shape[1], np.nan, dtype=np.float32)
    blocks = [found["block", block].sum() if ("block", block) in found else 0 for block in range(structure.num_blocks)]
    carried, added = (
        np.array([found.get((path, site.level), unknown) for site in structure.sites]).reshape(-1, len(unknown))
        for path in ("carried", "added")
    )
    return Conductance(np.array(blocks, dtype=np.float32), carried, added)


def _integrate(
    target: Target, inputs: Tensor, base: Tensor, steps: int, progress: Progress
) -> dict[Hashable, np.ndarray]:
    """(T,) per path."""
    found: dict[Hashable, Tensor] = {}
    before: dict[Hashable, tuple[Tensor, Tensor]] = {}
    paths: dict[Hashable, _Path] = {}  # of the current pass

    def note(event: Event) -> None:
        after, places = event.after.hidden_states, event.after.positions[0]
        if isinstance(event, Ran):
            paths["block", event.block] = _Path(after, after, places)
            for branch in event.branches:
                if (added := branch.change) is not None:
                    by = after if branch is event.branches[-1] else event.branches[-1].tokens.hidden_states
                    paths["carried", branch.level] = _Path(by, (by - added).detach(), places)
                    paths["added", branch.level] = _Path(by, added.detach(), places)
        elif isinstance(event, Closed):
            stream = event.before.hidden_states
            paths["carried", event.level] = _Path(after, stream, places)
            paths["added", event.level] = _Path(after, (after - stream).detach(), places)

    between = 0.5 * (1 + np.polynomial.legendre.leggauss(max(steps - 1, 1))[0])
    shares = [0.0, *between[: steps - 1], 1.0]
    for done, share in enumerate(shares):
        progress(done / len(shares), "attribution", done=done, total=len(shares))
        paths.clear()
        value = target((base + float(share) * (inputs - base)).requires_grad_(), note)
        points = list({id(path.by): path.by for path in paths.values()}.values())
        if not points:  # nothing lies between the embeddings and the score of a level that opens at once
            continue
        gradients = torch.autograd.grad(value.sum(), points, allow_unused=True)
        slopes = {id(point): gradient for point, gradient in zip(points, gradients, strict=True)}
        for key, path in paths.items():
            now, slope = (torch.zeros_like(inputs[0]) for _ in range(2))  # (T, D)
            now[path.places] = path.flowing.detach()[0]
            gradient = slopes[id(path.by)]
            if gradient is not None:
                slope[path.places] = gradient[0]
            if key in before:
                earlier, earlier_slope = before[key]
                found[key] = found.get(key, 0) + ((earlier_slope + slope) / 2 * (now - earlier)).sum(-1)
            before[key] = now, slope
    return {key: values.float().cpu().numpy() for key, values in found.items()}
