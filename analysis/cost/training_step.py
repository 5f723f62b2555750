"""Time and memory of training steps, a SUBLLM against the LLaMA of its size.

A step is a forward pass with the training-time selection, the backward pass, and AdamW's update. The limit beside each
speed-up is the ratio of the operations in forward and backward pass, as `analysis.cost.roofline.training_work` counts
them: torch's own counter does not see the attention kernel of the CPU, where a SUBLLM saves most.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from subllm import SubllmConfig, SubllmForCausalLM
from subllm.configuration import misfits_reported
from subllm.text.tokenizer import train_tokenizer
from subllm.train.config import TrainConfig
from subllm.train.loop import build_model

from ..errors import AnalysisError
from ..guard import full_device_reported
from .benchmark_text import benchmark_text
from .measure import Took, alternate, peak_bytes
from .page import page
from .roofline import training_work
from .sizes import level_tokens, without_levels
from .sweep import machine

_VOCABULARY = 8192


@dataclass(frozen=True)
class StepComparison:
    """Training steps on sequences of one length.

    Attributes:
        length: tokens per sequence.
        batch: sequences per step.
        took: of every step of the SUBLLM.
        dense_took: of every step of the LLaMA.
        operations: matrix products of forward and backward pass, SUBLLM and LLaMA.
        peak_bytes: most memory of tensors at once beyond weights and optimizer, gradients included; SUBLLM and LLaMA.
    """

    length: int
    batch: int
    took: list[Took]
    dense_took: list[Took]
    operations: tuple[float, float]
    peak_bytes: tuple[int, int]

    @property
    def speedup(self) -> float:
        """Median ratio of steps that ran in turn."""
        return median(d.seconds / s.seconds for s, d in zip(self.took, self.dense_took, strict=True))

    @property
    def limit(self) -> float:
        """Ratio of operations."""
        return self.operations[1] / self.operations[0]


def compare_steps(config: TrainConfig, length: int, batch: int, repeats: int, device: str) -> StepComparison:
    """Measure training steps of both models in turn.

    Args:
        config: of the SUBLLM; the LLaMA is made of it.
        length: tokens per sequence.
        batch: sequences per step.
        repeats: timed steps of each.
        device: to run on.

    Raises:
        AnalysisError: if the model does not have so many positions, or the text that is read so many tokens.
        RunStopped: if the device's free memory does not suffice.
        SubllmError: if the models cannot be built.
    """
    most = _sizes(config).max_position_embeddings
    if not 0 < length <= most or batch < 1 or repeats < 1:
        raise AnalysisError(
            f"{batch} sequences of {length:,} tokens, {repeats} times, cannot be measured; the model has {most:,} "
            "positions, and all three must be at least 1."
        )
    tokenizer = train_tokenizer([benchmark_text()], _VOCABULARY)
    config = replace(config, length=length)
    text = torch.tensor(tokenizer(benchmark_text(), verbose=False)["input_ids"])
    if batch * length > len(text):
        raise AnalysisError(
            f"A step of {batch * length:,} tokens cannot be measured; the text that is read has {len(text):,}. Give "
            "fewer tokens per step."
        )
    with full_device_reported(torch.device(device)):
        model, dense = (_model(replace(config, dense=dense), tokenizer, device) for dense in (False, True))
        ids = text[: batch * length].reshape(batch, length).to(device)
        return compare_models(model, dense, ids, repeats, bf16=config.precision == "bf16")


def compare_models(
    model: SubllmForCausalLM, dense: PreTrainedModel, ids: torch.Tensor, repeats: int, *, bf16: bool = False
) -> StepComparison:
    """Measure training steps of two models in turn, which changes their weights.

    Args:
        model: a SUBLLM.
        dense: the LLaMA of its size.
        ids: (B, T) sequences of a step.
        repeats: timed steps of each.
        bf16: whether matrix products are of bfloat16.
    """
    (batch, length), peaks = ids.shape, []
    steps = [_step(each.train(), ids, bf16) for each in (model, dense)]
    for step in steps:
        step()  # makes the optimizer's state, and for all the workspaces of matrix libraries
    for step in steps:
        peaks.append(peak_bytes(step, ids.device))
    took = alternate({"subllm": steps[0], "dense": steps[1]}, repeats, ids.device)
    own = model.config
    operations = [
        sum(work.operations for work in training_work(each, level_tokens(each, length), batch))
        for each in (own, without_levels(own))
    ]
    return StepComparison(
        length, batch, took["subllm"], took["dense"], (operations[0], operations[1]), (peaks[0], peaks[1])
    )


def facts_of(config: TrainConfig, repeats: int, device: str) -> dict[str, str]:
    """What is written beside a table.

    Args:
        config: of the SUBLLM.
        repeats: timed steps of each model.
        device: that they ran on.

    Raises:
        SubllmError: if the model cannot be built.
    """
    sizes = _sizes(config)
    return machine(device) | {
        "model": f"{sizes.structure}, width {sizes.hidden_size}",
        "precision": config.precision,
        "repeats": str(repeats),
    }


def _sizes(config: TrainConfig) -> SubllmConfig:
    with misfits_reported():
        return SubllmConfig(**config.model)


def _model(config: TrainConfig, tokenizer: PreTrainedTokenizerBase, device: str) -> Any:
    model: Any = build_model(config, tokenizer)
    return model.to(device)


def _step(model: Any, ids: torch.Tensor, bf16: bool) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step() -> None:
        with torch.autocast(ids.device.type, dtype=torch.bfloat16, enabled=bf16):
            output: Any = model(input_ids=ids, labels=ids, use_cache=False)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def report(rows: list[StepComparison], facts: dict[str, str]) -> str:
    """Markdown table of what was measured.

    Args:
        rows: by length.
        facts: about machine and model.
    """
    lines = [
        "| tokens | sequences | speed-up (spread) | limit | reached | tokens/s SUBLLM | tokens/s LLaMA | peak memory |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        seconds = [[took.seconds for took in each] for each in (row.took, row.dense_took)]
        spread = ", ".join(f"{max(each) / min(each):.2f}" for each in seconds)
        rates = [row.length * row.batch / median(each) for each in seconds]
        lines.append(
            f"| {row.length:,} | {row.batch} | {row.speedup:.2f}× ({spread}) | {row.limit:.2f}× "
            f"| {row.speedup / row.limit:.0%} | {rates[0]:,.0f} | {rates[1]:,.0f} "
            f"| {row.peak_bytes[0] / row.peak_bytes[1]:.2f}× of {row.peak_bytes[1] / 2**20:,.0f} MiB |"
        )
    about = (
        "Measured by `subllm training-step`: forward pass, backward pass and AdamW, in turn. Medians\n"
        "of the ratios of steps that ran in turn; spread is the slowest over the fastest (SUBLLM, LLaMA). The\n"
        "limit counts the matrix products of both passes, of attention too, at the nominal share of tokens; peak\n"
        "memory is of tensors beyond the weights and the optimizer's state; gradients are part of it."
    )
    return page("Training steps, SUBLLM against LLaMA", about, "\n".join(lines), facts)
