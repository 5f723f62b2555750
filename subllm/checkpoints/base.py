"""The dense LLaMA that a conversion starts from."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from ..configuration import SubllmConfig
from ..errors import CheckpointError
from ..model.modeling import SubllmForCausalLM
from ..routing.schedule import TrainingSchedule
from .gguf import GgufFile
from .load import check_fit

_NOT_COPIED = ("architectures", "dtype", "model_type", "num_hidden_layers", "transformers_version")


def load_base(name: str, dtype: torch.dtype = torch.bfloat16) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """Load a dense model and its tokenizer.

    Args:
        name: a GGUF file, a checkpoint folder, or a name on the Hugging Face hub.
        dtype: of the weights.

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
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{name!r} is no GGUF file, checkpoint folder or reachable hub name: {reason}") from error
    if config.model_type != "llama":
        raise CheckpointError(f"{name!r} is a {config.model_type!r} model; only 'llama' can become a SUBLLM.")
    try:
        found: Any = LlamaForCausalLM.from_pretrained(
            name, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    model, report = found
    check_fit(name, report)
    return model.eval(), tokenizer


def from_llama(
    dense: LlamaForCausalLM, structure: str, retention_ratio: float | list[float], positions: str = "original"
) -> SubllmForCausalLM:
    """A SUBLLM with a LLaMA's weights: scorers at zero (nothing kept) until they are fitted, bypass scales at one.

    Args:
        dense: the LLaMA; its weights are shared, not copied.
        structure: with as many blocks as the LLaMA has.
        retention_ratio: nominal share kept per level.
        positions: "original" or "parent".

    Raises:
        StructureError: if the structure cannot be read.
        ConfigurationError: if structure and LLaMA do not fit.
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
    with torch.device("meta"):
        model = SubllmForCausalLM(config)
    model.load_state_dict(dense.state_dict(), strict=False, assign=True)
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(dense.device)
    for module in model.modules():
        if isinstance(module, TrainingSchedule):
            module.step = torch.zeros((), dtype=torch.long, device=dense.device)
    for subsampler, bypass in zip(model.model.subsamplers, model.model.bypasses, strict=True):
        subsampler.weight = torch.nn.Parameter(torch.zeros(config.hidden_size, device=dense.device))
        bypass.scale = torch.nn.Parameter(torch.ones(config.hidden_size, device=dense.device))
    model.config.dtype = dense.dtype
    model.generation_config = dense.generation_config
    return model.eval()
