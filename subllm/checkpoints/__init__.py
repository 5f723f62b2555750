"""Checkpoints: loading, devices, the dense model to compare with, GGUF files."""
