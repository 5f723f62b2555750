"""Colours and layout that the figures share.

The colours are told apart with any colour vision, on light and on dark backgrounds. Colour never carries meaning alone:
kept, dropped and merged tokens also differ in the shape of their marker or the pattern of their bar.
"""

KEPT, DROPPED, MERGED, NEUTRAL = "#2f6fb3", "#c2702f", "#17866b", "#8a8f98"
_COLOURS = (KEPT, DROPPED, "#4d9a5b", "#8e5bb5", NEUTRAL)
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_SYMBOLS = ("circle", "x", "diamond", "square", "triangle-up", "cross", "star")
FROM_ZERO = {"rangemode": "tozero"}  # an axis of bars or of numbers from 0 on, which where all are 0 is not -1 to 1
LAYOUT = {
    "margin": {"l": 55, "r": 15, "t": 40, "b": 45},
    "height": 320,
    "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},  # its lines grow upwards, off the data
    "hovermode": "closest",
}


def line(number: int) -> dict[str, str]:
    """Colour and dash of a line by its number in its figure; the first 30 lines differ."""
    return {"color": _COLOURS[number % len(_COLOURS)], "dash": _DASHES[number % len(_DASHES)]}


def marker(number: int, size: int) -> dict[str, str | int]:
    """Colour and symbol of the same line's points."""
    symbol = _SYMBOLS[number % len(_SYMBOLS)]
    return {"color": _COLOURS[number % len(_COLOURS)], "symbol": symbol, "size": size}
