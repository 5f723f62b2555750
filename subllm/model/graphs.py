"""Runs of blocks as CUDA graphs while a text is continued token by token.

One new token asks a GPU for about forty small kernels per block, and launching these takes longer than they run. The
blocks between two brackets always do the same with one token per row, so they are captured once and then launched as
one graph: the token's stream, rotary angles and slot are copied into fixed tensors, and keys and values are written by
index into the buffers of the cache. The decisions of the routers stay outside: which graph comes next depends on them.

A graph belongs to the buffers and the weights that it was captured with; where one of them is replaced, it is captured
anew. It does not notice a module that is exchanged in the middle of a text. What it returns is overwritten at the next
token, so whoever keeps a stream copies it.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..errors import first_line
from ..structure import Structure
from .levels import Tokens

if TYPE_CHECKING:
    from .cache import LevelLayer

logger = logging.getLogger(__name__)
_EAGER_PASSES = 2  # of one token, before anything is captured: short texts are not worth it
_ROOM = 256  # slots by which a captured buffer grows at least, since every growth takes another capture
_PLAIN = ("torch.", "transformers.", "subllm.")  # packages whose modules do the same at every token

capturing = threading.Lock()
"""Held while a graph is captured, when no thread may release the memory of a device."""


class Capture(Protocol):
    """What a device offers to record kernels once and launch them again."""

    def record(self, run: Callable[[], Tensor]) -> Tensor:
        """Capture what `run` asks of the device, without a host read; returns the tensor that replays write to.

        Raises:
            RuntimeError: if something cannot be captured.
        """

    def replay(self) -> None:
        """Launch it."""


class CudaCapture:
    """A CUDA graph.

    Args:
        device: that it runs on; streams and graphs belong to one device, which need not be the current one.
    """

    _streams: dict[torch.device, Any] = {}  # noqa: RUF012 - one for each device: libraries keep a workspace per stream

    def __init__(self, device: torch.device) -> None:
        self._device, self._graph = device, torch.cuda.CUDAGraph()
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)

    def record(self, run: Callable[[], Tensor]) -> Tensor:
        """See `Capture`."""
        side = self._streams[self._device]
        with torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            side.wait_stream(current)
            with torch.cuda.stream(side):
                run()  # libraries prepare themselves in a first pass, which must not be captured
            current.wait_stream(side)
            with (
                torch.cuda.stream(current),  # a capture that fails would leave the thread on the other stream
                torch.cuda.graph(self._graph, stream=side, capture_error_mode="thread_local"),
            ):
                return run()

    def replay(self) -> None:
        """See `Capture`."""
        with torch.cuda.device(self._device):
            self._graph.replay()


CAPTURES: dict[str, Callable[[torch.device], Capture]] = {}
"""By type of device."""
if torch.__version__ >= "2.12":  # older ones are left in disorder by a capture that fails
    CAPTURES["cuda"] = CudaCapture


class _Slots:
    """The cache as captured blocks see it: keys and values go into one slot of each row, and all slots are read."""

    def __init__(self, layers: Sequence["LevelLayer"], slots: Tensor) -> None:
        self._layers, self._slots = layers, slots[:, None, :, None]

    def update(self, keys: Tensor, values: Tensor, block: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        layer, index = self._layers[block], self._slots.expand_as(keys)
        assert layer.keys is not None and layer.values is not None
        return layer.keys.scatter_(2, index, keys), layer.values.scatter_(2, index, values)


class _Run:
    """Blocks that were captured on one token per row."""

    def __init__(self, blocks: nn.ModuleList, layers: Sequence["LevelLayer"], own: range, tokens: Tokens) -> None:
        """`blocks` and `layers` are all of the model and of the cache, `own` those of them that are captured."""
        keys = layers[own.start].keys
        assert keys is not None
        self._keys = keys
        self._hidden_states = torch.empty_like(tokens.hidden_states)
        self._rotary = [torch.empty_like(part) for part in tokens.rotary]
        self._slots = torch.zeros(len(keys), 1, dtype=torch.long, device=keys.device)
        self._weights = [
            (module._parameters, name, parameter, parameter.data_ptr())
            for block in own
            for module in blocks[block].modules()
            for name, parameter in module._parameters.items()
            if parameter is not None
        ]
        self._load(tokens)
        cache = _Slots(layers, self._slots)

        def run() -> Tensor:
            places = torch.arange(keys.shape[2], device=keys.device)
            mask = (places <= self._slots)[:, None, None]  # (B, 1, 1, slots)
            stream = self._hidden_states
            for block in own:
                stream = blocks[block](
                    stream, attention_mask=mask, past_key_values=cache, position_embeddings=tuple(self._rotary)
                )
            return stream

        self._capture = CAPTURES[keys.device.type](keys.device)
        with capturing:
            self._result = self._capture.record(run)

    def fits(self, layer: "LevelLayer", tokens: Tokens) -> bool:
        """Whether it was captured with the buffers and weights in use, for tensors of this shape."""
        return (
            self._keys is layer.keys
            and self._hidden_states.shape == tokens.hidden_states.shape
            and self._hidden_states.dtype == tokens.hidden_states.dtype
            and self._rotary[0].shape == tokens.rotary[0].shape
            and all(held[name] is weight and weight.data_ptr() == at for held, name, weight, at in self._weights)
        )

    def replay(self, tokens: Tokens) -> Tensor:
        """(B, 1, D) stream after the blocks; the next replay overwrites it."""
        self._load(tokens)
        self._capture.replay()
        return self._result

    def _load(self, tokens: Tokens) -> None:
        self._hidden_states.copy_(tokens.hidden_states)
        for own, new in zip(self._rotary, tokens.rotary, strict=True):
            own.copy_(new)
        column = tokens.past.column
        if isinstance(column, int):
            self._slots.fill_(column)
        else:
            self._slots.copy_(column)


_refused: WeakKeyDictionary[nn.ModuleList, str] = WeakKeyDictionary()  # why blocks could not be captured


class Graphs:
    """The captured runs of blocks of one cache.

    Args:
        structure: of the model.
        layers: of the cache, one per block.

    Attributes:
        allowed: whether graphs may be used; set it to False to launch every kernel by itself.
        refusal: why they are not used although they are allowed; empty if they are, or if nothing speaks against them.
        replays: runs of blocks that were launched as one graph.
        captures: graphs that were captured.
    """

    def __init__(self, structure: Structure, layers: Sequence["LevelLayer"]) -> None:
        self.allowed, self.refusal, self.replays, self.captures = True, "", 0, 0
        self._runs, self._layers = structure.runs, layers
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        """A copy of a cache captures for itself: its buffers are others."""
        return self.__dict__ | {"_captured": {}, "_modules": ()}

    def begin(self, tokens: Tokens, blocks: nn.ModuleList, kernel: str, *, observed: bool) -> None:
        """Announce a forward pass, and decide whether graphs are used in it.

        Args:
            tokens: the new tokens of the whole sequence.
            blocks: the blocks of the model.
            kernel: of attention.
            observed: whether anybody wants to know what happens between or inside the blocks.
        """
        self._replayed = range(0)
        device = tokens.hidden_states.device.type
        self._usable = (
            self.allowed
            and not self.refusal
            and device in CAPTURES
            and tokens.hidden_states.shape[1] == 1
            and tokens.past.longest > 0
            and kernel == "sdpa"
            and not observed
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled(device)  # its copies of the weights end with it
            and self._alike(blocks)
        )
        if self._usable and self._eager_passes < _EAGER_PASSES:
            self._eager_passes += 1
            self._usable = False

    def run(self, blocks: nn.ModuleList, block: int, tokens: Tokens) -> Tensor | None:
        """Run a block, and those that follow it on the same tokens.

        Args:
            blocks: the blocks of the model.
            block: number of the block that is to run.
            tokens: (B, 1) the new token of each row.

        Returns:
            (B, 1, D) the stream after all of them, for the first of them; the stream unchanged for the others. None if
            no graph can be used, and the block has to run by itself.
        """
        if not self._usable:
            return None
        if block in self._replayed:
            return tokens.hidden_states
        own = self._runs.get(block)
        if own is None or not self._layers[block].level.max_length:
            return None
        for each in own:
            self._layers[each].reserve(self._layers[block].level.max_length + 1, _ROOM)
        if block not in self._captured or not self._captured[block].fits(self._layers[block], tokens):
            self._captured.pop(block, None)  # its memory first
            try:
                self._captured[block] = _Run(blocks, self._layers, own, tokens)
                self.captures += 1
            except RuntimeError as error:  # such as a block that reads from the device, or too little memory
                _refused[blocks] = self.refusal = first_line(error.__context__ or error)
                self._usable = False
                self._captured.clear()
                logger.warning("CUDA graphs are off for this model: %s", self.refusal)
                return None
        self._replayed = own
        self.replays += 1
        return self._captured[block].replay(tokens)

    def refuse(self, why: str) -> None:
        """Launch every kernel by itself until the cache is emptied."""
        self.refusal = why
        self._captured.clear()

    def reset(self) -> None:
        """Begin anew, with an empty cache."""
        self.refusal = ""
        self._forget()

    def _forget(self) -> None:
        self._captured: dict[int, _Run] = {}
        self._modules: Sequence[dict[str, Any]] = ()
        self._eager_passes, self._usable, self._replayed = 0, False, range(0)

    def _alike(self, blocks: nn.ModuleList) -> bool:
        """Whether the blocks do the same at every token, and nobody looks into them."""
        if not self._modules:
            modules = list(blocks.modules())
            self._modules = [module.__dict__ for module in modules]  # at every token, attributes would take too long
            foreign = {type(each).__name__ for each in modules if not type(each).__module__.startswith(_PLAIN)}
            self.refusal = _refused.get(blocks, "")
            if foreign:
                self.refusal = f"the blocks have modules of another kind ({', '.join(sorted(foreign))})"
        return not self.refusal and not any(
            own["_forward_hooks"] or own["_forward_pre_hooks"] or "_hf_hook" in own for own in self._modules
        )
