"""What outlives a rerun: models and what lies on their devices, and the order in which visitors get a device.

| module | what it does |
| --- | --- |
| `last_used` | keeps the values used last |
| `work` | keeps one action of a visitor within the limits |
| `queue` | gives a device to one run at a time, in the order of asking |
| `models` | loads models, keeps the last ones, and releases what belongs to the others |
| `runs` | makes traces, and measures more of them on demand |
| `patching` | puts states of one prompt into the run of another |
| `questions` | explains why A and not B |
| `what_if` | runs prompts with edits, and measures single decisions |
| `rules` | runs prompts under other selection rules |
| `texts` | continues texts token by token |
| `measurements` | measures time and memory |
| `corpora` | reads small corpora |

Sessions hold recipes and arrays; every model, snapshot and cache is held here, and bounded.
"""

from subllm.checkpoints.device import device_faults
from subllm.checkpoints.device import dtypes_of as dtypes
from subllm.checkpoints.device import usable_devices as devices

from .corpora import read_corpus
from .measurements import calibrate, compare_setting
from .models import ModelSpec, device_label
from .patching import Place, patched
from .questions import ask
from .rules import compare_rules
from .runs import (
    Recipe,
    attention,
    follow,
    read_off_all,
    recipe_of_cut,
    run,
    run_with_answer,
    states_around,
)
from .texts import Text, branch, finished, write
from .what_if import edited, effects
from .work import Account, Work

__all__ = [
    "Account",
    "ModelSpec",
    "Place",
    "Recipe",
    "Text",
    "Work",
    "ask",
    "attention",
    "branch",
    "calibrate",
    "compare_rules",
    "compare_setting",
    "device_faults",
    "device_label",
    "devices",
    "dtypes",
    "edited",
    "effects",
    "finished",
    "follow",
    "patched",
    "read_corpus",
    "read_off_all",
    "recipe_of_cut",
    "run",
    "run_with_answer",
    "states_around",
    "write",
]
