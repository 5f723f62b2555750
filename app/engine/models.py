"""Models: each is loaded once for all visitors, and the last ones are kept."""

import gc
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import streamlit as st
import torch

from analysis.guard import Progress, silent
from app.files import Stamp, stamp
from subllm.checkpoints.dense import DenseModel, load_dense
from subllm.checkpoints.device import device_name, release_memory
from subllm.checkpoints.files import DENSE_TWIN
from subllm.checkpoints.load import Checkpoint, load_checkpoint
from subllm.errors import DeviceFullError

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

    A model is loaded once and never moved. When it is no longer among the last ones, or when the next one does not fit
    beside it, the references held here are dropped, and its memory is freed as soon as no run uses it.
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
        # transformers' settings are global: one device at a time
        with turn(spec.device, progress, whole=True), self._loading:
            found = self._models.get(key)  # by now, another visitor may have loaded it
            if found is None:
                progress(0.0, "loading")
                self._release(self._models.make_room)
                try:
                    found = _loaded(spec)
                except DeviceFullError:
                    found = None  # the error holds what was loaded until its handling ends
                if found is None:
                    self._release(self._models.clear)
                    found = _loaded(spec)
                self._models.put(key, found)
        return found

    def keep(self, store: ModelStore[_Value], key: Hashable, value: _Value) -> None:
        with self._lock:
            if id(value.model) in self._held():
                store.values.put(key, value)

    def _held(self) -> set[int]:
        return {id(model) for models in self._models.values() for model in (models[0].model, models[1].model)}

    def _release(self, drop: Callable[[], None]) -> None:
        """Drop models, and what belongs to them, and free their memory."""
        with self._lock:
            drop()
            kept = self._held()
            for store in self._stores:
                store.values.keep(lambda value: id(value.model) in kept)
        gc.collect()  # models have references in circles
        release_memory()


def _loaded(spec: ModelSpec) -> tuple[Checkpoint, DenseModel]:
    checkpoint = load_checkpoint(spec.folder, spec.device, spec.dtype)
    dense = load_dense(checkpoint)
    for model in (checkpoint.model, dense.model):
        model.requires_grad_(False)  # it is never trained, and several attributions may be at work on it in turn
    return checkpoint, dense


@st.cache_resource(show_spinner=False)
def _models() -> _Models:
    return _Models()


def device_label(device: str) -> str:
    """What a device is called on screen, such as "cuda:1, NVIDIA H100 80GB HBM3".

    Args:
        device: one of `devices`.
    """
    return "CPU" if device == "cpu" else f"{device}, {device_name(torch.device(device))}"
