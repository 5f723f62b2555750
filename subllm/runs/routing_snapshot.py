"""Records of a model's routing on fixed prompts, made while it is trained."""

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from ..atomic import written_whole
from ..errors import DataError
from ..routing import routing_arrays
from ..routing.bypass import bypass_scales
from ..routing.record import first_format

SUFFIX = ".npz"
_UNREADABLE = (OSError, EOFError, zipfile.BadZipFile, zlib.error)
_PER_TOKEN = ("reached", "kept", "weights", "scores", "stream_norm", "difference_norm", "contribution_norm")
_KINDS = {"first": "iu", "token_ids": "iu", "strides": "iu", "reached": "b", "kept": "b"}  # of numbers; others: floats


@dataclass(frozen=True, eq=False)
class RoutingSnapshot:
    """The routing of P prompts by the inference rule. Letters: N tokens of all prompts, S levels, D width.

    Attributes:
        step: step of the training.
        first: (P + 1,) index of each prompt's first token; the last entry is N.
        token_ids: (N,) token ids.
        reached: (S, N) True where the token reached the level's router.
        kept: (S, N) True where the level's blocks process the token.
        weights: (S, N) weights as used; 0 where nothing was added.
        scores: (S, N) importance; NaN where the token did not reach the router, or the router does not score.
        thresholds: (S,) thresholds of the scores; NaN where there is none.
        stream_norm: (S, N) L2 norm of the stream before the level; NaN where the token did not reach the router.
        difference_norm: (S, N) L2 norm of the change by the level's blocks.
        contribution_norm: (S, N) L2 norm of what was added to the stream.
        surprisal: (N,) nats, -log p(token given those before); NaN at the first of each prompt.
        bypass_scale: (S, D) bypass scales β; NaN where a level has no bypass.
        strides: (S,) number of tokens that each level's router merges into one; 1 where it does not merge.
    """

    step: int
    first: np.ndarray
    token_ids: np.ndarray
    reached: np.ndarray
    kept: np.ndarray
    weights: np.ndarray
    scores: np.ndarray
    thresholds: np.ndarray
    stream_norm: np.ndarray
    difference_norm: np.ndarray
    contribution_norm: np.ndarray
    surprisal: np.ndarray
    bypass_scale: np.ndarray
    strides: np.ndarray

    @classmethod
    @torch.no_grad()
    def take(cls, model: PreTrainedModel, prompts: Sequence[Sequence[int]], step: int) -> "RoutingSnapshot":
        """Run prompts, given as token ids, through a SUBLLM; the model stays in its training or evaluation mode."""
        training = model.training
        model.eval()
        found: list[dict[str, np.ndarray]] = []
        for prompt in prompts:
            ids = torch.tensor([list(prompt)], device=model.device)
            output = model(ids, use_cache=False, output_routing=True)
            arrays = routing_arrays(output.routing, ids.shape[1])
            del arrays["edited"]  # there are no edits in training
            logs = output.logits[0, :-1].float().log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            arrays["surprisal"] = np.concatenate([[np.nan], -logs.cpu().numpy()])
            found.append(arrays)
        model.train(training)
        thresholds = found[0]["thresholds"]  # the same for every prompt
        joined = {
            name: np.concatenate([arrays[name] for arrays in found], axis=-1)
            for name in found[0]
            if name != "thresholds"
        }
        small = {name: array if array.dtype == bool else array.astype(np.float16) for name, array in joined.items()}
        return cls(
            step=step,
            first=np.cumsum([0, *map(len, prompts)]),
            token_ids=np.concatenate([np.asarray(prompt) for prompt in prompts]),
            thresholds=thresholds,
            bypass_scale=bypass_scales(model.model.level_bypasses, model.config.hidden_size).astype(np.float16),
            strides=np.asarray(model.config.strides, dtype=np.int64),
            **small,
        )

    def save(self, folder: Path) -> Path:
        """Write the snapshot, in one piece, to a file named after its step, and return the path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"step-{self.step:08d}{SUFFIX}"
        with written_whole(path) as partial, partial.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **{f.name: getattr(self, f.name) for f in fields(self)})
        return path

    @classmethod
    def load(cls, path: Path) -> "RoutingSnapshot":
        """Read what `save` wrote, without unpickling anything.

        Raises:
            DataError: if the file is not a snapshot.
        """
        try:
            if not path.is_file():  # a pipe would be waited for
                raise ValueError("it is not a regular file")
            with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
                arrays = dict(content)
            if "reached" not in arrays:
                arrays |= first_format(arrays["scores"].astype(np.float32), arrays["kept"])
            levels = len(arrays["kept"])
            if "strides" not in arrays:
                arrays["strides"] = np.ones(levels, dtype=np.int64)
            if not len(arrays["bypass_scale"]):  # of light/heavy blocks, as it was written at first
                width = arrays["bypass_scale"].shape[1]
                arrays["bypass_scale"] = np.full((levels, width), np.nan, dtype=np.float16)
            found = cls(**(arrays | {"step": int(arrays["step"])}))
            found._check()
        except (*_UNREADABLE, LookupError, TypeError, ValueError, AttributeError) as error:
            raise DataError("{path} is not a routing snapshot: {error}", path=path, error=error) from error
        return found

    def _check(self) -> None:
        tokens, levels = (len(self.token_ids),), (len(self.kept),)
        shapes: dict[str, tuple[int, ...]] = {
            "token_ids": tokens,
            "surprisal": tokens,
            "thresholds": levels,
            "strides": levels,
        }
        shapes |= {"first": self.first.shape[:1], "bypass_scale": levels + self.bypass_scale.shape[1:2]}
        for name, shape in (shapes | dict.fromkeys(_PER_TOKEN, levels + tokens)).items():
            array = getattr(self, name)
            if array.shape != shape or array.dtype.kind not in _KINDS.get(name, "f"):
                raise ValueError(f"{name} has the shape {array.shape} and the type {array.dtype}; {shape} is expected")
