"""Making SUBLLM checkpoints: from the reference format, and from any LLaMA."""
