"""What commands about a prompt have in common: options, and what they name."""

import argparse
from functools import partial
from pathlib import Path
from typing import NamedTuple

from subllm import CheckpointError, SubllmError
from subllm.assets import DEMOS
from subllm.atomic import full_disk_reported, written_whole
from subllm.checkpoints.load import Checkpoint, fetch_checkpoint, load_checkpoint
from subllm.command import command

from ..debug.edit_override import kinds_of
from ..debug.edits import Edit, EditKind, check, read_edits
from ..debug.rules import Rule, load_rule
from ..errors import AnalysisError
from ..trace.chat_text import MOST_BYTES, FilePrompt, prompt_in_file
from ..trace.parts import Prompt
from ..trace.tokenize import read_prompt
from ..trace.trace import Trace

analysis_command = partial(command, SubllmError, AnalysisError)


def add_folder(parser: argparse.ArgumentParser) -> None:
    """Option `--checkpoint`, which `folder_of` reads."""
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="folder of the checkpoint, demo, deep, or owner/name on the Hugging Face hub (default: demo)",
    )


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Options `--checkpoint`, `--device` and `--dtype`."""
    add_folder(parser)
    parser.add_argument("--device", help="such as cpu or cuda:0 (default: the best one)")
    parser.add_argument("--dtype", help="float32, float16 or bfloat16 (default: the device's best)")


def add_prompt(parser: argparse.ArgumentParser) -> None:
    """Options `--prompt`, `--prompt-file`, `--chat` and `--no-special-tokens`."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", help="text of the prompt")
    source.add_argument("--prompt-file", type=Path, help="UTF-8 file with the prompt; *.json: messages of a chat")
    parser.add_argument("--chat", action="store_true", help="put the prompt into the model's chat template")
    parser.add_argument(
        "--no-special-tokens",
        action="store_true",
        help="add no special tokens to the prompt, such as one of the beginning; for a text that has them in it",
    )


def add_edits(parser: argparse.ArgumentParser) -> None:
    """An option for every kind of edit; their order on the command line is kept."""
    group = parser.add_argument_group(
        "edits", "They are made in this order. LEVEL is numbered from 1; * is every level."
    )
    for kind in EditKind:
        what = "LEVEL" if kind is EditKind.DENSE else "TOKENS@LEVEL" if kind.names_tokens else "NUMBER@LEVEL"
        form = "dense@" if kind is EditKind.DENSE else f"{kind} "
        group.add_argument(
            f"--{kind}", dest="edits", action="append", type=f"{form}{{}}".format, default=[], metavar=what
        )


def add_rule(parser: argparse.ArgumentParser) -> None:
    """Option `--rule`."""
    parser.add_argument(
        "--rule", type=Path, metavar="FILE", help="file with a rule: edits under a name (docs/formats.md)"
    )


def rule_of(arguments: argparse.Namespace) -> Rule | None:
    """The rule that the option of `add_rule` names."""
    return None if arguments.rule is None else load_rule(arguments.rule)


def load(arguments: argparse.Namespace) -> Checkpoint:
    """The checkpoint that the options of `add_checkpoint` name."""
    return load_checkpoint(folder_of(arguments), arguments.device, arguments.dtype)


def folder_of(arguments: argparse.Namespace) -> Path:
    """Folder of that checkpoint; a demo is built, and one on the hub fetched, if it is not there yet."""
    name = arguments.checkpoint
    if name is not None and _may_be_on_hub(name):
        try:
            return fetch_checkpoint(name.as_posix())
        except CheckpointError as error:
            raise CheckpointError(
                f"{name} is no folder here, and no reachable name on the Hugging Face hub: {error}"
            ) from error
    if name is not None and (str(name) not in DEMOS or name.exists()):
        return Path(name)
    from subllm.demo import build_demo  # noqa: PLC0415 - needs more packages than a checkpoint of one's own

    return build_demo() if name is None else build_demo(name=str(name))


def _may_be_on_hub(name: Path) -> bool:
    """Whether a checkpoint is named as on the hub, owner/name, and there is no folder `owner` here."""
    here = name.is_absolute() or name.parts[:1] in (("..",), ("~",)) or name.parent.exists()
    return not here and len(name.parts) == 2


def prompt_of(arguments: argparse.Namespace, checkpoint: Checkpoint) -> Prompt:
    """The prompt that the options of `add_prompt` name, as the checkpoint's tokenizer reads it."""
    found = FilePrompt(arguments.prompt, False)
    if arguments.prompt is None:
        with arguments.prompt_file.open("rb") as file:
            found = prompt_in_file(arguments.prompt_file.name, file.read(MOST_BYTES + 1))
    most = checkpoint.model.config.max_position_embeddings
    chat, special = arguments.chat or found.chat, not arguments.no_special_tokens
    return read_prompt(found.text, checkpoint.tokenizer, most, chat=chat, special_tokens=special)


class AskedEdits(NamedTuple):
    """A rule and edits, read before there is a model, so that a mistake in them costs no waiting."""

    rule: Rule | None
    edits: tuple[Edit, ...]

    def on(self, prompt: Prompt, checkpoint: Checkpoint) -> tuple[Edit, ...]:
        """Those that apply to a prompt, the rule's first."""
        first = () if self.rule is None else self.rule.on(prompt, kinds_of(checkpoint.model))
        return (*first, *self.edits)

    def as_rule(self, prompt: Prompt, checkpoint: Checkpoint) -> Rule | None:
        """The same as one rule, which has the name of the rule if nothing was added; None if there are none.

        Raises:
            AnalysisError: if an edit beside the rule does not fit the prompt or the model.
        """
        if not self.edits:
            return self.rule
        edits = self.on(prompt, checkpoint)
        check(edits, kinds_of(checkpoint.model), prompt)
        return Rule("", "", edits)


def edits_of(arguments: argparse.Namespace) -> AskedEdits:
    """What the options of `add_rule` and `add_edits` name."""
    return AskedEdits(rule_of(arguments), tuple(read_edits(arguments.edits)))


def check_file(path: Path | None) -> None:
    """Check that a file can be written where an option says, before hours of work.

    Raises:
        AnalysisError: if its folder does not exist, or it is a folder itself.
    """
    if path is None:
        return
    if path.is_dir():
        raise AnalysisError(f"{path} cannot be written: it is a folder. Name a file.")
    if not path.absolute().parent.is_dir():
        raise AnalysisError(f"{path} cannot be written: its folder does not exist. Create it, or name another file.")


def check_folder(path: Path | None) -> None:
    """Check that files can be written into a folder, which need not exist, before hours of work.

    Raises:
        AnalysisError: if a file is in its place, or in that of a folder above it.
    """
    if path is None:
        return
    there = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    if not there.is_dir():
        raise AnalysisError(f"{path} cannot be a folder: {there} is a file. Name another folder.")


def save_trace(trace: Trace, path: Path) -> None:
    """Save a trace where `--out` says; a file that is there is replaced once the new one is whole."""
    with full_disk_reported(path), written_whole(path) as partial, partial.open("wb") as file:
        trace.save(file)
