"""A tiny LLaMA to convert."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from subllm.convert.__main__ import main
from tests.conftest import run_command

WORDS = "the a cat dog sat ran on under mat tree and then it was very happy sad".split()  # noqa: SIM905


def convert(*arguments):
    """The command line, in this process."""
    return run_command(main, *arguments)


@pytest.fixture
def tiny_llama(tmp_path):
    """A random LLaMA with a word tokenizer, and text for it."""
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    fast.save_pretrained(tmp_path / "llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    generator = torch.Generator().manual_seed(0)
    with (tmp_path / "text.jsonl").open("w") as file:
        for _ in range(300):
            ids = torch.randint(len(WORDS), (60,), generator=generator).tolist()
            file.write(json.dumps({"text": " ".join(WORDS[i] for i in ids)}) + "\n")
    return tmp_path
