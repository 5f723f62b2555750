"""Loading SUBLLM checkpoints.

A checkpoint is a folder: config.json, *.safetensors, a tokenizer, and optionally `dense_twin/`, the LLaMA that it was
converted from. Every fault of such a folder has a message that says what was found and what to do.
"""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import PreTrainedTokenizerBase

from ..errors import CheckpointError, first_line
from ..model.causal_lm import SubllmForCausalLM
from .config import read_config
from .device import chosen_device
from .files import CONFIG, DENSE_TWIN
from .tokenizer import load_tokenizer
from .weights import digest, load_model, weight_files

_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", f"{DENSE_TWIN}/*"]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        folder: folder that it was loaded from.
        digest: sha256 of its configuration and weights; equal digests mean equal results.
        model: the model in evaluation mode, on its device.
        tokenizer: the model's tokenizer.
    """

    folder: Path
    digest: str
    model: SubllmForCausalLM
    tokenizer: PreTrainedTokenizerBase


def fetch_checkpoint(name: str) -> Path:
    """Download a checkpoint from the Hugging Face hub, unless it is in the hub's cache, and return its folder.

    Raises:
        CheckpointError: if "owner/name" is unknown, or neither cached nor reachable.
    """
    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except HFValidationError as error:
        raise CheckpointError("{name!r} is not a hub name; expected 'owner/name'.", name=name) from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            "{name!r} is not in the hub's cache on this machine, and the hub cannot be reached; check the network, "
            "or copy the checkpoint into a folder and open that.",
            name=name,
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise CheckpointError(
            "{name!r} cannot be downloaded from the hub: {error}", name=name, error=first_line(error)
        ) from error


def load_checkpoint(
    folder: Path, device: str | None = None, dtype: str | None = None, attn_implementation: str = "sdpa"
) -> Checkpoint:
    """Load a checkpoint from a folder.

    Args:
        folder: folder with config.json, *.safetensors and a tokenizer.
        device: such as "cpu" or "cuda"; `pick_device` chooses by default.
        dtype: such as "float32" or "bfloat16"; `pick_dtype` chooses by default.
        attn_implementation: "sdpa", "eager", or "flash_attention_2" where installed.

    Raises:
        CheckpointError: if a file is missing, incomplete or unsafe, or does not fit.
        ConfigurationError: if config.json contradicts itself.
        DeviceError: if the device cannot be used, or its free memory does not suffice.
        StructureError: if its structure cannot be read.
    """
    device, dtype = chosen_device(device, dtype)
    config = read_config(folder)
    weight_files(folder)  # before the tokenizer is tried: what is missing is said first
    tokenizer = load_tokenizer(folder, config)
    model, weights = load_model(SubllmForCausalLM, folder, config, device, dtype, attn_implementation)
    return Checkpoint(folder, digest([folder / CONFIG, *weights]), model, tokenizer)
