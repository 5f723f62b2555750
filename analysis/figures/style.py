"""Colours and layout that the figures share.

The colours are told apart with any colour vision, on light and on dark backgrounds. Colour never carries meaning alone:
kept and dropped tokens also differ in the shape of their marker or the pattern of their bar.
"""

KEPT, DROPPED, NEUTRAL = "#2f6fb3", "#c2702f", "#8a8f98"
LAYOUT = {
    "margin": {"l": 55, "r": 15, "t": 40, "b": 45},
    "height": 320,
    "legend": {"orientation": "h", "y": 1.14, "x": 0},
    "hovermode": "closest",
}
