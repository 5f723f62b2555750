"""What documents tell people to type works: commands parse, and those for a first day run, on tiny data."""

import argparse
import json
import re
import shlex
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from analysis import Trace
from app.command import COMMANDS, main
from tests.architecture import ROOT
from tests.conftest import GOLDEN, byte_tokenizer
from tests.test_documents import DOCUMENTS, python_blocks

TRAINING = ROOT / "docs" / "training.md"
SHORT = {  # options at the end that make a command short
    "trace": ["--checkpoint", str(ROOT / "assets" / "small" / "final")],
    "edit": ["--checkpoint", str(ROOT / "assets" / "small" / "final")],
    "why": ["--checkpoint", str(ROOT / "assets" / "small" / "final")],
    "generate": ["--checkpoint", str(ROOT / "assets" / "small" / "final"), "--new-tokens", "2"],
    "predict": ["--checkpoint", str(ROOT / "assets" / "small" / "final")],
    "efficiency": ["--lengths", "16", "--retentions", "0.5", "--repeats", "1"],
    "convert llama": ["--structure", "T(T)T", "--steps", "2", "--length", "32", "--held-out-blocks", "2"],
    "convert chats": ["--count", "2", "--new-tokens", "4", "--batch-size", "2"],
    "evaluate": ["--lengths", "16", "--needles", "96", "--trials", "1", "--blocks", "2"],
}
TINY = {
    "model": {
        "structure": "T(T)T", "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2,
        "num_key_value_heads": 2, "max_position_embeddings": 256,
    },
    "steps": 2, "batch_size": 2, "micro_batch_size": 2, "length": 16, "evaluation_blocks": 2,
    "evaluate_every": 2, "save_every": 2, "snapshot_every": 2, "prompts": ["the cat sat"],
}  # fmt: skip


def commands(path: Path) -> list[list[str]]:
    """Arguments of the `subllm` commands in the code of a document, without those that are only named."""
    text = path.read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"^```\n(.*?)^```", text, re.M | re.S)).replace("\\\n", " ")
    lines = [re.sub(r"\$\w+", "1", line.strip()) for line in blocks.splitlines()]  # variables of a shell's loop
    lines += re.findall(r"`(subllm [^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    found = [shlex.split(line, comments=True) for line in lines if line.startswith("subllm ")]
    return [arguments[1:] for arguments in found if len(arguments) > 2 and arguments[1].islower()]


class _ParsedError(Exception):
    pass


@pytest.mark.parametrize(
    "document", [path for path in DOCUMENTS if path.name != "commands.md"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_commands_in_documents_have_real_options(document, monkeypatch):
    parse, required = argparse.ArgumentParser.parse_args, []

    def stop(parser, arguments=None, namespace=None):
        parse(parser, arguments, namespace)
        raise _ParsedError

    def incomplete(parser, message):
        required.append(message)
        raise _ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(argparse.ArgumentParser, "error", incomplete)
    for arguments in commands(document):
        if arguments[0] == "app":
            continue  # passes what it does not know to Streamlit
        with pytest.raises(_ParsedError):
            main(arguments)
    wrong = [message for message in required if "are required" not in message and "is required" not in message]
    assert not wrong  # prose may leave out what a command needs besides, and must not invent options


@pytest.fixture
def first_day(tmp_path, monkeypatch):
    """A folder with everything that commands in documents name, and tiny."""
    monkeypatch.chdir(tmp_path)
    tokenizer = byte_tokenizer()
    fields = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "max_position_embeddings": 512}
    special = {f"{name}_token_id": 0 for name in ("bos", "eos", "pad")}
    config = LlamaConfig(vocab_size=len(tokenizer), num_hidden_layers=3, **fields, **special)
    LlamaForCausalLM(config).save_pretrained("FOLDER")
    tokenizer.save_pretrained("FOLDER")
    case = json.loads((GOLDEN / "one_level.json").read_text())
    tensors = load_file(GOLDEN / "one_level.safetensors")
    Path("C.json").write_text(json.dumps(case["config"]))
    save_file({k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")}, "W.safetensors")
    Path("corpus").mkdir()
    animals = [(animal, number) for number in range(60) for animal in ("cat", "hen")]
    sentences = [
        f"The {animal} {number} is an animal. It sat on the mat by the {animal}." for animal, number in animals
    ]
    text = "".join(json.dumps({"text": f"{sentence} {sentence[::-1]}" * 4}) + "\n" for sentence in sentences)
    Path("corpus/wiki.jsonl").write_text(text)
    Path("assets/training").mkdir(parents=True)
    Path("assets/training/small.json").write_text(json.dumps(TINY))
    return tmp_path


def run(document: Path, name: str, out: str = "DIR") -> None:
    """Run the first command of a document that begins with a name; its `DIR` is another folder."""
    arguments = next(each for each in commands(document) if each[: name.count(" ") + 1] == name.split())
    arguments = [out if argument == "DIR" else argument for argument in arguments]
    assert main([*arguments, *SHORT.get(name, [])]) == 0, arguments


def test_readme_commands_run(first_day, capsys):
    readme = ROOT / "README.md"
    run(readme, "trace")
    assert "Level 1 keeps" in capsys.readouterr().out
    for name in ("edit", "why", "generate", "predict"):
        run(readme, name)
    run(readme, "convert reference", "reference")
    run(readme, "convert llama", "converted")
    run(readme, "efficiency", "converted")
    assert list(Path("converted").glob("*.parquet"))


def test_commands_for_training_run_one_after_the_other(first_day):
    for name in ("data tokenizer", "data pack", "train"):
        run(TRAINING, name)
    assert AutoTokenizer.from_pretrained("tokenizer").eos_token
    assert main([*next(each for each in commands(TRAINING) if "--dense" in each)]) == 0
    for kind in ("subllm", "llama"):
        assert (first_day / "checkpoints" / kind / "final" / "config.json").is_file()
    run(TRAINING, "convert chats")
    assert len(Path("chats.jsonl").read_text().splitlines()) == 2
    run(TRAINING, "evaluate", "checkpoints/subllm/final")


def test_python_in_the_readme_runs(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(ROOT)
    trace, model = python_blocks(ROOT / "README.md")
    names: dict = {}
    exec(trace, names)
    names["trace"].save(tmp_path / "run.npz")
    assert Trace.load(tmp_path / "run.npz").digest == names["trace"].digest
    printed = capsys.readouterr().out
    assert [line[0] for line in printed.splitlines()] == ["1", "2"]
    assert len([line for line in trace.splitlines() if line]) <= 6
    exec(model, {})


@pytest.mark.demo
def test_readme_commands_run_with_the_demo():
    found = commands(ROOT / "README.md")
    for name in ("trace", "edit", "why", "generate"):
        assert main(next(arguments for arguments in found if arguments[0] == name)) == 0


def test_every_command_is_in_a_document_for_people():
    texts = [path.read_text(encoding="utf-8") for path in DOCUMENTS if path.name != "commands.md"]
    named = {name for text in texts for name in re.findall(r"subllm ([a-z-]+)", text)}
    assert COMMANDS.keys() <= named
