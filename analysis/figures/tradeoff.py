"""Quality over savings as an SVG picture, for cards and documents: Plotly's own export needs a browser."""

from collections.abc import Sequence
from html import escape

from ..quality.tradeoff import Curve, Point
from .style import DROPPED, KEPT, MERGED, NEUTRAL

_WIDTH, _HEIGHT = 720, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 56, 48
_COLOURS = (KEPT, DROPPED, MERGED, NEUTRAL)
_INK, _GRID = "#444950", "#d5d8dc"  # on white, which the picture brings along: a page may be dark


def tradeoff_svg(curves: Sequence[Curve]) -> str:
    """Perplexity over the dense model's, over the speed-up: filled where measured, open where operations are counted.

    Args:
        curves: of one checkpoint each.
    """
    points = [point for curve in curves for point in curve.points]
    across = _Axis([value for point in points for value in (point.speed_up, point.limit)], _LEFT, _WIDTH - _RIGHT)
    down = _Axis([point.ratio for point in points], _HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" font-family="sans-serif" font-size="12" fill="{_INK}" role="img" '
        'aria-label="Perplexity over that of the dense model, over the speed-up">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        *_axes(across, down),
    ]
    for curve, colour in zip(curves, _COLOURS, strict=False):
        parts += _line(curve.points, colour, across, down, measured=False)
        parts += _line(curve.points, colour, across, down, measured=True)
        parts += _shares(curve.points, colour, across, down, above=curve is curves[0])
    parts += _legend(curves)
    return "\n".join([*parts, "</svg>", ""])


class _Axis:
    """Places of values between two ends, with marks at round numbers."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        low, high = min(values), max(values)
        room = (high - low) * 0.06 or 0.05
        self.step = next(step for step in (0.02, 0.05, 0.1, 0.2, 0.5, 1, 5) if (high - low + 2 * room) / step < 9)
        self._low, self._high, self._start, self._end = low - room, high + room, start, end

    def at(self, value: float) -> float:
        """Pixels."""
        share = (value - self._low) / (self._high - self._low)
        return self._start + share * (self._end - self._start)

    def marks(self) -> list[float]:
        """Multiples of the step between the ends."""
        first, last = int(self._low / self.step) + 1, int(self._high / self.step)
        return [number * self.step for number in range(first, last + 1)]


def _axes(across: _Axis, down: _Axis) -> list[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for value in across.marks():
        x = across.at(value)
        parts.append(f'<path d="M{x:.1f} {_TOP}V{bottom}" stroke="{_GRID}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{value:.2f}×</text>')
    for value in down.marks():
        y = down.at(value)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{right}" stroke="{_GRID}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.2f}×</text>')
    parts.append(f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 10}" text-anchor="middle">speed-up of reading</text>')
    middle = (_TOP + bottom) / 2
    parts.append(
        f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">perplexity over dense</text>'
    )
    return parts


def _line(points: Sequence[Point], colour: str, across: _Axis, down: _Axis, *, measured: bool) -> list[str]:
    places = [(across.at(point.speed_up if measured else point.limit), down.at(point.ratio)) for point in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dash, fill = ("none", colour) if measured else ("5 4", "#ffffff")
    parts = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>']
    for x, y in places:
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" stroke="{colour}" stroke-width="2"/>')
    return parts


def _shares(points: Sequence[Point], colour: str, across: _Axis, down: _Axis, *, above: bool) -> list[str]:
    """The retention at each point: of one curve above on the left, of the others below on the right."""
    (dx, dy), anchor = ((-7, -6), "end") if above else ((7, 15), "start")
    return [
        f'<text x="{across.at(point.speed_up) + dx:.1f}" y="{down.at(point.ratio) + dy:.1f}" text-anchor="{anchor}" '
        f'fill="{colour}">{point.asked:.0%}</text>'
        for point in points
    ]


def _legend(curves: Sequence[Curve]) -> list[str]:
    parts, x = [], _LEFT
    for curve, colour in zip(curves, _COLOURS, strict=False):
        parts.append(f'<circle cx="{x + 5}" cy="16" r="5" fill="{colour}"/>')
        parts.append(f'<text x="{x + 16}" y="20">{escape(curve.name)}</text>')
        x += 40 + 7 * len(curve.name)
    parts.append(f'<text x="{_LEFT}" y="40">filled: measured · open: what counted operations allow</text>')
    return parts
