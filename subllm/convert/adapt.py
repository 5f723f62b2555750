"""Training a converted SUBLLM to say what its dense twin says, with tokens dropped.

Trained are low-rank adapters (`peft`) on all projections of the blocks from the first span on, the bypass scales and
the scorers. The blocks before the first span stay as they are, so the first scorer keeps seeing what it was fitted on.
Tokens are selected by the rule of inference (score > 0), so nothing changes when training ends. After every step each
scorer's threshold moves so that the share kept follows its schedule: from `start_retention` down to the nominal ratio.

Loss: KL divergence from the dense model's next-token distribution at a random part of the positions, plus the
relative squared distance of the final hidden states at all of them.

The loop is that of training from scratch (`subllm.train.trainer`): the same folder, checkpoints, log and snapshots.
"""

import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import gather, pad_across_processes
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import LlamaForCausalLM, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..errors import TrainingError
from ..modeling import SubllmForCausalLM
from ..run_files import LOG_FILE, SNAPSHOTS, read_log
from ..schedule import LinearSchedule
from ..train.callbacks import Journal, Snapshots
from ..train.config import PRECISIONS
from ..train.trainer import StepTrainer, claim, divided, training_arguments
from .evaluate import Evaluation, evaluate
from .learned import save_learned
from .scorers import calibrate
from .text import TokenBlocks

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CONTROL_RATE = 0.3  # part of a threshold's error, as seen in one batch, that is corrected at once
DRIFT_RATE = 0.05  # part of it that is also corrected in every later step: training keeps pushing scores up
_CALIBRATION_BATCHES = 6
_WARMUP, _FINAL_RATE = 0.04, 0.05  # of the steps; of the peak
_LARGEST_GRADIENT = 1.0
_KEPT = 2  # checkpoints
_STATE_FILE = "trained.safetensors"
_PROMPTS, _PROMPT_TOKENS = 8, 48  # whose routing is recorded at every evaluation
_FIRST_UNSEEN = 10**7  # number of a batch that no run comes to


@dataclass(frozen=True)
class AdaptOptions:
    """How to train.

    Attributes:
        steps: optimisation steps.
        batch_size: sequences per step, over all processes.
        length: tokens per sequence.
        rank: of the adapters.
        learning_rate: peak, of the adapters and bypass scales; warm-up over 4% of the steps, then cosine to 5%.
        scorer_learning_rate: peak, of the scorers.
        start_retention: share kept per level at step 0.
        retention_steps: share of the steps over which it falls to the nominal ratio.
        logit_share: share of the positions at which the distributions are compared.
        hidden_weight: weight of the hidden state distance in the loss.
        evaluate_every: steps between evaluations.
        save_every: steps between checkpoints.
        seed: of text order, adapters and position choice.
        precision: one of `PRECISIONS`: "bf16" has products in bfloat16 and the base's weights, too.

    Raises:
        TrainingError: if the precision is none of them.
    """

    steps: int = 500
    batch_size: int = 4
    length: int = 512
    rank: int = 16
    learning_rate: float = 1e-3
    scorer_learning_rate: float = 2e-5
    start_retention: float = 0.9
    retention_steps: float = 0.5
    logit_share: float = 0.5
    hidden_weight: float = 0.5
    evaluate_every: int = 50
    save_every: int = 25
    seed: int = 0
    precision: str = "float32"

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise TrainingError(f"precision is {self.precision!r}; allowed are {', '.join(PRECISIONS)}.")


def fast_precision() -> str:
    """The precision of `PRECISIONS` that this machine trains fastest in.

    A CPU without instructions for bfloat16 takes several times as long for its products.
    """
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "float32"
    able = torch.cpu.get_capabilities()
    return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") or able.get("bf16") else "float32"


def add_adapters(model: SubllmForCausalLM, rank: int) -> PeftModel:
    """Wrap a SUBLLM's projections, from its first span on, in low-rank adapters.

    Args:
        model: changed in place.
        rank: of the adapters.
    """
    owners = model.config.parsed_structure.block_spans
    first = next((index for index, span in enumerate(owners) if span is not None), len(owners))
    return get_peft_model(
        model,
        LoraConfig(
            r=rank,
            lora_alpha=rank,
            target_modules=list(PROJECTIONS),
            layers_to_transform=list(range(first, len(owners))),
            layers_pattern="layers",
            task_type="CAUSAL_LM",
        ),
    )


class Distillation(nn.Module):
    """A SUBLLM in adapters, with its distance from its dense twin as the loss.

    Args:
        model: the SUBLLM with fitted scorers; adapters are added to it.
        dense: its dense twin, the teacher.
        directions: per scorer the direction (D,) that raises all scores, from `fit_scorers`.
        options: how to train.
    """

    directions: Tensor
    drifts: Tensor

    def __init__(
        self, model: SubllmForCausalLM, dense: LlamaForCausalLM, directions: list[Tensor], options: AdaptOptions
    ) -> None:
        super().__init__()
        torch.manual_seed(options.seed)
        self.adapted = add_adapters(model, options.rank)
        self.options = options
        self.register_buffer("directions", torch.stack(directions))  # (S, D)
        self.register_buffer("drifts", torch.zeros(len(directions)))  # (S,) correction per step, learned
        self._teacher = [dense]  # in a list: neither trained nor saved
        for name, parameter in self.adapted.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()
        for subsampler in model.model.subsamplers:  # adapters must not raise scores to keep more: measured, they do
            subsampler.weight.requires_grad_(True)
            subsampler.register_forward_pre_hook(lambda _, inputs: (inputs[0].detach(), *inputs[1:]))
        for bypass in model.model.bypasses:
            bypass.scale.requires_grad_(True)
        self.routing: Any = None  # of the last forward pass

    @property
    def model(self) -> SubllmForCausalLM:
        """The SUBLLM itself."""
        return self.adapted.get_base_model()  # type: ignore[return-value]

    @property
    def dense(self) -> LlamaForCausalLM:
        """The teacher."""
        return self._teacher[0]

    @property
    def scorers(self) -> list[nn.Parameter]:
        """The weight (D,) of each scorer."""
        return [subsampler.weight for subsampler in self.model.model.subsamplers]

    def train(self, mode: bool = True) -> "Distillation":
        """Set the mode of this module only: the SUBLLM selects by the rule of inference throughout."""
        self.training = mode
        self.adapted.eval()
        return self

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        """The loss.

        Args:
            input_ids: (B, T).
        """
        length = input_ids.shape[1]
        positions = torch.randperm(length)[: max(int(length * self.options.logit_share), 1)].to(input_ids.device)
        with torch.no_grad():
            target_hidden = self.dense.model(input_ids, use_cache=False).last_hidden_state  # (B, T, D)
            target = F.log_softmax(self.dense.lm_head(target_hidden[:, positions]).float(), dim=-1).flatten(0, 1)
        with torch.autocast(input_ids.device.type, dtype=torch.bfloat16, enabled=self.options.precision == "bf16"):
            output = self.model.model(input_ids, use_cache=False, output_routing=True)
            hidden = output.last_hidden_state
            logits = self.model.lm_head(hidden[:, positions]).flatten(0, 1)
        self.routing = output.routing
        divergence = F.kl_div(F.log_softmax(logits.float(), dim=-1), target, log_target=True, reduction="batchmean")
        distance = (hidden.float() - target_hidden.float()).square().sum(-1) / target_hidden.float().square().sum(-1)
        return {"loss": divergence + self.options.hidden_weight * distance.mean()}

    def trained(self) -> dict[str, Tensor]:
        """What a checkpoint holds: trained parameters, and the state of the thresholds."""
        own = {name: parameter.detach() for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {name: tensor.contiguous() for name, tensor in (own | dict(self.named_buffers(recurse=False))).items()}

    @torch.no_grad()
    def control_retention(self, step: int) -> list[float]:
        """Move every threshold towards the score that the wanted share of the last batch lies above.

        All scores of a level shift together, so their order stays as it was learned. The shift is proportional to the
        error, plus its sum over the steps, which cancels the steady drift that the loss gives the scorers.

        Args:
            step: of the schedule.

        Returns:
            Share that each level kept, over all processes.
        """
        shares = []
        ramp = max(int(self.options.steps * self.options.retention_steps), 1)
        for span, (record, ratio) in enumerate(zip(self.routing, self.model.config.retention_ratios, strict=True)):
            own = record.scores.masked_fill(~record.parent_mask, math.nan)
            scores: Any = gather(pad_across_processes(own, dim=1, pad_index=math.nan))  # type: ignore[arg-type]
            scores = scores[~scores.isnan()]
            shares.append((scores > 0).float().mean().item() if scores.numel() else 0.0)
            if scores.numel():
                goal = LinearSchedule(self.options.start_retention, ratio, ramp)(step)
                error = scores.quantile(1 - goal)
                self.drifts[span] += DRIFT_RATE * error
                self.scorers[span] -= (CONTROL_RATE * error + self.drifts[span]) * self.directions[span]
        return shares


class Thresholds(TrainerCallback):
    """Between the steps of a conversion: gradients and scales in their limits, thresholds where they belong.

    Args:
        distillation: what is trained.
        texts: on which the thresholds are set after the last step, (B, T) ids each.
    """

    def __init__(self, distillation: Distillation, texts: list[Tensor]) -> None:
        self._distillation, self._texts = distillation, texts
        self.retention: list[float] = []

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Limit the gradients: the scorers' by themselves, as they are far larger."""
        scorers = self._distillation.scorers
        others = [p for p in self._distillation.parameters() if p.requires_grad and all(p is not s for s in scorers)]
        for group in (others, scorers):
            nn.utils.clip_grad_norm_(group, _LARGEST_GRADIENT)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Move the thresholds; after the last step set them to the nominal shares, and let that be looked at."""
        distillation = self._distillation
        for bypass in distillation.model.model.bypasses:
            bypass.scale.data.clamp_(0.0, 1.0)
        self.retention = distillation.control_retention(state.global_step - 1)
        if state.global_step == state.max_steps:
            calibrate(distillation.model, list(distillation.directions), self._texts)
            control.should_evaluate = control.should_save = True
        return control


class DistillingTrainer(StepTrainer):
    """Trains a conversion; its checkpoints hold what was learned, not the base.

    Args:
        distillation: what is trained.
        args: of the Trainer.
        held_out: (N, T) token ids for evaluation.
        thresholds: that move between the steps.
        **kwargs: of `StepTrainer`.
    """

    def __init__(
        self,
        distillation: Distillation,
        args: TrainingArguments,
        held_out: Tensor,
        thresholds: Thresholds,
        **kwargs: Any,
    ) -> None:
        super().__init__(distillation, args, eval_dataset=list(held_out), **kwargs)
        self._distillation, self._held_out, self._thresholds = distillation, held_out, thresholds

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Compare with the dense twin on held-out text."""
        result = evaluate(self._distillation.model, self._distillation.dense, self._held_out)
        tqdm.write(f"step {self.state.global_step}: {result}", file=sys.stderr)
        found = result.to_log()
        self.log(dict(found))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the shares kept."""
        if "loss" in logs:
            logs |= {f"retention_{span}": share for span, share in enumerate(self._thresholds.retention)}
        super().log(logs, *args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(str(output_dir))
        save_learned(self._distillation.adapted, self._distillation.model, folder)
        save_file(self._distillation.trained(), folder / _STATE_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        state = load_file(Path(resume_from_checkpoint) / _STATE_FILE, device=str(self.args.device))
        self._distillation.load_state_dict(state, strict=False)


class _Examples(Dataset[dict[str, Tensor]]):
    def __init__(self, blocks: TokenBlocks, count: int) -> None:
        self._blocks, self._count = blocks, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self._blocks.block(index)}


def adapt(
    model: SubllmForCausalLM,
    dense: LlamaForCausalLM,
    directions: list[Tensor],
    blocks: TokenBlocks,
    held_out: Tensor,
    folder: Path,
    options: AdaptOptions,
) -> tuple[PeftModel, list[tuple[int, Evaluation]]]:
    """Train a conversion, or go on where the folder's last checkpoint stopped.

    A finished run goes on if it is given more steps: the learning rate then starts again from where the longer schedule
    has it.

    Args:
        model: the SUBLLM with fitted scorers; adapters are added to it.
        dense: its dense twin, the teacher.
        directions: per scorer the direction that raises all scores, from `fit_scorers`.
        blocks: training text.
        held_out: (N, T) token ids for evaluation.
        folder: of the run.
        options: how to train.

    Returns:
        The trained model in its adapters, and the evaluations with their steps.

    Raises:
        TrainingStopped: if a signal stopped it.
        TrainingError: if the folder has another run, the loss is not a number, or the disk is full.
    """
    prompts = _claim(model, dense, blocks, held_out, folder, options)
    size, passes = divided(options.batch_size)
    arguments = training_arguments(
        folder,
        max_steps=options.steps,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=passes,
        learning_rate=options.learning_rate,
        lr_scheduler_kwargs={"min_lr_rate": _FINAL_RATE},
        warmup_steps=round(_WARMUP * options.steps),
        max_grad_norm=0.0,  # see `Thresholds`
        eval_steps=options.evaluate_every,
        logging_steps=1,
        save_steps=options.save_every,
        seed=options.seed,
    )
    dense.to(arguments.device)  # type: ignore[arg-type]
    distillation = Distillation(model, dense, directions, options)
    unseen = [blocks.batch(_FIRST_UNSEEN + index, options.batch_size) for index in range(_CALIBRATION_BATCHES)]
    thresholds = Thresholds(distillation, unseen)
    shares = [f"retention_{span}" for span in range(len(directions))]
    trainer = DistillingTrainer(
        distillation, arguments, held_out, thresholds,
        scorer_rate=options.scorer_learning_rate / options.learning_rate, keep=_KEPT,
        train_dataset=_Examples(blocks, options.steps * options.batch_size),
        callbacks=[
            Journal(folder / LOG_FILE, options.batch_size * options.length, [*shares, *Evaluation.logged(len(shares))]),
            thresholds,
            Snapshots(folder / SNAPSHOTS, model, prompts, options.evaluate_every),
        ],
    )  # fmt: skip
    trainer.run()
    lines = [line for line in read_log(folder / LOG_FILE) if "eval_loss" in line]
    return distillation.adapted, [(line["step"], Evaluation.from_log(line)) for line in lines]


def _claim(
    model: SubllmForCausalLM,
    dense: LlamaForCausalLM,
    blocks: TokenBlocks,
    held_out: Tensor,
    folder: Path,
    options: AdaptOptions,
) -> list[list[int]]:
    """Say what the run is; returns the ids of its prompts, beginnings of the held-out text."""
    texts = [blocks.tokenizer.decode(row[:_PROMPT_TOKENS]) for row in held_out[:_PROMPTS]]
    found = [blocks.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True) for text in texts]
    about = {
        "config": asdict(options) | {"prompts": texts, "converted": True},
        "structure": model.config.structure,
        "retention_ratios": model.config.retention_ratios,
    }
    parts = {
        "offsets": [text["offset_mapping"] for text in found],
        "parameters": sum(parameter.numel() for parameter in dense.parameters()),
    }
    claim(folder, about, parts, free=("steps",))
    return [text["input_ids"] for text in found]
