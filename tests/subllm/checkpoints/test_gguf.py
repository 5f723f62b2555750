"""A GGUF file is read as the LLaMA that was written, or refused: files as llama.cpp's conversion writes them."""

import re

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from subllm import CheckpointError
from subllm.checkpoints.base import from_llama, load_base
from subllm.text.tokenizer import train_tokenizer

TEXTS = [f"Document {number} tells of the number {number * 7} and of nothing else." for number in range(200)]
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 500000.0}
LLAMA3 |= {"factor": 8.0, "original_max_position_embeddings": 8192}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LONGROPE = {
    "rope_type": "longrope", "original_max_position_embeddings": 64, "factor": 4.0, "attention_factor": 1.2,
    "short_factor": np.linspace(1, 2, 16).tolist(), "long_factor": np.linspace(2, 30, 16).tolist(),
}  # fmt: skip
ROPES = {
    "default": {"rope_type": "default"},
    "another base": {"rope_type": "default", "rope_theta": 123456.0},
    "linear": {"rope_type": "linear", "factor": 2.5},
    "yarn": YARN,
    "yarn with a ramp and an attention factor": YARN | {"beta_fast": 8.0, "beta_slow": 2.0, "attention_factor": 1.3},
    "yarn with a multiplier": YARN | {"mscale": 1.0, "mscale_all_dim": 0.7},
    "llama 3.1": LLAMA3,
    "llama 3.2": LLAMA3 | {"factor": 32.0},
    "llama3 with other numbers": LLAMA3 | {"factor": 5.0, "low_freq_factor": 2.0, "high_freq_factor": 7.0},
    "llama3 of a short context": LLAMA3 | {"original_max_position_embeddings": 100},
    "longrope": LONGROPE,
}


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = train_tokenizer(TEXTS, 300)
    tokenizer.pad_token = None  # as most LLaMAs have it
    return tokenizer


def llama(tokenizer, **fields):
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    fields = {"vocab_size": len(tokenizer), "num_key_value_heads": 1, "max_position_embeddings": 131072} | fields
    model = LlamaForCausalLM(LlamaConfig(**sizes | fields, initializer_range=0.2, rms_norm_eps=1e-6)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(parameter)
    return model


def permuted(values, heads):
    return values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def divisors(config):
    """What llama.cpp divides the frequencies of a llama3 model by: its conversion's loop."""
    rope, size = config.rope_parameters, config.head_dim
    context = rope["original_max_position_embeddings"]
    for frequency in 1.0 / rope["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float32) / size):
        wavelength = 2 * np.pi / frequency
        if wavelength < context / rope["high_freq_factor"]:
            yield 1.0
        elif wavelength > context / rope["low_freq_factor"]:
            yield rope["factor"]
        else:
            smooth = context / wavelength - rope["low_freq_factor"]
            smooth /= rope["high_freq_factor"] - rope["low_freq_factor"]
            yield 1 / ((1 - smooth) / rope["factor"] + smooth)


def write_rope(writer, tensors, config):
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "llama3":
        tensors["rope_freqs.weight"] = np.array(list(divisors(config)), np.float32)
    elif rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        for name, add in (
            ("attention_factor", writer.add_rope_scaling_yarn_attn_factor),
            ("beta_fast", writer.add_rope_scaling_yarn_beta_fast),
            ("beta_slow", writer.add_rope_scaling_yarn_beta_slow),
            ("mscale_all_dim", writer.add_rope_scaling_yarn_log_mul),
        ):
            if name in rope:
                add(rope[name])
    elif rope["rope_type"] == "longrope":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_attn_factors(rope["attention_factor"])
        for name in ("short", "long"):
            tensors[f"rope_factors_{name}.weight"] = np.array(rope[f"{name}_factor"], np.float32)


def write(path, model, tokenizer, change=lambda writer, tensors: None):
    """Write a model as llama.cpp's conversion does, after a change."""
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        block = re.match(r"model\.layers\.(\d+)\.", name)
        stem, kind = name.removeprefix(block[0] if block else "").rsplit(".", 1)
        values = tensor.numpy().copy()
        if stem.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads if "q_proj" in stem else config.num_key_value_heads
            values = permuted(values, heads)
        tensors[f"{f'blk.{block[1]}.' if block else ''}{NAMES[stem]}.{kind}"] = values
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    write_rope(writer, tensors, config)
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary)
    control = {True: gguf.TokenType.CONTROL, False: gguf.TokenType.NORMAL}
    writer.add_token_types([control[token in tokenizer.all_special_tokens] for token in vocabulary])
    merges = re.findall(r'\[\s*"((?:[^"\\]|\\.)*)",\s*"((?:[^"\\]|\\.)*)"\s*\]', tokenizer.backend_tokenizer.to_str())
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    change(writer, tensors)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits(model, steps=(1, 97)):
    """Of a text at positions that follow one another, and that lie far apart."""
    ids = torch.randint(len(TEXTS), (1, 48), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(48)[None]
    with torch.no_grad():
        return torch.stack([model(ids, position_ids=positions * step).logits for step in steps])


def equal(path, model):
    read, _ = load_base(str(path), torch.float32)
    assert (logits(read) - logits(model)).norm() < 1e-4 * logits(model).norm()
    made = from_llama(read, "TT", 1.0)  # to which positions that lie apart are texts that know nothing of each other
    assert (logits(made, (1,)) - logits(model, (1,))).norm() < 1e-4 * logits(model, (1,)).norm()
    return read


@pytest.mark.parametrize("kind", ROPES)
def test_a_model_is_read_as_it_was_written_whatever_scales_its_rotary_frequencies(tokenizer, tmp_path, kind):
    model = llama(tokenizer, rope_parameters={"rope_theta": 10000.0} | ROPES[kind])
    read = equal(write(tmp_path / "model.gguf", model, tokenizer), model)
    if kind.startswith("llama 3"):
        assert read.config.rope_parameters == model.config.rope_parameters
    if kind != "default":
        plain = llama(tokenizer, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
        assert (logits(plain) - logits(model)).norm() > 0.05 * logits(model).norm()


@pytest.mark.parametrize(
    "fields",
    [
        {"head_dim": 16},
        {"num_key_value_heads": 2, "tie_word_embeddings": True},
        {"attention_bias": True},
        {"attention_bias": True, "mlp_bias": True},
        {"vocab_size": 333},
    ],
)
def test_other_ordinary_llamas_are_read_as_they_were_written(tokenizer, tmp_path, fields):
    model = llama(tokenizer, **fields)
    equal(write(tmp_path / "model.gguf", model, tokenizer), model)


def test_biases_of_some_projections_leave_the_others_without(tokenizer, tmp_path):
    model = llama(tokenizer, attention_bias=True)
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.bias)

    def change(writer, tensors):
        for block in range(2):
            del tensors[f"blk.{block}.attn_output.bias"]

    equal(write(tmp_path / "model.gguf", model, tokenizer, change), model)


def test_the_old_name_of_a_linear_factor_is_read(tokenizer, tmp_path):
    model = llama(tokenizer, rope_parameters={"rope_type": "linear", "factor": 2.5, "rope_theta": 10000.0})
    plain = llama(tokenizer, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    equal(
        write(tmp_path / "a.gguf", plain, tokenizer, lambda w, _: w.add_float32("llama.rope.scale_linear", 2.5)), model
    )
    equal(write(tmp_path / "b.gguf", plain, tokenizer, lambda w, _: w.add_rope_scaling_factor(2.5)), model)

    def none(writer, tensors):
        writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
        writer.add_rope_scaling_factor(2.5)

    equal(write(tmp_path / "c.gguf", plain, tokenizer, none), plain)


def test_its_tokenizer_is_read_as_it_was_written(tokenizer, tmp_path):
    _, read = load_base(str(write(tmp_path / "model.gguf", llama(tokenizer), tokenizer)))
    for text in (*TEXTS[:5], "naïve 🦙 日本 1234", tokenizer.eos_token):
        assert read(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert read.pad_token is None and read.eos_token == tokenizer.eos_token


def scaled(kind, factor=1.0, **entries):
    def change(writer, tensors):
        writer.add_string("llama.rope.scaling.type", kind)
        writer.add_rope_scaling_factor(factor)
        for name, value in entries.items():
            writer.add_float32(f"llama.rope.scaling.{name}", value)

    return change


def with_tensor(name, *shape):
    return lambda writer, tensors: tensors.__setitem__(name, np.ones(shape, np.float32))


def with_entry(name, value):
    def change(writer, tensors):
        writer.kv_data[0].pop(f"llama.{name}", None)
        writer.add_array(f"llama.{name}", value) if isinstance(value, list) else writer.add_uint32(
            f"llama.{name}", value
        )

    return change


REFUSED = {
    "one of 3 parts": lambda w, t: w.add_uint16("split.count", 3),
    "lacks 1 of 21 tensors": lambda w, t: t.pop("blk.1.ffn_up.weight"),
    "lacks the tensor token_embd.weight": lambda w, t: t.pop("token_embd.weight"),
    "ffn_gate_inp.weight is unknown": with_tensor("blk.0.ffn_gate_inp.weight", 4, 64),
    "blk.0.attn_norm.bias of 64": with_tensor("blk.0.attn_norm.bias", 64),
    "blk.2.attn_q.weight of 64×64": with_tensor("blk.2.attn_q.weight", 64, 64),
    "blk.0.ffn_up.weight of 8×64": with_tensor("blk.0.ffn_up.weight", 8, 64),
    "blk.0.attn_q.weight of 63×64": with_tensor("blk.0.attn_q.weight", 63, 64),
    "290 tokens, and its embedding 280": with_tensor("token_embd.weight", 280, 64),
    "llama.expert_count is 8": with_entry("expert_count", 8),
    "llama.attention.causal is False": lambda w, t: w.add_causal_attention(False),
    "llama.attention.value_length is 8": with_entry("attention.value_length", 8),
    "head_count_kv differs": with_entry("attention.head_count_kv", [1, 2]),
    "has no llama.block_count": lambda w, t: w.kv_data[0].pop("llama.block_count"),
    "rope_freqs.weight has 4 numbers": with_tensor("rope_freqs.weight", 4),
    "by 'spiral' with factor 2.0": scaled("spiral", 2.0),
    "by 'linear' with {'attn_factor': 1.5}": scaled("linear", 2.0, attn_factor=1.5),
    "by 'yarn' with {'yarn_ext_factor': 0.5}": scaled("yarn", 2.0, yarn_ext_factor=0.5),
    "by 'linear' with {'alpha': 1000.0}": scaled("linear", 1.0, alpha=1000.0),
    "lacks rope_factors_short.weight": scaled("longrope"),
    "twice, by rope_freqs.weight and by 'yarn'": lambda w, t: (
        scaled("yarn", 2.0)(w, t), with_tensor("rope_freqs.weight", 16)(w, t),
    ),
}  # fmt: skip


@pytest.mark.parametrize("said", REFUSED)
def test_a_file_that_would_be_read_as_another_model_is_refused_in_a_line(tokenizer, tmp_path, said):
    path = write(tmp_path / "model.gguf", llama(tokenizer), tokenizer, REFUSED[said])
    with pytest.raises(CheckpointError, match=re.escape(said)) as refusal:
        load_base(str(path))
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_file_that_ends_early_is_refused(tokenizer, tmp_path):
    path = write(tmp_path / "model.gguf", llama(tokenizer), tokenizer)
    content = path.read_bytes()
    for length in (0, 10, 500, len(content) // 2, len(content) - 100):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="not a readable GGUF file"):
            load_base(str(path))
