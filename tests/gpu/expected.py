"""What is expected of one H100 with 80 GB, and the summary that compares it with what was found.

Bounds of the kind "promise" hold on any card. Those of the kind "estimate" were estimated for an H100 before anything
had run on one, from counted operations and kernel launches: the demo is too small to keep such a card busy.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .runner import Fact, Outcome, Status, Where, shown


@dataclass(frozen=True)
class Expectation:
    """Bounds of a fact.

    Attributes:
        part: that finds the fact.
        fact: its name.
        low: least value, or the value that a text must have; None if there is no bound.
        high: greatest value.
        promise: whether it must hold on any card.
    """

    part: str
    fact: str
    low: Fact | None = None
    high: float | None = None
    promise: bool = False

    def met_by(self, value: Fact) -> bool:
        """Whether a fact is within the bounds."""
        if isinstance(self.low, str):
            return value == self.low
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    @property
    def words(self) -> str:
        """The bounds in words."""
        if isinstance(self.low, str):
            return self.low
        if self.low is not None and self.high is not None:
            return shown(self.low) if self.low == self.high else f"{shown(self.low)} to {shown(self.high)}"
        return f"{shown(self.low)} or more" if self.low is not None else f"at most {shown(self.high or 0)}"


def _promise(part: str, fact: str, low: Fact | None = None, high: float | None = None) -> Expectation:
    return Expectation(part, fact, low, high, promise=True)


EXPECTED = (
    _promise("facts", "device", "cuda"),
    Expectation("facts", "dtype", "bfloat16"),
    _promise("device-tests", "failed", high=0),
    _promise("device-tests", "passed", low=10),
    _promise("golden", "failed", high=0),
    _promise("golden", "passed", low=16),
    _promise("gpu-tests", "failed", high=0),
    _promise("gpu-tests", "passed", low=4),
    _promise("waits", "waits beyond one per level, read, 1 row", high=1),
    _promise("waits", "waits beyond one per level, read, 4 rows", high=1),
    _promise("waits", "waits beyond one per level, read, 4 rows, padded", high=1),
    _promise("waits", "waits beyond one per level, token, 1 row", high=1),
    _promise("waits", "waits beyond one per level, token, 4 rows", high=1),
    _promise("waits", "waits beyond one per level, token with graphs, 1 row", high=1),
    _promise("waits", "waits beyond one per level, token with graphs, 4 rows", high=1),
    Expectation("efficiency", "settings", low=9),
    Expectation("efficiency", "prefill ms, 512", 6, 9),
    Expectation("efficiency", "prefill speed-up, 512", 0.95, 1.0),
    Expectation("efficiency", "prefill speed-up, 2,048", 0.95, 1.0),
    Expectation("efficiency", "prefill speed-up, 8,192", 1.0, 1.1),
    Expectation("efficiency", "prefill speed-up, 16 × 8,192", 1.12, 1.2),
    Expectation("efficiency", "decode tokens/s, 512", low=500),
    Expectation("efficiency", "decode speed-up, 512", low=1.0),
    Expectation("efficiency", "decode speed-up, 4 × 512", low=0.9),
    Expectation("paper", "prefill ms, 4,096", 40, 90),
    Expectation("paper", "prefill ms, 8,192", 40, 90),
    Expectation("paper", "prefill speed-up, 4,096", 1.25, 1.3),
    Expectation("paper", "prefill speed-up, 8,192", 1.35, 1.5),
    Expectation("calibration", "TFLOP/s", 600, 750),
    Expectation("calibration", "TB/s", 2.4, 2.9),
    Expectation("calibration", "predicted over measured prefill, paper 8,192", 0.85, 1.15),
    Expectation("conversion", "seconds until the first step", high=20),
    Expectation("conversion", "ms per step", 50, 80),
    _promise("conversion", "last loss over first", high=1.0),
    _promise("conversion", "farthest retention from nominal", high=0.02),
    _promise("conversion", "chats", low=8),
    _promise("training", "largest difference of a loss after stopping", high=1e-3),
    Expectation("training-step", "speed-up, 512", 0.9, 1.0),
    Expectation("app", "seconds to the first view", high=1.0),
    _promise("app", "MiB beyond the kept models' weights", high=64),
    Expectation("profile", "ms per token", high=2.0),
    Expectation("profile", "launches per token", high=250),
    Expectation("profile", "launches per token, without graphs", 850, 1400),
    Expectation("profile", "ms per token, without graphs", 5, 9),
    Expectation("profile", "idle share, without graphs", low=0.95),
    _promise("profile", "why graphs were refused", "they were not"),
    _promise("profile", "runs launched as graphs", low=1),
    Expectation("profile", "largest difference of a log-probability with graphs", high=0.1),
)


def compared(outcomes: Sequence[Outcome], expected: Sequence[Expectation] = EXPECTED) -> list[tuple[str, ...]]:
    """Rows of part, fact, expected, kind, measured, verdict."""
    facts = {(outcome.name, name): value for outcome in outcomes for name, value in outcome.facts.items()}
    rows = []
    for each in expected:
        value = facts.get((each.part, each.fact))
        verdict = "not measured" if value is None else "met" if each.met_by(value) else "missed"
        kind = "promise" if each.promise else "estimate"
        rows.append((each.part, each.fact, each.words, kind, "–" if value is None else shown(value), verdict))
    return rows


def summary(outcomes: Sequence[Outcome], where: Where, notes: Sequence[str]) -> str:
    """Markdown page: what ran, and on a GPU how it compares with what is expected.

    Args:
        outcomes: of all parts.
        where: device.
        notes: about the machine and the results.
    """
    lines = ["# One GPU", "", "| part | status | seconds | |", "| --- | --- | ---: | --- |"]
    for outcome in outcomes:
        name = f"[{outcome.name}]({outcome.name}/result.md)" if outcome.status is Status.DONE else outcome.name
        lines.append(f"| {name} | {outcome.status} | {outcome.seconds:.0f} | {outcome.problem.replace('|', '/')} |")
    if where.dry:
        lines += ["", "A dry run: tiny sizes, which show that the parts work. Nothing is compared."]
    else:
        rows = compared(outcomes)
        counts = {verdict: sum(row[-1] == verdict for row in rows) for verdict in ("met", "missed", "not measured")}
        lines += [
            "",
            f"Of {len(rows)} expectations, "
            + ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
            + ".",
            "Promises hold on any card; estimates are for an H100.",
            "",
            "| part | fact | expected | kind | measured | |",
            "| --- | --- | ---: | --- | ---: | --- |",
            *(f"| {' | '.join(row)} |" for row in rows),
        ]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes), ""])
