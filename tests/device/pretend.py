"""A pretend accelerator for machines without one: its tensors say that they are on it, and hold a CPU tensor inside.

What a GPU would refuse raises here, too: tensors of two devices in one operation, `numpy()`, a generator of the CPU.
What costs time on a GPU is counted, with the line that caused it: operations (about one kernel launch each), waits of
the host for the device, and copies from the host to the device. Real kernels, their rounding, asynchronous errors and
memory are not seen.

It is torch's own way of adding a backend in Python: `torch.utils.backend_registration` for the device, and a wrapper
tensor whose operations run on what it holds.
"""

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils import backend_registration
from torch.utils._pytree import tree_map

NAME = "pretend"
_CPU = torch.device("cpu")
_ROOT = Path(__file__).parents[2]
_WAITING = {
    f"aten::{name}"
    for name in [
        "_local_scalar_dense",
        "nonzero",
        "equal",
        "masked_select",
        "unique_dim",
        "_unique2",
        "unique_consecutive",
    ]
}
_FREE = {  # no kernel: other shapes of the same memory, or memory alone
    f"aten::{name}"
    for name in [
        "view",
        "_reshape_alias",
        "_unsafe_view",
        "as_strided",
        "slice",
        "select",
        "transpose",
        "t",
        "permute",
        "expand",
        "unsqueeze",
        "squeeze",
        "detach",
        "alias",
        "split",
        "split_with_sizes",
        "chunk",
        "unbind",
        "narrow",
        "empty",
        "empty_strided",
        "empty_like",
        "new_empty",
    ]
}
_RESIZING = [  # made by resizing an empty tensor, which a wrapper cannot follow
    ("arange", "default"),
    ("arange", "start"),
    ("arange", "start_step"),
    ("randperm", "default"),
    ("randperm", "generator"),
]
_INDEXING = ("aten::index", "aten::index_put_", "aten::_index_put_impl_")


@dataclass
class Books:
    """What was asked of the device.

    Attributes:
        operations: by name.
        waits: of the host for the device, by the line of this project that caused them.
        copies: from the host to the device, by line.
    """

    operations: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)


_open: list[Books] = []


@contextmanager
def books() -> Iterator[Books]:
    """Count what is asked of the device in the block."""
    _open.append(Books())
    try:
        yield _open[-1]
    finally:
        _open.pop()


def _note(kind: str, what: str | None = None) -> None:
    for each in _open:
        getattr(each, kind)[what or _line()] += 1


def _line() -> str:
    """The innermost line of this project that is not of this module."""
    if not _open:
        return ""
    for frame in reversed(traceback.extract_stack(limit=80)):
        path = Path(frame.filename)
        if path.is_relative_to(_ROOT) and ".venv" not in path.parts and path != Path(__file__):
            return f"{path.relative_to(_ROOT)}:{frame.lineno}"
    return "elsewhere"


class PretendTensor(torch.Tensor):
    """A tensor on the device; `inside` is the CPU tensor that it stands for."""

    inside: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inside: torch.Tensor, device: torch.device) -> "PretendTensor":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inside.size(),
            strides=inside.stride(),
            storage_offset=inside.storage_offset(),
            dtype=inside.dtype,
            device=device,
        )
        made.inside = inside
        return made

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operation, *args, **(kwargs or {}))

    def __repr__(self) -> str:
        return f"PretendTensor({self.inside}, device={str(self.device)!r})"

    def tolist(self) -> Any:
        """One wait; torch does not let wrapper tensors do it."""
        _note("waits")
        return self.inside.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        """As on a GPU."""
        raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy it first.")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.numpy()


def _inside(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.inside if isinstance(tensor, PretendTensor) else tensor


def _full(device: torch.device | str) -> torch.device:
    device = torch.device(device)
    return torch.device(NAME, 0) if device.type == NAME and device.index is None else device


def _moved(source: torch.device, target: torch.device) -> None:
    if target.type == "cpu":
        _note("waits")
    elif source.type == "cpu":
        _note("copies")
    else:
        _note("operations", "copy")


def _copy(target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    _moved(source.device, target.device)
    _inside(target).copy_(_inside(source))
    return target


def _to(source: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    target = _full(kwargs.get("device") or source.device)
    rest = {name: value for name, value in kwargs.items() if name not in ("device", "non_blocking", "pin_memory")}
    _moved(source.device, target)
    copy = torch.ops.aten._to_copy.default(_inside(source), **rest)
    return copy if target.type == "cpu" else PretendTensor(copy, target)


def _run(operation: Any, *args: Any, **kwargs: Any) -> Any:
    name = operation._schema.name
    if name == "aten::copy_":
        return _copy(*args, **kwargs)
    if name == "aten::_to_copy":
        return _to(*args, **kwargs)
    if name == "aten::_fused_sdp_choice":
        return 0  # the kernel of plain products: the fused ones have names of their own on every device
    devices: set[torch.device] = set()
    known: dict[int, torch.Tensor] = {}
    outside = []

    def unwrap(value: Any) -> Any:
        if isinstance(value, PretendTensor):
            devices.add(value.device)
            known[id(value.inside)] = value
            return value.inside
        if isinstance(value, torch.device):
            if value.type == NAME:
                devices.add(_full(value))
            return _CPU
        if isinstance(value, torch.Tensor) and value.dim():  # numbers of the CPU may mix with any device
            outside.append(value)
        if isinstance(value, torch.Generator) and value.device.type != NAME:
            raise RuntimeError(f"Expected a {NAME!r} device type for generator but found {value.device.type!r}")
        return value

    plain = tree_map(unwrap, args), tree_map(unwrap, kwargs)
    if len(devices) > 1 or (devices and outside and name not in _INDEXING):
        found = sorted(map(str, devices | {value.device for value in outside}))
        raise RuntimeError(f"{name}: Expected all tensors to be on the same device, but found {found}")
    indices = [index for index in args[1] if index is not None] if name in _INDEXING else []
    for _ in [index for index in indices if not isinstance(index, PretendTensor)]:
        _note("copies")
    if name in _WAITING or any(index.dtype == torch.bool for index in indices):
        _note("waits")
    if name not in _FREE:
        _note("operations", name)
    result = operation(*plain[0], **plain[1])
    device = kwargs.get("device")
    if device is not None and torch.device(device).type == "cpu":
        return result
    (home,) = devices

    def wrap(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and not isinstance(value, PretendTensor):
            return known.get(id(value)) if id(value) in known else PretendTensor(value, home)
        return value

    return tree_map(wrap, result)


class _Module:
    """What torch asks `torch.pretend` for."""

    is_available = is_initialized = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 2)
    current_device = staticmethod(lambda: 0)
    set_device = manual_seed = manual_seed_all = staticmethod(lambda _: None)
    synchronize = staticmethod(lambda device=None: None)
    get_amp_supported_dtype = staticmethod(lambda: [torch.float16, torch.bfloat16])
    get_rng_state = staticmethod(lambda device=0: torch.get_rng_state())
    set_rng_state = staticmethod(lambda state, device=0: torch.set_rng_state(state))
    _is_in_bad_fork = staticmethod(lambda: False)


_libraries: list[torch.library.Library] = []  # what is registered lives as long as these


def register() -> None:
    """Make the device known to torch, once in a process."""
    if _libraries:
        return
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module)
    _libraries.append(torch.library.Library("_", "IMPL", "PrivateUse1"))
    _libraries[-1].fallback(_run)  # what makes tensors on the device has none to begin with
    _libraries.append(torch.library.Library("aten", "IMPL"))
    for name, overload in _RESIZING:
        operation = getattr(getattr(torch.ops.aten, name), overload)
        _libraries[-1].impl(f"{name}.{overload}".removesuffix(".default"), partial(_run, operation), "PrivateUse1")
    _libraries[-1].impl("_copy_from", lambda source, target, non_blocking=False: _copy(target, source), "PrivateUse1")
