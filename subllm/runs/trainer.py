"""The Trainer of trainings and conversions, based on transformers' Trainer.

A run's folder holds

    run.json, log.jsonl, snapshots/     see `subllm.runs.folder`
    checkpoint-N/                       what is needed to resume; the latest few
    runs/                               the same numbers for TensorBoard

A checkpoint gets its name only once it is complete, so a kill at any moment leaves the last good one.
"""

import errno
import json
import os
import platform
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import Trainer, TrainingArguments, default_data_collator

from ..atomic import written_whole
from ..errors import TrainingError, TrainingStopped
from .callbacks import StopWhen
from .folder import RUN_FILE
from .signals import stop_on_signal

PARTIAL = "partial"
SCORERS = ".subsamplers."  # part of the names of their parameters
_SEED_OF_STEP = 1_000_003
_LONGEST_PLAIN = 512
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StepTrainer(Trainer):
    """A Trainer whose steps do not depend on how a batch is divided among passes and processes, nor on interruptions.

    Args:
        model: model to train.
        args: arguments of the run, from `training_arguments`.
        rates: factors of the learning rate, by a part of the parameters' names.
        keep: number of checkpoints that are kept, the latest ones.
        **kwargs: further arguments of the Trainer. All examples have the same length, so nothing is padded.
    """

    def __init__(
        self, model: nn.Module, args: TrainingArguments, *, rates: Mapping[str, float], keep: int, **kwargs: Any
    ) -> None:
        super().__init__(model, args, data_collator=default_data_collator, **kwargs)
        self._model, self._folder = model, Path(str(args.output_dir))
        self._rates, self._keep = rates, keep
        self._saving = False

    def run(self) -> None:
        """Train to the last step; resume from the folder's last checkpoint if there is one.

        Raises:
            TrainingStopped: if a signal stopped the run; its state is saved.
            TrainingError: if the loss or a weight is not a number, or the disk is full.
        """
        last = last_checkpoint(self._folder)
        with stop_on_signal() as stopped, full_disk_reported(self._folder):
            done = 0 if last is None else _step_of(last)
            if done > self.args.max_steps:
                raise TrainingError(
                    f"{self._folder} has gone {done:,} steps, more than the {self.args.max_steps:,} asked for; ask for "
                    "as many, or give another folder."
                )
            if last is not None and done == self.args.max_steps:
                self._load_from_checkpoint(str(last))
                return
            self.add_callback(StopWhen(stopped))
            self.train(resume_from_checkpoint=None if last is None else str(last))
            if stopped() and self.state.global_step < self.args.max_steps:
                raise TrainingStopped(self.state.global_step)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss; all randomness in the pass is seeded with the number of the step.

        Raises:
            TrainingError: if the loss is not a number.
        """
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.args.seed * _SEED_OF_STEP + self.state.global_step)
            found = super().compute_loss(model, inputs, *args, **kwargs)
        loss = found[0] if isinstance(found, tuple) else found
        if model.training and not torch.isfinite(loss):
            self._not_a_number(f"The loss is {loss.item()}")
        return found

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Names of the matrices. Scorers and bypass scales are vectors, which must be free to grow."""
        vectors = {name for name, parameter in model.named_parameters() if parameter.ndim < 2}
        return [name for name in super().get_decay_parameter_names(model) if name not in vectors]

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Create the usual optimizer, with separate groups for parameters that have other learning rates."""
        optimizer = super().create_optimizer(model)
        named = list((self._model if model is None else model).named_parameters())
        for part, multiple in self._rates.items():
            members = {id(parameter) for name, parameter in named if part in name}
            for group in list(optimizer.param_groups):
                own = [parameter for parameter in group["params"] if id(parameter) in members]
                if own:
                    group["params"] = [parameter for parameter in group["params"] if id(parameter) not in members]
                    optimizer.add_param_group({**group, "params": own, "lr": self.args.learning_rate * multiple})
        return optimizer

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, PARTIAL) if self._saving else folder

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint to a partial folder, and rename it once it is complete."""
        if not all(torch.isfinite(parameter).all() for parameter in self._model.parameters()):
            self._not_a_number("A weight is not a number")
        out = self._folder
        if self.is_world_process_zero():
            shutil.rmtree(out / PARTIAL, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._saving = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._saving = False
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            name = f"checkpoint-{self.state.global_step}"
            shutil.rmtree(out / name, ignore_errors=True)
            (out / PARTIAL / name).rename(out / name)
            (out / PARTIAL).rmdir()
            for old in _checkpoints(out)[: -self._keep]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def _not_a_number(self, what: str) -> None:
        last = last_checkpoint(self._folder)
        kept = f"{last.name} is the last good state" if last else "there is no checkpoint yet"
        raise TrainingError(
            f"{what} at step {self.state.global_step:,}; {kept}. Lower the learning rate or the largest gradient, and "
            "begin a new run."
        )


def training_arguments(out: Path, **settings: Any) -> TrainingArguments:
    """Make the arguments of the Trainer: those that all runs share, and those of this run.

    Args:
        out: folder of the run.
        **settings: arguments of this run.
    """
    return TrainingArguments(
        output_dir=str(out),
        lr_scheduler_type="cosine_with_min_lr",
        adam_beta2=0.95,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        train_sampling_strategy="sequential",
        eval_strategy="steps",
        prediction_loss_only=True,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        report_to="tensorboard",
        disable_tqdm=None if os.isatty(2) else True,
        ddp_find_unused_parameters=False,
        **settings,
    )


def fast_attention(precision: str, length: int) -> str:
    """The attention kernel that trains fastest.

    The fused kernel of CPUs gains little from bfloat16. Measured on one core of an AMD EPYC with AVX-512, forward and
    backward pass with 4 heads of 64: 18 against 10 ms for plain products with 2 sequences of 512 tokens, 26 against 30
    with 2 of 768, 71 against 140 with one of 2,048; in float32, 41 against 48 with 4 of 512.

    Args:
        precision: number format of the training, "bf16" or "float32".
        length: tokens per sequence.

    Returns:
        A value for transformers' `attn_implementation`.
    """
    plain = not torch.cuda.is_available() and precision == "bf16" and length <= _LONGEST_PLAIN
    return "eager" if plain else "sdpa"


def divided(batch_size: int, micro_batch_size: int | None = None) -> tuple[int, int]:
    """Divide a batch among processes and forward passes.

    Args:
        batch_size: sequences per step.
        micro_batch_size: sequences per forward pass; by default all sequences of a process.

    Returns:
        Sequences per pass, and passes per step.

    Raises:
        TrainingError: if the batch cannot be divided evenly.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    size = micro_batch_size or max(batch_size // processes, 1)
    passes, rest = divmod(batch_size, size * processes)
    if rest:
        raise TrainingError(
            f"A batch of {batch_size} sequences cannot be divided among {processes} processes with {size} at a time; "
            "change the size of the batch or of a pass."
        )
    return size, passes


def last_checkpoint(out: Path) -> Path | None:
    """The checkpoint from which the run in a folder resumes; None if there is none."""
    return next(reversed(_checkpoints(out)), None)


def claim(out: Path, about: dict[str, Any], parts: dict[str, Any], free: Collection[str] = ()) -> None:
    """Write down what a run is, or check that the run in the folder is the same.

    Args:
        out: folder of the run, which is created if needed.
        about: entries that must be equal to resume, among them the run's `config`.
        parts: further entries to write: offsets of the prompts' tokens, parameters, structure, retention ratios.
        free: fields of the configuration that may change.

    Raises:
        TrainingError: if the folder holds another run.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / RUN_FILE
    if path.is_file():
        found = json.loads(path.read_text())
        old, new = found.get("config", {}), json.loads(json.dumps(about["config"]))
        differ = [name for name in new if old.get(name) != new[name] and name not in free]
        differ += [f"its {key}" for key in about if key != "config" and found.get(key) != about[key]]
        if differ:
            raise TrainingError(
                f"{out} holds another run (it differs in {', '.join(differ)}); give the same configuration and data to "
                "resume it, or another folder."
            )
    if int(os.environ.get("RANK", "0")):
        return
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    machine = {"versions": versions, "processor": f"{platform.machine()}, {os.cpu_count()} cores"}
    with written_whole(path) as partial:
        partial.write_text(json.dumps(about | parts | machine, indent=1) + "\n")


@contextmanager
def full_disk_reported(out: Path) -> Iterator[None]:
    """Report a full disk in one line.

    Raises:
        TrainingError: if the disk of the run's folder is full.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # libraries turn some OSErrors into the others
        full = getattr(error, "errno", None) in _FULL or any(os.strerror(number) in str(error) for number in _FULL)
        if not full or isinstance(error, TrainingError):
            raise
        shutil.rmtree(out / PARTIAL, ignore_errors=True)
        last = last_checkpoint(out)
        raise TrainingError(
            f"The disk of {out} is full ({shutil.disk_usage(out).free / 1e6:,.0f} MB free); "
            f"{f'{last.name} is whole' if last else 'no checkpoint had been written'}. Free some space and run the "
            "command again."
        ) from error


def _checkpoints(out: Path) -> list[Path]:
    """All complete checkpoints, in the order of their steps."""
    return sorted((path for path in out.glob("checkpoint-*") if path.is_dir()), key=_step_of)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
