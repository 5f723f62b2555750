"""The run that the app opens with: the first example through the demo checkpoint, in `assets/runs`.

`python -m app.shipped_run` makes it again, on this machine.
"""

import json
import sys
from dataclasses import replace
from functools import cache

from analysis import Trace
from analysis.debug.lens import confidence
from analysis.run import record_trace
from analysis.trace.tokenize import read_prompt
from app.settings import DEMO
from subllm.assets import ASSETS
from subllm.atomic import written_whole
from subllm.checkpoints.dense import load_dense
from subllm.checkpoints.load import load_checkpoint
from subllm.command import Arguments, command
from subllm.demo import build_demo

FILE = ASSETS / "runs" / "story.npz"


@cache
def shipped_trace() -> Trace:
    """The trace; it is the same for all visitors."""
    return Trace.load(FILE)


@command()
def main(_: Arguments) -> None:
    """Make it again."""
    example = json.loads((ASSETS / "prompts.json").read_text(encoding="utf-8"))[0]
    checkpoint = load_checkpoint(build_demo(), "cpu", "float32")
    most = checkpoint.model.config.max_position_embeddings
    prompt = read_prompt(example["text"], checkpoint.tokenizer, most, chat=example["chat"])
    trace = record_trace(checkpoint, prompt, dense=load_dense(checkpoint), name=DEMO)
    lens = confidence(checkpoint.model, prompt.token_ids)
    assert trace.blocks is not None
    trace = replace(trace, blocks=replace(trace.blocks, confidence=lens))
    with written_whole(FILE) as partial, partial.open("wb") as file:
        trace.save(file)


if __name__ == "__main__":
    sys.exit(main())
