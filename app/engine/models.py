"""Models: each is loaded once for all visitors, and the last ones are kept."""

import gc
import threading
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import streamlit as st
import torch

from analysis.guard import Progress, silent
from app.files import Stamp, stamp
from subllm.checkpoints.dense import DenseModel, load_dense
from subllm.checkpoints.device import pick_device, pick_dtype
from subllm.checkpoints.files import DENSE_TWIN
from subllm.checkpoints.load import Checkpoint, load_checkpoint

from .last_used import LastUsed
from .queue import turn

_MOST = 2  # models that are kept
_FILES = (".json", ".safetensors", ".jinja", ".model", ".txt")  # of a checkpoint, by the end of their names


class _OfModel(Protocol):
    @property
    def model(self) -> object: ...


_Value = TypeVar("_Value", bound=_OfModel)


@dataclass(frozen=True)
class ModelSpec:
    """What it takes to load a model again, and what names it in a link.

    Attributes:
        checkpoint: id, as `Settings.locate` takes it.
        folder: folder of the checkpoint.
        device: device that the model runs on.
        dtype: dtype that the model runs in.
    """

    checkpoint: str
    folder: Path
    device: str
    dtype: str

    def load(self, progress: Progress = silent) -> tuple[Checkpoint, DenseModel]:
        """The checkpoint and its dense model, loaded once for all visitors, and again if their files changed.

        Loading takes the device's turn, so this must not be called during a turn unless the model is in use.

        Args:
            progress: receives the number of runs ahead, and that the model is being loaded.

        Raises:
            SubllmError: if it cannot be loaded.
        """
        return _models().load(self, progress)

    def files(self) -> tuple[Stamp, Stamp]:
        """A value that changes when a file of the checkpoint or of its dense twin changes."""
        return stamp(self.folder, _FILES), stamp(self.folder / DENSE_TWIN, _FILES)


class ModelStore(Generic[_Value]):
    """A bounded store of values that hold a model's device memory; they are released together with the model.

    Args:
        most: number of values that are kept.
    """

    def __init__(self, most: int) -> None:
        self.values: LastUsed[_Value] = LastUsed(most)
        _models().add(self)

    def put(self, key: Hashable, value: _Value) -> None:
        """Keep a value, unless its model has been released."""
        _models().keep(self, key, value)


class _Models:
    """The last models.

    A model is loaded once and never moved. When it is no longer among the last ones, only the references held here are
    dropped, and its memory is freed as soon as no run uses it.
    """

    def __init__(self) -> None:
        self._lock, self._loading = threading.Lock(), threading.Lock()
        self._models: LastUsed[tuple[Checkpoint, DenseModel]] = LastUsed(_MOST)
        self._stores: list[ModelStore] = []

    def add(self, store: ModelStore) -> None:
        with self._lock:
            self._stores.append(store)

    def load(self, spec: ModelSpec, progress: Progress) -> tuple[Checkpoint, DenseModel]:
        key = (spec.folder, spec.files(), spec.device, spec.dtype)
        found = self._models.get(key)
        if found is not None:
            return found
        with turn(spec.device, progress), self._loading:  # transformers' settings are global: one device at a time
            found = self._models.get(key)  # by now, another visitor may have loaded it
            if found is None:
                progress(0.0, "loading")
                self._make_room()
                checkpoint = load_checkpoint(spec.folder, spec.device, spec.dtype)
                found = checkpoint, load_dense(checkpoint)
                self._models.put(key, found)
        return found

    def keep(self, store: ModelStore[_Value], key: Hashable, value: _Value) -> None:
        with self._lock:
            if id(value.model) in self._held():
                store.values.put(key, value)

    def _held(self) -> set[int]:
        return {id(model) for models in self._models.values() for model in (models[0].model, models[1].model)}

    def _make_room(self) -> None:
        with self._lock:
            self._models.make_room()
            kept = self._held()
            for store in self._stores:
                store.values.keep(lambda value: id(value.model) in kept)
        gc.collect()  # models have references in circles
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@st.cache_resource(show_spinner=False)
def _models() -> _Models:
    return _Models()


def devices() -> list[str]:
    """Devices to choose from, the best first."""
    return list(dict.fromkeys([pick_device(), "cpu"]))


def dtypes(device: str) -> list[str]:
    """Dtypes to choose from, the default first."""
    return list(dict.fromkeys([pick_dtype(device), "float32", "bfloat16"]))
