"""The config.json of a checkpoint: the fields of its kind of model, and no others."""

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

from transformers import LlamaConfig

from ..configuration import SubllmConfig
from ..errors import CheckpointError, first_line
from .files import CONFIG, check_folder, place_of, printable, read_json, refusing
from .foreign import refuse_foreign

_Config = TypeVar("_Config", bound=LlamaConfig)
_MOST_BLOCKS = 1_000
_LONGEST_STRUCTURE = 10 * _MOST_BLOCKS
# of classifiers, of outputs in a training, and of weights in other files; other unknown fields may mean code or files
_NOT_READ = {"id2label", "label2id", "problem_type", "output_hidden_states", "return_dict", "is_encoder_decoder"}
_OLD = {"torch_dtype", "rope_theta", "rope_scaling", "tokenizer_class"}  # spellings of older versions of transformers


def read_config(folder: Path) -> SubllmConfig:
    """Read the configuration of a checkpoint.

    Raises:
        CheckpointError: if there is none, it is that of another kind of model, or no model can be built of it.
        ConfigurationError: if it contradicts itself, or names no structure.
        StructureError: if its structure cannot be read.
    """
    fields = _read_fields(folder)
    kind = fields.get("model_type")
    if kind is None or (kind != SubllmConfig.model_type and "structure" not in fields):
        raise CheckpointError(
            "{folder} holds a {kind!r} model, not a 'subllm': its config.json has no structure. Convert a LLaMA into "
            "a SUBLLM with: subllm convert llama",
            folder=place_of(folder),
            kind=_kind(kind),
        )
    return _build(SubllmConfig, folder, fields)


def read_llama_config(folder: Path) -> LlamaConfig:
    """Read the configuration of a LLaMA.

    Raises:
        CheckpointError: if there is none, it is that of another kind of model, or no model can be built of it.
    """
    fields = _read_fields(folder)
    kind = fields.get("model_type")
    if kind != LlamaConfig.model_type:
        raise CheckpointError(
            "{folder} holds a {kind!r} model; it must be a 'llama'.", folder=place_of(folder), kind=_kind(kind)
        )
    return _build(LlamaConfig, folder, fields)


def _kind(kind: object) -> object:
    return printable(kind) if isinstance(kind, str) else None


def _read_fields(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        if not path.is_file():
            found = ", ".join(sorted(printable(p.name) for p in folder.iterdir())[:8]) if folder.is_dir() else ""
            raise CheckpointError(
                "{folder} is not a checkpoint: it has no config.json (found: {found}).",
                folder=place_of(folder),
                found=found or ("nothing" if folder.is_dir() else "no such folder"),
            )
    except OSError as error:
        raise CheckpointError(
            "{folder} cannot be read: {error}", folder=place_of(folder), error=error.strerror or first_line(error)
        ) from error
    check_folder(folder)
    with refusing(folder, "its config.json"):
        fields = read_json(path)
    if not isinstance(fields, dict):
        raise CheckpointError(
            "The config.json of {folder} holds a {kind}, and not the fields of a model; copy the checkpoint again.",
            folder=place_of(folder),
            kind=type(fields).__name__,
        )
    refuse_foreign(folder, fields)
    return fields


def _build(kind: type[_Config], folder: Path, fields: dict[str, Any]) -> _Config:
    if fields.get("quantization_config") is not None:
        raise CheckpointError(
            "The weights of {folder} are quantized, and such weights are not read. Use the checkpoint that they were "
            "made from.",
            folder=place_of(folder),
        )
    for name, most in (("num_hidden_layers", _MOST_BLOCKS), ("structure", _LONGEST_STRUCTURE)):
        value = fields.get(name)
        size = len(value) if isinstance(value, str) else value
        if isinstance(size, int) and size > most:
            raise CheckpointError(
                "{name} in the config.json of {folder} asks for a model of {size:,}; at most {most:,} are built.",
                name=name,
                folder=place_of(folder),
                size=size,
                most=most,
            )
    known = {field.name for field in dataclasses.fields(kind)} - _NOT_READ | _OLD
    with refusing(folder, "its config.json"):
        return kind.from_dict({name: value for name, value in fields.items() if name in known})
