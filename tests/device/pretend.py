"""A pretend accelerator for machines without one: its tensors say that they are on it, and hold a CPU tensor inside.

What a GPU would refuse raises here, too: tensors of two devices in one operation, `numpy()`, a generator of the CPU.
What costs time on a GPU is counted, with the line that caused it: operations (about one kernel launch each), waits of
the host for the device, and copies from the host to the device. Real kernels, their rounding, asynchronous errors and
memory are not seen.

It is torch's own way of adding a backend in Python: `torch.utils.backend_registration` for the device, and a wrapper
tensor whose operations run on what it holds.
"""

import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

from subllm.model.graphs import CAPTURES

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
_capturing: list["PretendCapture"] = []


@contextmanager
def books() -> Iterator[Books]:
    """Count what is asked of the device in the block."""
    _open.append(Books())
    try:
        yield _open[-1]
    finally:
        _open.pop()


def _note(kind: str, what: str | None = None) -> None:
    if _capturing and kind != "operations":
        raise RuntimeError(f"operation not permitted when stream is capturing ({kind})")  # as CUDA says
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


class PretendCapture:
    """What a CUDA graph does: the operations of one pass, to be run again on the same memory.

    What the pass itself computed is wiped, since capturing computes nothing on a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._steps: list[tuple[Any, tuple, dict, Any]] = []

    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("cannot pickle a graph")  # as of CUDA's

    def record(self, run: Callable[[], torch.Tensor]) -> torch.Tensor:
        run()
        _capturing.append(self)
        try:
            result = run()
        finally:
            _capturing.pop()
        for *_, made in self._steps:
            for tensor in made:
                tensor.fill_(-1 if not tensor.is_floating_point() else float("nan"))
        return result

    def add(self, operation: Any, args: tuple, kwargs: dict, result: Any) -> None:
        """Note an operation on CPU tensors, and what it made beside changing its arguments."""
        given = {id(value) for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)}
        made = [value for value in tree_leaves(result) if isinstance(value, torch.Tensor) and id(value) not in given]
        views = operation._schema.name in _FREE
        self._steps.append((operation, args, kwargs, [] if views else made))

    def replay(self) -> None:
        _note("operations", "graph")
        for operation, args, kwargs, made in self._steps:
            if not made and not operation._schema.is_mutable:
                continue  # a view shows the memory as it is
            found = [value for value in tree_leaves(operation(*args, **kwargs)) if isinstance(value, torch.Tensor)]
            for old, new in zip(made, found, strict=False):
                old.copy_(new)


class PretendTensor(torch.Tensor):
    """A tensor on the device; `inside` is the CPU tensor that it stands for."""

    inside: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inside: torch.Tensor, device: torch.device | None = None, **options: Any) -> Any:
        if device is None:  # accelerate makes weights by their type before it moves them
            return inside
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

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        made: torch.Tensor = PretendTensor(self.inside.clone(), self.device)
        if isinstance(self, torch.nn.Parameter):
            made = torch.nn.Parameter(made, self.requires_grad)
        return memo.setdefault(id(self), made)

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
    for capture in _capturing:
        capture.add(torch.ops.aten.copy_.default, (_inside(target), _inside(source)), {}, _inside(target))
    return target


def _to(source: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    target = _full(kwargs.get("device") or source.device)
    rest = {name: value for name, value in kwargs.items() if name not in ("device", "non_blocking", "pin_memory")}
    _moved(source.device, target)
    copy = torch.ops.aten._to_copy.default(_inside(source), **rest)
    for capture in _capturing:
        capture.add(torch.ops.aten._to_copy.default, (_inside(source),), rest, copy)
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
    for capture in _capturing:
        capture.add(operation, plain[0], plain[1], result)
    device = kwargs.get("device")
    if device is not None and torch.device(device).type == "cpu":
        return result
    (home,) = devices

    def wrap(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and not isinstance(value, PretendTensor):
            return known.get(id(value)) if id(value) in known else PretendTensor(value, home)
        return value

    inference = all(tensor.is_inference() for tensor in known.values())  # a view shares the version of its base
    with torch.inference_mode(torch.is_inference_mode_enabled() and inference):
        return tree_map(wrap, result)


MEMORY = {"free": 4 << 30, "total": 8 << 30, "allocated": 0, "reserved": 0}  # bytes that the device tells of


class PretendEvent:
    """A place in the stream, and when the device reached it: at once, since it never lags behind."""

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing
        self._reached = 0.0

    def record(self, stream: None) -> None:
        self._reached = time.perf_counter()

    def elapsed_time(self, later: "PretendEvent") -> float:
        """Milliseconds."""
        return 1e3 * (later._reached - self._reached)


class _Module:
    """What torch asks `torch.pretend` for."""

    is_available = is_initialized = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 2)
    current_device = staticmethod(lambda: 0)
    set_device = manual_seed = manual_seed_all = staticmethod(lambda _: None)
    synchronize = staticmethod(lambda device=None: _note("waits"))
    current_stream = staticmethod(lambda device=None: None)
    get_device_name = staticmethod(lambda device=None: f"Pretend {torch.device(device).index or 0}")
    mem_get_info = staticmethod(lambda device=None: (MEMORY["free"], MEMORY["total"]))
    memory_allocated = max_memory_allocated = staticmethod(lambda device=None: MEMORY["allocated"])
    memory_reserved = max_memory_reserved = staticmethod(lambda device=None: MEMORY["reserved"])
    reset_peak_memory_stats = staticmethod(lambda device=None: None)
    empty_cache = staticmethod(lambda: MEMORY.update(reserved=MEMORY["allocated"]))
    Event = PretendEvent
    get_amp_supported_dtype = staticmethod(lambda: [torch.float16, torch.bfloat16])
    get_rng_state = staticmethod(lambda device=0: torch.get_rng_state())
    set_rng_state = staticmethod(lambda state, device=0: torch.set_rng_state(state))
    _is_in_bad_fork = staticmethod(lambda: False)


_libraries: list[torch.library.Library] = []  # what is registered lives as long as these


def register() -> None:
    """Make the device known to torch, once in a process."""
    if _libraries:
        return
    CAPTURES[NAME] = PretendCapture
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module)
    _libraries.append(torch.library.Library("_", "IMPL", "PrivateUse1"))
    _libraries[-1].fallback(_run)  # what makes tensors on the device has none to begin with
    _libraries.append(torch.library.Library("aten", "IMPL"))
    for name, overload in _RESIZING:
        operation = getattr(getattr(torch.ops.aten, name), overload)
        _libraries[-1].impl(f"{name}.{overload}".removesuffix(".default"), partial(_run, operation), "PrivateUse1")
    _libraries[-1].impl("_copy_from", lambda source, target, non_blocking=False: _copy(target, source), "PrivateUse1")
