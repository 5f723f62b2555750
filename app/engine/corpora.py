"""Small corpora that are read while nobody else runs on the device."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from analysis import RunStopped
from analysis.corpus.aggregate import aggregate
from analysis.corpus.plan import first_tokens
from analysis.corpus.run import options_for, run_corpus
from analysis.corpus.schema import RUN
from analysis.corpus.summary import Summary
from analysis.guard import Progress

from .models import ModelSpec
from .queue import turn
from .work import admit

_SHARD = 10_000  # characters, after which what was read stays when a limit is reached


def read_corpus(model: ModelSpec, texts: Mapping[str, str], tokens: int, progress: Progress) -> Summary:
    """Read documents, and measure which of their tokens are kept.

    What counts is what is read: documents beyond the number of tokens do not. At a limit, what was read before it is
    measured.

    Args:
        model: that reads.
        texts: documents by the name of what they come from.
        tokens: number of tokens that are read at most.
        progress: receives what is being done.

    Raises:
        CorpusError: if no document can be read.
        RunStopped: at a limit before anything was read.
    """
    checkpoint, _ = model.load(progress)
    documents, left = dict[str, str](), tokens
    for name, text in texts.items():
        if left:
            documents[name] = text
            left -= first_tokens(text, checkpoint.tokenizer, left)[1]
    admit(progress, tokens - left, texts=len(documents))
    with tempfile.TemporaryDirectory(prefix="subllm-corpus-") as place, turn(model.device, progress):
        folder, out = Path(place) / "texts", Path(place) / "result"
        folder.mkdir()
        paths = []
        for number, text in enumerate(documents.values()):
            paths.append(folder / f"{number}.jsonl")
            paths[-1].write_text(json.dumps({"text": text}) + "\n", encoding="utf-8")
        options = replace(options_for(model.device, model.dtype), tokens=tokens, shard_characters=_SHARD)
        try:
            run_corpus(paths, out, checkpoint, options, name=model.checkpoint, progress=progress)
        except RunStopped:
            if not (out / RUN).is_file():
                raise
            aggregate(out)  # of what is there; it takes a moment
        found = Summary.read(out)
    named = {key: name for path, name in zip(paths, documents, strict=True) for key in (str(path), path.stem)}
    return found.renamed(named)
