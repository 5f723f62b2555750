"""The data that ships with the project: its folder, and its checkpoints by name."""

from pathlib import Path

_INSTALLED = Path(__file__).with_name("shipped")
ASSETS = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[1] / "assets"  # in a wheel; in a checkout

DEMOS = DEMO, DEEP = ("demo", "deep")  # what conversions learned; `subllm.demo` builds the checkpoints
TRAINED = {"small": ASSETS / "small"} | {  # folders of training runs, with their checkpoints
    name: ASSETS / "routers" / name for name in ("mixture-of-depths", "zipformer", "colt5")
}
