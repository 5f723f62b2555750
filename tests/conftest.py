"""Shared by all tests: tiny random models, the golden cases of the reference, and the device that tests run on.

Tests run on the CPU, and see no GPU. With `SUBLLM_TEST_DEVICE=cuda` those with the marker `gpu` run, and the golden
cases and the properties of the model are checked on that device.
"""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import hypothesis
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging

from subllm import SubllmConfig, SubllmForCausalLM

GOLDEN = Path(__file__).parent / "golden"
MAIN = sys.modules["__main__"]
DEVICE = torch.device(os.environ.get("SUBLLM_TEST_DEVICE", "cpu"))

if DEVICE.type == "cpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a training would take the GPU, and not the CPU's steps to the last digit
if "PYTEST_XDIST_WORKER" in os.environ:  # threads of several processes that share the cores wait for each other
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"

hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")  # no test depends on how fast it is


def pytest_collection_modifyitems(items):
    """Skip what needs a GPU where there is none, with the reason."""
    if DEVICE.type == "cuda" and torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU, and SUBLLM_TEST_DEVICE=cuda; make gpu runs it"))


@pytest.fixture(autouse=True)
def _main_module():
    """Put the main module back that Streamlit's test runner replaces, in fixtures too: a started process runs it."""
    sys.modules["__main__"] = MAIN
    yield
    sys.modules["__main__"] = MAIN


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
    router = fields.get("router", "subllm")
    names = [router] * structure.count("(") if isinstance(router, str) else router
    if "stride" in names:  # which has no groups of 1/0.64 tokens
        defaults["retention_ratio"] = [0.5 if name == "stride" else 0.64 for name in names]
    return SubllmConfig(structure=structure, **(defaults | fields))


def tiny_model(structure: str, seed: int = 0, **fields) -> SubllmForCausalLM:
    """A small model with random weights, in evaluation mode; its scorers keep about half of the tokens."""
    torch.manual_seed(seed)
    model = SubllmForCausalLM(tiny_config(structure, **fields)).eval()
    for parameter in model.model.bypasses.parameters():
        torch.nn.init.uniform_(parameter, 0.3, 1.0)
    for router in model.model.subsamplers:
        if router.merges_tokens:
            torch.nn.init.normal_(router.bias)
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
    assert "np." not in said.getvalue(), "a value of NumPy is printed as code"
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


def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer as SentencePiece makes them: "▁" stands for a space, one of which is added before a text."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(["cat", " cat", "cats", " sat"] * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


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
