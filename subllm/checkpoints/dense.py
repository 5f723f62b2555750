"""The dense model that a checkpoint is compared with, and models that share the weights of others.

The dense twin is the LLaMA that a checkpoint was converted from; it lies in a folder of the checkpoint. Routing off is
something else: the LLaMA with the checkpoint's own weights, which drops nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PretrainedConfig, PreTrainedModel

from ..configuration import OWN_FIELDS
from ..errors import CheckpointError
from ..model.causal_lm import SubllmForCausalLM
from .config import read_llama_config
from .device import dtype_name
from .files import DENSE_TWIN, check_inside, place_of
from .load import Checkpoint
from .weights import load_model

_Model = TypeVar("_Model", bound=PreTrainedModel)


@dataclass(frozen=True, eq=False)
class DenseModel:
    """The dense model that a checkpoint is compared with.

    Attributes:
        model: transformers' `LlamaForCausalLM`, on the checkpoint's device and in its dtype.
        is_twin: True for the LLaMA that the checkpoint was converted from, False for the checkpoint's own weights
            with routing off.
    """

    model: LlamaForCausalLM
    is_twin: bool

    @property
    def description(self) -> str:
        """The name of this model in comparisons: "twin" or "routing off"."""
        return "twin" if self.is_twin else "routing off"


def load_dense(checkpoint: Checkpoint) -> DenseModel:
    """Load the dense model that a checkpoint is compared with; it has the same device, dtype and attention kernel.

    Without a `dense_twin` folder it is the checkpoint with routing off, which shares the checkpoint's weights.

    Raises:
        CheckpointError: if the twin's folder is broken, or its vocabulary is another one.
        DeviceFullError: if it does not fit into the device's free memory.
    """
    twin = checkpoint.folder / DENSE_TWIN
    if not twin.is_dir():
        return DenseModel(routing_off(checkpoint.model), is_twin=False)
    check_inside(checkpoint.folder, twin)
    llama = load_llama(twin, checkpoint.model)
    own = checkpoint.model.config.vocab_size
    if llama.config.vocab_size != own:
        raise CheckpointError(
            "The dense twin in {folder} has embeddings for {words:,} tokens, and the checkpoint for {own:,}; it must "
            "be the LLaMA that the checkpoint was converted from.",
            folder=place_of(twin),
            words=llama.config.vocab_size,
            own=own,
        )
    return DenseModel(llama, is_twin=True)


def load_llama(folder: Path, like: SubllmForCausalLM) -> LlamaForCausalLM:
    """Load a LLaMA to compare with a SUBLLM.

    Args:
        folder: folder with config.json and *.safetensors.
        like: the SUBLLM, whose device, dtype and attention kernel the LLaMA gets.

    Raises:
        CheckpointError: if it is not a LLaMA, or cannot be loaded.
    """
    config, dtype = read_llama_config(folder), dtype_name(like)
    attention = str(like.config._attn_implementation)
    return load_model(LlamaForCausalLM, folder, config, str(like.device), dtype, attention)[0]


def routing_off(model: SubllmForCausalLM) -> LlamaForCausalLM:
    """The LlamaForCausalLM that shares a SUBLLM's weights: the same model, which drops nothing."""
    own = (*OWN_FIELDS, "model_type", "architectures", "transformers_version")
    config = LlamaConfig(**{key: value for key, value in model.config.to_dict().items() if key not in own})
    config._attn_implementation = model.config._attn_implementation
    return sharing_weights(LlamaForCausalLM, config, model.state_dict(), model.device)


def sharing_weights(
    kind: type[_Model], config: PretrainedConfig, weights: Mapping[str, Tensor], device: torch.device
) -> _Model:
    """Build a model in evaluation mode whose weights are the given tensors, without copying or initialising any.

    Args:
        kind: class of the model.
        config: configuration of the model.
        weights: tensors by name; those that the model does not have are left out.
        device: device of the weights.

    Raises:
        KeyError: if a tensor of the model is missing.
    """
    with torch.device("meta"):
        model = kind(config)
    model.load_state_dict({name: weights[name] for name in model.state_dict()}, assign=True)
    model.tie_weights()
    inner = model.model
    inner.rotary_emb = type(inner.rotary_emb)(config).to(device)  # its buffers are not part of the weights
    return model.eval()
