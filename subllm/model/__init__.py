"""The model: LLaMA blocks on levels of tokens. `modeling.py` reads from top to bottom in the order data flows."""
