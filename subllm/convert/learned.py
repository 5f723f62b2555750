"""What a conversion learns, apart from the base's weights: a few MB that can be shipped and merged again.

| file | what it holds |
| --- | --- |
| `config.json` | configuration of the SUBLLM |
| `adapter_config.json`, `adapter_model.safetensors` | low-rank adapters (`peft`), bfloat16 |
| `routing.safetensors` | parameters of routers and bypasses, under their names in the model |
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaForCausalLM

from ..checkpoints.base import from_llama
from ..configuration import LIGHT_HEAVY_FIELDS, SubllmConfig
from ..errors import CheckpointError, first_line
from ..model.causal_lm import SubllmForCausalLM

_DIVIDED = ("light_heads", "light_intermediate_size")  # other fields of blocks "C" fit the same weights
ADAPTER_FILE, ROUTING_FILE = "adapter_model.safetensors", "routing.safetensors"
FILES = ("config.json", "adapter_config.json", ADAPTER_FILE, ROUTING_FILE)


def routing_weights(model: SubllmForCausalLM) -> dict[str, Tensor]:
    """Parameters of routers and bypasses, by their names in the model."""
    parts = ("model.subsamplers.", "model.bypasses.")
    return {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if name.startswith(parts) or ".routers." in name
    }


def save_learned(adapted: PeftModel, model: SubllmForCausalLM, folder: Path) -> None:
    """Write what was learned to a folder.

    Args:
        adapted: the SUBLLM in its adapters.
        model: the SUBLLM inside the adapters.
        folder: folder to write, which is created if needed.
    """
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's template of a model card
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = None  # a path on this machine; `merge_learned` takes the base as an argument
    settings["target_modules"] = sorted(settings["target_modules"])  # a set: its order changes from run to run
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    adapters = load_file(folder / ADAPTER_FILE)
    save_file({name: tensor.to(torch.bfloat16) for name, tensor in adapters.items()}, folder / ADAPTER_FILE)
    save_file({name: tensor.contiguous() for name, tensor in routing_weights(model).items()}, folder / ROUTING_FILE)
    model.config.save_pretrained(folder)


def merge_learned(dense: LlamaForCausalLM, folder: Path) -> SubllmForCausalLM:
    """Make the SUBLLM of a conversion from its base and what was learned, in the base's dtype.

    Args:
        dense: the base that the conversion started from; its weights are changed in place.
        folder: folder that `save_learned` wrote.

    Raises:
        CheckpointError: if a file is missing or does not fit the base.
    """
    config = _config(folder)
    divided = {name: getattr(config, name) for name in LIGHT_HEAVY_FIELDS}
    model = from_llama(dense, str(config.structure), config.retention_ratio, config.positions, config.router, **divided)
    with _misfit_reported(folder):
        merged = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
        _load_routing(merged, folder)
    return merged.to(dense.dtype)


def load_learned(adapted: PeftModel, model: SubllmForCausalLM, folder: Path) -> None:
    """Load what an earlier conversion learned into new adapters.

    Args:
        adapted: the SUBLLM in its adapters, which are changed in place.
        model: the SUBLLM inside the adapters.
        folder: folder that `save_learned` wrote.

    Raises:
        CheckpointError: if a file is missing, or the structure, the routers, the light branches or the rank differ.
    """
    earlier = _config(folder)
    if earlier.structure != model.config.structure:
        raise CheckpointError(
            f"{folder} was learned for the structure {earlier.structure}, and this conversion has "
            f"{model.config.structure}; give the same one."
        )
    if earlier.routers != model.config.routers:
        raise CheckpointError(
            f"{folder} was learned with the routers {', '.join(earlier.routers)}, and this conversion has "
            f"{', '.join(model.config.routers)}; give the same ones."
        )
    for name in _DIVIDED:
        if getattr(earlier, name) != getattr(model.config, name):
            raise CheckpointError(
                f"{folder} was learned with {name} {getattr(earlier, name)}, and this conversion has "
                f"{getattr(model.config, name)}; give the same one."
            )
    ranks = _ranks(json.loads((folder / "adapter_config.json").read_text()))
    own = _ranks(adapted.active_peft_config.to_dict())
    if ranks != own:
        raise CheckpointError(f"The adapters in {folder} have {ranks}, and this conversion's {own}; give the same.")
    with _misfit_reported(folder):
        set_peft_model_state_dict(adapted, load_file(folder / ADAPTER_FILE))
        _load_routing(model, folder)


def learned_digest(folder: Path) -> str:
    """SHA-256 of the files of a conversion, as hexadecimal digits."""
    digest = hashlib.sha256()
    for name in FILES:
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def _load_routing(model: SubllmForCausalLM, folder: Path) -> None:
    weights = load_file(folder / ROUTING_FILE)
    differ = sorted(weights.keys() ^ routing_weights(model).keys())
    if differ:
        raise ValueError(f"{ROUTING_FILE} has other tensors than its structure ({', '.join(differ[:3])})")
    model.load_state_dict(weights, strict=False)


def _ranks(settings: dict[str, Any]) -> str:
    """The ranks of adapters, from their configuration."""
    inner = sorted((settings.get("rank_pattern") or {}).values())
    return f"rank {settings['r']}" + "".join(f", inside levels {rank}" for rank in inner)


@contextmanager
def _misfit_reported(folder: Path) -> Iterator[None]:
    """Report in one line that files do not fit the base."""
    try:
        yield
    except (SafetensorError, RuntimeError, ValueError, OSError) as error:
        raise CheckpointError(f"{folder} does not fit this base: {first_line(error)}") from error


def _config(folder: Path) -> SubllmConfig:
    """Configuration of the converted SUBLLM, after a check that all files are there."""
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder} lacks {', '.join(missing)}; it is not what a conversion learned.")
    return SubllmConfig.from_pretrained(folder)
