"""Record the runs of the gallery, and write a site of reports from them, for any server of static files.

    python -m app.gallery --out DIR

The demo reads five of the examples, and one of them with edits; two small models with different routers
read the same text side by side.
"""

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

from transformers import logging

from analysis import AnalysisError, Trace
from analysis.debug.edits import parse_edits
from analysis.debug.intervene import intervene, run_unedited
from analysis.guard import silent
from analysis.report.site import Page, write_site
from analysis.run import RunOptions, record_trace
from analysis.trace.parts import Prompt
from analysis.trace.tokenize import read_prompt
from app.settings import DEMO, SMALL, Settings
from subllm import SubllmError
from subllm.assets import ASSETS
from subllm.checkpoints.load import Checkpoint, load_checkpoint
from subllm.command import Arguments, command

_EXAMPLES = {"story": "Story", "needle": "Needle in a haystack", "chat": "Chat", "code": "Code", "chinese": "Chinese"}
_EDITED = ("story-edited", "story", "keep 0-9@*;dense@2")
_BESIDE = ("two-routers", "story", {"small-subllm": SMALL, "small-mixture-of-depths": "shipped:mixture-of-depths"})
_NEW = RunOptions(new_tokens=20)


def record(demo: Checkpoint, beside: Mapping[str, Checkpoint]) -> dict[str, dict[str, Trace]]:
    """Traces by the page that shows them, and by the name of their file.

    Args:
        demo: checkpoint that reads the examples.
        beside: checkpoints that read one of them side by side, by the names of their files.
    """
    pages = {}
    for name in _EXAMPLES:
        pages[name] = {name: record_trace(demo, _prompt(name, demo), _NEW, name=DEMO)}
    name, read, edits = _EDITED
    edited = intervene(run_unedited(demo, _prompt(read, demo), name=DEMO), parse_edits(edits))
    pages[name] = {name: edited.trace}
    name, read, ids = _BESIDE
    pages[name] = {
        file: record_trace(checkpoint, _prompt(read, checkpoint), _NEW, name=ids[file])
        for file, checkpoint in beside.items()
    }
    return pages


def _prompt(name: str, checkpoint: Checkpoint) -> Prompt:
    examples = {entry["name"]: entry for entry in json.loads((ASSETS / "prompts.json").read_text(encoding="utf-8"))}
    example, most = examples[_EXAMPLES[name]], checkpoint.model.config.max_position_embeddings
    return read_prompt(example["text"], checkpoint.tokenizer, most - _NEW.new_tokens, chat=example["chat"])


@command(SubllmError, AnalysisError)
def main(arguments: Arguments) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m app.gallery", description="Record the runs of the gallery, and write a site of reports."
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the site")
    parser.add_argument("--app", default="", metavar="URL", help="address of the app, which the index links to")
    chosen = parser.parse_args(arguments)
    logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)  # between libraries
    settings = Settings.read({})

    def load(choice: str) -> Checkpoint:
        return load_checkpoint(settings.locate(choice, silent), "cpu", "float32")

    recorded = record(load(DEMO), {file: load(choice) for file, choice in _BESIDE[-1].items()})
    with tempfile.TemporaryDirectory() as folder:
        pages = []
        for name, traces in recorded.items():
            files = [Path(folder) / f"{file}.npz" for file in traces]
            for file, trace in zip(files, traces.values(), strict=True):
                trace.save(file)
            pages.append(Page(name, files, list(traces.values())))
        write_site(pages, chosen.out, app=chosen.app)
    print(chosen.out / "index.html")  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
