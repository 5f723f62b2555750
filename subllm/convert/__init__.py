"""Making SUBLLM checkpoints: from the reference format, and from any LLaMA."""

from ..checkpoints.base import from_llama, load_base
from .evaluate import Evaluation, evaluate
from .reference import from_reference, load_weights
from .scorers import fit_scorers

__all__ = ["Evaluation", "evaluate", "fit_scorers", "from_llama", "from_reference", "load_base", "load_weights"]
