"""Loading SUBLLM checkpoints, and the dense model that each is compared with.

A checkpoint is a folder: config.json, *.safetensors, a tokenizer, and optionally `dense_twin/`, the LLaMA that it was
converted from. Every way in which such a folder can be wrong is one message of what was found and what to do.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..configuration import OWN_FIELDS, SubllmConfig
from ..errors import CheckpointError
from ..model.modeling import SubllmForCausalLM

DENSE_TWIN = "dense_twin"  # subfolder of a checkpoint with the LLaMA that it was converted from
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_LARGEST_JSON = 64 << 20  # bytes of a configuration or an index of weights
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", f"{DENSE_TWIN}/*"]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        folder: where it lies.
        digest: sha256 of its configuration and weights, so that equal digests mean equal results.
        model: in evaluation mode, on its device.
        tokenizer: of the model.
    """

    folder: Path
    digest: str
    model: SubllmForCausalLM
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class DenseModel:
    """The dense model that a checkpoint is compared with.

    Attributes:
        model: transformers' own LLaMA, on the checkpoint's device and in its dtype.
        is_twin: True for the LLaMA that the checkpoint was converted from, False for the checkpoint's own weights
            with routing off.
    """

    model: LlamaForCausalLM
    is_twin: bool

    @property
    def description(self) -> str:
        """What a comparison with it compares with: "twin", or "routing off"."""
        return "twin" if self.is_twin else "routing off"


def pick_device() -> str:
    """The best device of this machine: "cuda" where there is one, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def pick_dtype(device: str) -> str:
    """The dtype to run in unless asked otherwise: bfloat16 on a GPU that has it, float32 on the CPU."""
    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    return "float32"


def device_name(device: torch.device) -> str:
    """What a person calls a device, such as "NVIDIA H100 80GB HBM3" or "CPU, 2 threads"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def dtype_name(model: PreTrainedModel) -> str:
    """What a model computes in, such as "float32"."""
    return str(model.dtype).removeprefix("torch.")


def fetch_checkpoint(name: str) -> Path:
    """Folder of a checkpoint on the Hugging Face hub, downloaded unless it is in the hub's cache.

    Args:
        name: "owner/name".

    Raises:
        CheckpointError: if it is unknown, or neither cached nor reachable.
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
            "{name!r} cannot be downloaded from the hub: {error}", name=name, error=_first_line(error)
        ) from error


def load_checkpoint(
    folder: Path, device: str | None = None, dtype: str | None = None, attn_implementation: str = "sdpa"
) -> Checkpoint:
    """Load a checkpoint from a folder.

    Args:
        folder: with config.json, *.safetensors and a tokenizer.
        device: such as "cpu" or "cuda"; `pick_device` chooses by default.
        dtype: such as "float32" or "bfloat16"; `pick_dtype` chooses by default.
        attn_implementation: "sdpa", "eager", or "flash_attention_2" where installed.

    Raises:
        CheckpointError: if something is missing, incomplete, unsafe or does not fit; says what and what to do.
        ConfigurationError: if config.json contradicts itself.
        StructureError: if its structure cannot be read.
    """
    device = device or pick_device()
    dtype = dtype or pick_dtype(device)
    config = read_config(folder)
    weights = _weight_files(folder)
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
            "The tokenizer in {folder} cannot be read: {error}", folder=folder, error=_first_line(error)
        ) from error
    model = _load(SubllmForCausalLM, folder, config, device, dtype, attn_implementation)
    return Checkpoint(folder, _digest([folder / "config.json", *weights]), model, tokenizer)


def load_dense(checkpoint: Checkpoint) -> DenseModel:
    """The dense model that a checkpoint is compared with, on the same device, in the same dtype, with the same kernel.

    Args:
        checkpoint: loaded. Without a `dense_twin` folder, its own weights are used, shared and not copied.

    Raises:
        CheckpointError: if the twin's folder is broken.
    """
    twin = checkpoint.folder / DENSE_TWIN
    if not twin.is_dir():
        return DenseModel(routing_off(checkpoint.model), is_twin=False)
    return DenseModel(load_llama(twin, checkpoint.model), is_twin=True)


def load_llama(folder: Path, beside: SubllmForCausalLM) -> LlamaForCausalLM:
    """A LLaMA, to be compared with a SUBLLM.

    Args:
        folder: with config.json and *.safetensors.
        beside: model whose device, dtype and attention kernel it gets.

    Raises:
        CheckpointError: if it is no LLaMA, or cannot be loaded.
    """
    try:
        kind = _read_json(folder / "config.json").get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(
            "{folder} is not a checkpoint: its config.json cannot be read ({error}).",
            folder=folder,
            error=_first_line(error),
        ) from error
    if kind != LlamaConfig.model_type:
        raise CheckpointError(
            "{folder} holds a {kind!r} model; a baseline must be a 'llama'.", folder=folder, kind=kind
        )
    _weight_files(folder)
    config, dtype = LlamaConfig.from_pretrained(folder), dtype_name(beside)
    attention = str(beside.config._attn_implementation)
    return _load(LlamaForCausalLM, folder, config, str(beside.device), dtype, attention)


def routing_off(model: SubllmForCausalLM) -> LlamaForCausalLM:
    """LlamaForCausalLM with a SUBLLM's weights, shared: the same model with nothing dropped.

    Args:
        model: its scorers and bypass scales are left out.
    """
    own = (*OWN_FIELDS, "model_type", "architectures", "transformers_version")
    config = LlamaConfig(**{key: value for key, value in model.config.to_dict().items() if key not in own})
    config._attn_implementation = model.config._attn_implementation
    with torch.device("meta"):
        dense = LlamaForCausalLM(config)
    names = dict(dense.named_parameters(remove_duplicate=False))
    shared = {name: tensor for name, tensor in model.state_dict().items() if name in names}
    dense.load_state_dict(shared, strict=False, assign=True)
    dense.tie_weights()
    dense.model.rotary_emb = type(dense.model.rotary_emb)(config).to(model.device)
    return dense.eval()


def read_config(folder: Path) -> SubllmConfig:
    """The configuration of a checkpoint.

    Args:
        folder: of the checkpoint.

    Raises:
        CheckpointError: if there is none, or it is of another model.
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
        raise CheckpointError("{folder} cannot be read: {error}", folder=folder, error=_first_line(error)) from error
    try:
        fields = _read_json(path)
    except (ValueError, OSError) as error:
        raise CheckpointError("{path} is not readable JSON: {error}", path=path, error=_first_line(error)) from error
    kind = fields.get("model_type") if isinstance(fields, dict) else None
    if kind is None or (kind != SubllmConfig.model_type and "structure" not in fields):
        raise CheckpointError(
            "{folder} holds a {kind!r} model, not a 'subllm': its config.json has no structure. Convert a LLaMA into "
            "a SUBLLM with: subllm convert llama",
            folder=folder,
            kind=kind,
        )
    return SubllmConfig.from_dict(fields)


def _read_json(path: Path) -> Any:
    """What a JSON file of a checkpoint holds.

    Raises:
        ValueError: if it is no JSON, nested too deeply to be read, or larger than such a file can be.
        OSError: if it cannot be read.
    """
    if path.stat().st_size > _LARGEST_JSON:
        raise ValueError(f"{path.stat().st_size:,} bytes; {_LARGEST_JSON:,} are allowed")
    try:
        return json.loads(path.read_text())
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _weight_files(folder: Path) -> list[Path]:
    """The weight files of a checkpoint, each one seen to be complete."""
    if (folder / _INDEX).is_file():
        try:
            names = sorted(set(_read_json(folder / _INDEX)["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(
                "{file} is not a readable index of weights; copy it again.", file=folder / _INDEX
            ) from error
    else:
        names = [_WEIGHTS]
    files = [folder / Path(str(name)).name for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        if pickles:
            raise CheckpointError(
                "{folder} has no safetensors weights ({missing}). It has {pickles}, but pickled weights can run code "
                "and are not loaded here; convert them with: subllm convert reference",
                folder=folder,
                missing=", ".join(missing[:4]),
                pickles=", ".join(pickles[:4]),
            )
        raise CheckpointError(
            "{folder} lacks its weights ({missing}). Copy the checkpoint again.",
            folder=folder,
            missing=", ".join(missing[:4]),
        )
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                "{file} is not a complete safetensors file ({size:,} bytes; {error}); copy or download it again.",
                file=file,
                size=file.stat().st_size,
                error=_first_line(error),
            ) from error
    return files


def _load(kind: Any, folder: Path, config: Any, device: str, dtype: str, attention: str) -> Any:
    progress = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model, report = kind.from_pretrained(
            folder,
            config=config,
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise CheckpointError("{folder} cannot be loaded: {error}", folder=folder, error=_first_line(error)) from error
    finally:
        logging.set_verbosity(verbosity)
        if progress:
            logging.enable_progress_bar()
    check_fit(folder, report)
    try:
        return model.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise CheckpointError(
            "The model cannot be moved to {device!r}: {error}", device=device, error=_first_line(error)
        ) from error


def check_fit(place: Path | str, report: dict[str, Any]) -> None:
    """See that weights are those of their configuration.

    Args:
        place: of the checkpoint.
        report: what transformers found in loading, with sizes that differ let through.

    Raises:
        CheckpointError: if some are missing, and would be random, or have another shape.
    """
    missing, mismatched = sorted(report["missing_keys"]), sorted(str(key[0]) for key in report["mismatched_keys"])
    if missing or mismatched:
        raise CheckpointError(
            "The weights in {place} do not fit its config.json. Missing tensors: {missing}. Tensors of another shape: "
            "{mismatched}. All in all: {count:,}. Check structure, num_hidden_layers and hidden_size.",
            place=place,
            missing=", ".join(missing[:3]) or "none",
            mismatched=", ".join(mismatched[:3]) or "none",
            count=len(missing) + len(mismatched),
        )


def _digest(files: list[Path]) -> str:
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
