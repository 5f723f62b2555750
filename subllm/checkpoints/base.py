"""The dense LLaMA that a conversion starts from."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from ..configuration import SubllmConfig
from ..errors import CheckpointError
from ..model.causal_lm import SubllmForCausalLM
from .config import read_llama_config
from .dense import sharing_weights
from .files import refusing
from .gguf import GgufFile
from .load import fetch_checkpoint
from .tokenizer import load_tokenizer
from .weights import check_finite, load_model

_NOT_COPIED = ("architectures", "dtype", "model_type", "transformers_version")
_OWN = (".subsamplers.", ".bypasses.", ".routers.")  # parts of the names of what a LLaMA does not have


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
        with refusing(path, "its content"):
            file = GgufFile(path)
            model, tokenizer = file.model(dtype), file.tokenizer()
        check_finite(path, model.state_dict())
        return model, tokenizer
    if path.is_dir():
        folder = path
    else:
        try:
            folder = fetch_checkpoint(name)
        except CheckpointError as error:
            raise CheckpointError(
                f"{name!r} is no GGUF file, checkpoint folder or reachable hub name: {error}"
            ) from error
    config = read_llama_config(folder)
    tokenizer = load_tokenizer(folder, config)
    model, _ = load_model(LlamaForCausalLM, folder, config, "cpu", str(dtype).removeprefix("torch."), "sdpa")
    return model, tokenizer


def from_llama(
    dense: LlamaForCausalLM,
    structure: str,
    retention_ratio: float | list[float],
    positions: str = "original",
    router: str | list[str] = "subllm",
    **divided: Any,
) -> SubllmForCausalLM:
    """Make a SUBLLM of a LLaMA. Its scorers are zero (nothing is kept) until they are fitted, its bypass scales one.

    Router weights of Mixture-of-Depths are one, too: the blocks of a LLaMA expect to be added whole. Groups of merged
    tokens are means. Light/heavy blocks divide those of the LLaMA, and what they route has a weight of 1.

    Args:
        dense: the LLaMA, whose weights are shared and not copied.
        structure: structure string with as many blocks as the LLaMA has.
        retention_ratio: nominal share of tokens kept, for all levels or for each.
        positions: rotary positions, as in the configuration.
        router: router of each level, as in the configuration.
        **divided: fields of light/heavy blocks, as in the configuration.

    Raises:
        StructureError: if the structure cannot be read.
        ConfigurationError: if the structure does not fit the LLaMA.
    """
    fields = {key: value for key, value in dense.config.to_dict().items() if key not in _NOT_COPIED}
    config = SubllmConfig(
        **fields,
        structure=structure,
        retention_ratio=retention_ratio,
        positions=positions,
        router=router,
        router_weight="unit" if "mod" in ([router] if isinstance(router, str) else router) else "score",
        balancer_steps=0,  # a conversion does not train from scratch
        bypass_steps=0,
        **divided,
    )
    shared = dense.state_dict()
    with torch.device("meta"):
        empty = SubllmForCausalLM(config).state_dict()
    own: dict[str, Tensor] = {}
    for name, tensor in empty.items():
        if name not in shared and any(part in name for part in _OWN):
            make = torch.ones if name.endswith(".scale") else torch.zeros
            own[name] = make(tensor.shape, dtype=tensor.dtype, device=dense.device)
    model = sharing_weights(SubllmForCausalLM, config, shared | own, dense.device)
    model.config.dtype = dense.dtype
    model.generation_config = dense.generation_config
    return model
