"""The commands that make a run and its report again."""

import re
import shlex
from collections.abc import Iterator, Sequence

from subllm.assets import ASSETS, DEMO, DEMOS, TRAINED
from subllm.runs.folder import FINAL

from ..debug.edits import Edit, EditKind
from ..trace.chat_turns import turns_of
from ..trace.parts import UNTOUCHED
from ..trace.trace import Trace

MOST_CHARACTERS = 600  # of a prompt that stands in a command, or in a link, as it is
FOLDER = "FOLDER"  # stands for the folder of a checkpoint that cannot be located
_DEMO = re.compile(  # ids in the app, and folders that `subllm demo` builds
    r"shipped:({0})|({0})-[0-9a-f]{{12}}".format("|".join(DEMOS))
)
_SHIPPED = {f"shipped:{name}": f"assets/{folder.relative_to(ASSETS)}/{FINAL}" for name, folder in TRAINED.items()}


def commands(trace: Trace) -> list[str]:
    """The command that makes the run, and the one that makes its report.

    A run with a state of another prompt is not made again, since its file does not hold that prompt.
    A prompt that is longer than `MOST_CHARACTERS` is read from the file prompt.txt. `FOLDER` stands in place of a
    checkpoint that is not `located`.
    """
    where, report = trace.provenance, "subllm report trace.npz --out report.html"
    if where.patch:
        return [report]
    edits = [Edit.parse(edit) for edit in where.edits]
    beside_itself = trace.agreement is not None and trace.agreement.reference == UNTOUCHED
    name = "edit" if beside_itself else "trace"
    parts = ["subllm", name, *checkpoint_options(where.checkpoint), "--dtype", where.dtype]
    text = trace.prompt.text
    parts += ["--prompt-file", "prompt.txt"] if needs_file(trace) else [f"--prompt={text}"]
    parts += ["--no-special-tokens"] if from_template(trace) and not _has_added(trace) else []
    parts += ["--new-tokens", str(len(trace.continuation.ids))] if trace.continuation is not None else []
    parts += [*(["--compare"] if trace.costs is not None else []), *edit_options(edits), "--out", "trace.npz"]
    return [shlex.join(parts), report]


def needs_file(trace: Trace) -> bool:
    """Whether the prompt is too long for the command."""
    return not trace.provenance.patch and (len(trace.prompt.text) > MOST_CHARACTERS or "\0" in trace.prompt.text)


def located(trace: Trace) -> bool:
    """Whether the commands can name the checkpoint; the name of a folder does not say where it is."""
    return trace.provenance.checkpoint in _SHIPPED or _DEMO.fullmatch(trace.provenance.checkpoint) is not None


def from_template(trace: Trace) -> bool:
    """Whether the prompt went through a chat template, as far as its marks say."""
    return next(turns_of(trace.prompt.text), None) is not None


def _has_added(trace: Trace) -> bool:
    """Whether a token stands for no text: the tokenizer added it, which it does to no chat."""
    return bool((trace.prompt.starts == trace.prompt.ends).any())


def edit_options(edits: Sequence[Edit]) -> Iterator[str]:
    """The options of commands for some edits, in their order."""
    for edit in edits:
        where = "*" if edit.level is None else edit.level
        yield f"--{edit.kind}={where if edit.kind is EditKind.DENSE else f'{edit.what}@{where}'}"


def checkpoint_options(name: str) -> list[str]:
    """The option that names a checkpoint in a command; none for the demo, which is the default.

    Args:
        name: id of a checkpoint in the app, or name of its folder; `FOLDER` stands for one that cannot be located.
    """
    if found := _DEMO.fullmatch(name):
        name = found[1] or found[2]
        return [] if name == DEMO else ["--checkpoint", name]
    return ["--checkpoint", _SHIPPED.get(name, FOLDER)]
