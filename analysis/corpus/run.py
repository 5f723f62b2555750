"""A run over a corpus: plan, workers, `corpus.json`, and the second pass. It continues where a killed one ended."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from hashlib import sha256
from pathlib import Path

import pyarrow.parquet as pq
import torch
from filelock import FileLock, Timeout
from transformers import PreTrainedTokenizerBase

from subllm.atomic import full_disk_reported, remove_partials
from subllm.checkpoints.config import read_config
from subllm.checkpoints.device import chosen_device, dtype_name, usable_devices
from subllm.checkpoints.files import CONFIG
from subllm.checkpoints.load import Checkpoint
from subllm.checkpoints.tokenizer import load_tokenizer
from subllm.checkpoints.weights import digest, weight_files

from ..errors import CorpusError, RunStopped
from ..guard import Progress, silent
from .meter import Meter, Stopped
from .plan import PLAN, Identity, Plan, make_plan
from .pool import run_pool
from .ray_engine import run_ray
from .schema import DOCUMENTS, INPUT, MOST_SKIPPED, RUN, TEXTS, TOKENS, CorpusRun, Options, Shard, name_of, sha256_of
from .summary import Summary
from .worker import DONE, FACTS, Done, Facts, Worker, done_path

_LOCK = ".lock"


class Engine(StrEnum):
    """What runs the workers."""

    HERE = "here"  # this process, with a checkpoint that is loaded
    LOCAL = "local"  # processes on this machine
    RAY = "ray"  # a Ray cluster


@dataclass(frozen=True)
class _Target:
    """The checkpoint that is to read, loaded or not."""

    folder: Path
    digest: str
    tokenizer: PreTrainedTokenizerBase
    most: int
    loaded: Checkpoint | None


def options_for(device: str | None = None, dtype: str | None = None) -> Options:
    """Options that suit a device: short rows on a CPU, several long ones on a GPU.

    Args:
        device: such as "cpu" or "cuda:0"; the best one by default.
        dtype: of the computation; the device's best by default.

    Raises:
        CheckpointError: if there is no such dtype.
        DeviceError: if there is no such device.
    """
    device, dtype = chosen_device(device, dtype)
    kind = torch.device(device).type
    on_cpu = kind == "cpu"
    return Options(device=kind, dtype=dtype, rows=1 if on_cpu else 8, row_tokens=512 if on_cpu else 2048)


def run_corpus(
    sources: Sequence[Path | str],
    out: Path,
    checkpoint: Checkpoint | Path,
    options: Options | None = None,
    *,
    engine: Engine | str = Engine.LOCAL,
    workers: int = 0,
    device: str = "",
    ray_address: str = "",
    name: str = "",
    progress: Progress = silent,
) -> CorpusRun:
    """Read documents with a checkpoint, write what became of every token, and measure it.

    A folder that holds the same run, not finished, is continued; one that holds it finished is left as it is, and its
    texts are not read again. What
    `progress` raises stops the run: after `RunStopped` and an interrupt, `corpus.json` lists the shards that are
    complete, is summarised, and is returned with `complete` False. The same call continues.

    Args:
        sources: what `subllm.text.sources.read_pieces` reads.
        out: folder of the results.
        checkpoint: folder of the checkpoint; or a loaded one, which then reads in this process.
        options: what decides the bytes; those of `options_for` by default. A window of the default length is shortened
            to what the checkpoint takes.
        engine: what runs the workers.
        workers: how many; by default one for each device or core.
        device: of all workers on this machine, such as "cuda:1"; by default all devices of the options' kind in turn.
        ray_address: of a Ray cluster; empty for one on this machine.
        name: display name of the checkpoint.
        progress: receives the progress, in the stages "documents", "corpus" and "summary".

    Raises:
        CheckpointError: if the checkpoint is broken.
        CorpusError: if there is no document, or the folder holds something else.
        DataError: if the documents cannot be read.
        DiskFullError: if the disk is full; what was read is kept.
        RunStopped: if the run is stopped before a shard is complete, or memory runs out.
    """
    loaded = checkpoint if isinstance(checkpoint, Checkpoint) else None
    engine = Engine.HERE if loaded is not None else Engine(engine)
    target = _target(checkpoint)
    if options is None:
        options = options_for()
    if loaded is not None:
        options = replace(
            options,
            device=loaded.model.device.type,
            dtype=dtype_name(loaded.model),
            threads=torch.get_num_threads(),
        )
    if options.window == Options.window:
        options = replace(options, window=min(options.window, target.most))
    _check(options, target.most)
    identity = Identity(target.digest, _vocabulary_digest(target.tokenizer), [str(each) for each in sources], options)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / _LOCK, timeout=0), full_disk_reported(out, lambda: "the shards that are complete are kept"):
            devices = _devices(options, workers, device)
            return _run(identity, out, target, engine, devices, ray_address, name, progress)
    except Timeout as error:
        raise CorpusError(
            "Another run writes to {folder} at this moment; wait for it, or choose another folder.", folder=str(out)
        ) from error


def _run(
    identity: Identity,
    out: Path,
    target: _Target,
    engine: Engine,
    devices: list[str],
    ray_address: str,
    name: str,
    progress: Progress,
) -> CorpusRun:
    finished = _finished(identity, out)
    plan = Plan.read(out)
    if finished is not None:
        if all(_is_whole(out, shard) for shard in finished.shards):
            _clear(out)
            if not _is_summarised(out):
                _summarise(out, progress)
            return finished
        plan = make_plan(identity, out, target.tokenizer, progress)
        _keep_whole(finished, plan, out)
    elif plan is None:
        _check_empty(out)
        plan = make_plan(identity, out, target.tokenizer, progress)
    else:
        plan.check(identity, out)
    done = {number: found for number in range(len(plan.shards)) if (found := _read_done(out, number)) is not None}
    waiting = [number for number in range(len(plan.shards)) if number not in done]
    meter = Meter(plan, done, progress)
    stopped = False
    try:
        for number in _engine(engine, waiting, devices, identity.options, out, target, ray_address, name, meter):
            found = _read_done(out, number)
            if found is None:
                raise CorpusError(
                    "Shard {number} was written but cannot be found in {folder}. With several machines the folder must "
                    "be on a disk that all of them share.",
                    number=number,
                    folder=str(out),
                )
            done[number] = found
            meter.completed(number)
    except (Stopped, KeyboardInterrupt):
        stopped = True
    if not any(each.shard.tokens for each in done.values()):
        if stopped:
            raise RunStopped(
                "The run was stopped before its first shard was complete; the same command begins it anew."
            )
        first = [entry for each in done.values() for entry in each.skipped][:1]
        raise CorpusError(
            "No document could be read ({first}).",
            first="; ".join(f"{entry.name}: {entry.reason}" for entry in first),
        )
    used = 1 if engine is Engine.HERE else len(devices)
    run = _collected(plan, done, Facts.read(out), used, engine, complete=not stopped)
    run.write(out)
    _summarise(out, progress)
    if run.complete:
        _clear(out)
    return run


def _engine(
    engine: Engine,
    waiting: list[int],
    devices: list[str],
    options: Options,
    out: Path,
    target: _Target,
    ray_address: str,
    name: str,
    meter: Meter,
) -> Iterator[int]:
    """Numbers of shards as they are completed."""
    if not waiting:
        return
    name = name or target.folder.name
    if engine is Engine.HERE:
        assert target.loaded is not None
        worker = Worker(target.loaded, options)
        worker.facts(name).write(out)
        for number in waiting:
            worker.read_shard(out, number, meter.told)
            yield number
    elif engine is Engine.LOCAL:
        yield from run_pool(
            waiting, devices, checkpoint=target.folder, folder=out, options=options, name=name, told=meter.told
        )
    else:
        yield from run_ray(
            waiting,
            len(devices),
            checkpoint=target.folder,
            folder=out,
            options=options,
            name=name,
            told=meter.told,
            address=ray_address,
        )


def _target(checkpoint: Checkpoint | Path) -> _Target:
    """The checkpoint that is named; its weights are hashed and not loaded."""
    if isinstance(checkpoint, Checkpoint):
        most = checkpoint.model.config.max_position_embeddings
        return _Target(checkpoint.folder, checkpoint.digest, checkpoint.tokenizer, most, checkpoint)
    config = read_config(checkpoint)
    files = weight_files(checkpoint)
    tokenizer = load_tokenizer(checkpoint, config)
    return _Target(
        checkpoint, digest([checkpoint / CONFIG, *files]), tokenizer, config.max_position_embeddings, None
    )  # fmt: skip


def _vocabulary_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    return sha256(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode()).hexdigest()


def _check(options: Options, most: int) -> None:
    """Check numbers that a user gives."""
    if not 16 <= options.window <= most:
        raise CorpusError(
            "A window of {window:,} tokens cannot be read; this checkpoint takes 16 to {most:,}.",
            window=options.window,
            most=most,
        )
    for name in ("rows", "row_tokens", "shard_characters", "threads"):
        if getattr(options, name) < 1:
            raise CorpusError("{name} is {value}; it must be at least 1.", name=name, value=getattr(options, name))
    if options.tokens is not None and options.tokens < 1:
        raise CorpusError("A limit of {tokens} tokens leaves nothing to read; give 1 or more.", tokens=options.tokens)


def _devices(options: Options, workers: int, device: str) -> list[str]:
    """Device of each worker."""
    if workers < 0:
        raise CorpusError("There cannot be {workers} workers; give 1 or more, or 0 for all devices.", workers=workers)
    if options.device == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return ["cpu"] * (workers or max(cores // options.threads, 1))
    found = [device] if device else [each for each in usable_devices() if torch.device(each).type == options.device]
    if not found:  # those of a cluster may be elsewhere
        return [options.device] * max(workers, 1)
    return [found[number % len(found)] for number in range(workers or len(found))]


def _finished(identity: Identity, out: Path) -> CorpusRun | None:
    """The run that a folder holds, if it is finished and the one that is asked for."""
    if not (out / RUN).is_file():
        return None
    run = CorpusRun.read(out)
    if not run.complete:
        return None
    if Identity(run.digest, run.tokenizer, run.sources, run.options) != identity:
        raise CorpusError(
            "{folder} holds a finished run of {checkpoint} over {sources} with other options, text or weights; choose "
            "another folder, or remove it.",
            folder=str(out),
            checkpoint=run.checkpoint,
            sources=", ".join(run.sources[:3]),
        )
    return run


def _keep_whole(run: CorpusRun, plan: Plan, out: Path) -> None:
    """Note which shards of a finished run are whole, after some were damaged; the others are read again.

    Raises:
        CorpusError: if the texts have changed since then, so that old and new shards would not fit together.
    """
    whole = [shard for shard in run.shards if _is_whole(out, shard)]
    if len(plan.shards) != len(run.shards) or not all(_has_texts(out, shard) for shard in whole):
        raise CorpusError(
            "Shards of {folder} are damaged, and the texts have changed since they were read. Run the command again "
            "with another folder.",
            folder=str(out),
        )
    for shard in whole:
        own = [entry for entry in run.skipped_documents if entry.shard == shard.number]
        Done(shard, own, shard.seconds).write(out)


def _has_texts(out: Path, shard: Shard) -> bool:
    """Whether the documents of a shard are those of the plan."""
    rows = pq.read_table(out / name_of(INPUT, shard.number), columns=["document", "text"]).to_pylist()
    planned = {row["document"]: sha256(row["text"].encode()).hexdigest() for row in rows}
    read = pq.read_table(out / name_of(DOCUMENTS, shard.number), columns=["document", "digest"]).to_pylist()
    return all(planned.get(row["document"]) == row["digest"] for row in read)


def _is_whole(out: Path, shard: Shard) -> bool:
    """Whether the files of a shard are what was written."""
    try:
        return all(sha256_of(out / name) == digest for name, digest in shard.files.items())
    except OSError:
        return False


def _check_empty(out: Path) -> None:
    """Check that a folder where a run begins holds nothing of anybody else."""
    other = sorted(path.name for path in out.iterdir() if path.name not in (_LOCK, INPUT, f".{PLAN}.partial"))
    if other:
        raise CorpusError(
            "{folder} holds other files ({names}); choose an empty folder.",
            folder=str(out),
            names=", ".join(other[:3]),
        )


def _read_done(out: Path, number: int) -> Done | None:
    """A shard that is complete; None if it is not, or one of its files is not what was written."""
    try:
        done = Done.from_json(json.loads(done_path(out, number).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return done if _is_whole(out, done.shard) else None


def _collected(
    plan: Plan, done: dict[int, Done], facts: Facts, workers: int, engine: Engine, *, complete: bool
) -> CorpusRun:
    """What `corpus.json` says."""
    each = [done[number] for number in sorted(done)]
    late = [replace(entry, shard=one.shard.number) for one in each for entry in one.skipped]
    shards = [
        replace(one.shard, skipped=max(one.shard.skipped, len(one.skipped)), seconds=one.seconds) for one in each
    ]  # of a shard that was whole in a finished run, only the documents that are named there are known by name
    return CorpusRun(
        **vars(facts),
        digest=plan.identity.checkpoint,
        tokenizer=plan.identity.tokenizer,
        sources=plan.identity.sources,
        options=plan.identity.options,
        complete=complete,
        skipped=plan.skipped + sum(shard.skipped for shard in shards),
        skipped_documents=(plan.skipped_documents + late)[:MOST_SKIPPED],
        shards=shards,
        seconds=sum(shard.seconds for shard in shards),
        workers=workers,
        engine=str(engine),
    )


def _is_summarised(out: Path) -> bool:
    """Whether a result has a summary, of all of it, that can be read."""
    try:
        Summary.read(out)
    except CorpusError:
        return False
    return True


def _summarise(out: Path, progress: Progress) -> None:
    """The second pass."""
    from .aggregate import aggregate  # noqa: PLC0415

    aggregate(out, progress)


def _clear(out: Path) -> None:
    """Remove what a finished run needs no more."""
    (out / PLAN).unlink(missing_ok=True)
    for folder in (INPUT, DONE):
        shutil.rmtree(out / folder, ignore_errors=True)
    (out / FACTS).unlink(missing_ok=True)
    for folder in (".", TOKENS, DOCUMENTS, TEXTS):
        remove_partials(out / folder)  # of workers that were killed
