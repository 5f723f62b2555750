"""How fast a corpus is read: beside a plain forward loop, with one and two workers, and the memory of the second pass.

    python -m tests.benchmarks.corpus --out assets/benchmarks

The texts are the topics of Python's reference manual, one document each. Every worker has one thread.
"""

import argparse
import json
import os
import pydoc_data.topics
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from torch.nn.functional import cross_entropy

from analysis.corpus.plan import Identity, make_plan
from analysis.corpus.run import Engine, options_for, run_corpus
from analysis.corpus.schema import CorpusRun, Options
from analysis.corpus.worker import DONE, Worker
from analysis.cost.measure import alternate
from analysis.cost.page import listed
from analysis.cost.sweep import machine
from analysis.guard import silent
from subllm.assets import ASSETS
from subllm.checkpoints.load import Checkpoint, load_checkpoint
from subllm.demo import build_demo
from tests.benchmarks.browser import cell, tables_folder

_SMALL = ASSETS / "small" / "final"
_CHARACTERS = 25_000  # of the texts of the plain loop
_SIZES = (1_000_000, 50_000_000)  # tokens of the second pass
_FEW, _MANY = (2, 500), (16, 49_152)  # levels and ids, and how many of them make the number of paths grow
_MANY_TOKENS = 1_000_000  # that are read with many levels
_AGGREGATE = """
import sys, time
from pathlib import Path
from analysis.corpus.aggregate import aggregate
from analysis.cost.measure import highest_resident
from tests.analysis.corpus.simulated import simulate
folder, (tokens, levels, vocabulary) = Path(sys.argv[1]), map(int, sys.argv[2:])
if not folder.is_dir():
    simulate(folder, tokens // 1000, 1000, per_shard=250, texts=False, levels=levels, vocabulary=vocabulary)
else:
    began = time.perf_counter()
    aggregate(folder)
    print(time.perf_counter() - began, highest_resident() / 2**20)
"""


def write_documents(folder: Path, characters: int) -> None:
    """Write topics as documents until there are so many characters, and again from the first if they are too few."""
    rows, held = [], 0
    while held < characters:
        for _, text in sorted(pydoc_data.topics.topics.items()):
            rows.append(json.dumps({"text": text}))
            held += len(text)
            if held >= characters:
                break
    folder.mkdir(parents=True)
    (folder / "topics.jsonl").write_text("\n".join(rows), encoding="utf-8")


def beside_plain_loop(checkpoint: Checkpoint, repeats: int, options: Options) -> tuple[int, dict[str, list[float]]]:
    """Tokens of the texts, and seconds of each reading: by a worker, tables included; and by a plain loop.

    The plain loop runs the model on one window after another, in their order, and takes the mean loss of each.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_documents(folder / "texts", _CHARACTERS)
        options = replace(options, shard_characters=10 * _CHARACTERS)
        make_plan(Identity("", "", [str(folder / "texts")], options), folder, checkpoint.tokenizer, silent)
        worker = Worker(checkpoint, options)
        texts = [json.loads(line)["text"] for line in (folder / "texts" / "topics.jsonl").read_text().splitlines()]
        ids = [torch.tensor(checkpoint.tokenizer(text, verbose=False)["input_ids"])[None] for text in texts]
        windows = [window for row in ids for window in row.split(options.window, dim=1)]

        @torch.inference_mode()
        def plain() -> None:
            for window in windows:
                logits = checkpoint.model(window, use_cache=False).logits[0]
                if len(logits) > 1:
                    cross_entropy(logits[:-1], window[0, 1:]).item()

        def read() -> None:
            worker.read_shard(folder, 0, lambda tokens: None)

        passes = {"plain": plain, "corpus": read}
        for each in passes.values():
            each()  # nothing is measured for the first time
        took = alternate(passes, repeats, torch.device("cpu"))
        seconds = {name: [one.seconds for one in each] for name, each in took.items()}
        return sum(window.shape[1] for window in windows), seconds


def rate_of_workers(engine: Engine, workers: int, folder: Path, texts: Path) -> float:
    """Tokens a second from the moment when every worker has read its first shard, so that loading does not count.

    A shard that was under way then counts for the part of its time that was left.
    """
    ends: list[tuple[float, float, int]] = []  # of every shard: when it ended, what it took, its tokens
    seen: set[str] = set()

    def progress(share: float, stage: str, **values: object) -> None:
        for path in sorted((folder / DONE).glob("*.json")) if (folder / DONE).is_dir() else ():
            if path.name not in seen:
                seen.add(path.name)
                done = json.loads(path.read_text())
                ends.append((path.stat().st_mtime, done["seconds"], done["shard"]["tokens"]))

    options = replace(options_for("cpu", "float32"), shard_characters=60_000)
    run: CorpusRun = run_corpus([texts], folder, _SMALL, options, engine=engine, workers=workers, progress=progress)
    ends.sort()
    assert len(ends) == len(run.shards)
    begin = ends[workers - 1][0]
    left = [min((end - begin) / seconds, 1) * tokens for end, seconds, tokens in ends[workers:]]
    return sum(left) / (ends[-1][0] - begin)


def second_pass(tokens: int, levels: int, vocabulary: int) -> tuple[float, float]:
    """Seconds and peak memory in MiB of the second pass over a simulated result."""
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-c", _AGGREGATE, f"{name}/result", str(tokens), str(levels), str(vocabulary)]
        for _ in range(2):
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    seconds, peak = map(float, said.split())
    return seconds, peak


def report(
    tokens: int,
    plain: dict[str, list[float]],
    workers: dict[Engine, dict[int, list[float]]],
    passes: dict[tuple[int, int, int], tuple[float, float]],
    facts: dict[str, str],
) -> str:
    """The tables."""
    ratios = [one / other for one, other in zip(plain["plain"], plain["corpus"], strict=True)]
    rates = {name: [tokens / seconds for seconds in each] for name, each in plain.items()}
    rows = [
        f"| {engine} | {cell(rate[1])} | {cell(rate[2])} | {median(rate[2]) / median(rate[1]):.2f} |"
        for engine, rate in workers.items()
    ]
    sizes = [
        f"| {size:,} | {levels} | {ids:,} | {seconds:,.1f} | {peak:,.0f} |"
        for (size, levels, ids), (seconds, peak) in passes.items()
    ]
    return f"""# Reading a corpus

Measured by `make bench`: medians (least – most). Every worker has one thread.

## Beside a plain loop

The demo checkpoint reads {tokens:,} tokens of the topics of Python's manual: `subllm corpus`, with tokenising, packing,
recording, tags and tables; and a loop that runs the same model on one document after another and takes its loss. The
two run in turn; the ratio is the median of such pairs.

| plain loop, tokens per second | corpus, tokens per second | ratio |
| ---: | ---: | ---: |
| {cell(rates["plain"])} | {cell(rates["corpus"])} | {median(ratios):.2f} |

## Two workers beside one

The small checkpoint, runs of each: {facts["repeats"]}, from the moment when every worker has read its first shard.

| engine | one worker, tokens per second | two workers | ratio |
| --- | ---: | ---: | ---: |
{chr(10).join(rows)}

## The second pass

Over simulated results in shards of 250,000 tokens, as reading so many tokens takes days on a CPU: what the pass reads
and writes is the same. Peak memory is of the whole process. With many levels that decide independently of each other,
nearly every token has a path of its own, and the table of paths grows with the tokens.

| tokens | levels | ids | seconds | peak, MiB |
| ---: | ---: | ---: | ---: | ---: |
{chr(10).join(sizes)}

{listed(facts)}
"""


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.corpus", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="of every measurement")
    parser.add_argument("--sizes", type=int, nargs="*", default=_SIZES, help="tokens of the second pass")
    parser.add_argument("--out", type=tables_folder, help="folder for the table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    checkpoint = load_checkpoint(build_demo(), "cpu", "float32")
    tokens, plain = beside_plain_loop(checkpoint, arguments.repeats, options_for("cpu", "float32"))
    print(tokens, plain, file=sys.stderr)  # noqa: T201
    workers: dict[Engine, dict[int, list[float]]] = {}
    folder = Path(tempfile.mkdtemp())
    try:
        write_documents(folder / "texts", 900_000)
        for engine in (Engine.LOCAL, Engine.RAY):
            workers[engine] = {1: [], 2: []}
            for repeat in range(arguments.repeats):
                for count in (1, 2):
                    out = folder / f"{engine}-{count}-{repeat}"
                    workers[engine][count].append(rate_of_workers(engine, count, out, folder / "texts"))
    finally:
        shutil.rmtree(folder)
    print(workers, file=sys.stderr)  # noqa: T201
    cases = [*((size, *_FEW) for size in arguments.sizes), (_MANY_TOKENS, *_MANY)]
    passes = {case: second_pass(*case) for case in cases}
    facts = machine(torch.device("cpu")) | {"repeats": str(arguments.repeats), "date": time.strftime("%Y-%m-%d")}
    text = report(tokens, plain, workers, passes, facts)
    print(text)  # noqa: T201
    if arguments.out:
        (arguments.out / "corpus.md").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
