"""Initial scorers: a linear fit to how much the blocks of a level change each token in the dense model."""

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from ..model.causal_lm import SubllmForCausalLM
from ..routing.overrides import threshold_for
from ..structure import BLOCK, LIGHT_HEAVY, WHOLE

_CALIBRATION_ROUNDS = 2
_SCORE_SPREAD = 20.0  # between the 10th and the 90th percentile: few kept tokens have a weight between 0 and 1
_RIDGE = 1e-3  # of the mean squared feature


@torch.no_grad()
def fit_scorers(model: SubllmForCausalLM, dense: LlamaForCausalLM, batches: list[Tensor]) -> list[Tensor]:
    """Fit every scorer by ridge regression and set its threshold to the nominal retention, where a level has one.

    The target is the log norm of the change that the level's blocks make to a token in the dense model; for the three
    routers of a light/heavy block, that of the block. The first token
    of a sequence, which attention relies on, gets a target above all others. Inner levels are fitted on the tokens that
    the outer ones keep.

    Args:
        model: the SUBLLM, whose scorers are overwritten.
        dense: the LLaMA with the same weights.
        batches: batches of (B, T) token ids.

    Returns:
        For each level a direction (D,) along which a step of 1 raises every token's score by about 1; zero where the
        router does not score.
    """
    structure = model.config.parsed_structure
    blocks = [0, *(step.symbol in (BLOCK, LIGHT_HEAVY) for step in structure.steps)]
    blocks_before = [sum(blocks[: position + 1]) for position in range(len(blocks))]
    needed = sorted({blocks_before[p] for site in structure.sites for p in (site.start, site.stop + 1)})
    states: dict[int, list[Tensor]] = {index: [] for index in needed}
    for batch in batches:
        for row in batch:  # one row at a time: all states of a batch would not fit for larger models
            hidden = dense.model(row[None].to(dense.device), output_hidden_states=True, use_cache=False).hidden_states
            for index in needed:
                states[index].append(hidden[index][0].float().cpu())
    stacked = {index: torch.stack(rows) for index, rows in states.items()}  # (N, T, D)
    kept = {WHOLE: torch.ones(stacked[needed[0]].shape[:2], dtype=torch.bool)}
    directions = []
    shares = zip(structure.sites, model.config.retention_ratios, model.config.strides, strict=True)
    for site, ratio, stride in shares:
        if not model.config.router_classes[site.level - 1].scores_tokens:
            present = kept[site.parent]
            kept[site.level] = present & ((present.cumsum(1) - 1) % stride == 0)
            directions.append(torch.zeros(model.config.hidden_size, device=model.device))
            continue
        stream, after = stacked[blocks_before[site.start]], stacked[blocks_before[site.stop + 1]]
        importance = (after - stream).norm(dim=-1).clamp(min=1e-6).log()  # (N, T)
        rest = importance[:, 1:]
        importance[:, 0] = rest.mean() + 3 * rest.std()
        present = kept[site.parent]
        targets = torch.stack([importance[present], torch.ones(int(present.sum()))], 1)
        weight, direction = _ridge(stream[present], targets, dense.device).T
        scores, steps = stream[present] @ weight, stream[present] @ direction
        low, high = scores.quantile(0.1), scores.quantile(0.9)
        weight = weight * (_SCORE_SPREAD / (high - low).clamp(min=1e-6))
        weight = weight + _threshold_shift(stream[present] @ weight, steps, ratio) * direction
        model.model.routers[site.level - 1].weight.copy_(weight)
        kept[site.level] = present & (stream @ weight > 0)
        directions.append(direction.to(model.device))
    return directions


@torch.no_grad()
def calibrate(model: SubllmForCausalLM, directions: list[Tensor], batches: list[Tensor]) -> None:
    """Move every threshold so that its level keeps its nominal share of a text, outer levels first.

    Args:
        model: the SUBLLM in evaluation mode, whose scorers are shifted.
        directions: direction (D,) of each level, from `fit_scorers`.
        batches: batches of (B, T) token ids.
    """
    for number, ratio in enumerate(model.config.retention_ratios):
        if not model.config.router_classes[number].scores_tokens:
            continue
        for _ in range(_CALIBRATION_ROUNDS):  # a step along the direction raises scores by about 1, not exactly
            scores = []
            for ids in batches:
                record = model.model(ids.to(model.device), use_cache=False, output_routing=True).routing[number]
                scores.append(record.scores[record.reached])
            model.model.routers[number].weight -= threshold_for(torch.cat(scores), ratio) * directions[number]


def _ridge(features: Tensor, targets: Tensor, device: torch.device) -> Tensor:
    """Weights (D, K) that minimise ‖features·w - target‖² + λ‖w‖²; features (N, D), targets (N, K), on the CPU."""
    features, targets = (each.to(device).double() for each in (features, targets))
    gram = features.T @ features
    ridge = _RIDGE * gram.diagonal().median() * torch.eye(len(gram), dtype=gram.dtype, device=device)
    return torch.linalg.solve(gram + ridge, features.T @ targets).float().cpu()


def _threshold_shift(scores: Tensor, steps: Tensor, ratio: float) -> float:
    """How many `steps` to add to `scores` so that a share `ratio` of them is positive, by bisection.

    It lies halfway between two tokens: a token with a score of nearly 0 would be kept on one device and not on another.
    """
    low, high = -1e4, 1e4
    for _ in range(60):
        middle = (low + high) / 2
        if (scores + middle * steps > 0).float().mean() > ratio:
            high = middle
        else:
            low = middle
    changes, kept = -scores / steps, scores + low * steps > 0  # where each score is 0; which are above it
    kept, dropped = changes[kept & (steps > 0)], changes[~kept & (steps > 0)]
    return float((kept.max() + dropped.min()) / 2) if len(kept) and len(dropped) else low
