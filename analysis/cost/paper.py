"""What the papers of four routers report, and what counting says about it.

Every prediction is that of `analysis.cost.roofline` in bfloat16, or a paper's own count of operations; no training run
stands behind one. Kernel launch time is left out: it depends on the host and on how a program is compiled, and no paper
states either. What a paper leaves open is assumed here, and said beside the numbers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import NamedTuple

from subllm import SubllmConfig

from .hardware import Hardware
from .operations import attention_operations, linear_operations
from .roofline import PHASES, Scenario, speedup
from .sizes import block_tokens, cache_bytes, level_tokens, training_bytes, without_levels

STRUCTURE = "TTTTT(TTTTT(TTTT)TTTTT)TTTTT"
BATCH = 5  # sequences per GPU; the memory figures fit this (see `batch_that_saves`)
REPORTED_BYTES = {"training": 10e9, "inference": 1e9}
_ALL = (*PHASES, "cache")
SHARES = ("cache",)  # what is given as a share of the dense model's; everything else is a speed-up over it


class Range(NamedTuple):
    """Least and largest value; equal for one number, and infinite above for "at least"."""

    low: float
    high: float

    @classmethod
    def of(cls, *values: float) -> "Range":
        """From the least to the largest of some values."""
        return cls(min(values), max(values))

    def __str__(self) -> str:
        if self.high == inf:
            return f"≥ {self.low:.2f}"
        low, high = f"{self.low:.2f}", f"{self.high:.2f}"
        return low if low == high else f"{low}–{high}"


@dataclass(frozen=True)
class Figure:
    """One figure of a paper.

    Attributes:
        system: what it is about.
        what: "training", "inference", "sampling", "reading", "cache", "encoder", "operations" or "all".
        tokens: per sequence; 0 where it does not depend on them.
        reported: ratio to the dense model; None if the paper gives no number.
        predicted: ratios by what they are of: "training", "prefill", "decode", "cache", "operations", "linear" or
            "attention" operations. Empty where counting says nothing.
        source: of what is reported.
        measured: what the reported ratio was computed from, dense or older model first, such as "84 → 30 ms".
    """

    system: str
    what: str
    tokens: int
    reported: Range | None
    predicted: dict[str, Range]
    source: str
    measured: str = ""


@dataclass(frozen=True)
class Paper:
    """Figures that rest on the same assumptions.

    Attributes:
        key: "subllm", "mod", "colt5" or "zipformer"; "equal_cache" for routers on the same LLaMA.
        note: what the paper leaves open, what is assumed, and how the two sides compare.
        figures: of the paper.
    """

    key: str
    note: str
    figures: tuple[Figure, ...]


def papers(hardware: Hardware) -> list[Paper]:
    """What the papers report beside what counting predicts for some hardware."""
    hardware = replace(hardware, launch_seconds=0)
    return [_subllm(hardware), _depths(hardware), _equal_cache(hardware), _light_heavy(), _zipformer(hardware)]


def paper_config() -> SubllmConfig:
    """SUBLLM's 1.3B model as assumed here."""
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


def batch_that_saves(what: str, tokens: int = 4096) -> float:
    """Sequences per device at which the predicted memory saved is what SUBLLM's paper reports.

    Args:
        what: "training" (activations) or "inference" (cache).
        tokens: of each sequence.
    """
    config = paper_config()

    def needed(each: SubllmConfig) -> float:
        levels = level_tokens(each, tokens)
        return sum(training_bytes(each, levels).values()) if what == "training" else cache_bytes(each, levels)

    return REPORTED_BYTES[what] / (needed(without_levels(config)) - needed(config))


def _subllm(hardware: Hardware) -> Paper:
    source, config = "arXiv 2406.06571, abstract", paper_config()
    figures = []
    for what, tokens, reported in (
        ("training", 4096, 1.26),
        ("inference", 4096, 1.37),
        ("training", 8192, 1.34),
        ("inference", 8192, 1.52),
    ):
        phases = ("training",) if what == "training" else ("prefill", "decode")
        predicted = _predicted([config], phases, Scenario(hardware, tokens, BATCH))
        figures.append(Figure("SUBLLM 1.3B", what, tokens, Range.of(reported), predicted, source))
    return Paper(
        "subllm",
        "The abstract does not give the widths, the GPU, the batch size, or how inference divides into prefill "
        "and decode. Assumed: width 2,048, 24 blocks, 16 heads, inner width 5,504, vocabulary 32,000 and 5 "
        "sequences per GPU, which the reported memory savings fit. The predicted training speed-up is larger than"
        " the reported one because a real step also has an optimizer, communication and kernels below their peak."
        " The reported inference speed-up at 8,192 tokens is larger than the predicted one; an attention kernel "
        "that does not skip masked pairs would explain part of the difference.",
        tuple(figures),
    )


_DEPTHS = "Mixture-of-Depths 220M"
_DEPTHS_SHAPES = ((16, 896), (12, 1024), (24, 768))  # blocks and width of 263M to 276M parameters


def _depths(hardware: Hardware) -> Paper:
    scenario = Scenario(hardware, 2048, 128)
    configs = [_llama("T(T)" * (blocks // 2), width, 0.125, "mod") for blocks, width in _DEPTHS_SHAPES]

    def figure(what: str, phase: str, reported: Range | None, source: str) -> Figure:
        return Figure(_DEPTHS, what, 2048, reported, _predicted(configs, (phase,), scenario), source)

    return Paper(
        "mod",
        "Every other block sees 12.5% of the tokens; 128 sequences. The paper names no shape, used TPUs, and "
        "gives 60% for training in its text and 66% in a caption. Assumed: 16 blocks of width 896, 12 of 1,024 or"
        " 24 of 768, an inner width of four times as much and a vocabulary of 32,000; the predictions span all "
        "three. That they lie near the reported figures proves little.",
        (
            figure("training", "training", Range.of(1.6, 1.66), "arXiv 2404.02258"),
            figure("sampling", "decode", Range(1.5, inf), "arXiv 2404.02258"),
            figure("reading", "prefill", None, ""),
            figure("cache", "cache", None, ""),
        ),
    )


def _equal_cache(hardware: Hardware) -> Paper:
    scenario = Scenario(hardware, 2048, 8)
    rows = (
        ("SUBLLM, 64%", STRUCTURE, 0.64, "subllm"),
        ("Mixture-of-Depths, 50%", "T(T)" * 12, 0.5, "mod"),
        ("Mixture-of-Depths, 12.5%", "T(T)" * 12, 0.125, "mod"),
    )
    return Paper(
        "equal_cache",
        "The same LLaMA with each router: 24 blocks of width 1,024, inner width 4,096, 16 heads, vocabulary "
        "32,000, 8 sequences. The first two keep the same share of the cache; the third is what the paper of "
        "Mixture-of-Depths recommends. No paper reports these.",
        tuple(
            Figure(name, "all", 2048, None, _predicted([_llama(structure, 1024, kept, router)], _ALL, scenario), "")
            for name, structure, kept, router in rows
        ),
    )


_ENCODERS: dict[str, Callable[[float, float], float]] = {  # operations of a layer on n tokens of width d
    "LongT5": lambda n, d: 12 * n * d**2 + n**2 * d / 8,
    "CoLT5": lambda n, d: 7.25 * n * d**2 + n**2 * d / 84,
}
_WIDTHS = {"B": 768, "L": 1024, "XL": 2048}
_ENCODER_TIMES = {  # milliseconds per sample on TPUv4, LongT5 and CoLT5
    16384: {"B": (84, 30), "L": (173, 73), "XL": (412, 185)},
    8192: {"B": (27, 18), "L": (66, 45), "XL": (166, 115)},
}
_SAMPLES = {  # per second and chip at 16,384 tokens, LongT5 and CoLT5
    "training": {"B": (3.7, 6.5), "L": (1.3, 2.0), "XL": (0.4, 0.5)},
    "inference": {"B": (7.4, 11.2), "L": (3.0, 5.0), "XL": (1.2, 2.3)},
}


def encoder_operations(system: str, tokens: int, width: int) -> float:
    """Operations of one layer of an encoder, by the formulas of the CoLT5 paper.

    Args:
        system: "LongT5" or "CoLT5".
        tokens: of the text.
        width: of the model.
    """
    return _ENCODERS[system](tokens, width)


def _light_heavy() -> Paper:
    source, figures = "arXiv 2303.09752", []
    for tokens, times in _ENCODER_TIMES.items():
        for size, (before, after) in times.items():
            each = [encoder_operations(system, tokens, _WIDTHS[size]) for system in ("LongT5", "CoLT5")]
            counted = {"operations": Range.of(each[0] / each[1])}
            reported, measured = Range.of(before / after), f"{before} → {after} ms"
            figures.append(Figure(f"CoLT5 {size}", "encoder", tokens, reported, counted, source, measured))
    for what, rates in _SAMPLES.items():
        reported = Range.of(*(after / before for before, after in rates.values()))
        figures.append(Figure(f"CoLT5 {', '.join(rates)}", what, 16384, reported, {}, source))
    return Paper(
        "colt5",
        "The paper compares an encoder with LongT5 on TPUv4. The prediction is the ratio of operations per layer "
        "by the paper's formulas, 12nd² + n²d/8 for LongT5 and 7¼nd² + n²d/84 for CoLT5, with n tokens of width d."
        " The measured gain lies above the counted one at 16,384 tokens and below it at 8,192; the order of the "
        "sizes is as counted. Training and inference also run a decoder and cross-attention, which the formulas "
        "leave out.",
        tuple(figures),
    )


_STACKS = "TT(TT)(TTT)(TTTT)(TTT)(TT)"
_FACTORS = (2, 4, 8, 4, 2)


def _zipformer(hardware: Hardware) -> Paper:
    config = _llama(_STACKS, 1024, [1 / factor for factor in _FACTORS], "stride")
    scenario = Scenario(hardware, 2048, 8)
    before, after = 294.2, 107.7
    operations = {"linear": _blocks_ratio(config, linear=True), "attention": _blocks_ratio(config, linear=False)}
    return Paper(
        "zipformer",
        "The paper describes a speech encoder with other blocks, and reports its operations against those of "
        "Conformer-L. The prediction is for a LLaMA with the stacks of Zipformer-M, TT(TT)(TTT)(TTTT)(TTT)(TT), "
        "whose levels merge 2, 4, 8, 4 and 2 tokens into one: width 1,024 throughout, inner width 4,096, 16 heads,"
        " vocabulary 32,000, 8 sequences.",
        (
            Figure(
                "Zipformer-L",
                "operations",
                0,
                Range.of(before / after),
                operations,
                "arXiv 2310.11230",
                f"{before} → {after} GFLOP",
            ),
            Figure("Zipformer-M", "all", 2048, None, _predicted([config], _ALL, scenario), ""),
        ),
    )


def _llama(structure: str, width: int, retention: float | list[float], router: str) -> SubllmConfig:
    return SubllmConfig(
        structure=structure,
        retention_ratio=retention,
        router=router,
        vocab_size=32000,
        hidden_size=width,
        intermediate_size=4 * width,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=8192,
    )


def _predicted(configs: Sequence[SubllmConfig], of: Sequence[str], scenario: Scenario) -> dict[str, Range]:
    def ratio(config: SubllmConfig, what: str) -> float:
        if what != "cache":
            return speedup(config, what, scenario)
        needed = [cache_bytes(each, level_tokens(each, scenario.tokens)) for each in (config, without_levels(config))]
        return needed[0] / needed[1]

    return {what: Range.of(*(ratio(config, what) for config in configs)) for what in of}


def _blocks_ratio(config: SubllmConfig, *, linear: bool) -> Range:
    """Operations of all blocks without levels over those with them, of long texts."""
    shares = block_tokens(config, level_tokens(config, 1))
    each = linear_operations(config) if linear else attention_operations(config, 1)
    return Range.of(each * len(shares) / sum(each * (share if linear else share**2) for share in shares))
