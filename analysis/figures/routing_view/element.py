"""The HTML, the style and the script of the view."""

from pathlib import Path

from ..modules import join

_FOLDER = Path(__file__).parent
HTML, CSS = ((_FOLDER / f"view.{kind}").read_text(encoding="utf-8") for kind in ("html", "css"))
JS = join(_FOLDER / "view.js")
