"""The progress of a run over a corpus: its rate, and the time that remains."""

import time

from ..errors import RunStopped
from ..guard import Progress
from .plan import Plan
from .worker import Done


class Stopped(Exception):  # noqa: N818 - it is no fault
    """What receives the progress wants the run to stop; a worker that ran out of memory is something else."""


class Meter:
    """Turns what workers say into a progress with a rate and the time that remains.

    Args:
        plan: of the run.
        done: complete shards by number; the run adds to it.
        progress: receives the progress, in the stage "corpus".
    """

    def __init__(self, plan: Plan, done: dict[int, Done], progress: Progress) -> None:
        self._plan, self._done, self._progress = plan, done, progress
        self._total = sum(plan.shards)
        self._began = time.monotonic()
        self._read = 0  # tokens in this run
        self._partial = 0  # of them, those of shards that are not complete
        self._resumed = sum(plan.shards[number] for number in done)  # characters

    def told(self, tokens: int) -> None:
        """Receive tokens that were read.

        Args:
            tokens: number of them.

        Raises:
            Stopped: if what receives the progress stops the run.
        """
        self._read += tokens
        self._partial += tokens
        self._report()

    def completed(self, number: int) -> None:
        """Receive a complete shard, which is among the done ones already; raises as `told` does.

        Args:
            number: of the shard.
        """
        tokens = self._done[number].shard.tokens
        if self._partial >= tokens:
            self._partial -= tokens
        else:  # an engine that tells of shards only
            self._read += tokens - self._partial
            self._partial = 0
        self._report()

    def _report(self) -> None:
        tokens = sum(each.shard.tokens for each in self._done.values())
        characters = sum(self._plan.shards[number] for number in self._done)
        per_token = characters / tokens if tokens else 4.0
        at = min(characters + self._partial * per_token, self._total)
        seconds = time.monotonic() - self._began
        left = seconds * (self._total - at) / (at - self._resumed) if at > self._resumed else float("nan")
        try:
            self._progress(
                at / self._total,
                "corpus",
                tokens=f"{tokens + self._partial:,}",
                rate=f"{self._read / max(seconds, 1e-9):,.0f}",
                left="?" if left != left else _duration(left),
                done=len(self._done),
                shards=len(self._plan.shards),
            )
        except RunStopped as error:
            raise Stopped from error


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
