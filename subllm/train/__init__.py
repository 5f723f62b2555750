"""Training from scratch: SUBLLMs, LLaMAs, and SUBLLMs with one idea taken away."""

from .config import ABLATIONS, TrainConfig
from .loop import train

__all__ = ["ABLATIONS", "TrainConfig", "train"]
