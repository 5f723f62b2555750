"""Imports go one way: app to analysis to subllm; only the app knows Streamlit."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
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
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            found = {name.split(".")[0] for name in names} & FORBIDDEN[package]
            assert not found, f"{file.relative_to(ROOT)} imports {found}"
