"""The same workers on a Ray cluster, as actors of Ray Data. Ray is imported here, and nowhere else.

Every machine of the cluster reads the checkpoint and writes the results under the same paths, on a shared disk.
"""

import json
import logging
import math
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from subllm.errors import first_line

from ..errors import CorpusError
from .child import error_entry
from .pool import Told, raise_entry
from .schema import Options
from .worker import FACTS, Worker

_WAIT = 0.5  # seconds between two reports
_STORE = 200_000_000  # bytes of Ray's own storage on this machine, through which only numbers of shards pass


class _Actor:
    """A worker as Ray Data calls it: batches of one shard in, one line of JSON out.

    The task comes with every shard, and not as an argument of the constructor, which is lost when a cluster loses the
    machine that holds it; an actor on another one could then not take over.
    """

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        number, task = int(batch["shard"][0]), json.loads(batch["task"][0])
        folder = Path(task["folder"])
        try:
            if self._worker is None:
                self._worker = Worker.load(Path(task["checkpoint"]), task["device"], Options(**task["options"]))
                if not (folder / FACTS).is_file():
                    self._worker.facts(task["name"]).write(folder)
            self._worker.read_shard(folder, number, lambda tokens: None)
            entry: dict[str, Any] = {"done": number}
        except Exception as error:
            entry = error_entry(error)
        return {"entry": [json.dumps(entry)]}


def run_ray(
    shards: Sequence[int],
    workers: int,
    *,
    checkpoint: Path,
    folder: Path,
    options: Options,
    name: str,
    told: Told,
    address: str = "",
) -> Iterator[int]:
    """Let the actors of a Ray cluster read shards, as `analysis.corpus.pool.run_pool` lets processes.

    Args:
        shards: numbers of the shards.
        workers: number of actors; each takes a GPU, or a part of one if there are fewer GPUs; or as many CPUs as it
            has threads.
        checkpoint: folder of the checkpoint, the same on every machine.
        folder: of the results, the same on every machine.
        options: of the run.
        name: display name of the checkpoint.
        told: receives the progress, after every shard.
        address: of the cluster, such as "auto" or "10.0.0.1:6379"; empty for one on this machine, for this run.

    Yields:
        Numbers of shards that are complete.

    Raises:
        CorpusError: if there is no cluster at the address, or a worker finds a fault that it cannot go on with.
        DiskFullError: if the disk is full.
        ModuleNotFoundError: if Ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray  # noqa: PLC0415 - an extra
    import ray.data  # noqa: PLC0415

    on_gpu = options.device != "cpu"
    mine = not ray.is_initialized()
    if mine:
        begin: Any = partial(ray.init, log_to_driver=False, logging_level=logging.ERROR)
        try:
            if address:
                begin(address=address)
            else:
                cpus = max(workers * options.threads, 1) + 1  # one for Ray Data itself
                begin(num_cpus=cpus, include_dashboard=False, object_store_memory=_STORE)
        except ConnectionError as error:
            raise CorpusError(
                "There is no Ray cluster at {address} ({error}). Start one with: ray start --head",
                address=address or "this machine",
                error=first_line(error),
            ) from error
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        task = {
            "checkpoint": str(checkpoint.absolute()),
            "folder": str(folder.absolute()),
            "options": asdict(options),
            "name": name,
            "device": options.device,
        }
        rows = [{"shard": number, "task": json.dumps(task)} for number in shards]
        found = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _Actor,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(shards)), max_tasks_in_flight_per_actor=1),
            num_cpus=None if on_gpu else options.threads,
            num_gpus=_share_of_gpu(ray.cluster_resources().get("GPU", 0), workers) if on_gpu else None,
        )
        for entry in _followed(lambda: (json.loads(row["entry"]) for row in found.iter_rows()), told):
            raise_entry(entry)
            yield entry["done"]
    finally:
        if mine:
            ray.shutdown()


def _share_of_gpu(gpus: float, workers: int) -> float:
    """GPUs that each actor takes: one, or a part of one where there are more actors.

    Raises:
        CorpusError: if the cluster has none.
    """
    if gpus < 1:
        raise CorpusError("The Ray cluster has no GPU; add --device cpu, or machines with GPUs.")
    return 1.0 if workers <= gpus else 1 / math.ceil(workers / gpus)


def _followed(rows: Callable[[], Iterator[dict[str, Any]]], told: Told) -> Iterator[dict[str, Any]]:
    """Rows as they come, from a thread that waits for them, so that a run can be stopped in the middle of a shard."""
    arrived: queue.Queue[dict[str, Any] | BaseException | None] = queue.Queue()

    def wait() -> None:
        try:
            for row in rows():
                arrived.put(row)
            arrived.put(None)
        except BaseException as error:
            arrived.put(error)

    threading.Thread(target=wait, daemon=True).start()
    while True:
        told(0)
        try:
            found = arrived.get(timeout=_WAIT)
        except queue.Empty:
            continue
        if found is None:
            return
        if isinstance(found, BaseException):
            raise found
        yield found
