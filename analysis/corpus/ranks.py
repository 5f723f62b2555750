"""Ranks of numbers that are never in memory together: those of 16 bits have but 65,536 values."""

import numpy as np

CODES = 1 << 16


def codes(values: np.ndarray) -> np.ndarray:
    """Numbers as uint16, in their order; NaN must not be among them.

    Args:
        values: uint16, which stay what they are; or others, which are rounded to float16 unless they are.

    >>> codes(np.array([-1.5, 0.0, 2.0])).tolist()
    [16895, 32768, 49152]
    """
    values = np.asarray(values)
    if values.dtype == np.uint16:
        return values
    bits = (np.asarray(values, dtype=np.float16) + np.float16(0)).view(np.uint16)  # -0 becomes 0
    return np.where(bits & 0x8000, ~bits, bits | 0x8000)


def grades(counts: np.ndarray) -> np.ndarray:
    """(..., CODES) share of the numbers that are below each code, those of the code itself counted half.

    Args:
        counts: (..., CODES) how often each code occurs; at least one does.

    >>> grades(np.array([2, 0, 2])).tolist()
    [0.25, 0.5, 0.75]
    """
    counts = np.asarray(counts, dtype=np.float64)
    found: np.ndarray = (np.cumsum(counts, axis=-1) - counts / 2) / np.maximum(counts.sum(-1, keepdims=True), 1)
    return found
