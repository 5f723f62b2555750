"""The training loop: transformers' Trainer with what a SUBLLM needs besides.

A run's folder holds

    run.json, log.jsonl, snapshots/     see `subllm.run_files`
    checkpoint-N/                       model, tokenizer and everything needed to go on; the last few
    final/                              the trained model and its tokenizer
    runs/                               the same numbers for TensorBoard

A checkpoint gets its name only once it is complete, so a kill at any moment leaves the last good one.
"""

import errno
import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from ..configuration import SubllmConfig
from ..data import Blocks, Packed
from ..errors import TrainingError
from ..interrupt import stop_on_signal
from ..modeling import SubllmForCausalLM
from ..run_files import FINAL, LOG_FILE, RUN_FILE, SNAPSHOTS, replace_text
from ..structure import CLOSE, OPEN
from ..subsampling import Rule
from .ablations import fixed_rule
from .callbacks import Journal, Schedules, Snapshots, StopWhen
from .config import TrainConfig

_PARTIAL = "partial"
_SEED_OF_STEP = 1_000_003
_SCORER_SPREAD = 0.1  # of the usual one: streams grow early, and scores that leave [0, 1] far behind learn nothing
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def build_model(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A model with random weights. A SUBLLM and the LLaMA of its size get the same ones where they share them.

    Args:
        config: of the run.
        tokenizer: whose vocabulary and special tokens it gets.

    Raises:
        TrainingError: if the model is for another vocabulary.
        ConfigurationError: if the model contradicts itself.
        StructureError: if its structure cannot be read.
    """
    asked = config.model.get("vocab_size", len(tokenizer))
    if asked != len(tokenizer):
        raise TrainingError(
            f"The model has a vocabulary of {asked:,} tokens, and the text was packed with one of {len(tokenizer):,}; "
            "leave vocab_size out, or pack the text with the model's tokenizer."
        )
    fields = config.model | {"vocab_size": len(tokenizer)}
    fields |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    set_seed(config.seed)
    if not config.dense:
        model = SubllmForCausalLM(SubllmConfig(**fields))
        for subsampler in model.model.subsamplers:
            subsampler.weight.data *= _SCORER_SPREAD
        if config.ablation == "no-bypass":
            for bypass in model.model.bypasses:
                nn.init.ones_(bypass.scale).requires_grad_(False)
        elif config.ablation:
            for subsampler in model.model.subsamplers:  # its scores decide nothing
                subsampler.weight.requires_grad_(False)
        return model
    structure = str(fields.pop("structure")).replace(OPEN, "").replace(CLOSE, "")
    own = ("retention_ratio", "positions")
    return LlamaForCausalLM(
        LlamaConfig(**{k: v for k, v in fields.items() if k not in own}, num_hidden_layers=len(structure))
    )


def train(config: TrainConfig, data: Path, out: Path) -> Path:
    """Train, or go on where the folder's last checkpoint stopped.

    Args:
        config: of the run.
        data: folder of packed text.
        out: folder of the run.

    Returns:
        Folder of the trained model.

    Raises:
        TrainingError: if the run in `out` is another one, the loss is not a number, the disk is full, or a signal
            stopped it.
        DataError: if the text cannot be read.
        SubllmError: if the model cannot be built.
    """
    packed = Packed.read(data)
    tokenizer = packed.tokenizer()
    model = build_model(config, tokenizer)
    blocks = Blocks(packed, "train", config.length, count=config.steps * config.batch_size, seed=config.seed)
    held_out = Blocks(packed, "held_out", config.length)
    held_out = torch.utils.data.Subset(held_out, range(min(config.evaluation_blocks, len(held_out))))  # type: ignore[assignment]
    out.mkdir(parents=True, exist_ok=True)
    texts = [tokenizer(text, add_special_tokens=False, return_offsets_mapping=True) for text in config.prompts]
    _claim(out, config, packed, model, [text["offset_mapping"] for text in texts])
    routed = isinstance(model, SubllmForCausalLM)
    fixed = config.ablation in ("stride", "random")
    rule = fixed_rule(str(config.ablation), model.config.retention_ratios) if fixed else None
    callbacks: list[TrainerCallback] = [Journal(out / LOG_FILE, config.batch_size * config.length)]
    if routed:
        callbacks.append(Schedules(config))
    if routed and not fixed and config.prompts:
        callbacks.append(Snapshots(out / SNAPSHOTS, [text["input_ids"] for text in texts], config.snapshot_every))
    with stop_on_signal() as stopped, _full_disk_said(out):
        callbacks.append(StopWhen(stopped))
        trainer = RoutingTrainer(
            model, _arguments(config, out), config, rule,
            train_dataset=blocks, eval_dataset=held_out, processing_class=tokenizer, callbacks=callbacks,
        )  # fmt: skip
        last = last_checkpoint(out)
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
        if stopped() and trainer.state.global_step < config.steps:
            raise TrainingError(
                f"Stopped at step {trainer.state.global_step:,}; run the command again to go on from there."
            )
        partial = out / _PARTIAL
        trainer.save_model(str(partial))
        if trainer.is_world_process_zero():
            shutil.rmtree(out / FINAL, ignore_errors=True)
            partial.rename(out / FINAL)
        trainer.accelerator.wait_for_everyone()
    return out / FINAL


def last_checkpoint(out: Path) -> Path | None:
    """The checkpoint that a run goes on from; None if there is none.

    Args:
        out: folder of the run.
    """
    return next(reversed(_checkpoints(out)), None)


def _checkpoints(out: Path) -> list[Path]:
    """All that are complete, in the order of their steps."""
    found = [path for path in out.glob("checkpoint-*") if path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


class RoutingTrainer(Trainer):
    """Trainer whose steps do not depend on how a batch is divided among passes and processes.

    Args:
        model: to train.
        args: of the Trainer.
        config: of the run.
        rule: that decides which tokens are kept, in place of the model.
        **kwargs: of the Trainer.
    """

    def __init__(
        self, model: PreTrainedModel, args: TrainingArguments, config: TrainConfig, rule: Rule | None, **kwargs: Any
    ) -> None:
        super().__init__(model, args, **kwargs)
        self._config, self._rule, self._model, self._folder = config, rule, model, Path(str(args.output_dir))
        self._saving = False

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Loss of a forward pass; everything random in it is drawn from the number of the step.

        Raises:
            TrainingError: if it is not a number.
        """
        inputs = {**inputs, "use_cache": False} | ({} if self._rule is None else {"rule": self._rule})
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self._config.seed * _SEED_OF_STEP + self.state.global_step)
            found = super().compute_loss(model, inputs, *args, **kwargs)
        loss = found[0] if isinstance(found, tuple) else found
        if model.training and not torch.isfinite(loss):
            self._not_a_number(f"The loss is {loss.item()}")
        return found

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Names of the matrices: scorers and bypass scales are vectors that must be free to grow."""
        vectors = {name for name, parameter in model.named_parameters() if parameter.ndim < 2}
        return [name for name in super().get_decay_parameter_names(model) if name not in vectors]

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Trainer's own, with the scorers in a group with a learning rate of their own."""
        optimizer = super().create_optimizer(model)
        named = (self._model if model is None else model).named_parameters()
        scorers = {id(parameter) for name, parameter in named if ".subsamplers." in name}
        for group in list(optimizer.param_groups):
            own = [parameter for parameter in group["params"] if id(parameter) in scorers]
            if own:
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in scorers]
                rate = self._config.learning_rate * self._config.scorer_learning_rate
                optimizer.add_param_group({**group, "params": own, "lr": rate})
        return optimizer

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, _PARTIAL) if self._saving else folder

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint beside the others, and give it its name once it is complete."""
        if not all(torch.isfinite(parameter).all() for parameter in self._model.parameters()):
            self._not_a_number("A weight is not a number")
        out = self._folder
        if self.is_world_process_zero():
            shutil.rmtree(out / _PARTIAL, ignore_errors=True)
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
            (out / _PARTIAL / name).rename(out / name)
            (out / _PARTIAL).rmdir()
            for old in _checkpoints(out)[: -self._config.keep]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def _not_a_number(self, what: str) -> None:
        last = last_checkpoint(self._folder)
        kept = f"{last.name} is the last good state" if last else "there is no checkpoint yet"
        raise TrainingError(
            f"{what} at step {self.state.global_step:,}; {kept}. Lower learning_rate or clip, and begin a new run."
        )


def _arguments(config: TrainConfig, out: Path) -> TrainingArguments:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    passes, rest = divmod(config.batch_size, config.micro_batch_size * processes)
    if rest:
        raise TrainingError(
            f"A batch of {config.batch_size} sequences cannot be divided among {processes} processes with "
            f"{config.micro_batch_size} at a time; change batch_size or micro_batch_size."
        )
    if config.gradient_checkpointing:
        checkpointing: dict[str, Any] = {
            "gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False},
        }  # fmt: skip
    else:
        checkpointing = {}
    return TrainingArguments(
        output_dir=str(out),
        max_steps=config.steps,
        per_device_train_batch_size=config.micro_batch_size,
        per_device_eval_batch_size=config.micro_batch_size,
        gradient_accumulation_steps=passes,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": config.final_learning_rate},
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        adam_beta2=0.95,
        max_grad_norm=config.clip,
        bf16=config.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        train_sampling_strategy="sequential",
        eval_strategy="steps",
        eval_steps=config.evaluate_every,
        prediction_loss_only=True,
        logging_steps=config.log_every,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=config.save_every,
        seed=config.seed,
        report_to="tensorboard",
        disable_tqdm=None if os.isatty(2) else True,
        ddp_find_unused_parameters=False,
        **checkpointing,
    )


def _claim(
    out: Path, config: TrainConfig, packed: Packed, model: PreTrainedModel, offsets: list[list[tuple[int, int]]]
) -> None:
    """Note what the run is, or see that the folder's run is the same.

    Raises:
        TrainingError: if it is another one.
    """
    path = out / RUN_FILE
    about: dict[str, Any] = {"config": config.to_dict(), "data": packed.digest}
    if path.is_file():
        found = json.loads(path.read_text())
        if {key: found.get(key) for key in about} != about:
            differ = [name for name, value in about["config"].items() if found.get("config", {}).get(name) != value]
            raise TrainingError(
                f"{out} holds another run (it differs in {', '.join(differ) or 'its data'}); give the same "
                "configuration and data to go on with it, or another folder."
            )
        return
    if int(os.environ.get("RANK", "0")):
        return
    about |= {
        "offsets": offsets,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "structure": getattr(model.config, "structure", "T" * int(model.config.num_hidden_layers)),
        "retention_ratios": getattr(model.config, "retention_ratios", []),
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
        "processor": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    replace_text(path, json.dumps(about, indent=1) + "\n")


@contextmanager
def _full_disk_said(out: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # libraries turn some of the first into the others
        full = getattr(error, "errno", None) in _FULL or any(os.strerror(number) in str(error) for number in _FULL)
        if not full or isinstance(error, TrainingError):
            raise
        shutil.rmtree(out / _PARTIAL, ignore_errors=True)
        last = last_checkpoint(out)
        raise TrainingError(
            f"The disk of {out} is full ({shutil.disk_usage(out).free / 1e6:,.0f} MB free); "
            f"{f'{last.name} is whole' if last else 'no checkpoint had been written'}. Free some space and run the "
            "command again."
        ) from error
