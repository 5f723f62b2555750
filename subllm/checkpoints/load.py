"""Loading SUBLLM checkpoints.

A checkpoint is a folder: config.json, *.safetensors, a tokenizer, and optionally `dense_twin/`, the LLaMA that it was
converted from. Every fault of such a folder has a message that says what was found and what to do.
"""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..configuration import SubllmConfig
from ..errors import CheckpointError, first_line
from ..model.modeling import SubllmForCausalLM
from .device import pick_device, pick_dtype
from .files import DENSE_TWIN, digest, load_model, read_json, weight_files

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
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
        StructureError: if its structure cannot be read.
    """
    device = device or pick_device()
    dtype = dtype or pick_dtype(device)
    config = read_config(folder)
    weights = weight_files(folder)
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise CheckpointError(
            "{folder} has no tokenizer ({files}); copy the tokenizer files of the model that the "
            "checkpoint was made from into it.",
            folder=folder,
            files=", ".join(_TOKENIZERS),
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            "The tokenizer in {folder} cannot be read: {error}", folder=folder, error=first_line(error)
        ) from error
    model = load_model(SubllmForCausalLM, folder, config, device, dtype, attn_implementation)
    return Checkpoint(folder, digest([folder / "config.json", *weights]), model, tokenizer)


def read_config(folder: Path) -> SubllmConfig:
    """Read the configuration of a checkpoint.

    Raises:
        CheckpointError: if there is none, or it is that of another kind of model.
        ConfigurationError: if it contradicts itself, or names no structure.
        StructureError: if its structure cannot be read.
    """
    path = folder / "config.json"
    try:
        if not path.is_file():
            found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) if folder.is_dir() else "no such folder"
            raise CheckpointError(
                "{folder} is not a checkpoint: it has no config.json (found: {found}).",
                folder=folder,
                found=found or "nothing",
            )
    except OSError as error:
        raise CheckpointError("{folder} cannot be read: {error}", folder=folder, error=first_line(error)) from error
    try:
        fields = read_json(path)
    except (ValueError, OSError) as error:
        raise CheckpointError("{path} is not readable JSON: {error}", path=path, error=first_line(error)) from error
    kind = fields.get("model_type") if isinstance(fields, dict) else None
    if kind is None or (kind != SubllmConfig.model_type and "structure" not in fields):
        raise CheckpointError(
            "{folder} holds a {kind!r} model, not a 'subllm': its config.json has no structure. Convert a LLaMA into "
            "a SUBLLM with: subllm convert llama",
            folder=folder,
            kind=kind,
        )
    return SubllmConfig.from_dict(fields)
