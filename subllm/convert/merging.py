"""Initial bypass scales of levels that merge tokens: how far to trust what a group became."""

import torch
from torch import Tensor, nn

from ..model.causal_lm import SubllmForCausalLM
from ..model.probe import Closed, Event, Probe
from ..routing import Bypass, LevelTokens, Override, Router, Selection

_LEAST = 0.05  # a scale of 0 would keep the blocks of the level from learning


@torch.no_grad()
def fit_bypasses(model: SubllmForCausalLM, batches: list[Tensor]) -> None:
    """Set the bypass scales of the levels that merge tokens by least squares, channel by channel.

    Where each token enters such a level by itself, the blocks turn x into f(x). Where tokens are merged, x becomes
    x + c (y - x) with the result y of a group. The c from 0 to 1 that comes closest to f(x) is taken.

    Args:
        model: a SUBLLM in evaluation mode, whose scorers are fitted, and whose bypass scales are 1.
        batches: batches of (B, T) token ids.
    """
    structure, fitted = model.config.parsed_structure, {}
    scales: dict[int, nn.Parameter] = {}
    for level, bypass in enumerate(model.model.level_bypasses, start=1):
        if model.config.strides[level - 1] > 1:
            assert isinstance(bypass, Bypass)
            scales[level], fitted[level] = bypass.scale, bypass.scale.clone()
    for level in structure.closing_order:  # inner levels first
        if level not in scales:
            continue
        product, square = (torch.zeros(model.config.hidden_size, dtype=torch.float64) for _ in range(2))
        for ids in batches:
            for scale in scales.values():  # tokens by themselves take f(x) whole at the levels inside, too
                scale.fill_(1)
            whole = _change(model, level, ids, _Alone(level, structure.parents))
            for number, scale in scales.items():
                scale.copy_(fitted[number])
            merged = _change(model, level, ids, None)
            product += (whole * merged).sum((0, 1)).cpu()
            square += merged.square().sum((0, 1)).cpu()
        scales[level].copy_((product / square.clamp(min=1e-12)).clamp(_LEAST, 1))
        fitted[level] = scales[level].clone()


def _change(model: SubllmForCausalLM, level: int, ids: Tensor, override: Override | None) -> Tensor:
    """(B, T, D) float64 change of the stream by a level."""
    found: list[Tensor] = []

    def observe(event: Event) -> None:
        if isinstance(event, Closed) and event.level == level:
            found.append(event.after.hidden_states.double() - event.before.hidden_states.double())

    model.model(ids.to(model.device), use_cache=False, probe=Probe(observe=observe, override=override))
    return found[0]


class _Alone:
    """Lets every token enter a level by itself, and the levels inside it."""

    def __init__(self, level: int, parents: tuple[int, ...]) -> None:
        self._levels = {level}
        for number, parent in enumerate(parents, start=1):
            if parent in self._levels:
                self._levels.add(number)

    def __call__(self, level: int, router: Router, tokens: LevelTokens) -> Selection:
        """Decide which tokens enter a level."""
        if level not in self._levels:
            return router.select(tokens, training=False)
        ones = torch.ones(tokens.positions.shape, device=tokens.positions.device)
        return Selection.of(tokens, ones.bool(), ones)
