"""What commands about a prompt have in common: options, and what they name."""

import argparse
from functools import partial
from pathlib import Path

from subllm import SubllmError
from subllm.checkpoints.device import pick_device, pick_dtype
from subllm.checkpoints.load import Checkpoint, load_checkpoint
from subllm.command import command

from ..debug.edits import Edit, EditKind
from ..errors import AnalysisError
from ..trace.parts import Prompt
from ..trace.tokenize import read_prompt

analysis_command = partial(command, SubllmError, AnalysisError)


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Options `--checkpoint`, `--device` and `--dtype`."""
    parser.add_argument("--checkpoint", type=Path, help="folder of the checkpoint (default: the demo)")
    parser.add_argument("--device", help="such as cpu or cuda:0 (default: the best one)")
    parser.add_argument("--dtype", help="float32, float16 or bfloat16 (default: the device's best)")


def add_prompt(parser: argparse.ArgumentParser) -> None:
    """Options `--prompt`, `--prompt-file` and `--chat`."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", help="text of the prompt")
    source.add_argument("--prompt-file", type=Path, help="UTF-8 file with the prompt")
    parser.add_argument("--chat", action="store_true", help="put the prompt into the model's chat template")


def add_edits(parser: argparse.ArgumentParser) -> None:
    """An option for every kind of edit; their order on the command line is kept."""
    group = parser.add_argument_group("edits", "They are made in this order. LEVEL counts from 1; * is every level.")
    for kind in EditKind:
        what = "LEVEL" if kind is EditKind.DENSE else "TOKENS@LEVEL" if kind.names_tokens else "NUMBER@LEVEL"
        form = "dense@" if kind is EditKind.DENSE else f"{kind} "
        group.add_argument(
            f"--{kind}", dest="edits", action="append", type=f"{form}{{}}".format, default=[], metavar=what
        )


def load(arguments: argparse.Namespace) -> Checkpoint:
    """The checkpoint that the options of `add_checkpoint` name."""
    device = arguments.device or pick_device()
    return load_checkpoint(folder_of(arguments), device, arguments.dtype or pick_dtype(device))


def folder_of(arguments: argparse.Namespace) -> Path:
    """Folder of that checkpoint; the demo is built if it is asked for and is not there yet."""
    if arguments.checkpoint is not None:
        return Path(arguments.checkpoint)
    from subllm.demo import build_demo  # noqa: PLC0415 - needs more packages than a checkpoint of one's own

    return build_demo()


def prompt_of(arguments: argparse.Namespace, checkpoint: Checkpoint) -> Prompt:
    """The prompt that the options of `add_prompt` name, as the checkpoint's tokenizer reads it."""
    text = arguments.prompt
    if text is None:
        try:
            text = arguments.prompt_file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise AnalysisError(f"{arguments.prompt_file} is not UTF-8 text ({error.reason}).") from error
    most = checkpoint.model.config.max_position_embeddings
    return read_prompt(text, checkpoint.tokenizer, most, chat=arguments.chat)


def edits_of(arguments: argparse.Namespace) -> list[Edit]:
    """The edits that the options of `add_edits` name."""
    return [Edit.parse(text) for text in arguments.edits]
