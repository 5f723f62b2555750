"""The command, and the Python, that make again what a page shows."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis import Trace
from analysis.corpus.schema import CorpusRun, Options
from analysis.cost.roofline import Scenario
from analysis.debug.edits import Edit, write_edits
from analysis.debug.generation import Sampling
from analysis.report.again import MOST_CHARACTERS, checkpoint_options, edit_options
from analysis.trace.parts import UNTOUCHED
from app.engine import Place, Recipe
from app.settings import DEMO, DEMOS, checkpoint_option, checkpoint_path, is_on_hub
from subllm.assets import ASSETS

PROMPT_FILE = "prompt.txt"  # of a prompt that is too long for a command
_PATH = "from pathlib import Path"


@dataclass(frozen=True)
class Code:
    """What makes something again.

    Attributes:
        command: for a shell; empty if there is none.
        python: for a notebook.
        prompt: what has to be in `PROMPT_FILE`; empty if nothing is read from it.
    """

    command: str
    python: str
    prompt: str = ""


def traced(recipe: Recipe, trace: Trace) -> Code:
    """The run of a prompt, as far as it was measured.

    Args:
        recipe: what was run.
        trace: what came of it.
    """
    edits = [Edit.parse(edit) for edit in trace.provenance.edits]
    if trace.agreement is not None and trace.agreement.reference == UNTOUCHED:
        return edited(recipe, edits, "")
    new = 0 if trace.continuation is None else len(trace.continuation.ids)
    compared = trace.costs is not None
    command = [*_asked("trace", recipe), *(["--new-tokens", str(new)] if new else [])]
    command += [*(["--compare"] if compared else []), *_edited(edits), "--out", "trace.npz"]
    dense = ", dense=load_dense(checkpoint)" if compared else ""
    python = _python(
        [
            "from analysis.run import RunOptions, record_trace",
            *(["from subllm.checkpoints.dense import load_dense"] if compared else []),
            *(
                ["from analysis.debug.edits import parse_edits", "from analysis.debug.rules import Rule"]
                if edits
                else []
            ),
        ],
        recipe,
        *([f"rule = Rule({trace.provenance.rule!r}, '', tuple(parse_edits({write_edits(edits)!r})))"] if edits else []),
        f"options = RunOptions(new_tokens={new}, compare={compared}{', rule=rule' if edits else ''})",
        f"trace = record_trace(checkpoint, prompt, options{dense})",
        'trace.save(Path("trace.npz"))',
    )
    return Code(" ".join(command), python, _filed(recipe))


def edited(recipe: Recipe, edits: Sequence[Edit], answer: str) -> Code:
    """The run of a prompt with edits.

    Args:
        recipe: what is edited.
        edits: in force, in their order.
        answer: text whose probability is watched; it may be empty.
    """
    parts = _asked("edit", recipe) + (_option("answer", answer) if answer else [])
    parts += _edited(edits)
    python = _python(
        ["from analysis.debug.edits import parse_edits", "from analysis.debug.intervene import intervene, run_unedited"]
        + (["from analysis.trace.tokenize import read_answer"] if answer else []),
        recipe,
        *([f"answer = read_answer({answer!r}, checkpoint.tokenizer, limit - len(prompt))"] if answer else []),
        f"run = run_unedited(checkpoint, prompt{', answer' if answer else ''})",
        f"outcome = intervene(run, parse_edits({write_edits(edits)!r}))",
        'outcome.trace.save(Path("edited.npz"))',
    )
    return Code(" ".join(parts), python, _filed(recipe))


def explained(
    recipe: Recipe, asked: tuple[int, int | None], texts: tuple[str, str], edits: Sequence[Edit] = (), **options: Any
) -> Code:
    """The attribution of a score, or of a next token, to the words or tokens of the prompt.

    Args:
        recipe: run whose token is explained.
        asked: token and level, as in `analysis.debug.contrast.question_of`.
        texts: answer and what it is contrasted with, likewise.
        edits: that are in force.
        **options: `method`, `held`, `baseline` and `steps` of `analysis.debug.attribution.attribute`; and `words`,
            whether tokens are merged into words.
    """
    (token, level), (answer, instead) = asked, texts
    parts = [*_asked("why", recipe), "--token", str(token), *(["--level", str(level)] if level is not None else [])]
    parts += (_option("answer", answer) if answer else []) + (_option("instead", instead) if instead else [])
    for name in ("method", "held", "baseline"):
        parts += _option(name, str(options[name]))
    parts += ["--steps", str(options["steps"]), *([] if options["words"] else ["--tokens"]), *_edited(edits)]
    given = ", ".join(f"{name}={str(options[name])!r}" for name in ("method", "held", "baseline"))
    python = _python(
        [
            "from analysis.debug.attribution import attribute",
            "from analysis.debug.contrast import question_of",
            *(
                [
                    "from analysis.debug.edit_override import EditOverride",
                    "from analysis.debug.edits import parse_edits",
                ]
                if edits
                else []
            ),
            *(["from analysis.trace.token_classes import words_of"] if options["words"] else []),
        ],
        recipe,
        f"question = question_of({token}, {level}, checkpoint.tokenizer, {answer!r}, {instead!r})",
        *([f"override = EditOverride(parse_edits({write_edits(edits)!r}), prompt)"] if edits else []),
        f"options = dict({given}, steps={options['steps']}{', groups=words_of(prompt)' if options['words'] else ''}"
        f"{', override=override' if edits else ''})",
        "found = attribute(checkpoint.model, prompt.token_ids, question, **options)",
        "print(found.value, found.baseline, found.values)",
    )
    return Code(" ".join(parts), python, _filed(recipe))


def patched(recipe: Recipe, place: Place, answer: str) -> Code:
    """A state of another prompt, put in before every level.

    Args:
        recipe: run that is patched.
        place: what is put where.
        answer: text whose probability is watched; it may be empty.
    """
    parts = [*_asked("patch", recipe), *_option("other", place.other)]
    parts += ["--token", str(place.token), "--source", str(place.source)]
    parts += _option("answer", answer) if answer else []
    python = _python(
        [
            "from analysis.debug.intervene import run_unedited",
            "from analysis.debug.patching import patch_levels",
            *(["from analysis.trace.tokenize import read_answer"] if answer else []),
        ],
        recipe,
        f"other = read_prompt({place.other!r}, checkpoint.tokenizer, limit, chat={recipe.chat})",
        *([f"answer = read_answer({answer!r}, checkpoint.tokenizer, limit - len(prompt))"] if answer else []),
        f"run = run_unedited(checkpoint, prompt{', answer' if answer else ''})",
        f"for patched in patch_levels(run, run_unedited(checkpoint, other), {place.token}, {place.source}):",
        "    print(patched.patch, patched.distance, patched.moved, abs(patched.flipped).sum())",
    )
    return Code(" ".join(parts), python, _filed(recipe))


def continued(recipe: Recipe, sampling: Sampling, edits: Sequence[Edit], tokens: int) -> Code:
    """A text that was continued token by token.

    Args:
        recipe: of the prompt.
        sampling: how tokens were chosen.
        edits: to the routing.
        tokens: that were written.
    """
    parts = [*_asked("generate", recipe), "--new-tokens", str(tokens)]
    usual = vars(Sampling())
    parts += [f"--{name.replace('_', '-')} {value}" for name, value in vars(sampling).items() if value != usual[name]]
    parts += _edited(edits)
    given = ", ".join(f"{name}={value!r}" for name, value in vars(sampling).items() if value != usual[name])
    python = _python(
        [
            *(["from analysis.debug.edits import parse_edits"] if edits else []),
            "from analysis.debug.generation import Generation, Sampling",
        ],
        recipe,
        f"edits = {f'parse_edits({write_edits(edits)!r})' if edits else '()'}",
        f"text = Generation(checkpoint.model, prompt, Sampling({given}), edits)",
        f"while len(text.tokens) < {tokens} and not text.finished:",
        "    text.step()",
        "print(checkpoint.tokenizer.decode([token.id for token in text.tokens]))",
    )
    return Code(" ".join(parts), python, _filed(recipe))


def compared() -> Code:
    """Two runs side by side, from the files that were saved of them."""
    lines = [
        _PATH,
        "",
        "from analysis import Trace",
        "from analysis.trace.pairs import overlap, pair",
        "",
        'first, second = (Trace.load(Path(name)) for name in ("first.npz", "second.npz"))',
        "print(overlap(first.routing, second.routing, pair(first.prompt, second.prompt)))",
    ]
    return Code("subllm compare first.npz second.npz", "\n".join(lines))


def measured(
    checkpoint: str, device: str, dtype: str, settings: tuple[Sequence[int], Sequence[int], Sequence[float]],
    baseline: str, repeats: int,
) -> Code:  # fmt: skip
    """Measurements of time and memory.

    Args:
        checkpoint: id of the checkpoint.
        device: that it runs on.
        dtype: that it runs in.
        settings: lengths of prompts in tokens, numbers of prompts read together, and shares kept by every level.
        baseline: as `analysis.cost.comparison.baseline` takes it.
        repeats: timed passes.
    """
    lengths, batches, shares = settings

    def listed(option: str, values: Sequence[object]) -> str:
        return f" --{option} {' '.join(map(str, values))}" if values else ""

    command = (
        f"subllm efficiency{checkpoint_option(checkpoint)}{listed('lengths', lengths)}"
        f"{listed('batches', batches)}{listed('retentions', shares)} --baseline {shlex.quote(baseline)} "
        f"--repeats {repeats} --device {device} --dtype {dtype} --out results --resume"
    )
    lines = [
        *([_PATH, ""] if checkpoint not in DEMOS else []),
        "from analysis.cost.benchmark_text import prompt_of",
        "from analysis.cost.comparison import baseline, compare",
        "from analysis.cost.sweep import settings_of",
        *_imports_of(checkpoint),
        "",
        f"checkpoint = load_checkpoint({_folder(checkpoint)}, {device!r}, {dtype!r})",
        f"dense = baseline(checkpoint, {baseline!r})",
        f"for setting in settings_of({[*lengths]}, {[*batches]}, {[*shares]}):",
        "    ids = prompt_of(checkpoint, setting.tokens, setting.batch)",
        f"    row = compare(checkpoint.model, dense, ids, {repeats}, retention=setting.retention)",
        '    print(setting, row.ratio("dense", "subllm"))',
    ]
    return Code(command, "\n".join(lines))


def predicted(
    checkpoint: str, structure: str, retention: float | None, scenario: Scenario, *, own_hardware: bool
) -> Code:
    """A prediction for other hardware.

    Args:
        checkpoint: id of a checkpoint, whose sizes are taken.
        structure: in place of its own.
        retention: likewise, of every level; None for its own.
        scenario: hardware, length and dtype.
        own_hardware: whether the visitor added the hardware, which has to be saved first.
    """
    name, table = scenario.hardware.name, "hardware.json"
    kept = "" if retention is None else f" --retention {retention}"
    command = (
        f"subllm predict{checkpoint_option(checkpoint)} --hardware {shlex.quote(name)}"
        f"{f' --table {table}' if own_hardware else ''} --dtype {scenario.dtype} --tokens {scenario.tokens} "
        f"--batch {scenario.batch} --structure {shlex.quote(structure)}{kept}"
        f"{' --graphs' if scenario.graphs else ''}"
    )
    from_file = f'Path("{table}")' if own_hardware else ""
    shipped = DEMOS.get(checkpoint)  # whose configuration is there before it is built
    folder = _folder(checkpoint) if shipped is None else f'ASSETS / "{shipped}"'
    lines = [
        *([_PATH, ""] if own_hardware or shipped is None else []),
        "from analysis.cost.hardware import load_hardware",
        "from analysis.cost.predict import changed, predict",
        "from analysis.cost.roofline import Scenario",
        *(["from subllm.assets import ASSETS"] if shipped is not None else []),
        "from subllm.checkpoints.config import read_config",
        *(["from subllm.checkpoints.load import fetch_checkpoint"] if is_on_hub(checkpoint) else []),
        "",
        f"config = changed(read_config({folder}), {structure!r}, {retention})",
        f"(hardware,) = [row for row in load_hardware({from_file}) if row.name == {name!r}]",
        f"scenario = Scenario(hardware, {scenario.tokens}, {scenario.batch}, {scenario.dtype!r}, "
        f"graphs={scenario.graphs})",
        "for line in predict(config, scenario):",
        "    print(line)",
    ]
    return Code(command, "\n".join(lines))


def watched(name: str, folder: Path) -> Code:
    """The routing that a training run has recorded.

    Args:
        name: of the run, as in `Settings.runs`.
        folder: of the run.
    """
    path = f"assets/{folder.relative_to(ASSETS)}" if folder.is_relative_to(ASSETS) else name
    lines = [
        _PATH,
        "",
        "from analysis.training.run import load_snapshots, read_run, snapshot_trace",
        "",
        f"run = read_run(Path({path!r}))",
        "for snapshot in load_snapshots(run):",
        "    trace = snapshot_trace(run, snapshot, prompt=0)",
        "    print(snapshot.step, trace.routing.retention)",
    ]
    return Code("", "\n".join(lines))


def counted(run: CorpusRun) -> Code:
    """A corpus result, of documents in the folder texts; `FOLDER` stands for a checkpoint that cannot be located.

    Args:
        run: what read them.
    """
    usual, options = vars(Options()), vars(run.options)
    by_device = ("rows", "row_tokens")  # whose defaults in the command depend on the device
    given = {name: value for name, value in options.items() if value != usual[name] or name in by_device}
    switches = {"dense": "--compare", "attention": "--attention", "texts": "--no-text"}
    checkpoint = checkpoint_options(run.checkpoint)
    parts = ["subllm", "corpus", *checkpoint, "--text", "texts", "--out", "result"]
    for name, value in ({"device": options["device"], "dtype": options["dtype"]} | given).items():
        parts += [switches[name]] if name in switches else [f"--{name.replace('_', '-')}", str(value)]
    demo = checkpoint[-1] if checkpoint else DEMOS[DEMO]
    built = demo in DEMOS.values()
    lines = [
        _PATH,
        "",
        "from analysis.corpus.run import run_corpus",
        "from analysis.corpus.schema import Options",
        "from analysis.corpus.summary import Summary",
        *(["from subllm.demo import build_demo"] if built else []),
        "",
        f"checkpoint = {f'build_demo(name={demo!r})' if built else f'Path({demo!r})'}",
        f"options = Options({', '.join(f'{name}={value!r}' for name, value in given.items())})",
        'run_corpus([Path("texts")], Path("result"), checkpoint, options)',
        'print(Summary.read(Path("result")).measures)',
    ]
    return Code(shlex.join(parts), "\n".join(lines))


def _asked(command: str, recipe: Recipe) -> list[str]:
    """The beginning of a command about a prompt."""
    model = recipe.model
    parts = [f"subllm {command}{checkpoint_option(model.checkpoint)} --device {model.device} --dtype {model.dtype}"]
    parts += ["--prompt-file", PROMPT_FILE] if _filed(recipe) else _option("prompt", recipe.text)
    return parts + (["--chat"] if recipe.chat else [])


def _edited(edits: Sequence[Edit]) -> list[str]:
    """Options for edits, in their order."""
    return [shlex.quote(each) for each in edit_options(edits)]


def _option(name: str, value: str) -> list[str]:
    """An option with its value; one that begins with a minus would be taken for an option."""
    return [shlex.quote(f"--{name}={value}")] if value[:1] == "-" else [f"--{name}", shlex.quote(value)]


def _filed(recipe: Recipe) -> str:
    """The prompt if it is read from a file: no argument of a command has a NUL character."""
    return recipe.text if len(recipe.text) > MOST_CHARACTERS or "\0" in recipe.text else ""


def _python(imports: Sequence[str], recipe: Recipe, *lines: str) -> str:
    """Python that loads a model, reads a prompt, and goes on with some lines."""
    model = recipe.model
    text = f'Path("{PROMPT_FILE}").read_text(encoding="utf-8")' if _filed(recipe) else repr(recipe.text)
    reads = "from analysis.trace.tokenize import read_prompt"
    answers = "from analysis.trace.tokenize import read_answer"
    given = [f"{answers}, read_prompt" if answers in imports else reads, *(each for each in imports if each != answers)]
    return "\n".join(
        [
            _PATH,
            "",
            *sorted(given),
            *_imports_of(model.checkpoint),
            "",
            f"checkpoint = load_checkpoint({_folder(model.checkpoint)}, {model.device!r}, {model.dtype!r})",
            "limit = checkpoint.model.config.max_position_embeddings",
            f"prompt = read_prompt({text}, checkpoint.tokenizer, limit, chat={recipe.chat})",
            *lines,
        ]
    )


def _imports_of(checkpoint: str) -> list[str]:
    loads = "fetch_checkpoint, load_checkpoint" if is_on_hub(checkpoint) else "load_checkpoint"
    demo = ["from subllm.demo import build_demo"] if checkpoint in DEMOS else []
    return [f"from subllm.checkpoints.load import {loads}", *demo]


def _folder(checkpoint: str) -> str:
    """The expression for a checkpoint's folder."""
    if checkpoint in DEMOS:
        return "build_demo()" if checkpoint == DEMO else f"build_demo(name={DEMOS[checkpoint]!r})"
    if is_on_hub(checkpoint):
        return f"fetch_checkpoint({checkpoint!r})"
    return f"Path({checkpoint_path(checkpoint)!r})"
