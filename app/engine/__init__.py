"""What outlives a rerun: models and what lies on their devices, and the order in which visitors get a device.

| module | what it does |
| --- | --- |
| `last_used` | keeps the values used last |
| `queue` | gives a device to one run at a time, in the order of asking |
| `models` | loads models, keeps the last ones, and releases what belongs to the others |
| `runs` | makes traces, and measures more of them on demand |
| `what_if` | runs prompts with edits, and measures single decisions |
| `texts` | continues texts token by token |
| `measurements` | measures time and memory |

Sessions hold recipes and arrays; every model, snapshot and cache is held here, and bounded.
"""

from .measurements import calibrate, compare_setting
from .models import ModelSpec, devices, dtypes
from .runs import Recipe, attention, explain, follow, read_off_all, run
from .texts import Text, branch, finished, write
from .what_if import edited, effects

__all__ = [
    "ModelSpec",
    "Recipe",
    "Text",
    "attention",
    "branch",
    "calibrate",
    "compare_setting",
    "devices",
    "dtypes",
    "edited",
    "effects",
    "explain",
    "finished",
    "follow",
    "read_off_all",
    "run",
    "write",
]
