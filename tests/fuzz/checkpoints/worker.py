"""A process that opens the checkpoints whose folders it reads from its input, a line each, and says what came of it."""

import json
import sys
import time
import traceback
import warnings
from pathlib import Path

import torch

from analysis.cost.measure import highest_resident
from analysis.errors import AnalysisError
from analysis.run import RunOptions, record_trace
from analysis.trace.tokenize import read_prompt
from app.settings import Settings
from subllm import SubllmError
from subllm.checkpoints import confined
from subllm.checkpoints.dense import load_dense
from subllm.checkpoints.load import load_checkpoint

SECONDS = 6.0  # that a tokenizer or a template may take here


def open_checkpoint(folder: Path) -> int:
    """Do with a checkpoint what the app does with one; returns how many tokens were read."""
    settings = Settings.read({"SUBLLM_ROOTS": str(folder.parent)})
    settings.choices()
    settings.configuration(folder.name)
    checkpoint = load_checkpoint(folder, "cpu", "float32")
    dense = load_dense(checkpoint)
    trace = record_trace(checkpoint, "The cat sat on aaaaaaaaaaaaaaaaaaaaaaaaaaa!", RunOptions(2), dense=dense)
    if checkpoint.tokenizer.chat_template:
        read_prompt("Hello", checkpoint.tokenizer, 512, chat=True)
    return trace.num_tokens


def _say(answer: dict[str, object]) -> None:
    sys.stdout.write(f"{json.dumps(answer)}\n")
    sys.stdout.flush()


def main() -> None:
    """Answer until the input ends."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    confined._SECONDS = confined._SECONDS_OF_TEMPLATE = SECONDS
    _say({"ready": True})
    for line in sys.stdin:
        folder, start = Path(line.rstrip("\n")), time.monotonic()
        before = highest_resident()
        answer: dict[str, object]
        try:
            answer = {"loaded": open_checkpoint(folder)}
        except (SubllmError, AnalysisError) as error:
            answer = {"refused": type(error).__name__, "message": str(error)}
        except BaseException as error:
            answer = {"broke": type(error).__name__, "message": traceback.format_exc()[-3000:]}
        grown = highest_resident() - before
        answer |= {"seconds": time.monotonic() - start, "megabytes": grown / 2**20}
        _say(answer)


if __name__ == "__main__":
    main()
