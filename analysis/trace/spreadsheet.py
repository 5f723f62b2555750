"""Texts in the cells of a spreadsheet."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet may take a cell for


def cell(text: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text
