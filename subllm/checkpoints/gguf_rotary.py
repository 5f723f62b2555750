"""The rotary frequencies of a GGUF file of LLaMA architecture, as transformers' `rope_parameters` give them.

| the file holds | read as |
| --- | --- |
| `rope_freqs.weight`: divisors of the frequencies (Llama 3.1 and later) | llama3, else longrope with these |
| a factor, and `llama.rope.scaling.type` linear or none at all | linear |
| yarn, with its factor | yarn |
| longrope, with `rope_factors_short.weight` and `rope_factors_long.weight` | longrope |

Source: how llama.cpp writes such files (conversion/base.py, conversion/llama.py) and reads them (src/llama-model.cpp,
src/llama-context.cpp).
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from ..errors import CheckpointError

FACTORS = "rope_freqs.weight"
SHORT, LONG = "rope_factors_short.weight", "rope_factors_long.weight"
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_PREFIX = "scaling."
_IGNORED = (
    "finetuned",
    "yarn_beta_fast",
    "yarn_beta_slow",
    "yarn_log_multiplier",
    "yarn_attn_factor",
)  # unless by YaRN


def rope_parameters(
    entries: Mapping[str, Any], factors: Mapping[str, np.ndarray], *, head_size: int, context: int
) -> dict[str, Any]:
    """Translate the rotary entries of a GGUF file to transformers' `rope_parameters`.

    Args:
        entries: entries whose names begin with "llama.rope.", by the rest of their names.
        factors: those of the tensors `FACTORS`, `SHORT` and `LONG` that the file has, (head_size / 2,) each.
        head_size: width of a head.
        context: number of positions of the model.

    Raises:
        CheckpointError: if the file scales the frequencies in a way that transformers' LLaMA does not support.
    """
    scaling = {name.removeprefix(_PREFIX): value for name, value in entries.items() if name.startswith(_PREFIX)}
    base = {"rope_theta": entries.get("freq_base", 10000.0)}
    kind = scaling.pop("type", "linear")
    factor = scaling.pop("factor", 0.0) or entries.get("scale_linear", 0.0) or 1.0
    original = scaling.pop("original_context_length", 0) or context
    usual = {"attn_factor": 1.0, "yarn_ext_factor": float(kind == "yarn")}
    for name, tensor in factors.items():
        if tensor.shape != (head_size // 2,):
            raise CheckpointError(
                f"its {name} has {tensor.size} numbers, and its heads have {head_size // 2} frequencies"
            )
    if kind == "none" or (kind == "linear" and factor == 1.0):
        own = _divided(factors[FACTORS], base, context) if FACTORS in factors else {"rope_type": "default"}
    elif FACTORS in factors:
        raise CheckpointError(f"it scales the rotary frequencies twice, by {FACTORS} and by {kind!r}")
    elif kind == "linear":
        own = {"rope_type": "linear", "factor": factor}
    elif kind == "yarn":
        own = _yarn(scaling, factor, original)
    elif kind == "longrope" and factor == 1.0:
        if not {SHORT, LONG} <= factors.keys():
            raise CheckpointError(f"it scales the rotary frequencies by 'longrope' and lacks {SHORT} or {LONG}")
        own = _longrope(factors[SHORT], factors[LONG], original, scaling.pop("attn_factor", 1.0))
    else:
        raise CheckpointError(f"it scales the rotary frequencies by {kind!r} with factor {factor}")
    strange = {name: value for name, value in scaling.items() if name not in _IGNORED and value != usual.get(name)}
    if strange:
        raise CheckpointError(f"it scales the rotary frequencies by {kind!r} with {strange}")
    return base | own


def _divided(factors: np.ndarray, base: dict[str, Any], context: int) -> dict[str, Any]:
    """Frequencies that are divided by a number each: by Llama 3.1's rule where it gives just these numbers."""
    llama3 = {"rope_type": "llama3", "factor": float(factors.max()), **_LLAMA3}

    def frequencies(parameters: dict[str, Any]) -> Tensor:
        size = 2 * len(factors)
        config = LlamaConfig(hidden_size=size, num_attention_heads=1, num_key_value_heads=1, head_dim=size)
        config.max_position_embeddings, config.rope_parameters = context, base | parameters
        return LlamaRotaryEmbedding(config).inv_freq

    wanted = frequencies({"rope_type": "default"}) / torch.from_numpy(factors)
    if torch.allclose(frequencies(llama3), wanted, rtol=1e-6, atol=0.0):
        return llama3
    return _longrope(factors, factors, context, 1.0)


def _longrope(short: np.ndarray, long: np.ndarray, original: int, attention_factor: float) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "short_factor": short.tolist(),
        "long_factor": long.tolist(),
        "factor": 1.0,  # transformers computes the attention factor from it, if that is not given
        "attention_factor": attention_factor,
        "original_max_position_embeddings": original,
    }


def _yarn(scaling: dict[str, Any], factor: float, original: int) -> dict[str, Any]:
    """YaRN; what it reads of `scaling` is taken out of there.

    A factor of the attention that the model was written with is stored as `yarn_attn_factor` and stands alone;
    `attn_factor` multiplies the usual one, which `yarn_log_multiplier` divides.
    """

    def magnitude(multiplier: float) -> float:
        return 1.0 if factor <= 1.0 else 0.1 * multiplier * math.log(factor) + 1.0

    if "yarn_attn_factor" in scaling:
        attention_factor = scaling.pop("yarn_attn_factor")
    else:
        usual = magnitude(1.0) / magnitude(scaling.pop("yarn_log_multiplier", 0.0))
        attention_factor = usual * scaling.pop("attn_factor", 1.0)
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
        "beta_fast": scaling.pop("yarn_beta_fast", 32.0),
        "beta_slow": scaling.pop("yarn_beta_slow", 1.0),
        "attention_factor": attention_factor,
    }
