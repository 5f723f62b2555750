"""Devices as rows of a table, and how long work takes on them by the roofline model.

Every module of a model needs operations, and bytes moved between memory and processor; it takes as long as the slower
of the two at the device's peak rates (Williams, Waterman and Patterson, 2009). Real kernels stay below the peaks, so
times are lower bounds; ratios of two models on the same device are what predictions are for.

Before a kernel can run, the host has to launch it. It launches ahead while the device works, so of a run of modules
without a wait the longer of the two counts: all of the launching, or all of the work. Where the host waits for the
device (at every "(", to learn how many tokens were kept) it cannot launch ahead, and a new run begins. What a wait
itself takes is left out. A CPU launches and works in turn, and takes up to the sum of the two.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subllm.assets import ASSETS

from ..errors import AnalysisError
from .sizes import BYTES

HARDWARE = ASSETS / "hardware.json"
_LAUNCH = "launch_microseconds"


@dataclass(frozen=True)
class Work:
    """What one module does in one pass.

    Attributes:
        module: "projections", "attention", "mlp", "norms", "routing" or "head".
        block: number of the block, or None.
        operations: multiplications and additions of matrix products.
        bytes: read and written.
        launches: kernels.
        run: number of the run that it belongs to; between two runs the host waits for the device.
    """

    module: str
    block: int | None
    operations: float
    bytes: float
    launches: float = 0
    run: int = 0


@dataclass(frozen=True)
class Hardware:
    """Peak rates of a device.

    Attributes:
        name: of the device.
        operations: per second, by dtype.
        bandwidth: of its memory, bytes per second.
        memory: bytes.
        source: where the numbers are from.
        launch_seconds: time in which eager PyTorch launches one kernel; it depends on the host rather than the device.
            0 leaves launching out.
    """

    name: str
    operations: dict[str, float]
    bandwidth: float
    memory: float
    source: str
    launch_seconds: float = 0

    @classmethod
    def parse(cls, entry: Any) -> "Hardware":
        """A row of the hardware table.

        Args:
            entry: with `name`, `teraflops` by dtype, `gigabytes_per_second`, `gigabytes`, `source`; and, if launching
                is to count, `launch_microseconds`.

        Raises:
            AnalysisError: if a field is missing, unknown or not positive (`launch_microseconds`: negative).
        """
        wanted = {"name", "teraflops", "gigabytes_per_second", "gigabytes", "source"}
        name = entry.get("name", entry) if isinstance(entry, dict) else entry
        if not isinstance(entry, dict) or set(entry) - {_LAUNCH} != wanted:
            found = sorted(entry) if isinstance(entry, dict) else type(entry).__name__
            raise AnalysisError(
                "Hardware {name!r} has {found}; a row needs exactly {wanted}, and may have {optional!r}.",
                name=name,
                found=found,
                wanted=sorted(wanted),
                optional=_LAUNCH,
            )
        rates = entry["teraflops"]
        if not isinstance(rates, dict) or not rates or set(rates) - set(BYTES):
            raise AnalysisError(
                "Hardware {name!r} has teraflops {rates!r}; allowed are rates for {dtypes}.",
                name=name,
                rates=rates,
                dtypes=sorted(BYTES),
            )
        numbers = {**rates, **{key: entry[key] for key in ("gigabytes_per_second", "gigabytes")}}
        for key, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise AnalysisError(
                    "Hardware {name!r} has {key} {value!r}; it must be a positive number.",
                    name=name,
                    key=key,
                    value=value,
                )
        launch = entry.get(_LAUNCH, 0)
        if isinstance(launch, bool) or not isinstance(launch, int | float) or not 0 <= launch < float("inf"):
            raise AnalysisError(
                "Hardware {name!r} has {key} {value!r}; it must be a positive number, or 0 to leave launching out.",
                name=name,
                key=_LAUNCH,
                value=launch,
            )
        return cls(
            str(name),
            {dtype: 1e12 * rate for dtype, rate in rates.items()},
            1e9 * entry["gigabytes_per_second"],
            1e9 * entry["gigabytes"],
            str(entry["source"]),
            launch / 1e6,
        )

    def seconds(self, work: Sequence[Work], dtype: str) -> float:
        """Least time for some work: of every run the longer of launching and working.

        Args:
            work: modules that run one after another.
            dtype: of the computation; one that the device lacks runs at its fastest rate.
        """
        runs: dict[int, list[Work]] = {}
        for part in work:
            runs.setdefault(part.run, []).append(part)
        return sum(max(self.working(run, dtype), self.launching(run)) for run in runs.values())

    def working(self, work: Sequence[Work], dtype: str) -> float:
        """Least time in which the device does some work, once everything is launched; see `seconds`."""
        rate = self.operations.get(dtype) or max(self.operations.values())
        return sum(max(part.operations / rate, part.bytes / self.bandwidth) for part in work)

    def launching(self, work: Sequence[Work]) -> float:
        """Time in which the host launches some work."""
        return self.launch_seconds * sum(part.launches for part in work)


def load_hardware(path: Path = HARDWARE) -> list[Hardware]:
    """The hardware table.

    Args:
        path: JSON list of rows.

    Raises:
        AnalysisError: if the file or a row cannot be read.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AnalysisError("The hardware table {path} cannot be read ({error}).", path=path, error=error) from error
    if not isinstance(rows, list):
        raise AnalysisError(
            "The hardware table {path} holds a {kind}; it must be a list of rows.", path=path, kind=type(rows).__name__
        )
    return [Hardware.parse(row) for row in rows]


def find_hardware(rows: Sequence[Hardware], name: str) -> Hardware:
    """A row of the table.

    Args:
        rows: the table.
        name: of the row.

    Raises:
        AnalysisError: if there is none of that name.
    """
    for row in rows:
        if row.name == name:
            return row
    raise AnalysisError(
        "There is no hardware {name!r}; known are {known}.", name=name, known=", ".join(row.name for row in rows)
    )
