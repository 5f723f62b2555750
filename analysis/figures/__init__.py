"""Plotly figures, each a pure function of what it shows; pages and reports share them."""
