"""Fidelity of a conversion: how closely a SUBLLM predicts what its dense twin predicts on held-out text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from ..model.causal_lm import SubllmForCausalLM
from ..model.divergence import divergence_of
from ..model.probe import Probe
from ..routing import Override

_NUMBERS, _KEPT = ("dense_perplexity", "perplexity", "divergence", "agreement", "tokens"), "eval_retention_"


def retention_names(levels: int) -> list[str]:
    """Names under which a log holds the share of tokens that each level keeps."""
    return [f"retention_{level}" for level in range(1, levels + 1)]


@dataclass(frozen=True)
class Fidelity:
    """How closely a SUBLLM follows its dense twin on some text.

    Attributes:
        dense_perplexity: perplexity of the dense model.
        perplexity: perplexity of the SUBLLM, which selects by the inference rule.
        divergence: mean KL divergence of the SUBLLM's next-token distribution from the dense one, nats.
        agreement: share of positions where both models rank the same next token first.
        retention: share of its parent's tokens that each router kept, in order of the levels.
        tokens: number of predicted tokens.
    """

    dense_perplexity: float
    perplexity: float
    divergence: float
    agreement: float
    retention: list[float]
    tokens: int

    @property
    def perplexity_ratio(self) -> float:
        """Perplexity divided by the dense model's."""
        return self.perplexity / self.dense_perplexity

    @staticmethod
    def logged(levels: int) -> list[str]:
        """Names of the entries in a log, for a structure with so many levels."""
        return [f"eval_{name}" for name in (*_NUMBERS, *retention_names(levels))]

    def to_log(self) -> dict[str, float]:
        """The entries of a log line, with `eval_loss` in nats."""
        values = [*(getattr(self, name) for name in _NUMBERS), *self.retention]
        names = self.logged(len(self.retention))
        return {"eval_loss": math.log(self.perplexity)} | dict(zip(names, values, strict=True))

    @classmethod
    def from_log(cls, entry: dict[str, float]) -> "Fidelity":
        """Read a line of a log; other entries are ignored. Older logs count levels from 0."""
        kept = sorted((int(name.rpartition("_")[2]), value) for name, value in entry.items() if _KEPT in name)
        numbers: dict[str, Any] = {name: entry[f"eval_{name}"] for name in _NUMBERS}
        return cls(**numbers, retention=[value for _, value in kept])

    def __str__(self) -> str:
        """All numbers in one line."""
        kept = ", ".join(f"{share:.3f}" for share in self.retention)
        return (
            f"perplexity {self.perplexity:.2f} (dense {self.dense_perplexity:.2f}, ratio {self.perplexity_ratio:.3f}), "
            f"KL {self.divergence:.3f}, top-1 agreement {self.agreement:.3f}, retention {kept}"
        )


@torch.inference_mode()
def measure_fidelity(
    model: SubllmForCausalLM,
    dense: PreTrainedModel,
    blocks: Tensor,
    override: Override | None = None,
    overrides: Sequence[Override] = (),
) -> Fidelity:
    """Compare a SUBLLM with its dense twin on (N, T) token ids.

    Args:
        model: the SUBLLM; it runs in evaluation mode, and its mode is restored.
        dense: the dense model with the same tokenizer.
        blocks: (N, T) token ids; N is at least 1 and T at least 2, a token and the one that follows it.
        override: called at every level to decide in place of the router.
        overrides: the same, one for each row of the blocks.
    """
    was_training = model.training
    model.eval()
    totals = torch.zeros(4, dtype=torch.float64)
    kept = torch.zeros(model.config.parsed_structure.num_levels, 2, dtype=torch.float64)
    for row, decides in zip(blocks, overrides or repeat(override), strict=bool(overrides)):
        ids = row[None].to(model.device)
        output = model(ids, use_cache=False, probe=Probe(record=True, override=decides))
        expected = F.log_softmax(dense(ids, use_cache=False).logits[0, :-1].float(), dim=-1)
        actual = F.log_softmax(output.logits[0, :-1].float(), dim=-1)
        targets = ids[0, 1:]
        found = [
            F.nll_loss(expected, targets, reduction="sum"),
            F.nll_loss(actual, targets, reduction="sum"),
            divergence_of(actual, expected).sum(),
            (expected.argmax(-1) == actual.argmax(-1)).sum(),
        ]
        totals += torch.stack([each.double() for each in found]).cpu()  # one wait for the device
        for index, record in enumerate(output.routing):
            kept[index] += torch.stack([record.kept.sum(), record.reached.sum()]).double().cpu()
    model.train(was_training)
    count = blocks.shape[0] * (blocks.shape[1] - 1)
    dense_loss, loss, divergence, agreement = (totals / count).tolist()
    retention = (kept[:, 0] / kept[:, 1].clamp(min=1)).tolist()
    return Fidelity(math.exp(dense_loss), math.exp(loss), divergence, agreement, retention, count)
