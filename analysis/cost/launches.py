"""How many kernels a pass launches: constants that were counted, not guessed.

tests/device/test_launches.py counts the operations that a model asks of a device, and holds these numbers to them
within 3%: in 16 bits, attention as one fused kernel, both models with a cache and the head on the last token (training:
no cache, and the loss of all tokens). An operation is about one kernel; the fused attention of a GPU takes one to
three.
"""

from typing import NamedTuple

from subllm import SubllmConfig


class Launches(NamedTuple):
    """Kernels of one pass.

    Attributes:
        block: of each block that runs.
        once: embedding, rotary angles, last norm and head; in training, also the loss.
    """

    block: int
    once: int


SUBLLM = {"prefill": Launches(38, 22), "decode": Launches(40, 23), "training": Launches(115, 49)}
LLAMA = {"prefill": Launches(40, 21), "decode": Launches(40, 21), "training": Launches(115, 56)}  # transformers' own
LEVEL = {  # entering and leaving one level, kept tokens or not: with one row, and with several
    "subllm": {"prefill": (18, 24), "decode": (19, 32), "training": (117, 119)},
    "mod": {"prefill": (16, 22), "decode": (17, 30), "training": (61, 63)},
    "even": {"prefill": (33, 35), "decode": (34, 36), "training": (56, 58)},
    "random": {"prefill": (33, 35), "decode": (34, 36), "training": (52, 54)},
    "stride": {"prefill": (32, 32), "decode": (25, 25), "training": (60, 60)},  # decode: 30 at a carrier, 20 elsewhere
}
DIVIDED = {"prefill": (140, 155), "decode": (145, 167), "training": (795, 804)}  # a block "C", its routers too
PREDICTOR = {"prefill": 8, "decode": 8, "training": 24}  # of each level with the router "mod"
UNIT_WEIGHT = 2  # of the same, where weights are 1
GRAPH = 5  # a run of blocks as one CUDA graph: four copies into its fixed tensors, and the graph
IN_GRAPH = 0.2  # estimated: a kernel inside of a graph starts within about 1 µs, a fifth of the time of a launch
_CASTS = {"prefill": 4, "decode": 4, "training": 8}  # of a block, and as many once, that float32 does without


def base_launches(config: SubllmConfig, phase: str, dtype: str) -> Launches:
    """Kernels of blocks and of all that a pass does once; a structure without levels stands for a LLaMA.

    Args:
        config: of the model.
        phase: "prefill", "decode" or "training".
        dtype: of the computation.
    """
    block, once = (SUBLLM if config.parsed_structure.num_levels else LLAMA)[phase]
    casts = _CASTS[phase] if dtype == "float32" else 0
    return Launches(block - casts, once - casts)


def level_launches(config: SubllmConfig, router: str, phase: str, batch: int) -> int:
    """Kernels of entering and leaving one level.

    Args:
        config: of the model.
        router: the level's; one that was not counted takes as many as SUBLLM's.
        phase: "prefill", "decode" or "training".
        batch: sequences.
    """
    launched = LEVEL.get(router, LEVEL["subllm"])[phase][batch > 1]
    if router != "mod":
        return launched
    return launched + config.predictor * PREDICTOR[phase] + (config.router_weight == "unit") * UNIT_WEIGHT
