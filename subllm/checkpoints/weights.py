"""The weights of a checkpoint: complete, no pickles, of the shapes that its configuration says; and a model of them.

Shapes are compared with the files' headers before memory is taken, and the files that are hashed are those that are
loaded: transformers gets tensors, and chooses no files.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import GenerationConfig
from transformers.utils import logging

from ..errors import CheckpointError, DeviceFullError, first_line
from .device import is_out_of_memory
from .files import check_folder, check_inside, place_of, printable, read_json, read_start, reason, refusing
from .foreign import refuse_foreign_tensors

_WEIGHTS, _INDEX, _GENERATION = "model.safetensors", "model.safetensors.index.json", "generation_config.json"
_SUFFIX = ".safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_OF_TRAINERS = ("optimizer", "rng_state", "scaler", "scheduler", "training_args")  # how names of no weights begin
_LARGEST_HEADER = 16 << 20  # bytes of names and shapes in a file of weights
_FREQUENCIES = "rotary_emb.inv_freq"  # in old checkpoints; they follow from the configuration
_NAMED = 3  # tensors that a message names


def weight_files(folder: Path) -> list[Path]:
    """Paths of a checkpoint's weight files, after a check that each is complete.

    Raises:
        CheckpointError: if one is missing, incomplete or elsewhere, or the checkpoint has pickled weights only.
    """
    check_folder(folder)
    files = [folder / name for name in _weight_names(folder)]
    missing = [printable(file.name) for file in files if not file.is_file()]
    if missing:
        pickles = [printable(name) for name in _pickled(folder)]
        if pickles:
            raise CheckpointError(
                "{folder} has no safetensors weights ({missing}). It has {pickles}, but pickled weights can run code "
                "and are not loaded here; convert them with: subllm convert reference",
                folder=place_of(folder),
                missing=", ".join(missing[:4]),
                pickles=", ".join(pickles[:4]),
            )
        raise CheckpointError(
            "{folder} lacks its weights ({missing}). Copy the checkpoint again.",
            folder=place_of(folder),
            missing=", ".join(missing[:4]),
        )
    for file in files:
        check_inside(folder, file)
        check_safetensors(file)
    return files


def has_weights(folder: Path) -> bool:
    """Whether a folder has weights of its own, complete or not, pickled or not: nothing is opened."""
    return any(os.path.isfile(folder / name) for name in (_WEIGHTS, _INDEX)) or bool(_pickled(folder))


def _pickled(folder: Path) -> list[str]:
    """Names of pickled weights, without what a trainer keeps beside them; none if the folder cannot be read."""
    with suppress(OSError):
        names = sorted(name for name in os.listdir(folder) if name.endswith(_PICKLES))
        return [name for name in names if not name.startswith(_OF_TRAINERS)]
    return []


def _weight_names(folder: Path) -> list[str]:
    """Names of the weight files: those of the index, if there is one."""
    index = folder / _INDEX
    if not index.is_file():
        return [_WEIGHTS]
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
        right = all(name.endswith(_SUFFIX) and name == Path(name).name and "\\" not in name for name in names)
    except (ValueError, KeyError, AttributeError, TypeError, OSError):
        names, right = [], False
    if not names or not right:
        raise CheckpointError(
            "{file} in {folder} is not an index of weights: it has to give the name of a {suffix} file of the folder "
            "for each tensor. Copy it again.",
            file=_INDEX,
            folder=place_of(folder),
            suffix=_SUFFIX,
        )
    if _WEIGHTS not in names and (folder / _WEIGHTS).exists():
        raise CheckpointError(
            "{folder} has weights twice: {weights}, and other files that {index} names. Delete those that do not "
            "belong to the checkpoint.",
            folder=place_of(folder),
            weights=_WEIGHTS,
            index=_INDEX,
        )
    return names


def check_safetensors(file: Path) -> None:
    """Check that a safetensors file is complete.

    Raises:
        CheckpointError: if it is not, or its header is larger than that of a model.
    """
    try:
        header = int.from_bytes(read_start(file, 8), "little")
        if header > _LARGEST_HEADER:
            raise ValueError(f"a header of {header:,} bytes")
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            "{file} is not a complete safetensors file ({size:,} bytes; {error}); copy or download it again.",
            file=printable(file.name),
            size=file.stat().st_size,
            error=reason(error, file.parent),
        ) from error


def load_model(kind: Any, folder: Path, config: Any, device: str, dtype: str, attention: str) -> tuple[Any, list[Path]]:
    """Load a model of class `kind` in evaluation mode, straight onto its device.

    Args:
        kind: class of the model.
        folder: of the checkpoint.
        config: configuration of the model.
        device: that the model shall be on.
        dtype: of its weights.
        attention: kernel of its attention.

    Returns:
        The model, and the files that its weights came from.

    Raises:
        CheckpointError: if it cannot be loaded, does not fit its config.json, or has weights that are not finite.
        DeviceFullError: if it does not fit into the device's free memory.
    """
    files = weight_files(folder)
    with ExitStack() as stack:
        weights: dict[str, Any] = {}
        for file in files:
            opened = stack.enter_context(safe_open(file, framework="pt"))
            weights |= {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - it is no dictionary
        shapes = {name: tuple(weights[name].get_shape()) for name in weights}
        _check_memory(_check_shapes(kind, folder, config, shapes), device, dtype)
        try:
            with refusing(folder, "its weights"):
                model = _load(kind, config, weights, device, dtype, attention)
        except CheckpointError as error:
            cause = error.__cause__
            if cause is not None and is_out_of_memory(cause):
                raise _full(device, dtype, cause) from cause
            if isinstance(cause, ImportError):  # a kernel that is not installed
                raise CheckpointError(
                    "{folder} cannot be loaded: {error}", folder=place_of(folder), error=first_line(cause)
                ) from cause
            raise
    check_finite(folder, model.state_dict())
    if (folder / _GENERATION).is_file():
        with refusing(folder, "its generation_config.json"):
            model.generation_config = GenerationConfig.from_dict(read_json(folder / _GENERATION))
    return model.eval(), files


def _load(kind: Any, config: Any, weights: Mapping[str, Any], device: str, dtype: str, attention: str) -> Any:
    progress, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        return kind.from_pretrained(
            None,
            config=config,
            state_dict=weights,
            dtype=getattr(torch, dtype),
            device_map={"": device},
            attn_implementation=attention,
            local_files_only=True,
        )
    finally:
        logging.set_verbosity(verbosity)
        if progress:
            logging.enable_progress_bar()


def _check_shapes(kind: Any, folder: Path, config: Any, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Compare a model without memory with the headers of the weight files; returns the number of its parameters."""
    blocks = config.num_hidden_layers
    if blocks > len(shapes):  # building even an empty model of so many takes long
        raise _unfit(folder, [f"those of {blocks:,} blocks, and the files have {len(shapes):,} tensors"])
    with refusing(folder, "its config.json"), torch.device("meta"):
        model = kind(config)
        expected = {name: tuple(tensor.shape) for name, tensor in model.named_parameters(remove_duplicate=False)}
        tied = set(model.all_tied_weights_keys or ()) if config.tie_word_embeddings else set()
        unused = sorted(name for name in shapes.keys() - model.state_dict() - tied if not name.endswith(_FREQUENCIES))
        frequencies = model.model.rotary_emb.inv_freq.numel()
    missing = sorted(expected.keys() - shapes.keys() - tied)
    mismatched = sorted(name for name in expected.keys() & shapes.keys() if expected[name] != shapes[name])
    if missing or mismatched or unused:
        refuse_foreign_tensors(folder, unused)
        raise _unfit(folder, missing, mismatched, unused)
    if frequencies > config.head_dim:
        raise CheckpointError(
            "The rotary embedding of {folder} has {frequencies:,} frequencies, and its heads have {size:,} numbers; "
            "correct rope_parameters in its config.json.",
            folder=place_of(folder),
            frequencies=frequencies,
            size=config.head_dim,
        )
    return sum(parameter.numel() for parameter in model.parameters())


def _unfit(
    folder: Path, missing: Sequence[str], mismatched: Sequence[str] = (), unused: Sequence[str] = ()
) -> CheckpointError:
    """Error of weights that are not those of the configuration; left out, unused ones would make another model."""
    return CheckpointError(
        "The weights in {place} do not fit its config.json. Missing tensors: {missing}. Tensors of another shape: "
        "{mismatched}. Tensors without a place in the model: {unused}. All in all: {count:,}. Check structure, "
        "num_hidden_layers and hidden_size.",
        place=place_of(folder),
        missing=", ".join(missing[:_NAMED]) or "none",
        mismatched=", ".join(mismatched[:_NAMED]) or "none",
        unused=", ".join(map(printable, unused[:_NAMED])) or "none",
        count=len(missing) + len(mismatched) + len(unused),
    )


def _check_memory(parameters: int, device: str, dtype: str) -> None:
    """Refuse what the machine cannot hold: a file with holes claims any size, and the system ends who takes it."""
    need, total = parameters * getattr(torch, dtype).itemsize, psutil.virtual_memory().total
    if torch.device(device).type == "cpu" and need > total:
        raise _full(device, dtype, MemoryError(f"{need / 1e9:,.1f} GB of {total / 1e9:,.1f} GB"))


def _full(device: str, dtype: str, error: BaseException) -> DeviceFullError:
    if torch.finfo(getattr(torch, dtype)).bits > 16:
        return DeviceFullError(
            "The model does not fit into the free memory of {device!r} in {dtype}: {error}. Choose a smaller dtype, or "
            "free memory there.",
            device=device,
            dtype=dtype,
            error=first_line(error).rstrip("."),
        )
    return DeviceFullError(
        "The model does not fit into the free memory of {device!r} in {dtype}: {error}. Free memory there, or choose "
        "another device.",
        device=device,
        dtype=dtype,
        error=first_line(error).rstrip("."),
    )


def check_finite(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Check that weights are numbers: one that is not makes everything after it "not a number".

    Args:
        folder: of the checkpoint, for the message.
        weights: tensors by name, on one device.

    Raises:
        CheckpointError: if one has values that are infinite or not a number; names it, and so its block.
    """
    names = [name for name, tensor in weights.items() if tensor.is_floating_point() and tensor.numel()]
    if not names:
        return
    sums = torch.stack([weights[name].sum(dtype=torch.float32) for name in names])  # fast, and may overflow
    suspects = [name for name, sum_ in zip(names, sums.isfinite().tolist(), strict=True) if not sum_]
    wrong = [name for name in suspects if not weights[name].isfinite().all()]
    if wrong:
        raise CheckpointError(
            "The weights in {folder} are not all numbers: {names} ({count:,} tensors in all) have values that are "
            "infinite or not a number in {dtype}. Copy the checkpoint again, use an earlier one of its training, or "
            "choose another dtype.",
            folder=place_of(folder),
            names=", ".join(wrong[:_NAMED]),
            count=len(wrong),
            dtype=str(weights[wrong[0]].dtype).removeprefix("torch."),
        )


def digest_tensors(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names and values of tensors, as hexadecimal digits."""
    total = hashlib.sha256()
    for name, tensor in weights.items():
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def digest(files: list[Path]) -> str:
    """SHA-256 over the SHA-256 of each file, as hexadecimal digits."""
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
