"""Checkpoints on their way in: loading, devices, the dense model beside each, GGUF files."""
