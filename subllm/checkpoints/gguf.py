"""Reading a GGUF file of LLaMA architecture into transformers' configuration, weights and tokenizer.

Source: the GGUF specification (ggml-org/ggml, docs/gguf.md) and `gguf`, its reader. llama.cpp stores the rows of the
query and key projections interleaved for its rotary embedding; `_unpermute` restores transformers' half-rotation order.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..errors import CheckpointError
from .dense import sharing_weights
from .gguf_rotary import FACTORS, LONG, SHORT, rope_parameters

_LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_norm": "post_attention_layernorm",
}
_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_USUAL = {  # entries that change the architecture, and the values at which they do not
    "expert_count": (0,),
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "attention.scale": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "logit_scale": (0.0, 1.0),
}
_CONTROL_TOKEN = 3


class GgufFile:
    """A GGUF file of LLaMA architecture.

    Args:
        path: the file.

    Raises:
        CheckpointError: if it cannot be read, is one part of a split file, or does not hold an ordinary LLaMA.
    """

    def __init__(self, path: Path) -> None:
        import gguf  # noqa: PLC0415 - only conversion needs it

        self._gguf = gguf
        try:
            self._reader = gguf.GGUFReader(path)
        except (ValueError, OSError, IndexError, KeyError) as error:
            raise CheckpointError(f"{path} is not a readable GGUF file ({error}); download it again.") from error
        self.path = path
        architecture = self._field("general.architecture")
        if architecture != "llama":
            raise CheckpointError(f"{path} holds a {architecture!r} model; only 'llama' can become a SUBLLM.")
        parts = self._field("split.count", 1)
        if parts > 1:
            raise CheckpointError(
                f"{path} is one of {parts} parts of a model; put them together with: llama-gguf-split --merge"
            )
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        for name, usual in _USUAL.items():
            value = self._field(f"llama.{name}", usual[0])
            if value not in usual:
                raise self._refused(f"its llama.{name} is {value}")

    def _refused(self, why: str) -> CheckpointError:
        return CheckpointError(f"{self.path} holds no ordinary LLaMA, so it cannot become a SUBLLM: {why}.")

    def _field(self, name: str, default: Any = None) -> Any:
        """Value of an entry; a 32-bit number becomes the shortest decimal that it stands for."""
        field = self._reader.fields.get(name)
        value = default if field is None else field.contents()
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def _number(self, name: str, default: Any = None) -> Any:
        """Value of a required entry of the architecture, which must be the same for all blocks."""
        value = self._field(f"llama.{name}", default)
        each = set(value) if isinstance(value, list) else {value}
        if len(each) != 1:
            raise self._refused(f"its llama.{name} differs from block to block")
        if None in each:
            raise self._refused(f"it has no llama.{name}")
        return each.pop()

    def config(self) -> LlamaConfig:
        """The model's configuration.

        Raises:
            CheckpointError: if it is not a LLaMA's, or contradicts the tensors.
        """
        width, heads = self._number("embedding_length"), self._number("attention.head_count")
        head_size = self._number("attention.key_length", width // heads)
        for name in ("attention.value_length", "rope.dimension_count"):
            if self._number(name, head_size) != head_size:
                raise self._refused(f"its llama.{name} is {self._number(name)}, and its heads have {head_size} numbers")
        tokens, rows = len(self._field("tokenizer.ggml.tokens", [])), int(self._tensor("token_embd.weight").shape[1])
        if not 0 < tokens <= rows:
            raise self._refused(f"its tokenizer has {tokens:,} tokens, and its embedding {rows:,}")
        context, prefix = self._number("context_length"), "llama.rope."
        entries = {n.removeprefix(prefix): self._field(n) for n in self._reader.fields if n.startswith(prefix)}
        factors = {name: self._values(name) for name in (FACTORS, SHORT, LONG) if name in self._tensors}
        try:
            rotary = rope_parameters(entries, factors, head_size=head_size, context=context)
        except CheckpointError as error:
            raise self._refused(str(error)) from error
        biased = self._biased()
        return LlamaConfig(
            vocab_size=rows,
            hidden_size=width,
            intermediate_size=self._number("feed_forward_length"),
            num_hidden_layers=self._number("block_count"),
            num_attention_heads=heads,
            num_key_value_heads=self._number("attention.head_count_kv", heads),
            head_dim=head_size,
            max_position_embeddings=context,
            rms_norm_eps=self._number("attention.layer_norm_rms_epsilon"),
            rope_parameters=rotary,
            attention_bias=bool(biased & {"attn_q", "attn_k", "attn_v", "attn_output"}),
            mlp_bias=bool(biased & {"ffn_gate", "ffn_up", "ffn_down"}),
            bos_token_id=self._field("tokenizer.ggml.bos_token_id"),
            eos_token_id=self._field("tokenizer.ggml.eos_token_id"),
            pad_token_id=self._field("tokenizer.ggml.padding_token_id"),
            tie_word_embeddings="output.weight" not in self._tensors,
        )

    def _biased(self) -> set[str]:
        """Projections that have biases. In transformers groups of projections have them; the missing ones are zero."""
        return {name.split(".")[-2] for name in self._tensors if name.endswith(".bias")}

    def _tensor(self, name: str) -> Any:
        if name not in self._tensors:
            raise self._refused(f"it lacks the tensor {name}")
        return self._tensors[name]

    def _values(self, name: str) -> np.ndarray:
        """Values of a tensor, dequantised."""
        tensor = self._tensor(name)
        values = self._gguf.dequantize(tensor.data, tensor.tensor_type)
        return np.require(values, np.float32, ["C", "W"])

    def model(self, dtype: torch.dtype = torch.bfloat16) -> LlamaForCausalLM:
        """Load the model with its weights dequantised, in evaluation mode.

        Args:
            dtype: dtype of the weights.

        Raises:
            CheckpointError: if it is not an ordinary LLaMA, or a tensor is missing, unknown or of another shape.
        """
        config = self.config()
        if config.num_hidden_layers > len(self._tensors):  # building even an empty model of so many takes long
            raise self._refused(f"it lacks the tensors of {config.num_hidden_layers:,} blocks")
        heads = {
            "attn_q": config.num_attention_heads,
            "attn_k": config.num_key_value_heads or config.num_attention_heads,
        }
        with torch.device("meta"):
            expected = {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}
        weights: dict[str, Tensor] = {}
        for name in self._tensors:
            if name not in (FACTORS, SHORT, LONG):
                target, part = self._target(name), name.split(".")[-2]
                found = tuple(self._tensors[name].shape.tolist()[::-1])
                if found != expected.get(target):  # before they are dequantised
                    shape = "×".join(map(str, found))
                    raise self._refused(f"its tensor {name} of {shape} numbers is not one of its configuration")
                values = self._values(name)
                if part in heads:
                    values = _unpermute(values, heads[part])
                weights[target] = torch.from_numpy(values).to(dtype)
        unbiased = tuple(f"{name}.bias" for part, name in _LAYER_NAMES.items() if part not in self._biased())
        weights |= {
            name: torch.zeros(shape, dtype=dtype) for name, shape in expected.items() if name.endswith(unbiased)
        }
        if config.tie_word_embeddings:
            weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
        missing = sorted(expected.keys() - weights.keys())
        if missing:
            raise self._refused(f"it lacks {len(missing)} of {len(expected)} tensors ({', '.join(missing[:3])})")
        model = sharing_weights(LlamaForCausalLM, config, weights, torch.device("cpu"))
        model.config.dtype = dtype
        return model

    def _target(self, name: str) -> str:
        """The name of a tensor in transformers."""
        if name in _TOP_NAMES:
            return _TOP_NAMES[name]
        match name.split("."):
            case ["blk", block, part, "weight" | "bias" as what] if part in _LAYER_NAMES:
                return f"model.layers.{block}.{_LAYER_NAMES[part]}.{what}"
        raise self._refused(f"its tensor {name} is unknown")

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, exact for byte-level BPE with the "smollm" pre-tokenizer; else as transformers reads it."""
        if self._field("tokenizer.ggml.pre") != "smollm":
            from transformers import AutoTokenizer  # noqa: PLC0415

            return AutoTokenizer.from_pretrained(
                self.path.parent, gguf_file=self.path.name, local_files_only=True, trust_remote_code=False
            )
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers  # noqa: PLC0415

        tokens = self._field("tokenizer.ggml.tokens")
        merges = [tuple(merge.split(" ")) for merge in self._field("tokenizer.ggml.merges")]
        tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        kinds = self._field("tokenizer.ggml.token_type")
        special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL_TOKEN]
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
        named = {
            f"{role}_token": tokens[self._field(f"tokenizer.ggml.{key}_token_id")]
            for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
            if self._field(f"tokenizer.ggml.{key}_token_id") is not None
        }
        fast = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            model_max_length=self._field("llama.context_length"),
            clean_up_tokenization_spaces=False,
            **named,
        )
        fast.chat_template = self._field("tokenizer.chat_template")
        return fast


def _unpermute(values: np.ndarray, num_heads: int) -> np.ndarray:
    """Undo the interleaving of the two halves of each head, in the rows of a matrix or in a bias."""
    return values.reshape(num_heads, -1, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
