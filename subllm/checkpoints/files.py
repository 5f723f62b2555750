"""The files of a checkpoint: JSON of a sane size, complete weights that are no pickles, and a model made of them."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import logging

from ..errors import CheckpointError, first_line

DENSE_TWIN = "dense_twin"  # subfolder of a checkpoint with the LLaMA that it was converted from
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_LARGEST_JSON = 64 << 20  # bytes of a configuration or an index of weights
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def read_json(path: Path) -> Any:
    """Read a JSON file of a checkpoint.

    Raises:
        ValueError: if it is not JSON, is nested too deeply, or is larger than 64 MiB.
        OSError: if it cannot be read.
    """
    if path.stat().st_size > _LARGEST_JSON:
        raise ValueError(f"{path.stat().st_size:,} bytes; {_LARGEST_JSON:,} are allowed")
    try:
        return json.loads(path.read_text())
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def weight_files(folder: Path) -> list[Path]:
    """Paths of a checkpoint's weight files, after a check that each is complete.

    Raises:
        CheckpointError: if one is missing or incomplete, or the checkpoint has pickled weights only.
    """
    if (folder / _INDEX).is_file():
        try:
            names = sorted(set(read_json(folder / _INDEX)["weight_map"].values()))
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
                error=first_line(error),
            ) from error
    return files


def load_model(kind: Any, folder: Path, config: Any, device: str, dtype: str, attention: str) -> Any:
    """Load a model of class `kind` in evaluation mode, and check that its weights fit its configuration.

    Raises:
        CheckpointError: if it cannot be loaded, does not fit its config.json, or does not fit on the device.
    """
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
        raise CheckpointError("{folder} cannot be loaded: {error}", folder=folder, error=first_line(error)) from error
    finally:
        logging.set_verbosity(verbosity)
        if progress:
            logging.enable_progress_bar()
    check_fit(folder, report)
    try:
        return model.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise CheckpointError(
            "The model cannot be moved to {device!r}: {error}", device=device, error=first_line(error)
        ) from error


def check_fit(place: Path | str, report: dict[str, Any]) -> None:
    """Check that the weights fit the configuration.

    Args:
        place: folder or name of the checkpoint, for the message.
        report: transformers' loading report, made with `ignore_mismatched_sizes`.

    Raises:
        CheckpointError: if tensors are missing, and so would be random, or have another shape.
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


def digest(files: list[Path]) -> str:
    """SHA-256 over the SHA-256 of each file, as hexadecimal digits."""
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
