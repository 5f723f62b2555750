"""The dense LLaMA that a conversion starts from."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from ..configuration import SubllmConfig
from ..errors import CheckpointError, first_line
from ..model.modeling import SubllmForCausalLM
from .dense import sharing_weights
from .files import check_fit
from .gguf import GgufFile

_NOT_COPIED = ("architectures", "dtype", "model_type", "num_hidden_layers", "transformers_version")


def load_base(name: str, dtype: torch.dtype = torch.bfloat16) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """Load a dense model and its tokenizer.

    Args:
        name: a GGUF file, a checkpoint folder, or a name on the Hugging Face hub.
        dtype: dtype of the weights.

    Returns:
        The model in evaluation mode, and the tokenizer.

    Raises:
        CheckpointError: if it is missing, incomplete, unreadable, or not of LLaMA architecture.
    """
    path = Path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise CheckpointError(f"There is no file {path}.")
        file = GgufFile(path)
        return file.model(dtype), file.tokenizer()
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{name!r} is no GGUF file, checkpoint folder or reachable hub name: {first_line(error)}"
        ) from error
    if config.model_type != "llama":
        raise CheckpointError(f"{name!r} is a {config.model_type!r} model; only 'llama' can become a SUBLLM.")
    try:
        found: Any = LlamaForCausalLM.from_pretrained(
            name, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name!r} cannot be loaded: {first_line(error)}") from error
    model, report = found
    check_fit(name, report)
    return model.eval(), tokenizer


def from_llama(
    dense: LlamaForCausalLM, structure: str, retention_ratio: float | list[float], positions: str = "original"
) -> SubllmForCausalLM:
    """Make a SUBLLM of a LLaMA. Its scorers are zero (nothing is kept) until they are fitted, its bypass scales one.

    Args:
        dense: the LLaMA, whose weights are shared and not copied.
        structure: structure string with as many blocks as the LLaMA has.
        retention_ratio: nominal share of tokens kept, for all levels or for each.
        positions: "original" or "parent".

    Raises:
        StructureError: if the structure cannot be read.
        ConfigurationError: if the structure does not fit the LLaMA.
    """
    fields = {key: value for key, value in dense.config.to_dict().items() if key not in _NOT_COPIED}
    config = SubllmConfig(
        **fields,
        num_hidden_layers=dense.config.num_hidden_layers,
        structure=structure,
        retention_ratio=retention_ratio,
        positions=positions,
        balancer_steps=0,  # a conversion does not train from scratch
        bypass_steps=0,
    )
    levels, width, device = config.parsed_structure.num_levels, config.hidden_size, dense.device
    own: dict[str, Tensor] = {}
    for number in range(levels):
        own[f"model.subsamplers.{number}.weight"] = torch.zeros(width, device=device)
        own[f"model.bypasses.{number}.scale"] = torch.ones(width, device=device)
        for schedule in (f"subsamplers.{number}.balancing", f"bypasses.{number}.minimum"):
            own[f"model.{schedule}.step"] = torch.zeros((), dtype=torch.long, device=device)
    model = sharing_weights(SubllmForCausalLM, config, dense.state_dict() | own, device)
    model.config.dtype = dense.dtype
    model.generation_config = dense.generation_config
    return model
