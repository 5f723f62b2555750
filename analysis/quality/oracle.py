"""The tokens that a level can spare least, found by dropping each of them alone."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from subllm import Event, Probe, Selection, SubllmForCausalLM
from subllm.routing import LevelTokens, Override, Router, routing_arrays

from ..cost.measure import rows_that_fit
from ..guard import Progress
from ..trace.parts import Routing

MOST_FORWARDS = 256  # of the oracle
_CHUNK = 256  # positions whose logits exist at once


class Steps:
    """Counts passes and reports them."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._made = progress, total, 0
        self.observe()

    def observe(self, event: Event | None = None) -> None:
        """Report within a pass, so that it can be stopped."""
        self._progress(self._made / self._total, "rules", done=self._made, total=self._total)

    def done(self, passes: int = 1) -> None:
        """Report the end of passes."""
        self._made += passes
        self.observe()


def search_oracle(
    model: SubllmForCausalLM, ids: Tensor, routing: Routing, levels: Sequence[int], routers: Override, steps: Steps
) -> Iterator[Tensor]:
    """Search the tokens that a level can spare least, level by level, while the levels inside keep all they get.

    Args:
        model: that reads.
        ids: (1, T) the prompt.
        routing: recorded routing, which says how many tokens each level keeps.
        levels: those that are searched, in order.
        routers: decides at other levels.
        steps: told of every pass.

    Yields:
        After every batch of passes, (S, T) 1 where the oracle keeps a token of the levels that are done; last, of all.
    """
    best = torch.zeros(routing.kept.shape, device=ids.device)
    rows = rows_that_fit(model, ids.shape[1])
    for level in levels:
        override = _dropping(level, None, best, levels, routers)
        probe = Probe(record=True, observe=steps.observe, keep_snapshots=True, override=override)
        output = model.model(ids, use_cache=False, probe=probe)
        before = _loss(model, output.last_hidden_state, ids[0])
        tokens = routing_arrays(output.routing, ids.shape[1])["reached"][level - 1].nonzero()[0]
        steps.done()
        yield best
        effects = []
        for start in range(0, len(tokens), rows):
            dropped = torch.tensor(tokens[start : start + rows], device=ids.device)[:, None]
            override = _dropping(level, dropped, best, levels, routers)
            part = Probe(observe=steps.observe, override=override, resume=probe.snapshots[level])
            output = model.model(ids.expand(len(dropped), -1), use_cache=False, probe=part)
            effects.append(_loss(model, output.last_hidden_state, ids[0]) - before)
            steps.done(len(dropped))
            yield best
        kept = int(routing.kept[level - 1].sum())
        if effects:
            chosen = torch.cat(effects).argsort(descending=True, stable=True)[:kept].cpu().numpy()
            best[level - 1, torch.tensor(tokens[chosen], device=ids.device)] = 1
    yield best


def _dropping(at: int, dropped: Tensor | None, best: Tensor, levels: Sequence[int], routers: Override) -> Override:
    """Decides as the oracle did before a level, and keeps all from there on, but for a token (B, 1) of each row."""

    def decide(level: int, router: Router, tokens: LevelTokens) -> Selection:
        if level not in levels:
            return routers(level, router, tokens)
        positions = tokens.positions
        kept = torch.ones_like(positions, dtype=torch.bool)
        if level < at:
            kept = best[level - 1].to(positions.device)[positions] > 0
        elif level == at and dropped is not None:
            kept = positions != dropped.to(positions.device)
        return Selection.of(tokens, kept, torch.ones(positions.shape, device=positions.device))

    return decide


def _loss(model: SubllmForCausalLM, hidden: Tensor, ids: Tensor) -> Tensor:
    """(B,) mean surprisal of a prompt (T,), from last hidden states (B, T, D)."""
    batch, length = hidden.shape[:2]
    chunk, total = max(_CHUNK // batch, 1), torch.zeros(batch, device=hidden.device)
    for start in range(0, length - 1, chunk):
        stop = min(start + chunk, length - 1)
        found = model.lm_head(hidden[:, start:stop]).float().log_softmax(-1)
        targets = ids[None, start + 1 : stop + 1, None].to(found.device).expand(batch, -1, -1)
        total = total - found.gather(2, targets)[..., 0].sum(1).to(total.device)
    return total / max(length - 1, 1)
