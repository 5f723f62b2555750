"""Reading a GGUF file of LLaMA architecture into transformers' configuration, weights and tokenizer.

Source: the GGUF specification (ggml-org/ggml, docs/gguf.md) and `gguf`, its reader. llama.cpp stores the rows of the
query and key projections interleaved for its rotary embedding; `_unpermute` restores transformers' half-rotation order.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .errors import CheckpointError

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
_CONTROL_TOKEN = 3


class GgufFile:
    """A GGUF file of LLaMA architecture.

    Args:
        path: the file.

    Raises:
        CheckpointError: if it cannot be read, or holds another architecture.
    """

    def __init__(self, path: Path) -> None:
        import gguf  # noqa: PLC0415 - only conversion needs it

        self._gguf = gguf
        try:
            self._reader = gguf.GGUFReader(path)
        except (ValueError, OSError, IndexError) as error:
            raise CheckpointError(f"{path} is not a readable GGUF file ({error}); download it again.") from error
        self.path = path
        architecture = self._field("general.architecture")
        if architecture != "llama":
            raise CheckpointError(f"{path} holds a {architecture!r} model; only 'llama' can become a SUBLLM.")

    def _field(self, name: str, default: Any = None) -> Any:
        field = self._reader.fields.get(name)
        return default if field is None else field.contents()

    def config(self) -> LlamaConfig:
        """The model's configuration."""
        names = {tensor.name for tensor in self._reader.tensors}
        heads = self._field("llama.attention.head_count")
        return LlamaConfig(
            vocab_size=len(self._field("tokenizer.ggml.tokens")),
            hidden_size=self._field("llama.embedding_length"),
            intermediate_size=self._field("llama.feed_forward_length"),
            num_hidden_layers=self._field("llama.block_count"),
            num_attention_heads=heads,
            num_key_value_heads=self._field("llama.attention.head_count_kv", heads),
            max_position_embeddings=self._field("llama.context_length"),
            rms_norm_eps=round(self._field("llama.attention.layer_norm_rms_epsilon"), 10),
            rope_parameters={"rope_type": "default", "rope_theta": self._field("llama.rope.freq_base", 10000.0)},
            bos_token_id=self._field("tokenizer.ggml.bos_token_id"),
            eos_token_id=self._field("tokenizer.ggml.eos_token_id"),
            pad_token_id=self._field("tokenizer.ggml.padding_token_id"),
            tie_word_embeddings="output.weight" not in names,
        )

    def state_dict(self, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
        """All weights, dequantised, under transformers' names.

        Args:
            dtype: of the tensors returned.
        """
        config = self.config()
        key_value_heads = config.num_key_value_heads or config.num_attention_heads
        heads = {"attn_q": config.num_attention_heads, "attn_k": key_value_heads}
        weights: dict[str, Tensor] = {}
        for tensor in self._reader.tensors:
            values = self._gguf.dequantize(tensor.data, tensor.tensor_type)
            if tensor.name in _TOP_NAMES:
                name = _TOP_NAMES[tensor.name]
            elif tensor.name.startswith("blk."):
                _, block, part, _ = tensor.name.split(".")
                if part in heads:
                    values = _unpermute(values, heads[part])
                name = f"model.layers.{block}.{_LAYER_NAMES[part]}.weight"
            else:
                continue  # rope_freqs: recomputed from the configuration
            weights[name] = torch.from_numpy(np.require(values, np.float32, ["C", "W"])).to(dtype)
        return weights

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, exact for byte-level BPE with the "smollm" pre-tokenizer; else as transformers reads it."""
        if self._field("tokenizer.ggml.pre") != "smollm":
            from transformers import AutoTokenizer  # noqa: PLC0415

            return AutoTokenizer.from_pretrained(self.path.parent, gguf_file=self.path.name)
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


def _unpermute(weight: np.ndarray, num_heads: int) -> np.ndarray:
    rows, columns = weight.shape
    return weight.reshape(num_heads, rows // num_heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
