"""The command `subllm`: what it offers, how fast, and what it says of a mistake."""

import argparse
import contextlib
import importlib
import io
import runpy
import subprocess
import sys

import pytest

from analysis import Trace
from app.command import COMMANDS, main
from tests.command_docs import FILE, text

OLD = {
    "analysis.efficiency": "efficiency",
    "analysis.evaluate": "evaluate",
    "analysis.intervene": "edit",
    "analysis.predict": "predict",
    "analysis.training_step": "training-step",
    "subllm.convert": "convert",
    "subllm.corpus": "corpus-text",
    "subllm.data": "data",
    "subllm.demo": "demo",
    "subllm.train": "train",
}
NOT_COUNTS = {  # options that are whole numbers, and may be less than 1 or must be more
    "subllm app --port": "of the network, checked by Streamlit",
    "subllm trace --new-tokens": "0 writes none",
    "subllm generate --seed": "any",
    "subllm generate --top-k": "0 is off",
    "subllm why --token": "from 0",
    "subllm why --level": "a number of the model's, checked with it",
    "subllm patch --token": "from 0",
    "subllm patch --source": "from 0",
    "subllm patch --level": "a number of the model's, checked with it",
    "subllm rivals --seed": "any",
    "subllm evaluate --lengths": "2 or more, checked with the model's positions",
    "subllm corpus --window": "16 or more, checked with the model's positions",
    "subllm corpus --workers": "0 takes all devices",
    "subllm corpus-rivals --tokens": "33 or more, checked with the documents",
    "subllm convert llama --inner-rank": "0 is that of the others",
    "subllm convert llama --length": "2 or more",
    "subllm convert llama --seed": "0 or more",
    "subllm convert chats --seed": "any",
    "subllm convert repeats --seed": "any",
    "subllm convert repeats --distance": "more than 400, checked with the longest text",
    "subllm data tokenizer --vocabulary": "257 or more",
}
PROMPT = "the cat sat on the mat and then the dog sat on the cat"


def test_help_fits_one_screen_and_imports_none_of_what_the_commands_need():
    script = (
        "import sys; from app.command import main; main(['--help']);"
        "heavy = {'torch', 'transformers', 'streamlit', 'numpy', 'pandas', 'subllm', 'analysis'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) <= 32 and max(map(len, lines)) <= 100
    assert all(f"  {name} " in done.stdout for name in COMMANDS)


def test_the_model_needs_nothing_that_only_app_or_training_need():
    script = (
        "import sys\n"
        "for name in 'streamlit captum peft plotly pyarrow datasets gguf'.split(): sys.modules[name] = None\n"
        "import subllm, analysis.run, analysis.debug.intervene, analysis.commands.trace, subllm.checkpoints.load"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


class ArgumentsNeededError(Exception):
    """A command has come to reading its arguments."""


def parsers_of(name, monkeypatch):
    """The parser of a command, and those of its sub-commands."""

    def stop(self, *_):
        raise ArgumentsNeededError(self)

    with monkeypatch.context() as patched, pytest.raises(ArgumentsNeededError) as caught:
        patched.setattr(argparse.ArgumentParser, "parse_known_args", stop)
        importlib.import_module(COMMANDS[name][0]).main([])
    (parser,) = caught.value.args
    found = [action.choices.values() for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [parser, *(inner for choices in found for inner in choices)]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_that_counts_something_refuses_what_is_no_number_above_0(name, monkeypatch):
    for parser in parsers_of(name, monkeypatch):
        for action in parser._actions:
            action.required = False
        for action in parser._actions:
            try:
                counts = action.type is not None and type(action.type("1000")) is int
            except argparse.ArgumentTypeError:
                continue
            option = action.option_strings[0] if counts else ""
            if not counts or f"{parser.prog} {option}" in NOT_COUNTS:
                continue
            for value in ("0", "-1", "1.5", "x"):
                with contextlib.redirect_stderr(io.StringIO()) as said, pytest.raises(SystemExit):
                    parser.parse_known_args([option, value])
                assert f"argument {option}: it is '{value}'; give a whole number, 1 or more" in said.getvalue()


def test_an_unknown_command_is_said_with_the_one_that_was_meant(capsys):
    assert main(["predikt"]) == 2
    assert capsys.readouterr().err == (
        "error: there is no command 'predikt'. Did you mean 'predict'? Run subllm --help for a list.\n"
    )


def test_a_package_that_is_not_installed_is_said_with_how_to_install_it():
    script = "import sys; sys.modules['captum'] = None; from app.command import main; sys.exit(main(['why', '--help']))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: subllm why needs captum; install it with: pip install 'subllm[app]'\n"


@pytest.mark.parametrize(
    ("arguments", "package", "extra"),
    [
        (["train", "--help"], "tensorboard", "train"),
        (["convert", "--help"], "tensorboard", "train"),
        (["data", "tokenizer", "--text", "owner/name", "--out", "out"], "datasets", "train"),
        (["corpus", "--checkpoint", "CHECKPOINT", "--text", "owner/name", "--out", "out"], "datasets", "corpus"),
    ],
)
def test_a_command_names_its_own_extra(arguments, package, extra, monkeypatch, tmp_path, tiny_checkpoint, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    assert main([str(tiny_checkpoint) if each == "CHECKPOINT" else each for each in arguments]) == 1
    said = f"error: subllm {arguments[0]} needs {package}; install it with: pip install 'subllm[{extra}]'"
    assert said in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("module", OLD)
def test_the_old_spellings_are_the_same_commands(monkeypatch, capsys, module):
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    for name in (module, f"{module}.__main__"):  # as in a fresh process
        if name not in ("subllm.convert", "subllm.train"):
            monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert stopped.value.code in (0, None)
    assert capsys.readouterr().out.startswith(f"usage: subllm {OLD[module]} ")


def test_the_documented_options_are_the_real_ones():
    assert FILE.read_text(encoding="utf-8") == text(), "python -m tests.command_docs writes it anew"


def test_traces_are_shown_saved_and_compared(tiny_checkpoint, tmp_path, capsys):
    options = ["--checkpoint", str(tiny_checkpoint), "--device", "cpu", "--dtype", "float32"]
    (tmp_path / "prompt").write_text(PROMPT, encoding="utf-8")
    assert (
        main(["trace", *options, "--prompt-file", str(tmp_path / "prompt"), "--out", str(tmp_path / "plain.npz")]) == 0
    )
    trace = Trace.load(tmp_path / "plain.npz")
    assert trace.prompt.text == PROMPT
    said = capsys.readouterr().out
    for level in trace.routing.levels:
        kept, reached = (int(each[level - 1].sum()) for each in (trace.routing.kept, trace.routing.reached))
        assert f"Level {level} keeps {kept} of {reached} tokens:" in said
    assert main(["edit", *options, "--prompt", PROMPT, "--keep", "2-4@1", "--out", str(tmp_path / "edited.npz")]) == 0
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "plain.npz"), str(tmp_path / "edited.npz")]) == 0
    edited = Trace.load(tmp_path / "edited.npz")
    differ = int((trace.routing.kept[0] != edited.routing.kept[0]).sum())
    assert differ and f"decided differently: {differ}\n" in capsys.readouterr().out


def test_a_prompt_is_explained_and_continued(tiny_checkpoint, capsys):
    options = ["--checkpoint", str(tiny_checkpoint), "--device", "cpu", "--dtype", "float32", "--prompt", PROMPT]
    assert main(["why", *options, "--method", "ablation", "--most", "3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert main(["generate", *options, "--new-tokens", "4", "--drop", "1@1"]) == 0
    assert capsys.readouterr().out.count(" blocks ") == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trace", "--checkpoint", "nowhere", "--prompt", "x"], "nowhere"),
        (["compare", "nowhere.npz", "nowhere.npz"], "nowhere.npz"),
        (["edit", "--prompt", "x", "--drop", "4-2@1"], "4-2"),
        (["generate", "--prompt", "x", "--rule", "nowhere.json"], "nowhere.json"),
        (["trace", "--prompt", "x", "--rule", "nowhere.json"], "nowhere.json"),
        (["evaluate", "--checkpoint", "nowhere"], "nothing to do"),
    ],
)
def test_a_mistake_is_one_line(arguments, said, capsys):
    assert main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and said in line
