"""The folder of the data that ships with the project."""

from pathlib import Path

_INSTALLED = Path(__file__).with_name("shipped")
ASSETS = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[1] / "assets"  # in a wheel; in a checkout
