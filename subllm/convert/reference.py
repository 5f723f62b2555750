"""Conversion of checkpoints in the reference format (XiaoMi/subllm)."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..checkpoints.weights import check_safetensors
from ..configuration import SubllmConfig, misfits_reported
from ..errors import CheckpointError, ConfigurationError
from ..model.causal_lm import SubllmForCausalLM

_REQUIRED = (
    "num_embeddings",
    "decoder_embed_dim",
    "decoder_ffn_embed_dim",
    "decoder_layers",
    "decoder_attention_heads",
    "structure",
)
_RMS_NORM_EPSILON = 1e-5
_MOST_STEPS = 1_000
_RENAMED = (
    (r"^layer_norm\.", "norm."),
    (r"\.self_attn_layer_norm\.", ".input_layernorm."),
    (r"\.final_layer_norm\.", ".post_attention_layernorm."),
    (r"\.self_attn\.out_proj\.", ".self_attn.o_proj."),
    (r"\.feedforward\.swiglu\.w3\.", ".mlp.down_proj."),
)


def reference_config(config: dict[str, Any]) -> SubllmConfig:
    """Translate a configuration of the reference, the content of its config.json.

    Raises:
        ConfigurationError: if a field is missing or of another type, or asks for a block that is not a LLaMA block.
        StructureError: if the structure cannot be read.
    """
    if not isinstance(config, dict):
        raise ConfigurationError(
            f"The reference configuration is of type {type(config).__name__}; it must be a JSON object with the fields "
            f"{list(_REQUIRED)}."
        )
    missing = [key for key in _REQUIRED if config.get(key) is None]
    if missing:
        raise ConfigurationError(f"The reference configuration lacks {missing}; it needs {list(_REQUIRED)}.")
    wanted = {"norm_name": "rmsnorm", "mlp_name": "swiglu", "qk_bias": False, "scale_token_embedding": False}
    for key, value in wanted.items():
        if config.get(key, value) != value:
            raise ConfigurationError(f"The reference configuration has {key}={config[key]!r}; only {value!r} is read.")
    structure = config["structure"]
    if not isinstance(structure, str):
        raise ConfigurationError(
            f"The structure of the reference configuration is {structure!r}; it must be a string, such as 'TT(TT)TT'."
        )
    fields: dict[str, Any] = {}
    if "(" in structure:
        ratio = config.get("downsampling_factor_denominator")
        try:
            fields["retention_ratio"] = float(ratio)  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            raise ConfigurationError(
                f"downsampling_factor_denominator is {ratio!r}; expected the retention ratio as a string, like '0.64'."
            ) from error
    with misfits_reported():
        return SubllmConfig(
            vocab_size=config["num_embeddings"],
            hidden_size=config["decoder_embed_dim"],
            intermediate_size=config["decoder_ffn_embed_dim"],
            num_hidden_layers=config["decoder_layers"],
            num_attention_heads=config["decoder_attention_heads"],
            max_position_embeddings=config.get("tokens_per_sample", 2048),
            pad_token_id=config.get("padding_idx"),
            bos_token_id=config.get("bos_token_id", 1),
            eos_token_id=config.get("eos_token_id", 2),
            tie_word_embeddings=bool(config.get("tie_weights", False)),
            rms_norm_eps=_RMS_NORM_EPSILON,
            structure=structure,
            positions="parent",
            balancer_steps=0,
            bypass_steps=0,
            **fields,
        )


def from_reference(config: dict[str, Any], state_dict: dict[str, Tensor]) -> SubllmForCausalLM:
    """Make a model of a checkpoint in the reference format.

    Args:
        config: content of the reference's config.json.
        state_dict: weights under the reference's names, with or without the leading "decoder.".

    Raises:
        ConfigurationError: if the configuration is incomplete.
        StructureError: if its structure cannot be read.
        CheckpointError: if weights are missing, unexpected, or of another shape.
    """
    parsed = reference_config(config)
    if len(parsed.parsed_structure.text) > _MOST_STEPS:
        raise CheckpointError(
            f"The structure has {len(parsed.parsed_structure.text):,} steps; {_MOST_STEPS:,} are built."
        )
    with torch.device("meta"):  # nothing takes memory before it is known to fit
        expected = {
            name: tuple(tensor.shape)
            for name, tensor in SubllmForCausalLM(parsed).named_parameters(remove_duplicate=False)
        }
    weights: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        weights.update(_translate(name.removeprefix("decoder."), tensor, parsed.parsed_structure.closing_order))
    if parsed.tie_word_embeddings:
        weights["lm_head.weight"] = weights.get("model.embed_tokens.weight", torch.empty(0))
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if expected.keys() != found.keys():
        missing, left_over = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
        raise CheckpointError(
            f"The weights do not fit the structure {parsed.structure!r}: missing {missing[:5]} ({len(missing)} in "
            f"all), not expected {left_over[:5]} ({len(left_over)} in all). Is this the configuration of these weights?"
        )
    for name, shape in expected.items():
        if found[name] != shape:
            raise CheckpointError(f"{name} has shape {found[name]}; the configuration says {shape}.")
    model = SubllmForCausalLM(parsed)
    model.load_state_dict(weights, strict=False)  # all parameters, as was checked; schedules are at their end
    return model.eval()


def _translate(name: str, tensor: Tensor, closing_order: tuple[int, ...]) -> dict[str, Tensor]:
    """The weight under our names, which may be two; empty for buffers that are computed."""
    if name.endswith("position.inv_freq"):
        return {}
    if name == "output_projection.weight":
        return {"lm_head.weight": tensor}
    if match := re.fullmatch(r"(layers\.\d+)\.feedforward\.swiglu\.w12\.weight", name):
        gate, up = tensor.chunk(2)
        return {f"model.{match[1]}.mlp.gate_proj.weight": gate, f"model.{match[1]}.mlp.up_proj.weight": up}
    if match := re.fullmatch(r"downsamplers\.(\d+)\.to_scores\.weight", name):
        return {f"model.subsamplers.{match[1]}.weight": tensor[0]}
    if match := re.fullmatch(r"bypasses\.(\d+)\.bypass_scale", name):
        closed = int(match[1])  # the reference counts bypasses in order of closing, this project in order of opening
        if closed >= len(closing_order):
            return {name: tensor}
        return {f"model.bypasses.{closing_order[closed] - 1}.scale": tensor}
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return {f"model.{name}": tensor}


def load_weights(path: Path) -> dict[str, Tensor]:
    """Load the weights of a .safetensors file, or of a .pt, .pth or .bin file that holds tensors only.

    Raises:
        CheckpointError: if the file is missing, cut short, of another kind, or a pickle that would run code.
    """
    if not path.is_file():
        raise CheckpointError(f"There is no weights file at {path}.")
    if path.suffix == ".safetensors":
        check_safetensors(path)
        return load_file(path)
    if path.suffix not in (".pt", ".pth", ".bin"):
        raise CheckpointError(f"{path} ends in {path.suffix!r}; allowed are .safetensors, .pt, .pth and .bin.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises several unrelated types for damaged and unsafe files
        raise CheckpointError(
            f"{path} is damaged, or a pickle that holds more than tensors, which is never loaded because it could run "
            f"code ({type(error).__name__}). Save the state dict as .safetensors."
        ) from error
    content = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path} is not a state dict: expected names mapped to tensors.")
    return content
