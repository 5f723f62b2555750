"""What a machine with one NVIDIA GPU has to show: checks, tables and expectations; see docs/gpu.md.

python -m tests.gpu --device cuda --out build/gpu
"""
