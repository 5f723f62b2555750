"""A training run, live or finished: its log, and how its routing of fixed prompts changed from snapshot to snapshot.

Only files are read, and a run that is being written is not disturbed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from subllm import DataError, SubllmConfig
from subllm.configuration import misfits_reported
from subllm.errors import first_line
from subllm.runs.folder import LOG_FILE, SNAPSHOTS, read_about, read_log
from subllm.runs.routing_snapshot import SUFFIX, RoutingSnapshot
from subllm.structure import parse_structure

from ..errors import AnalysisError
from ..trace.parts import Likelihood, Prompt, Provenance, Routing
from ..trace.prefill import block_work
from ..trace.statistics import jaccard
from ..trace.token_classes import KINDS, kinds_of
from ..trace.trace import Trace

_MEASURED = ("weights", "scores", "stream_norm", "difference_norm", "contribution_norm")  # for every token, in float16
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, eq=False)
class Run:
    """What a run's folder says.

    Attributes:
        folder: of the run.
        config: fields of `subllm.train.TrainConfig`, or of a conversion's `AdaptOptions`.
        structure: of the model.
        model: its configuration, as far as the run says it; of a LLaMA, that of the SUBLLM of its size.
        retention_ratios: nominal share kept by each of the S levels.
        routers: name of each level's router.
        parameters: of the model.
        offsets: for each prompt, first and past the last character of each token.
        log: a row per line: step, loss, router_loss (of routers that have one, without its factor), eval_loss,
            learning_rate, grad_norm, tokens, tokens_per_second.
        damaged: number of lines of the log that are left out because they are damaged.
        snapshots: files, in the order of their steps.
    """

    folder: Path
    config: dict[str, Any]
    structure: str
    model: SubllmConfig
    retention_ratios: list[float]
    routers: list[str]
    parameters: int
    offsets: list[list[list[int]]]
    log: pd.DataFrame
    damaged: int
    snapshots: list[Path]

    @property
    def step(self) -> int:
        """Last one in the log."""
        return int(self.log["step"].max()) if len(self.log) else 0


def read_run(folder: Path) -> Run:
    """Open a run's folder, also while the run goes on; damaged lines of its log are left out and counted.

    Args:
        folder: written by `subllm train`, or `training` in that of a conversion.

    Raises:
        AnalysisError: if it is none, or its `run.json` is damaged.
    """
    damaged: list[int] = []
    log = folder / LOG_FILE
    try:
        about = read_about(folder)
        entries = list(read_log(log, lambda number, _: damaged.append(number))) if log.is_file() else []
    except DataError as error:
        raise _damaged(folder, error.values["error"]) from error
    except OSError as error:
        raise AnalysisError(
            "{folder} is not the folder of a training run ({error}); make one with: subllm train",
            folder=folder.name,
            error=error.strerror or type(error).__name__,
        ) from error
    names = ["step", "loss", "router_loss", "eval_loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second"]
    try:
        config, ratios = about["config"], [_number(ratio) for ratio in about["retention_ratios"]]
        structure = parse_structure(about["structure"])
        fields = config.get("model") or about.get("model")  # of a training, of a conversion
        if fields is None and structure.light_heavy:  # whose sizes nothing else says
            raise KeyError("model")
        with misfits_reported():
            model = SubllmConfig.from_dict({"structure": structure.text} | (fields or {}))
        if ratios and model.parsed_structure.text != structure.text:  # a LLaMA has no brackets, whatever it was made of
            raise ValueError(f"its model has the structure {model.parsed_structure.text}, and it {structure.text}")
        prompts = [str(text) for text in config["prompts"]]
        offsets = [[[int(_number(place)) for place in pair] for pair in prompt] for prompt in about["offsets"]]
        # runs that do not say took snapshots only where the scorers decided
        routers = [str(name) for name in about.get("routers", ["subllm"] * len(ratios))]
        if not len(structure.parents) == len(ratios) == len(routers) or len(offsets) != len(prompts):
            raise ValueError("its lists have other lengths than its structure and prompts")
        if any(len(pair) != 2 for prompt in offsets for pair in prompt):
            raise ValueError("offsets are no pairs")
        return Run(
            folder=folder,
            config=config | {"steps": int(_number(config["steps"])), "prompts": prompts},
            structure=structure.text,
            model=model,
            retention_ratios=ratios,
            routers=routers,
            parameters=int(_number(about["parameters"])),
            offsets=offsets,
            log=pd.DataFrame.from_records(entries, columns=names).astype(float),
            damaged=len(damaged),
            snapshots=sorted((folder / SNAPSHOTS).glob(f"step-*{SUFFIX}")),
        )
    except KeyError as error:
        raise _damaged(folder, f"{error.args[0]} is missing") from error
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise _damaged(folder, first_line(error)) from error


def _number(value: object) -> float:
    """A finite number.

    Raises:
        ValueError: if it is none, such as a number that is written as text.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{str(value)[:40]!r} is no number")
    return value


def _damaged(folder: Path, error: object) -> AnalysisError:
    return AnalysisError(
        "The file run.json of the run {folder} is damaged ({error}). Give the run's command again, which mends it, or "
        "choose another run.",
        folder=folder.name,
        error=error,
    )


def load_snapshots(run: Run) -> list[RoutingSnapshot]:
    """All snapshots of a run.

    Args:
        run: with at least one.

    Raises:
        AnalysisError: if one cannot be read, or they are not of the run's prompts.
    """
    try:
        found = [RoutingSnapshot.load(path) for path in run.snapshots]
    except DataError as error:
        raise AnalysisError("{error}", error=error) from error
    lengths = [len(offsets) for offsets in run.offsets]
    for snapshot in found:
        if np.diff(snapshot.first).tolist() != lengths or len(snapshot.scores) != len(run.retention_ratios):
            raise AnalysisError(
                "The snapshot of step {step:,} in {folder} has other prompts or levels than the run.",
                step=snapshot.step,
                folder=run.folder.name,
            )
    return found


def snapshot_trace(run: Run, snapshot: RoutingSnapshot, prompt: int) -> Trace:
    """One prompt at one step of training, as a trace of what a snapshot records: routing and likelihood.

    Args:
        run: that the snapshot is of.
        snapshot: of the run.
        prompt: number of the prompt.
    """
    own = slice(int(snapshot.first[prompt]), int(snapshot.first[prompt + 1]))
    text, offsets = run.config["prompts"][prompt], np.asarray(run.offsets[prompt], dtype=np.int64).reshape(-1, 2)
    structure = parse_structure(run.structure)
    per_token = {name: getattr(snapshot, name)[:, own] for name in ("reached", "kept", *_MEASURED)}
    per_token |= {name: per_token[name].astype(np.float32) for name in _MEASURED}
    return Trace(
        prompt=Prompt(
            text=text,
            token_ids=snapshot.token_ids[own],
            starts=offsets[:, 0],
            ends=offsets[:, 1],
            pieces=np.asarray(_pieces(run, prompt), dtype=np.str_),
        ),
        routing=Routing(
            routers=np.asarray(run.routers, dtype=np.str_),
            parents=np.asarray(structure.parents, dtype=np.int64),
            retention_ratios=np.asarray(run.retention_ratios, dtype=np.float64),
            block_levels=np.asarray(structure.block_levels, dtype=np.int64),
            bypass_scale=snapshot.bypass_scale.astype(np.float32),
            thresholds=snapshot.thresholds,
            strides=snapshot.strides,
            site_kinds=np.asarray(structure.site_kinds, dtype=np.str_),
            site_blocks=np.asarray(structure.site_blocks, dtype=np.int64),
            work=block_work(run.model, per_token["reached"], per_token["kept"]),
            edited=np.zeros_like(per_token["kept"]),
            **per_token,
        ),
        likelihood=Likelihood(snapshot.surprisal[own].astype(np.float32)),
        provenance=Provenance(
            checkpoint=f"{run.folder.name}, step {snapshot.step:,}",
            digest="",
            structure=run.structure,
            device="",
            dtype="",
            attention="",
            dense="",
            versions="",
            predictor=run.model.predictor,
        ),
    )


@dataclass(frozen=True, eq=False)
class RoutingHistory:
    """How routing changed over K snapshots of S levels.

    Attributes:
        steps: (K,).
        retention: (K, S) share kept of the tokens that reached the level's router.
        scores: (K, S, Q) quantiles of the importance score, at `QUANTILES`; NaN where the router does not score.
        thresholds: (K, S) that scores were compared with; NaN where the router does not score.
        scales: (K, S, Q) quantiles of the bypass scale over channels.
        to_last: (K, S) Jaccard index of the kept set with the last snapshot's.
        by_kind: (K, S, C) share kept of the tokens of each of `KINDS` that reached the level; NaN where none did.
        work: (K,) share of the dense model's work that was done, mean over blocks and tokens.
    """

    steps: np.ndarray
    retention: np.ndarray
    scores: np.ndarray
    thresholds: np.ndarray
    scales: np.ndarray
    to_last: np.ndarray
    by_kind: np.ndarray
    work: np.ndarray


def routing_history(run: Run, snapshots: Sequence[RoutingSnapshot]) -> RoutingHistory:
    """What the snapshots of a run have in common and what changed.

    Args:
        run: that they are of.
        snapshots: in the order of their steps, at least one.
    """
    kept = np.stack([snapshot.kept for snapshot in snapshots])  # (K, S, N)
    scores = np.stack([snapshot.scores.astype(np.float32) for snapshot in snapshots])
    reached = np.stack([snapshot.reached for snapshot in snapshots])  # (K, S, N)
    scales = np.stack([snapshot.bypass_scale.astype(np.float32) for snapshot in snapshots])
    kinds = np.asarray([kind for number in range(len(run.offsets)) for kind in kinds_of(_pieces(run, number))])
    by_kind = [_share(kept[:, :, kinds == kind], reached[:, :, kinds == kind]) for kind in KINDS]
    return RoutingHistory(
        steps=np.asarray([snapshot.step for snapshot in snapshots]),
        retention=_share(kept, reached),
        scores=np.stack([[_quantiles(row) for row in snapshot] for snapshot in scores]),
        thresholds=np.stack([snapshot.thresholds for snapshot in snapshots]),
        scales=np.stack([[_quantiles(row) for row in snapshot] for snapshot in scales]),
        to_last=jaccard(kept, kept[-1:]),
        by_kind=np.stack(by_kind, axis=2),
        work=np.asarray([block_work(run.model, each.reached, each.kept).mean(dtype=np.float64) for each in snapshots]),
    )


def _share(kept: np.ndarray, reached: np.ndarray) -> np.ndarray:
    """(K, S) share kept of the tokens that reached each level, from decisions (K, S, N); NaN where none did."""
    count = reached.sum(2)
    share: np.ndarray = np.where(count, kept.sum(2) / np.maximum(count, 1), np.nan)
    return share


def _pieces(run: Run, prompt: int) -> list[str]:
    text = run.config["prompts"][prompt]
    return [text[start:end] for start, end in run.offsets[prompt]]


def _quantiles(values: np.ndarray) -> np.ndarray:
    known = values[~np.isnan(values)]
    return np.quantile(known, QUANTILES) if len(known) else np.full(len(QUANTILES), np.nan)
