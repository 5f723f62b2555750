"""Training from scratch.

Besides the files of `subllm.runs.trainer`, the folder of a finished run has `final/`, the model and its tokenizer.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from ..configuration import OWN_FIELDS, SubllmConfig, misfits_reported
from ..errors import ConfigurationError, TrainingError
from ..model.causal_lm import SubllmForCausalLM
from ..routing import Bypass
from ..routing.scorer import Subsampler
from ..runs.callbacks import Journal, Snapshots
from ..runs.folder import FINAL, LOG_FILE, SNAPSHOTS
from ..runs.trainer import (
    PARTIAL,
    SCORERS,
    StepTrainer,
    claim,
    divided,
    fast_attention,
    full_disk_reported,
    training_arguments,
)
from ..text.blocks import Blocks
from ..text.packed import Packed
from .config import TrainConfig

_ROUTER_OF = {"stride": "even", "random": "random"}  # ablations that select without learning
_ALSO_MODEL = ("attn_implementation", "rope_scaling", "rope_theta")  # that transformers takes besides the fields
_ROUTER_LOSS = "router_loss"  # in the log, without the factor of the configuration
_SCORER_SPREAD = 0.1  # factor of the initial scorers: streams grow early, and scores far outside [0, 1] learn nothing


def build_model(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Build a model with random weights. A SUBLLM and the LLaMA of its size get the same shared weights.

    Args:
        config: configuration of the run.
        tokenizer: tokenizer that determines vocabulary and special tokens.

    Raises:
        TrainingError: if the model has another vocabulary than the tokenizer, fewer positions than the sequences have
            tokens, or not what an ablation leaves out.
        ConfigurationError: if the fields of the model are unknown or contradict each other.
        StructureError: if its structure cannot be read.
    """
    of_tokenizer: dict[str, int | None] = {"vocab_size": len(tokenizer)}
    of_tokenizer |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    if tokenizer.pad_token_id == tokenizer.eos_token_id and "pad_token_id" not in config.model:
        of_tokenizer["pad_token_id"] = None  # nothing is padded, and the embedding of padding learns nothing
    for name, found in of_tokenizer.items():
        if config.model.get(name, found) != found:
            raise TrainingError(
                f"{name} of the model is {config.model[name]!r}, and that of the tokenizer that the text was packed "
                f"with is {found!r}; leave {name} out, or pack the text with the model's tokenizer."
            )
    known = {*LlamaConfig.__annotations__, *SubllmConfig.__annotations__, *_ALSO_MODEL}
    unknown = sorted(config.model.keys() - known)
    if unknown:
        raise ConfigurationError(
            f"The model has unknown fields {', '.join(unknown)}; allowed are {', '.join(sorted(known))}."
        )
    own = {"attn_implementation": fast_attention(config.precision, config.length)} | config.model
    own |= of_tokenizer | {"balancer_steps": config.balancer_steps, "bypass_steps": config.bypass_steps}
    if config.ablation in _ROUTER_OF:
        own["router"] = _ROUTER_OF[config.ablation]
    with misfits_reported():
        whole = SubllmConfig(**own)
    if config.length > whole.max_position_embeddings:
        raise TrainingError(
            f"length is {config.length:,}, and the model has {whole.max_position_embeddings:,} positions "
            "(max_position_embeddings); give shorter sequences, or more positions."
        )
    if config.ablation in _ROUTER_OF and not whole.parsed_structure.brackets:
        raise TrainingError(
            f"ablation is {config.ablation!r}, but the structure {whole.structure!r} has no brackets, whose tokens it "
            "would select; leave the ablation out."
        )
    set_seed(config.seed)
    if not config.dense:
        with misfits_reported():
            model = SubllmForCausalLM(whole)
        for subsampler in model.model.subsamplers:
            if isinstance(subsampler, Subsampler):
                subsampler.weight.data *= _SCORER_SPREAD
        if config.ablation == "no-bypass":
            if not any(isinstance(bypass, Bypass) for bypass in model.model.bypasses):
                raise TrainingError(
                    f"ablation is 'no-bypass', but the routers ({', '.join(model.config.routers) or 'none'}) have no "
                    "bypass that could be left out; leave the ablation out."
                )
            for scale in model.model.bypasses.parameters():
                nn.init.ones_(scale).requires_grad_(False)
        return model
    llama = {name: value for name, value in own.items() if name not in OWN_FIELDS}
    with misfits_reported():
        return LlamaForCausalLM(LlamaConfig(**llama | {"num_hidden_layers": whole.num_hidden_layers}))


def train(config: TrainConfig, data: Path, out: Path) -> Path:
    """Train a model, or resume from the last checkpoint in the folder.

    Args:
        config: configuration of the run.
        data: folder of packed text.
        out: folder of the run.

    Returns:
        Folder of the trained model.

    Raises:
        TrainingStopped: if a signal stopped it.
        TrainingError: if `out` holds another run, the loss is not a number, or all checkpoints are damaged.
        DiskFullError: if the disk is full.
        DataError: if the text cannot be read.
        SubllmError: if the model cannot be built.
    """
    packed = Packed.read(data)
    tokenizer = packed.tokenizer()
    model = build_model(config, tokenizer)
    blocks = Blocks(packed, "train", config.length, count=config.steps * config.batch_size, seed=config.seed)
    held_out = Blocks(packed, "held_out", config.length)
    held_out = torch.utils.data.Subset(held_out, range(min(config.evaluation_blocks, len(held_out))))  # type: ignore[assignment]
    texts = [tokenizer(text, add_special_tokens=False, return_offsets_mapping=True) for text in config.prompts]
    parts = {
        "offsets": [text["offset_mapping"] for text in texts],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "structure": getattr(model.config, "structure", "T" * int(model.config.num_hidden_layers)),
        "retention_ratios": getattr(model.config, "retention_ratios", []),
        "routers": getattr(model.config, "routers", []),
    }
    claim(out, {"config": config.to_dict(), "data": packed.digest}, parts)
    callbacks: list[TrainerCallback] = [Journal(out / LOG_FILE, config.batch_size * config.length, [_ROUTER_LOSS])]
    if isinstance(model, SubllmForCausalLM) and config.prompts:
        prompts = [text["input_ids"] for text in texts]
        callbacks.append(Snapshots(out / SNAPSHOTS, model, prompts, config.snapshot_every))
    trainer = _Trainer(
        model, _arguments(config, out), rates={SCORERS: config.scorer_learning_rate}, keep=config.keep,
        train_dataset=blocks, eval_dataset=held_out, processing_class=tokenizer, callbacks=callbacks,
    )  # fmt: skip
    trainer.run()
    with full_disk_reported(out):
        trainer.save_model(str(out / PARTIAL))
    if trainer.is_world_process_zero():
        shutil.rmtree(out / FINAL, ignore_errors=True)
        (out / PARTIAL).rename(out / FINAL)
    trainer.accelerator.wait_for_everyone()
    return out / FINAL


class _Trainer(StepTrainer):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._router_losses: list[torch.Tensor] = []  # of the passes since the last line of the log

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, *args: Any, **kwargs: Any
    ) -> Any:
        """Compute the loss without a cache, and note what the routers add to it."""
        inputs = {**inputs, "use_cache": False}
        loss, outputs = super().compute_loss(model, inputs, True, *args, **kwargs)
        routers = outputs.get("router_loss")
        if routers is not None:
            self._router_losses.append(routers.detach())
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log an entry, with the mean loss of the routers in the passes that it is about."""
        if "loss" in logs and self._router_losses:
            mean = torch.stack(self._router_losses).mean()
            logs[_ROUTER_LOSS] = float(self.accelerator.gather(mean).mean())
            self._router_losses.clear()
        super().log(logs, *args, **kwargs)


def _arguments(config: TrainConfig, out: Path) -> TrainingArguments:
    size, passes = divided(config.batch_size, config.micro_batch_size)
    if config.gradient_checkpointing:
        checkpointing: dict[str, Any] = {
            "gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False},
        }  # fmt: skip
    else:
        checkpointing = {}
    return training_arguments(
        out,
        max_steps=config.steps,
        per_device_train_batch_size=size,
        per_device_eval_batch_size=size,
        gradient_accumulation_steps=passes,
        learning_rate=config.learning_rate,
        lr_scheduler_kwargs={"min_lr_rate": config.final_learning_rate},
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.clip,
        bf16=config.precision == "bf16",
        eval_steps=config.evaluate_every,
        logging_steps=config.log_every,
        save_steps=config.save_every,
        seed=config.seed,
        **checkpointing,
    )
