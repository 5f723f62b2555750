"""Imports go one way: app to analysis to subllm; only the app knows Streamlit."""

import pytest

from tests.architecture import ROOT, imported

FORBIDDEN = {
    "subllm": {"analysis", "app", "streamlit", "plotly"},
    "analysis": {"app", "streamlit"},
    "app/views": {"torch"},
}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_go_one_way(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for file in files:
        found = imported(file) & FORBIDDEN[package]
        assert not found, f"{file.relative_to(ROOT)} imports {found}"
