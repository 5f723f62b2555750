"""Training a converted SUBLLM to predict what its dense twin predicts, although it drops tokens.

The training loop, folder, checkpoints, log and snapshots are those of training from scratch (`subllm.runs.trainer`).
After every step each scorer's threshold moves so that the share of tokens kept follows its schedule, from
`start_retention` down to the nominal ratio.
"""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Subset
from tqdm import tqdm
from transformers import LlamaForCausalLM, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..checkpoints.weights import digest_tensors
from ..configuration import LIGHT_HEAVY_FIELDS
from ..model.causal_lm import SubllmForCausalLM
from ..runs.callbacks import Journal, Snapshots
from ..runs.folder import LOG_FILE, SNAPSHOTS, read_log
from ..runs.trainer import DIVIDED, SCORERS, StepTrainer, claim, divided, fast_attention, training_arguments
from ..text.blocks import DrawnBlocks
from .distillation import GROUP_RATE, GROUPS, OUTER, AdaptOptions, Distillation
from .fidelity import Fidelity, measure_fidelity, retention_names
from .learned import learned_digest, load_learned, save_learned
from .scorers import calibrate

_CALIBRATION_BATCHES = 16
_WARMUP, _FINAL_RATE = 0.04, 0.05  # of the steps; of the peak
_LARGEST_GRADIENT = 1.0
_KEPT = 2  # checkpoints
_STATE_FILE = "trained.safetensors"
_PROMPTS, _PROMPT_TOKENS = 8, 48  # prompts whose routing is recorded at every evaluation
_FIRST_UNSEEN = 10**7  # number of a batch that no run reaches


class Thresholds(TrainerCallback):
    """Limits gradients and bypass scales between the steps of a conversion, and moves the thresholds.

    Args:
        distillation: module that is trained.
        texts: batches of (B, T) ids on which the thresholds are set after the last step.
    """

    def __init__(self, distillation: Distillation, texts: list[Tensor]) -> None:
        self._distillation, self._texts = distillation, texts
        self.retention: list[float] = []

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Clip the gradients, those of the scorers separately because they are far larger."""
        scorers = list(self._distillation.scorers.values())
        others = [p for p in self._distillation.parameters() if p.requires_grad and all(p is not s for s in scorers)]
        for group in (others, scorers):
            nn.utils.clip_grad_norm_(group, _LARGEST_GRADIENT)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Average the weights and move the thresholds; after the last step take the average and set the thresholds."""
        distillation = self._distillation
        distillation.limit_scales()
        distillation.average()
        self.retention = distillation.control_retention(state.global_step - 1)
        if state.global_step == state.max_steps:
            distillation.take_average()
            calibrate(distillation.model, list(distillation.directions), self._texts)
            control.should_evaluate = control.should_save = True
        return control


class DistillingTrainer(StepTrainer):
    """Trains a conversion; its checkpoints hold what was learned, not the base.

    Args:
        distillation: module that is trained.
        args: arguments of the run, from `training_arguments`.
        held_out: (N, T) token ids for evaluation.
        thresholds: callback that moves the thresholds.
        **kwargs: further arguments of `StepTrainer`.
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
        """Measure the fidelity on held-out text."""
        result = measure_fidelity(self._distillation.model, self._distillation.dense, self._held_out)
        tqdm.write(f"step {self.state.global_step}: {result}", file=sys.stderr)
        found = result.to_log()
        self.log(dict(found))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log an entry, with the share of tokens that each level kept."""
        shares = self._thresholds.retention
        if "loss" in logs:
            logs |= dict(zip(retention_names(len(shares)), shares, strict=True))
        super().log(logs, *args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save:  # every process comes here
            return
        folder = Path(str(output_dir))
        save_learned(self._distillation.adapted, self._distillation.model, folder)
        save_file(self._distillation.trained(), folder / _STATE_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        state = load_file(Path(resume_from_checkpoint) / _STATE_FILE, device=str(self.args.device))
        self._distillation.restore(state)


def adapt(
    model: SubllmForCausalLM,
    dense: LlamaForCausalLM,
    directions: list[Tensor],
    blocks: DrawnBlocks,
    held_out: Tensor,
    folder: Path,
    options: AdaptOptions,
    start: Path | None = None,
) -> tuple[PeftModel, list[tuple[int, Fidelity]]]:
    """Train a conversion, or resume from the last checkpoint in the folder.

    A finished run resumes if it is given more steps; the learning rate and the share that is kept then continue at
    their values in the longer schedule.

    Args:
        model: the SUBLLM with fitted scorers; adapters are added to it.
        dense: the dense twin, which is the teacher.
        directions: direction (D,) for each level that raises all scores, from `fit_scorers`.
        blocks: training text.
        held_out: (N, T) token ids for evaluation.
        folder: folder of the run.
        options: configuration of the run.
        start: folder of what an earlier conversion learned, to start from; see `load_learned`.

    Returns:
        The trained model in its adapters, and the steps and results of the evaluations.

    Raises:
        TrainingStopped: if a signal stopped it.
        TrainingError: if the folder has another run, the loss is not a number, or all checkpoints are damaged.
        DiskFullError: if the disk is full.
        CheckpointError: if what is in `start` does not fit.
    """
    for each in (model, dense):
        each.set_attn_implementation(fast_attention(options.precision, options.length))
    distillation = Distillation(model, dense, directions, options)
    if start is not None:
        load_learned(distillation.adapted, model, start)
    prompts = _claim(model, dense, blocks, held_out, folder, options, start)
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
    unseen = [blocks.batch(_FIRST_UNSEEN + index, options.batch_size) for index in range(_CALIBRATION_BATCHES)]
    thresholds = Thresholds(distillation, unseen)
    shares = retention_names(len(directions))
    trainer = DistillingTrainer(
        distillation, arguments, held_out, thresholds,
        rates={
            SCORERS: options.scorer_learning_rate / options.learning_rate,
            DIVIDED: options.scorer_learning_rate / options.learning_rate,
            GROUPS: GROUP_RATE,
            OUTER: options.loraplus_ratio,
        },
        keep=_KEPT,
        train_dataset=Subset(blocks, range(options.steps * options.batch_size)),
        callbacks=[
            Journal(folder / LOG_FILE, options.batch_size * options.length, [*shares, *Fidelity.logged(len(shares))]),
            thresholds,
            Snapshots(folder / SNAPSHOTS, model, prompts, options.evaluate_every),
        ],
    )  # fmt: skip
    trainer.run()
    lines = [line for line in read_log(folder / LOG_FILE) if "eval_loss" in line]
    return distillation.adapted, [(line["step"], Fidelity.from_log(line)) for line in lines]


def _claim(
    model: SubllmForCausalLM,
    dense: LlamaForCausalLM,
    blocks: DrawnBlocks,
    held_out: Tensor,
    folder: Path,
    options: AdaptOptions,
    start: Path | None,
) -> list[list[int]]:
    """Write down what the run is; return the ids of its prompts, which are beginnings of the held-out text."""
    texts = [blocks.tokenizer.decode(row[:_PROMPT_TOKENS]) for row in held_out[:_PROMPTS]]
    found = [blocks.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True) for text in texts]
    about = {
        "config": asdict(options) | {"prompts": texts, "converted": True},
        "structure": model.config.structure,
        "retention_ratios": model.config.retention_ratios,
        "start": start and learned_digest(start),
        "routers": model.config.routers,
        "base": digest_tensors(dict(dense.named_parameters())),
        **{name: getattr(model.config, name) for name in LIGHT_HEAVY_FIELDS},
    }
    parts = {
        "offsets": [text["offset_mapping"] for text in found],
        "parameters": sum(parameter.numel() for parameter in dense.parameters()),
        "model": model.config.to_diff_dict(),
    }
    claim(folder, about, parts, free=("steps", "evaluate_every", "save_every"))
    return [text["input_ids"] for text in found]
