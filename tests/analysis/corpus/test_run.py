"""A run over a corpus: the same bytes whoever reads, nothing lost whatever dies, and a clear word about the rest."""

import contextlib
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch

from analysis.commands import corpus as command
from analysis.commands.corpus import main
from analysis.corpus import run as module
from analysis.corpus.child import error_entry
from analysis.corpus.plan import Identity, make_plan
from analysis.corpus.pool import raise_entry
from analysis.corpus.ray_engine import _share_of_gpu
from analysis.corpus.run import options_for, run_corpus
from analysis.corpus.schema import DOCUMENTS, RUN, TEXTS, TOKENS, CorpusRun, name_of, sha256_of
from analysis.corpus.summary import Summary
from analysis.corpus.worker import FACTS, Facts, Worker
from analysis.errors import CorpusError, RunStopped
from analysis.guard import silent
from analysis.run import RunOptions, record_trace
from analysis.trace.tokenize import prompt_of_ids
from subllm import DiskFullError
from subllm.atomic import remove_partials, written_whole
from subllm.checkpoints.load import Checkpoint, load_checkpoint
from tests.analysis.corpus.texts import poison, write_texts
from tests.conftest import run_command, tiny_model

OPTIONS = replace(options_for("cpu"), window=64, shard_characters=2000, row_tokens=128)
TABLES = (TOKENS, DOCUMENTS, TEXTS)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("texts") / "texts")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def result(texts, checkpoint, tmp_path_factory):
    """Folder of a finished run in this process, and what it said."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("result")
    return out, run_corpus([texts], out, checkpoint, OPTIONS)


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file of a result that depends on the texts."""
    return {name: digest for shard in CorpusRun.read(folder).shards for name, digest in shard.files.items()}


def rows_of(folder: Path, kind: str) -> dict[str, np.ndarray]:
    """Columns of a kind of table, of all shards."""
    found = [pq.read_table(path).to_pydict() for path in CorpusRun.read(folder).paths(folder, kind)]
    return {name: np.array([value for part in found for value in part[name]], dtype=object) for name in found[0]}


def test_every_token_is_there_as_the_trace_of_its_document_has_it(result, checkpoint):
    out, run = result
    tokens, documents, texts = (rows_of(out, kind) for kind in TABLES)
    assert run.documents == len(documents["document"]) == 25 and run.tokens == len(tokens["id"])
    assert len(run.shards) > 3 and run.complete and not run.skipped
    for number in (3, 24):
        rows = tokens["document"] == number
        assert tokens["position"][rows].tolist() == list(range(documents["tokens"][number]))
        start = documents["windows"][number] * 64 - 64  # its last window
        window = prompt_of_ids(tokens["id"][rows][start:].astype(np.int64), checkpoint.tokenizer)
        trace = record_trace(checkpoint, window, RunOptions(new_tokens=0, compare=False))
        assert len(texts["starts"][number]) == len(texts["ends"][number]) == documents["tokens"][number]
        kept = run.kept(tokens["kept"][rows][start:].astype(np.uint16))
        assert (kept == trace.routing.kept).all()
        assert (run.reached(tokens["kept"][rows][start:].astype(np.uint16)) == trace.routing.reached).all()
        scores = np.stack([tokens[f"score_{level}"][rows][start:] for level in (1, 2)]).astype(float)
        np.testing.assert_allclose(scores, trace.routing.scores, atol=2e-3, rtol=2e-3)
        assert documents["kept_1"][number] == run.kept(tokens["kept"][rows].astype(np.uint16))[0].sum()
    levels = json.loads((out / RUN).read_text())["levels"]
    assert levels["parents"] == trace.routing.parents.tolist() and levels["thresholds"] == [0, 0]


def test_a_finished_folder_holds_nothing_but_the_result(result):
    out, _ = result
    assert {path.name for path in out.iterdir()} == {RUN, "summary", *TABLES, ".lock"}


def test_a_worker_that_is_killed_loses_nothing_and_the_bytes_are_those_of_one_process(
    result, texts, tiny_checkpoint, tmp_path
):
    killed = []

    def progress(share, stage, **values):
        if stage == "corpus" and not killed and values["tokens"] != "0":
            child = next(each for each in psutil.Process().children() if "analysis.corpus.child" in each.cmdline())
            killed.append(child)
            child.kill()

    run = run_corpus([texts], tmp_path / "out", tiny_checkpoint, OPTIONS, workers=2, progress=progress)
    assert killed and run.complete and run.workers == 2
    assert digests(tmp_path / "out") == digests(result[0])


def test_two_ray_workers_write_the_same_bytes_and_one_that_is_killed_loses_nothing(
    result, texts, tiny_checkpoint, tmp_path
):
    killed = []

    def progress(share, stage, **values):
        if stage == "corpus" and not killed and values["done"]:
            actors = [each for each in psutil.process_iter(["cmdline"]) if _is_actor(each)]
            killed.extend(actors[:1])
            for actor in actors[:1]:
                actor.kill()

    run = run_corpus([texts], tmp_path / "out", tiny_checkpoint, OPTIONS, engine="ray", workers=2, progress=progress)
    assert killed and run.complete and run.engine == "ray"
    assert digests(tmp_path / "out") == digests(result[0])


def _is_actor(process: psutil.Process) -> bool:
    """Whether a process is an actor of Ray that this process started, by way of Ray's own."""
    try:
        ours = psutil.Process() in process.parents()
        return ours and any("MapWorker" in part for part in process.cmdline())
    except psutil.Error:
        return False


def test_a_run_that_is_killed_goes_on_where_it_was(result, texts, tiny_checkpoint, tmp_path):
    out = tmp_path / "out"
    script = f"""
import os, signal, torch
from dataclasses import replace
from pathlib import Path
from analysis.corpus.run import options_for, run_corpus
from subllm.checkpoints.load import load_checkpoint
torch.set_num_threads(1)
def progress(share, stage, **values):
    if values.get("done") == 2 and stage == "corpus":
        os.kill(os.getpid(), signal.SIGKILL)
options = replace(options_for("cpu"), window=64, shard_characters=2000, row_tokens=128)
checkpoint = load_checkpoint(Path({str(tiny_checkpoint)!r}), "cpu", "float32")
run_corpus([{str(texts)!r}], Path({str(out)!r}), checkpoint, options, progress=progress)
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=300).returncode == -signal.SIGKILL
    assert not (out / RUN).exists()
    damaged = out / name_of(TOKENS, 1)
    damaged.write_bytes(damaged.read_bytes()[:-20])
    first = (out / name_of(TOKENS, 0)).stat().st_mtime_ns
    checkpoint = load_checkpoint(tiny_checkpoint, "cpu", "float32")
    run = run_corpus([texts], out, checkpoint, OPTIONS)
    assert run.complete and digests(out) == digests(result[0])
    assert (out / name_of(TOKENS, 0)).stat().st_mtime_ns == first, "a shard that is whole is not read again"


def test_a_stopped_run_has_a_summary_of_what_is_complete_and_continues(result, texts, checkpoint, tmp_path):
    def stop(share, stage, **values):
        if stage == "corpus" and values["done"] == 2:
            raise RunStopped("enough")

    run = run_corpus([texts], tmp_path, checkpoint, OPTIONS, progress=stop)
    assert not run.complete and len(run.shards) == 2 and (tmp_path / "summary").is_dir()
    shares = []
    whole = run_corpus([texts], tmp_path, checkpoint, OPTIONS, progress=lambda share, *_, **__: shares.append(share))
    assert whole.complete and digests(tmp_path) == digests(result[0])
    assert shares[0] > 0 and shares[-1] <= 1
    again = run_corpus([texts], tmp_path, checkpoint, OPTIONS, progress=stop)
    assert again == whole, "a finished run is left as it is"


def test_a_finished_result_that_was_damaged_is_mended_by_the_same_command(result, checkpoint, tmp_path):
    folder = write_texts(tmp_path / "texts")
    (folder / "empty.txt").write_text("")
    whole = run_corpus([folder], tmp_path / "out", checkpoint, OPTIONS)
    before = digests(tmp_path / "out")
    (tmp_path / "out" / name_of(TOKENS, 1)).write_bytes(b"PAR1")
    (tmp_path / "out" / name_of(DOCUMENTS, 2)).unlink()
    mended = run_corpus([folder], tmp_path / "out", checkpoint, OPTIONS)
    assert digests(tmp_path / "out") == before and mended.skipped_documents == whole.skipped_documents
    assert all(sha256_of(tmp_path / "out" / name) == digest for name, digest in before.items())
    (tmp_path / "out" / name_of(TOKENS, 0)).unlink()
    (folder / "whole.txt").unlink()
    with pytest.raises(CorpusError, match="the texts have changed"):
        run_corpus([folder], tmp_path / "out", checkpoint, OPTIONS)


def test_a_result_whose_summary_is_missing_old_or_of_less_is_summarised_by_the_same_command(
    texts, checkpoint, tmp_path, monkeypatch
):
    def killed(*_):
        raise KeyboardInterrupt

    _begun(texts, checkpoint, tmp_path)
    with monkeypatch.context() as patched:  # as if it was killed between corpus.json and the summary
        patched.setattr(module, "_summarise", killed)
        with pytest.raises(KeyboardInterrupt):
            run_corpus([texts], tmp_path, checkpoint, OPTIONS)
    whole = CorpusRun.read(tmp_path)
    about = tmp_path / "summary" / "summary.json"
    assert whole.complete and json.loads(about.read_text())["tokens"] < whole.tokens
    for change in (
        lambda: None,
        about.unlink,
        lambda: about.write_text('{"format": 0}'),
        lambda: about.write_text("{"),
    ):
        change()
        assert run_corpus([texts], tmp_path, checkpoint, OPTIONS) == whole
        assert Summary.read(tmp_path).about.tokens == whole.tokens


def test_workers_that_start_together_both_say_what_the_model_is(checkpoint, tmp_path):
    facts = Worker(checkpoint, OPTIONS).facts()
    with written_whole(tmp_path / FACTS, shared=True) as other:  # of another worker, in the middle of writing
        other.write_text("half")
        facts.write(tmp_path)
        assert Facts.read(tmp_path) == facts
        other.write_text((tmp_path / FACTS).read_text())
    assert Facts.read(tmp_path) == facts
    (tmp_path / f".{FACTS}.0.partial").write_text("of a worker that was killed")
    remove_partials(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [FACTS]


def test_documents_that_a_worker_left_out_are_counted_once_after_mending(checkpoint, tmp_path):
    model = tiny_model("TT(T(T)T)T", max_position_embeddings=512, vocab_size=320)
    (token,) = checkpoint.tokenizer("\x07", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        model.model.embed_tokens.weight[token] = torch.inf
    broken = Checkpoint(checkpoint.folder, "other", model, checkpoint.tokenizer)
    folder = write_texts(tmp_path / "texts")
    rows = (folder / "rows.jsonl").read_text().splitlines()
    bad = json.dumps({"text": "the cat \x07 sat"})
    (folder / "rows.jsonl").write_text("\n".join([bad, *rows, bad]) + "\n")
    (folder / "empty.txt").write_text("")
    out = tmp_path / "out"
    whole = run_corpus([folder], out, broken, OPTIONS)
    assert whole.skipped == len(whole.skipped_documents) == 3
    for number in (0, len(whole.shards) - 1):
        (out / name_of(TOKENS, number)).unlink()
        mended = run_corpus([folder], out, broken, OPTIONS)
        assert mended.skipped == 3 and mended.skipped_documents == whole.skipped_documents
        kept = [shard.seconds for shard in mended.shards if shard.number not in (0, len(whole.shards) - 1)]
        assert kept == [shard.seconds for shard in whole.shards[1:-1]] and min(kept) > 0
        assert mended.seconds == sum(shard.seconds for shard in mended.shards)


def test_a_document_with_a_long_line_is_left_out_whatever_file_it_is_in(checkpoint, tmp_path):
    folder = write_texts(tmp_path / "texts", documents=1)
    long = ["x " * 450_000, "short\n" + "x" * 500_000, "short\n" * 150_000 + "x " * 300_000, "a\n" * 300_000]
    (folder / "long.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in long))
    (folder / "long.txt").write_text(long[0])
    plan = make_plan(Identity("", "", [str(folder)], OPTIONS), tmp_path, checkpoint.tokenizer, silent)
    assert [Path(entry.name).name for entry in plan.skipped_documents] == [
        "long.jsonl:1", "long.jsonl:2", "long.jsonl:3#2", "long.txt",
    ]  # fmt: skip
    assert all("line of 500,000 characters or more" in entry.reason for entry in plan.skipped_documents)


def test_a_shard_that_kills_its_workers_is_named_with_its_documents(texts, tiny_checkpoint, tmp_path):
    def progress(share, stage, **values):
        if stage == "corpus":
            for child in psutil.Process().children():
                if "analysis.corpus.child" in child.cmdline():
                    child.kill()

    with pytest.raises(CorpusError, match=r"shard 0 .*rows\.jsonl:1, .*rows\.jsonl:2.*move it away.*another folder"):
        run_corpus([texts], tmp_path / "out", tiny_checkpoint, OPTIONS, workers=1, progress=progress)


def test_what_cannot_be_read_is_left_out_counted_and_named(texts, checkpoint, tmp_path):
    folder = write_texts(tmp_path / "texts", documents=3)
    reasons = poison(folder)
    run = run_corpus([folder], tmp_path / "out", checkpoint, OPTIONS)
    found = {Path(entry.name).name: entry.reason for entry in run.skipped_documents}
    assert found.keys() == reasons.keys() and run.skipped == len(reasons)
    for name, words in reasons.items():
        assert words in found[name]
    assert run.documents == 5
    assert run.skipped_documents == CorpusRun.read(tmp_path / "out").skipped_documents


def test_a_document_whose_numbers_stop_being_finite_is_left_out_and_its_neighbours_stay(checkpoint, tmp_path):
    folder = write_texts(tmp_path / "texts", documents=4)
    (folder / "bad.txt").write_text("the cat \x07 sat")
    model = tiny_model("TT(T(T)T)T", max_position_embeddings=512, vocab_size=320)
    (token,) = checkpoint.tokenizer("\x07", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        model.model.embed_tokens.weight[token] = torch.inf
    broken = Checkpoint(checkpoint.folder, "other", model, checkpoint.tokenizer)
    run = run_corpus([folder], tmp_path / "out", broken, OPTIONS)
    assert [(Path(each.name).name, each.reason) for each in run.skipped_documents] == [
        ("bad.txt", "numbers stop being finite in float32")
    ]
    assert run.documents == 5


def test_a_limit_of_tokens_ends_the_text(texts, checkpoint, tmp_path):
    run = run_corpus([texts], tmp_path, checkpoint, replace(OPTIONS, tokens=100))
    assert run.tokens == 100


def test_without_texts_nothing_of_them_is_left(texts, checkpoint, tmp_path):
    run = run_corpus([texts], tmp_path, checkpoint, replace(OPTIONS, texts=False, tokens=400))
    assert run.complete and not (tmp_path / TEXTS).exists()
    left = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"harbour" not in left and {path.name for path in tmp_path.iterdir()} == {
        RUN, "summary", TOKENS, DOCUMENTS, ".lock",
    }  # fmt: skip


def test_a_full_disk_is_said_and_the_run_goes_on_later(result, texts, checkpoint, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, before[1]))  # room for some tables, and not for all
    try:
        with pytest.raises(DiskFullError, match="is full"):
            run_corpus([texts], tmp_path, checkpoint, OPTIONS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert run_corpus([texts], tmp_path, checkpoint, OPTIONS).complete
    assert digests(tmp_path) == digests(result[0])


def test_a_full_disk_of_a_worker_is_one_of_the_run():
    with pytest.raises(DiskFullError, match="No space left"):
        raise_entry(error_entry(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    with pytest.raises(CorpusError, match=r"of \{2\} levels"):
        raise_entry(error_entry(CorpusError("{what}", what="of {2} levels")))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"window": 32}, "window .64 there, 32 now"),
        ({"dense": True}, "dense .False there, True now"),
        ({"shard_characters": 3000}, "shard_characters"),
    ],
)
def test_a_folder_with_another_unfinished_run_is_refused(texts, checkpoint, tmp_path, change, words):
    _begun(texts, checkpoint, tmp_path)
    with pytest.raises(CorpusError, match=words):
        run_corpus([texts], tmp_path, checkpoint, replace(OPTIONS, **change))
    assert (tmp_path / "plan.json").is_file(), "nothing is lost"


def test_a_folder_of_another_checkpoint_or_text_is_refused(result, texts, checkpoint, tmp_path):
    other = replace(checkpoint, digest="f" * 64)
    _begun(texts, checkpoint, tmp_path)
    with pytest.raises(CorpusError, match="another checkpoint"):
        run_corpus([texts], tmp_path, other, OPTIONS)
    with pytest.raises(CorpusError, match="another text"):
        run_corpus([texts / "whole.txt"], tmp_path, checkpoint, OPTIONS)
    with pytest.raises(CorpusError, match="holds a finished run of tiny"):
        run_corpus([texts], result[0], other, OPTIONS)


def _begun(texts, checkpoint, out):
    def stop(share, stage, **values):
        if stage == "corpus" and values["done"]:
            raise RunStopped("enough")

    assert not run_corpus([texts], out, checkpoint, OPTIONS, progress=stop).complete


def test_folders_of_somebody_else_and_of_older_formats_are_refused(texts, checkpoint, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(CorpusError, match=r"other files \(mine.txt\)"):
        run_corpus([texts], tmp_path, checkpoint, OPTIONS)
    for content, words in (('{"format": 0}', "format 0"), ("{", "cannot be read"), ('{"format": 1}', "incomplete")):
        (tmp_path / RUN).write_text(content)
        with pytest.raises(CorpusError, match=words):
            CorpusRun.read(tmp_path)
    with pytest.raises(CorpusError, match=r"no corpus\.json"):
        CorpusRun.read(tmp_path / "nowhere")


def test_a_corpus_without_a_document_is_refused(checkpoint, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "empty.txt").write_text(" \n")
    with pytest.raises(Exception, match=r"No text found in .*empty\.txt: it is empty"):
        run_corpus([tmp_path / "texts"], tmp_path / "out", checkpoint, OPTIONS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"window": 1024}, "1,024 tokens cannot be read; this checkpoint takes 16 to 512"),
        ({"tokens": 0}, "limit of 0 tokens"),
        ({"rows": 0}, "rows is 0"),
    ],
)
def test_options_that_cannot_be_are_refused(texts, checkpoint, tmp_path, change, words):
    with pytest.raises(CorpusError, match=words):
        run_corpus([texts], tmp_path, checkpoint, replace(OPTIONS, **change))


def test_memory_that_runs_out_is_said_and_is_no_stop(texts, checkpoint, tmp_path, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(checkpoint.model.model), "forward", full)
    with pytest.raises(RunStopped, match="Memory ran out"):
        Worker(checkpoint, OPTIONS).read_shard(_planned(texts, checkpoint, tmp_path), 0, lambda tokens: None)


def _planned(texts, checkpoint, folder):
    make_plan(Identity("", "", [str(texts)], OPTIONS), folder, checkpoint.tokenizer, silent)
    return folder


def test_the_command_says_what_was_read_and_how_it_ended(texts, checkpoint, tiny_checkpoint, tmp_path, monkeypatch):
    where = ["--checkpoint", tiny_checkpoint, "--text", texts, "--out", tmp_path, "--device", "cpu"]
    sizes = ["--window", 64, "--row-tokens", 128, "--shard-characters", 2000]
    with monkeypatch.context() as patched:
        patched.setattr(command, "stop_on_signal", lambda: contextlib.nullcontext(lambda: True))
        stopped = run_command(main, *where, *sizes)
    assert stopped.returncode == 130 and "was stopped; the same command continues it" in stopped.stderr
    shutil.rmtree(tmp_path)
    run = run_corpus([texts], tmp_path, checkpoint, OPTIONS)
    finished = run_command(main, *where, *sizes)  # it is there already
    assert finished.returncode == 0 and f"{run.tokens:,} tokens of 25 documents" in finished.stdout
    assert "was there already; the texts were not read again" in finished.stdout
    other = run_command(main, *where, "--window", 32)
    assert other.returncode == 1 and "holds a finished run" in other.stderr


def test_a_window_that_nobody_chose_is_as_long_as_the_checkpoint_takes(texts, checkpoint, tmp_path):
    run = run_corpus([texts], tmp_path, checkpoint, replace(options_for("cpu"), tokens=50))
    assert run.options.window == 512


def test_every_worker_gets_a_device(monkeypatch):
    monkeypatch.setattr(module, "usable_devices", lambda: ["cuda:0", "cuda:1", "cpu"])
    on_gpu = replace(OPTIONS, device="cuda")
    assert module._devices(on_gpu, 0, "") == ["cuda:0", "cuda:1"]
    assert module._devices(on_gpu, 3, "") == ["cuda:0", "cuda:1", "cuda:0"]
    assert module._devices(on_gpu, 2, "cuda:1") == ["cuda:1", "cuda:1"]
    assert module._devices(OPTIONS, 3, "cpu") == ["cpu"] * 3


def test_two_runs_do_not_write_to_one_folder(texts, checkpoint, tmp_path):
    def meanwhile(share, stage, **values):
        with pytest.raises(CorpusError, match="Another run writes"):
            run_corpus([texts], tmp_path, checkpoint, OPTIONS)
        raise RunStopped("enough")

    with pytest.raises(RunStopped, match="enough"):
        run_corpus([texts], tmp_path, checkpoint, OPTIONS, progress=meanwhile)


def test_a_broken_checkpoint_is_said_once_before_any_text_is_read(texts, copied_checkpoint, tmp_path):
    (copied_checkpoint / "model.safetensors").write_bytes(b"x")
    found = run_command(main, "--checkpoint", copied_checkpoint, "--text", texts, "--out", tmp_path / "out")
    assert found.returncode == 1 and found.stderr.count("error:") == 1 and not (tmp_path / "out").exists()


def test_ray_workers_share_gpus_where_there_are_fewer():
    assert [_share_of_gpu(4, workers) for workers in (1, 4, 5, 8, 9)] == [1, 1, 0.5, 0.5, pytest.approx(1 / 3)]
    with pytest.raises(CorpusError, match="no GPU"):
        _share_of_gpu(0, 2)
