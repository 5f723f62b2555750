"""A broken or hostile checkpoint ends in a message or works; it never hangs, floods the memory, or ends the process."""

import json
import select
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from subllm.checkpoints.dense import routing_off
from subllm.checkpoints.files import DENSE_TWIN
from tests.conftest import byte_tokenizer, tiny_model

from .mutations import copy, mutate

LIMIT = 90.0  # seconds for a folder: three pieces that are stopped, and a loaded machine
MEGABYTES = 700
LONGEST = 2_500  # characters of a message


class Worker:
    """The process of `worker`, started again after a folder ended it or made it hang."""

    def __init__(self):
        self.counted, self._process = Counter(), None

    def _start(self):
        command = [sys.executable, "-m", "tests.fuzz.checkpoints.worker"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, text=True, **pipes)
        assert "ready" in self._answer(120.0)

    def _answer(self, seconds):
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        line = self._process.stdout.readline() if ready else ""
        if line:
            return json.loads(line)
        self.end()
        return {"broke": "it ended" if ready else f"no end in {seconds} s", "message": ""}

    def open(self, folder):
        """What came of opening a checkpoint."""
        if self._process is None:
            self._start()
        self._process.stdin.write(f"{folder}\n")
        self._process.stdin.flush()
        answer = self._answer(LIMIT)
        self.counted[next(name for name in ("loaded", "refused", "broke") if name in answer)] += 1
        return answer

    def end(self):
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@pytest.fixture(scope="module")
def worker():
    """A worker for all folders."""
    found = Worker()
    yield found
    found.end()
    sys.stderr.write(f"{found.counted.total()} folders: {dict(found.counted)}\n")  # shown with -s


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Two whole checkpoints: one file of weights, and several with a dense twin."""
    folder = tmp_path_factory.mktemp("bases")
    tokenizer = byte_tokenizer()
    fields = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    model = tiny_model("T(T)T", **fields)
    model.save_pretrained(folder / "one")
    model.save_pretrained(folder / "several", max_shard_size="40KB")
    routing_off(model).save_pretrained(folder / "several" / DENSE_TWIN)
    for name in ("one", "several"):
        tokenizer.save_pretrained(folder / name)
    return [folder / "one", folder / "several"]


def check(worker, base, seeds, folder):
    shutil.rmtree(folder, ignore_errors=True)
    broken = copy(base, folder)
    said = [mutate(broken, seed) for seed in seeds]
    answer = worker.open(broken)
    assert "broke" not in answer, f"{said}: {answer['broke']}\n{answer['message']}"
    assert answer["megabytes"] < MEGABYTES, f"{said}: {answer}"
    if "message" in answer:
        assert len(answer["message"]) <= LONGEST, f"{said}: {answer}"
        assert str(folder) not in answer["message"], f"{said}: {answer}"
    assert not list(folder.rglob("ran")) and not Path("ran").exists(), f"{said}: code was run"


SEEDS = st.lists(st.integers(0, 2**32), min_size=1, max_size=2)
USUAL = {"database": None, "suppress_health_check": list(HealthCheck)}


def test_whole_checkpoints_load(worker, bases, tmp_path):
    for base in bases:
        answer = worker.open(copy(base, tmp_path / base.name))
        assert "loaded" in answer, answer


@settings(max_examples=12, derandomize=True, **USUAL)
@given(seeds=SEEDS, base=st.integers(0, 1))
def test_a_broken_folder_ends_in_a_message_or_works(worker, bases, tmp_path, seeds, base):
    check(worker, bases[base], seeds, tmp_path / "fuzz")


@pytest.mark.soak
@settings(max_examples=400, **USUAL)
@given(seeds=SEEDS, base=st.integers(0, 1))
def test_hundreds_of_broken_folders_end_in_messages_or_work(worker, bases, tmp_path, seeds, base):
    check(worker, bases[base], seeds, tmp_path / "fuzz")
