"""The Trainer of trainings and conversions, based on transformers' Trainer.

A run's folder holds

    run.json, log.jsonl, snapshots/     see `subllm.runs.folder`
    checkpoint-N/                       what is needed to resume; the latest few; see `subllm.runs.checkpoints`
    runs/                               the same numbers for TensorBoard

A checkpoint gets its name only once it is complete, so a kill at any moment leaves the last good one. One that was
damaged afterwards is noticed before it is used, and the one before it is used instead.
"""

import json
import os
import platform
import shutil
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import Trainer, TrainerState, TrainingArguments, default_data_collator
from transformers.trainer import TRAINER_STATE_NAME

from .. import atomic
from ..checkpoints.device import device_name, pick_device
from ..errors import DataError, TrainingError, TrainingStopped
from .callbacks import Journal, StopWhen
from .checkpoints import checkpoints, last_checkpoint, last_whole, run_of, seal, step_of
from .folder import LOG_FILE, RUN_FILE, read_about, say
from .signals import stop_on_signal

PARTIAL = "partial"
SCORERS = ".subsamplers."  # part of the names of their parameters
DIVIDED = ".routers."  # the same of the routers of light/heavy blocks
_SEED_OF_STEP = 1_000_003
_LONGEST_PLAIN = 512


class StepTrainer(Trainer):
    """A Trainer whose steps do not depend on interruptions, and little on how a batch is divided into passes.

    Of each pass are only: the tokens that the router "random" draws, the shares that the balancer counts, the gradients
    that bypass scales beyond their limits turn round, and the running means of the routers of light/heavy blocks.
    Dropout has one mask in all passes of a step.

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
        """Train to the last step; resume from the folder's last whole checkpoint if there is one.

        Raises:
            TrainingStopped: if a signal stopped the run; its state is saved.
            TrainingError: if the loss or a weight is not a number, or all checkpoints are damaged.
            DiskFullError: if the disk is full.
        """
        with stop_on_signal() as stopped, full_disk_reported(self._folder):
            last = self._resumed_from()
            done = 0 if last is None else step_of(last)
            if done > self.args.max_steps:
                raise TrainingError(
                    f"{self._folder} has gone {done:,} steps, more than the {self.args.max_steps:,} asked for; ask for "
                    "as many, or give another folder."
                )
            if last is not None and done == self.args.max_steps:
                self._load_from_checkpoint(str(last))
                if self.is_world_process_zero():
                    state = TrainerState.load_from_json(str(last / TRAINER_STATE_NAME))
                    for journal in (each for each in self.callback_handler.callbacks if isinstance(each, Journal)):
                        journal.resume(state)
                return
            self.add_callback(StopWhen(stopped))
            self.train(resume_from_checkpoint=None if last is None else str(last))
            if self.state.global_step < self.args.max_steps:
                raise TrainingStopped(self.state.global_step)

    def _resumed_from(self) -> Path | None:
        """The last checkpoint that is whole; damaged ones after it are named."""
        last, damaged = last_whole(self._folder)
        self.accelerator.wait_for_everyone()  # all have looked before one writes
        if not damaged:
            return last
        found = "; ".join(f"{checkpoint.name} is damaged: {wrong}" for checkpoint, wrong in damaged.items())
        if last is None:
            raise TrainingError(
                f"No checkpoint in {self._folder} is whole ({found}). Put back what is missing, or remove "
                f"{'this folder' if len(damaged) == 1 else 'these folders'} to begin with the first step again."
            )
        say(f"{self._folder}: {found}. Going on from {last.name}, the last one that is whole.")
        return last

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss; the randomness of PyTorch's CPU in the pass is seeded with the number of the step.

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
            run = None
            with suppress(DataError, OSError):
                run = read_about(out)
            seal(out / PARTIAL / name, run)
            shutil.rmtree(out / name, ignore_errors=True)
            (out / PARTIAL / name).rename(out / name)
            (out / PARTIAL).rmdir()
            found = checkpoints(out)
            latest = found.index(out / name)
            for old in (*found[latest + 1 :], *found[: max(latest + 1 - self._keep, 0)]):  # later ones are damaged
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
    on_cpu = pick_device() == "cpu"
    arguments = TrainingArguments(
        output_dir=str(out),
        lr_scheduler_type="cosine_with_min_lr",
        adam_beta2=0.95,
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
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
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs take torchrun: replicas in one process lose the routing
    return arguments


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
    plain = pick_device() == "cpu" and precision == "bf16" and length <= _LONGEST_PLAIN
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


def claim(out: Path, about: dict[str, Any], parts: dict[str, Any], free: Collection[str] = ()) -> None:
    """Write down what a run is, or check that the run in the folder is the same.

    Args:
        out: folder of the run, which is created if needed.
        about: entries that must be equal to resume, among them the run's `config`. An older run lacks some, which are
            not compared.
        parts: further entries to write: offsets of the prompts' tokens, parameters, structure, retention ratios.
        free: fields of the configuration that may change.

    Raises:
        TrainingError: if the folder holds another run.
    """
    out.mkdir(parents=True, exist_ok=True)
    found = _claimed(out)
    if found is not None:
        new = json.loads(json.dumps(about))
        old, config = found["config"], new.pop("config")
        both = {name: (old.get(name) or None, value or None) for name, value in config.items()}
        differ = [name for name, (before, now) in both.items() if before != now and name not in free]
        differ += [f"its {key}" for key, value in new.items() if found.get(key, value) != value]
        if differ:
            raise TrainingError(
                f"{out} holds another run (it differs in {', '.join(differ)}); give the same configuration and data to "
                "resume it, or another folder."
            )
    if int(os.environ.get("RANK", "0")):
        return
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    machine = {
        "versions": versions,
        "processor": f"{platform.machine()}, {os.cpu_count()} cores",
        "device": device_name(torch.device(pick_device())),
    }
    with full_disk_reported(out), atomic.written_whole(out / RUN_FILE) as partial:
        partial.write_text(json.dumps(about | parts | machine, indent=1) + "\n")


def _claimed(out: Path) -> dict[str, Any] | None:
    """What is known about the run in a folder: of `run.json`, or if it is damaged or missing of the last checkpoint.

    Raises:
        TrainingError: if the file is damaged, there is something to resume, and no checkpoint says of which run.
    """
    try:
        return read_about(out)
    except FileNotFoundError:
        wrong = f"{out / RUN_FILE} is missing"
    except DataError as error:
        wrong = str(error)
    last = last_checkpoint(out)
    run = None if last is None else run_of(last)
    if last is not None and run is not None:
        say(f"{wrong}. It is written again as {last.name} has it.")
        return run
    if (out / RUN_FILE).exists() and (last is not None or (out / LOG_FILE).exists()):
        raise TrainingError(
            f"{wrong}; so nothing says which run {out} holds. Remove the file to go on with this configuration, or "
            "give another folder."
        )
    return None


@contextmanager
def full_disk_reported(out: Path) -> Iterator[None]:
    """Report a full disk in one line, with the checkpoint that is whole; remove what was being written.

    Args:
        out: folder of the run.

    Raises:
        DiskFullError: if the disk is full.
    """

    def kept() -> str:
        shutil.rmtree(out / PARTIAL, ignore_errors=True)
        last = last_checkpoint(out)
        return f"{last.name} is whole" if last else "no checkpoint had been written"

    usual = threading.excepthook

    def heard(error: threading.ExceptHookArgs) -> None:
        """TensorBoard writes in a thread, and raises its error again in this one."""
        if not (error.exc_value and atomic.is_disk_full(error.exc_value)):
            usual(error)

    threading.excepthook = heard
    try:
        with atomic.full_disk_reported(out, kept):
            yield
    finally:
        threading.excepthook = usual
