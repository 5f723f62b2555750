"""Shared by all tests: tiny random models, and the golden cases of the reference."""

import contextlib
import io
import json
import shutil
import subprocess
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging

from subllm import SubllmConfig, SubllmForCausalLM

GOLDEN = Path(__file__).parent / "golden"


def tiny_config(structure: str, **fields) -> SubllmConfig:
    """A small configuration with grouped-query attention."""
    defaults = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "pad_token_id": 0,
    }
    return SubllmConfig(structure=structure, **(defaults | fields))


def tiny_model(structure: str, seed: int = 0, **fields) -> SubllmForCausalLM:
    """A small model with random weights, in evaluation mode; its scorers keep about half of the tokens."""
    torch.manual_seed(seed)
    model = SubllmForCausalLM(tiny_config(structure, **fields)).eval()
    for parameter in [b.scale for b in model.model.bypasses]:
        torch.nn.init.uniform_(parameter, 0.3, 1.0)
    return model


def run_command(main, *arguments) -> subprocess.CompletedProcess:
    """A command line in this process: starting another one takes seconds, most of them imports."""
    said, complained = io.StringIO(), io.StringIO()
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained), warnings.catch_warnings():
            code = main([str(argument) for argument in arguments])
    finally:  # commands choose what transformers may say
        logging.set_verbosity(before[0])
        (logging.enable_progress_bar if before[1] else logging.disable_progress_bar)()
    return subprocess.CompletedProcess(arguments, code, said.getvalue(), complained.getvalue())


@pytest.fixture(params=["dense", "one_level", "nested", "paper_24_layers"])
def golden(request):
    """One case: its description, and its tensors."""
    case = json.loads((GOLDEN / f"{request.param}.json").read_text())
    return case, load_file(GOLDEN / f"{request.param}.safetensors")


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory, monkeypatch):
    """No test touches a user's folder, or reaches the hub."""
    monkeypatch.setenv("SUBLLM_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that can read any text, with a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<eos>", "<user>", "<model>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat and then the dog sat on the cat " * 20], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    fast.chat_template = "<user>{{ messages[0]['content'] }}<model>"
    return fast


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """Folder of a complete random checkpoint with two levels; do not write to it."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    tokenizer = byte_tokenizer()
    fields = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    tiny_model("TT(T(T)T)T", max_position_embeddings=512, **fields).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def odd_checkpoints(tiny_checkpoint, tmp_path_factory) -> Path:
    """Folder of checkpoints whose levels keep "everything" or "nothing", or that have "no-levels"."""
    folder = tmp_path_factory.mktemp("odd")
    for name, structure in (("everything", "TT(T(T)T)T"), ("nothing", "TT(T(T)T)T"), ("no-levels", "TTTT")):
        config = SubllmConfig.from_pretrained(tiny_checkpoint).to_dict()
        config |= {"structure": structure, "num_hidden_layers": structure.count("T")}
        config |= {"retention_ratio": 0.6 if "(" in structure else 1.0}
        model = SubllmForCausalLM(SubllmConfig.from_dict(config)).eval()
        with torch.no_grad():
            model.model.embed_tokens.weight[:, 0] = 30.0  # a channel that the blocks do not turn around
            for scorer in model.model.subsamplers:
                scorer.weight.zero_()
                scorer.weight[0] = 0.1 if name == "everything" else -0.1
        model.save_pretrained(folder / name)
        AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(folder / name)
    return folder


@pytest.fixture
def copied_checkpoint(tiny_checkpoint, tmp_path) -> Path:
    """A copy of the tiny checkpoint, to be broken."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))
