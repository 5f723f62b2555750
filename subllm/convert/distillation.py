"""A SUBLLM in low-rank adapters, and its distance from its dense twin as a loss.

Adapters (`peft`) on all projections, the bypass scales and the routers are trained. The blocks before the first level
have adapters too: they can move information from a token that will be dropped into one that will be kept.
Tokens are selected by the inference rule, so nothing changes when training ends.

The loss is the KL divergence from the dense model's next-token distribution at a random subset of the positions, plus
the relative squared distance of the final hidden states at all of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from accelerate.utils import gather, pad_across_processes
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import LlamaForCausalLM

from ..checkpoints.device import has_bfloat16, pick_device
from ..errors import TrainingError
from ..model.causal_lm import SubllmForCausalLM
from ..model.divergence import head_divergence
from ..model.probe import Probe
from ..routing import LevelTokens, Router, RoutingRecord, Selection
from ..routing.schedule import LinearSchedule
from ..runs.config import RunConfig
from ..structure import WHOLE, Structure

OUTER = ".lora_B."  # part of the names of the adapters' outer matrices
GROUPS = ".bias"  # part of the names of the weights of merged tokens
GROUP_RATE = 10.0  # their learning rate over the others': they are few, and begin at a mean
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CONTROL_RATE = 0.15  # share of a threshold's error in one batch that is corrected at once
DRIFT_RATE = 0.02  # share of it that is also corrected in every later step: training keeps raising scores
_AVERAGE = "average."  # before the names of averages in a checkpoint


@dataclass(frozen=True, kw_only=True)
class AdaptOptions(RunConfig):
    """How a conversion trains; see `RunConfig` for the fields that trainings share.

    The learning rate is that of the adapters and bypass scales; it warms up over 4% of the steps and then falls along a
    cosine to 5% of its peak. With precision "bf16" the base's weights are in bfloat16 too.

    Attributes:
        rank: rank of the adapters.
        inner_rank: rank of those of the blocks inside levels; 0 gives them the same.
        average: decay per step of the running average of the weights that a run ends with; 0 ends with the last ones.
        loraplus_ratio: learning rate of the adapters' outer matrices, which begin at zero, over the others' (LoRA+,
            arXiv 2402.12354).
        scorer_learning_rate: peak of the scorers' learning rate.
        start_retention: share of tokens that each level keeps at step 0.
        retention_steps: share of the steps over which it falls to the nominal ratio.
        logit_share: share of the positions at which the distributions are compared.
        hidden_weight: weight of the hidden state distance in the loss.
    """

    _positive: ClassVar[tuple[str, ...]] = (
        *RunConfig._positive, "rank", "loraplus_ratio", "scorer_learning_rate", "start_retention", "logit_share",
    )  # fmt: skip
    _not_negative: ClassVar[tuple[str, ...]] = (
        *RunConfig._not_negative, "inner_rank", "retention_steps", "hidden_weight",
    )  # fmt: skip

    steps: int = 1200
    batch_size: int = 2
    rank: int = 16
    inner_rank: int = 0
    average: float = 0.0
    loraplus_ratio: float = 4.0
    scorer_learning_rate: float = 2e-5
    start_retention: float = 0.75
    retention_steps: float = 0.25
    logit_share: float = 0.5
    hidden_weight: float = 0.5
    evaluate_every: int = 100
    save_every: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("start_retention", "logit_share"):
            if getattr(self, name) > 1:
                raise TrainingError(f"{name} is {getattr(self, name)!r}; it is a share, and must not be more than 1.")
        if not 0 <= self.average < 1:
            raise TrainingError(f"average is {self.average!r}; it must be at least 0 and less than 1.")


def fast_precision() -> str:
    """The number format of training that this machine trains fastest in.

    A CPU without instructions for bfloat16 takes several times as long for its products.
    """
    device = pick_device()
    if device != "cpu":
        return "bf16" if has_bfloat16(device) else "float32"
    able = torch.cpu.get_capabilities()
    return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") or able.get("bf16") else "float32"


def inner_ranks(structure: Structure, rank: int, inner_rank: int) -> dict[str, int]:
    """Rank of the adapters inside levels, by a pattern of their names; empty if all have the same."""
    inside = [str(block) for block, level in enumerate(structure.block_levels) if level != WHOLE]
    return {rf"layers\.({'|'.join(inside)})\..*": inner_rank} if inside and inner_rank not in (0, rank) else {}


def add_adapters(model: SubllmForCausalLM, rank: int, inner_rank: int = 0) -> PeftModel:
    """Wrap all projections of a SUBLLM in low-rank adapters, in place; those inside levels can have another rank."""
    ranks = inner_ranks(model.config.parsed_structure, rank, inner_rank)
    return get_peft_model(
        model,
        LoraConfig(
            r=rank,
            lora_alpha=rank,
            rank_pattern={**ranks},
            alpha_pattern={**ranks},  # both the same: no adapter is scaled
            target_modules=list(PROJECTIONS),
            task_type="CAUSAL_LM",
        ),
    )


class Distillation(nn.Module):
    """A SUBLLM in adapters, with its distance from its dense twin as the loss.

    Args:
        model: the SUBLLM with fitted scorers; adapters are added to it.
        dense: the dense twin, which is the teacher.
        directions: direction (D,) for each level that raises all scores, from `fit_scorers`.
        options: configuration of the run.
    """

    directions: Tensor
    drifts: Tensor

    def __init__(
        self, model: SubllmForCausalLM, dense: LlamaForCausalLM, directions: list[Tensor], options: AdaptOptions
    ) -> None:
        super().__init__()
        torch.manual_seed(options.seed)
        self.adapted = add_adapters(model, options.rank, options.inner_rank)
        self.options = options
        self.register_buffer("directions", torch.stack(directions))  # (S, D)
        self.register_buffer("drifts", torch.zeros(len(directions)))  # (S,) correction per step, learned
        self._teacher = [dense]  # in a list: neither trained nor saved
        for name, parameter in self.adapted.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()
        for own in (*model.model.routers, model.model.bypasses):
            for parameter in own.parameters():
                parameter.requires_grad_(True)
        self._records: Sequence[RoutingRecord] = ()  # of the last forward pass
        self._averages: dict[str, Tensor] = {}  # by the names of the parameters

    @property
    def model(self) -> SubllmForCausalLM:
        """The SUBLLM inside the adapters."""
        return self.adapted.get_base_model()  # type: ignore[return-value]

    @property
    def dense(self) -> LlamaForCausalLM:
        """The teacher."""
        return self._teacher[0]

    @property
    def scorers(self) -> dict[int, nn.Parameter]:
        """The weight (D,) of each scorer, by the number of its level, from 0."""
        routers = enumerate(self.model.model.routers)
        return {number: router.weight for number, router in routers if router.scores_tokens}

    def train(self, mode: bool = True) -> "Distillation":
        """Set the mode of this module only: the SUBLLM selects by the inference rule throughout."""
        self.training = mode
        self.adapted.eval()
        return self

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        """Compute the loss on (B, T) token ids."""
        length = input_ids.shape[1]
        positions = torch.randperm(length)[: max(int(length * self.options.logit_share), 1)].to(input_ids.device)
        with torch.no_grad():
            target = self.dense.model(input_ids, use_cache=False).last_hidden_state  # (B, T, D)
        with torch.autocast(input_ids.device.type, dtype=torch.bfloat16, enabled=self.options.precision == "bf16"):
            output = self.model.model(input_ids, use_cache=False, probe=Probe(record=True, override=_detached))
        hidden = output.last_hidden_state.to(target.dtype)
        self._records = output.routing
        divergence = head_divergence(
            hidden[:, positions].flatten(0, 1), target[:, positions].flatten(0, 1), self.dense.lm_head.weight
        )
        distance = (hidden.float() - target.float()).square().sum(-1) / target.float().square().sum(-1)
        return {"loss": divergence + self.options.hidden_weight * distance.mean()}

    def trained(self) -> dict[str, Tensor]:
        """The contents of a checkpoint: trained parameters, their averages, and the state of the threshold control."""
        averages = {f"{_AVERAGE}{name}": average for name, average in self._averages.items()}
        whole = self._learned() | averages | dict(self.named_buffers(recurse=False))
        return {name: tensor.contiguous() for name, tensor in whole.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Load the contents of a checkpoint.

        Raises:
            TrainingError: if it is of other parameters.
        """
        names = {name for name in state if not name.startswith(_AVERAGE)}
        differ = sorted(names ^ (self._learned().keys() | dict(self.named_buffers(recurse=False)).keys()))
        if differ:
            raise TrainingError(
                f"The checkpoint is of another conversion: {len(differ):,} of its tensors differ, such as {differ[0]}. "
                "Give the options that the run began with, or another folder."
            )
        self.load_state_dict(state, strict=False)
        self._averages = {
            name.removeprefix(_AVERAGE): average for name, average in state.items() if name.startswith(_AVERAGE)
        }

    def _learned(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.named_parameters() if parameter.requires_grad}

    @torch.no_grad()
    def average(self) -> None:
        """Take the weights after a step into their running averages, if there are to be any."""
        own = self._learned()
        if self._averages:
            averages = [self._averages[name] for name in own]  # a checkpoint has them in another order
            get_ema_multi_avg_fn(self.options.average)(averages, [*own.values()], None)
        elif self.options.average:
            self._averages = {name: parameter.clone() for name, parameter in own.items()}

    @torch.no_grad()
    def take_average(self) -> None:
        """Put the averages, if there are any, in place of the weights."""
        for name, parameter in self._learned().items():
            parameter.copy_(self._averages.get(name, parameter))

    @torch.no_grad()
    def limit_scales(self) -> None:
        """Put bypass scales that a step moved out of [0, 1] back at the limit."""
        for scale in self.model.model.bypasses.parameters():
            scale.clamp_(0.0, 1.0)

    @torch.no_grad()
    def control_retention(self, step: int) -> list[float]:
        """Move every threshold towards the score that the wanted share of the last batch lies above.

        All scores of a level shift together, so their order stays as it was learned. The shift is proportional to the
        error, plus its sum over the steps, which cancels the steady drift that the loss gives the scorers.

        Args:
            step: step of the schedule, from 0.

        Returns:
            Share of tokens that each level kept, over all processes.
        """
        shares = []
        ramp = max(int(self.options.steps * self.options.retention_steps), 1)
        for number, (record, ratio) in enumerate(zip(self._records, self.model.config.retention_ratios, strict=True)):
            kept, reached = gather(torch.stack([record.kept.sum(), record.reached.sum()])[None]).sum(0).tolist()  # type: ignore[union-attr]
            shares.append(kept / max(reached, 1))
            if reached and record.above_threshold is not None:
                above: Any = record.above_threshold
                above = gather(pad_across_processes(above, dim=1, pad_index=math.nan))  # type: ignore[arg-type]
                goal = LinearSchedule(self.options.start_retention, ratio, ramp)(step)
                error = above[~above.isnan()].quantile(1 - goal)
                self.drifts[number] += DRIFT_RATE * error
                self.scorers[number] -= (CONTROL_RATE * error + self.drifts[number]) * self.directions[number]
        return shares


def _detached(level: int, router: Router, tokens: LevelTokens) -> Selection:
    """Select as the router does, without a gradient: adapters would raise scores so that more tokens are kept."""
    return router.select(replace(tokens, hidden_states=tokens.hidden_states.detach()), training=False)
