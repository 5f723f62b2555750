"""The corpus result that the page Corpus opens with: the demo checkpoint over texts of seven kinds, in `assets/corpus`.

`python -m app.shipped_corpus --texts corpus --out result` makes it again on this machine; `corpus` is what
`subllm corpus-text` wrote, with `chats-1.jsonl` of `subllm convert chats`. The same command goes on with what was
stopped.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

from tqdm import tqdm

from analysis.corpus.run import options_for, run_corpus
from analysis.corpus.schema import RUN, SUMMARY
from app.settings import DEMO
from subllm.assets import ASSETS
from subllm.command import Arguments, command
from subllm.demo import build_demo
from subllm.text.sources import read_pieces

FOLDER = ASSETS / "corpus" / "demo"
_FETCHED = {"novels": "austen", "plays": "shakespeare", "speeches": "speeches-and-whales", "chats": "chats-1"}
_DOCUMENT, _CHINESE = 1_000, 300  # characters of a document, about
_TEXTS = "texts"
_TURNS = 6  # all kinds have a part in each, so that a run that is stopped has read of all of them


def _fetched(path: Path) -> Iterator[str]:
    """Stretches of documents of a fetched source, one from each document in turn."""
    documents = [_stretches(piece.text) for piece in read_pieces([path])]
    for turn in zip_longest(*documents):
        yield from filter(None, turn)


def _stretches(text: str, length: int = _DOCUMENT) -> list[str]:
    """A text in stretches of whole paragraphs; a chat stays whole."""
    if "<|im_start|>" in text:
        return [text]
    found = [""]
    for paragraph in text.split("\n\n"):
        if len(found[-1]) >= length:
            found.append("")
        found[-1] += f"{paragraph}\n\n"
    return [stretch for stretch in found if length // 4 <= len(stretch) <= 3 * length]


def _own() -> dict[str, list[str]]:
    """Texts of this repository: its code, its documentation, and what it says in Chinese."""
    root = ASSETS.parent
    code = [text for path in sorted((root / "subllm").rglob("*.py")) for text in _stretches(path.read_text())]
    documentation = [text for path in sorted((root / "docs").glob("*.md")) for text in _stretches(path.read_text())]
    said = json.loads((ASSETS / "strings.json").read_text(encoding="utf-8"))
    chinese = [entry["zh"] for entry in said.values() if isinstance(entry["zh"], str)]
    return {"code": code, "documentation": documentation, "chinese": _stretches("\n\n".join(chinese), _CHINESE)}


def write_texts(fetched: Path, folder: Path, characters: int) -> list[str]:
    """Write JSON Lines files of each kind of text; their names in the order of reading.

    Args:
        fetched: folder of `subllm corpus-text`.
        folder: to write to.
        characters: of each kind, about.
    """
    kinds = {kind: _fetched(fetched / f"{name}.jsonl") for kind, name in _FETCHED.items()}
    kinds |= {kind: iter(texts) for kind, texts in _own().items()}
    names = []
    for turn in range(1, _TURNS + 1):
        for kind, texts in kinds.items():
            names.append(f"{turn}/{kind}.jsonl")
            (folder / names[-1]).parent.mkdir(parents=True, exist_ok=True)
            left = characters / _TURNS / (4 if kind == "chinese" else 1)  # its tokens are short
            with (folder / names[-1]).open("w", encoding="utf-8") as file:
                while left > 0 and (text := next(texts, None)) is not None:
                    file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                    left -= len(text)
    return names


@command()
def main(arguments: Arguments) -> None:
    """Make it again."""
    parser = argparse.ArgumentParser(prog="python -m app.shipped_corpus", description=__doc__.partition("\n")[0])
    parser.add_argument("--texts", type=Path, required=True, metavar="DIR", help="what subllm corpus-text wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the whole result")
    parser.add_argument("--characters", type=int, default=60_000, help="of each kind of text (default: 60000)")
    chosen = parser.parse_args(arguments)
    texts = chosen.out.absolute().with_name(f"{chosen.out.name}-{_TEXTS}")
    names = write_texts(chosen.texts, texts, chosen.characters)
    options = replace(options_for("cpu", "float32"), dense=True, attention=True, shard_characters=60_000)
    with chdir(texts), tqdm(total=100, disable=None, bar_format="{desc}", file=sys.stderr) as bar:

        def progress(share: float, stage: str, **values: object) -> None:
            bar.set_description_str(f"{stage} {share:.0%} {values}")

        run_corpus(names, chosen.out.absolute(), build_demo(), options, workers=1, name=DEMO, progress=progress)
    shutil.rmtree(FOLDER / SUMMARY, ignore_errors=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    shutil.copy(chosen.out / RUN, FOLDER / RUN)
    shutil.copytree(chosen.out / SUMMARY, FOLDER / SUMMARY)


if __name__ == "__main__":
    sys.exit(main())
