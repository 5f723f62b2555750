"""Training from scratch: a SUBLLM, an ablation of one, or the LLaMA of the same size."""
