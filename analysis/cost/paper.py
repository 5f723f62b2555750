"""The paper's headline figures, and what the prediction says about them.

Reported (arXiv 2406.06571, abstract): for 1.3B parameters, training 26% faster with 10 GB less per GPU, inference 37%
faster with 1 GB less; with a window of 8,192, training 34% and inference 52% faster. The abstract leaves open: the
widths, the GPU, the batch, how inference time divides into reading and writing, and the memory that other software
takes. Here a LLaMA of 1.3B parameters is assumed: width 2,048, 24 blocks, 16 heads, inner width 5,504, vocabulary
32,000, in bfloat16.
"""

from dataclasses import dataclass

from subllm import SubllmConfig

from .hardware import Hardware
from .roofline import Scenario, speedup
from .sizes import cache_bytes, level_tokens, training_bytes, without_levels

STRUCTURE = "TTTTT(TTTTT(TTTT)TTTTT)TTTTT"
BATCH = 5  # sequences per GPU; the memory figures fit this (see `batch_that_saves`)
REPORTED = {
    ("training", 4096): 1.26,
    ("inference", 4096): 1.37,
    ("training", 8192): 1.34,
    ("inference", 8192): 1.52,
}
REPORTED_BYTES = {"training": 10e9, "inference": 1e9}


@dataclass(frozen=True)
class Row:
    """One reported speed-up with predictions.

    Attributes:
        what: "training" or "inference".
        tokens: of the window.
        reported: speed-up over LLaMA.
        predicted: speed-ups by phase: "training", or "prefill" and "decode".
    """

    what: str
    tokens: int
    reported: float
    predicted: dict[str, float]


def paper_config() -> SubllmConfig:
    """The 1.3B model as assumed here."""
    return SubllmConfig(
        structure=STRUCTURE,
        retention_ratio=0.64,
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=5504,
        num_attention_heads=16,
        num_key_value_heads=16,
        max_position_embeddings=8192,
    )


def paper_rows(hardware: Hardware, batch: int = BATCH) -> list[Row]:
    """The reported speed-ups beside predicted ones.

    Args:
        hardware: assumed.
        batch: sequences per device.
    """
    config = paper_config()
    rows = []
    for (what, tokens), reported in REPORTED.items():
        phases = ("training",) if what == "training" else ("prefill", "decode")
        predicted = {phase: speedup(config, phase, Scenario(hardware, tokens, batch)) for phase in phases}
        rows.append(Row(what, tokens, reported, predicted))
    return rows


def batch_that_saves(what: str, tokens: int = 4096) -> float:
    """Sequences per device at which the predicted memory saved is the reported one.

    Args:
        what: "training" (activations) or "inference" (cache).
        tokens: of each sequence.
    """
    config = paper_config()

    def needed(each: SubllmConfig) -> float:
        levels = level_tokens(each, tokens)
        return sum(training_bytes(each, levels).values()) if what == "training" else cache_bytes(each, levels)

    return REPORTED_BYTES[what] / (needed(without_levels(config)) - needed(config))
