"""Other rules over documents of a corpus result that the shipped small checkpoint made."""

import hashlib
import json
import re

import numpy as np
import pytest

from analysis.commands.corpus_rivals import main
from analysis.corpus import rivals
from analysis.corpus.rivals import corpus_rivals
from analysis.corpus.run import options_for, run_corpus
from analysis.corpus.statistics import mixed
from analysis.corpus.summary import Summary
from analysis.errors import CorpusError
from analysis.quality.rivals import compare_rules
from analysis.quality.selection_rules import SelectionRule
from analysis.run import RunOptions, record_trace
from analysis.trace.tokenize import read_prompt
from subllm.assets import ASSETS
from subllm.checkpoints.dense import load_dense
from subllm.checkpoints.load import load_checkpoint
from tests.analysis.corpus.simulated import simulate
from tests.conftest import run_command

TEXTS = [f"The ship of captain {name} left the harbour at night. " * 6 for name in ("Ann", "Bo", "Cy")] + ["Too short."]
SMALL = ASSETS / "small" / "final"


@pytest.fixture(scope="module")
def checkpoint():
    return load_checkpoint(SMALL, "cpu", "float32")


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory):
    place = tmp_path_factory.mktemp("rivals")
    (place / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    run_corpus([place / "texts.jsonl"], place / "result", checkpoint, options_for("cpu", "float32"))
    return place / "result"


def test_losses_are_means_over_the_tokens_of_all_documents(folder, checkpoint):
    dense = load_dense(checkpoint)
    table = corpus_rivals(folder, checkpoint, dense, tokens=40).to_pandas().set_index(["rule", "own_weights"])
    sums = {rule: [] for rule in ("recorded", "even", "norm", "random")}
    for text in TEXTS[:3]:
        prompt = read_prompt(text, checkpoint.tokenizer, 40, truncate=True)
        trace = record_trace(checkpoint, prompt, RunOptions(new_tokens=0, compare=False))
        digest = hashlib.sha256(text.encode()).hexdigest()
        (key,) = mixed(np.array([int(digest[:16], 16)], dtype=np.uint64)).tolist()  # of the document's random draws
        *_, found = compare_rules(checkpoint, dense, trace, seed=key)
        for rule in sums:
            draws = [each.surprisal[1:] for each in found.of(SelectionRule(rule)) if not each.own_weights]
            sums[rule] += np.mean(draws, axis=0).tolist()
    for rule, expected in sums.items():
        assert table.loc[(rule, False), "loss"] == pytest.approx(np.mean(expected), abs=1e-4)
    even = table.loc[("even", False)]
    assert even["difference"] == pytest.approx(np.mean(sums["even"]) - np.mean(sums["recorded"]), abs=1e-4)
    assert (even["documents"], even["tokens"]) == (3, 3 * 39)  # one is too short
    assert even["low"] < even["difference"] < even["high"]
    assert "rare" in table.index.get_level_values(0)
    assert len(Summary.read(folder).rules) == len(table)


def test_a_number_is_hidden_in_every_document_and_asked_for_at_its_end(folder, checkpoint, monkeypatch):
    read = []
    compare = rivals.compare_rules

    def compare_and_remember(*arguments, **options):
        *_, found = compare(*arguments, **options)
        read.append((found, arguments[3]))
        yield found

    monkeypatch.setattr(rivals, "compare_rules", compare_and_remember)
    dense = load_dense(checkpoint)
    table = corpus_rivals(folder, checkpoint, dense, tokens=80, needles=True).to_pandas()
    plain = [found.prompt.token_ids.tolist() for found, answer in read if not len(answer)]
    hiding = [(found, answer) for found, answer in read if len(answer)]
    assert len(hiding) == len(plain) == 3
    for (found, answer), document, depth in zip(hiding, plain, (0.1, 0.5, 0.9), strict=True):
        ids, text = found.prompt.token_ids.tolist(), found.prompt.text
        secret = re.search(r"\nThe secret number of the (\w+) is( \d{5})\.\n", text)
        assert text.endswith(f"\nRemember: the secret number of the {secret[1]} is")
        assert checkpoint.tokenizer.decode(answer) == secret[2]
        assert len(ids) + len(answer) == len(document)
        before = next(n for n, (one, other) in enumerate(zip(ids, document, strict=False)) if one != other)
        after = text[secret.end() : text.rindex("\nRemember")]
        assert after in checkpoint.tokenizer.decode(document)
        room = before + len(checkpoint.tokenizer(after, add_special_tokens=False)["input_ids"])
        assert before == pytest.approx(depth * room, abs=2)
    for row in table.itertuples():
        runs = [found.of(SelectionRule(row.rule), own_weights=row.own_weights) for found, _ in hiding]
        assert row.found == pytest.approx(np.mean([run.found for draws in runs for run in draws]))


def test_the_command_prints_the_rules(folder):
    done = run_command(main, folder, "--checkpoint", SMALL, "--device", "cpu", "--documents", "1", "--tokens", "40")
    assert done.returncode == 0, done.stderr
    assert "rarest in the corpus" in done.stdout and "documents: 1; tokens: 39" in done.stdout


@pytest.mark.parametrize(
    "numbers, message",
    [
        ({"documents": 0}, "number of documents is 0; give 1"),
        ({"documents": -5}, "number of documents is -5; give 1"),
        ({"tokens": 20}, "number of tokens is 20; give 33 or more"),
    ],
)
def test_numbers_that_leave_nothing_to_compare_are_refused(folder, checkpoint, numbers, message):
    with pytest.raises(CorpusError, match=message):
        corpus_rivals(folder, checkpoint, load_dense(checkpoint), **numbers)


def test_a_result_of_another_checkpoint_is_refused(checkpoint, tmp_path):
    simulate(tmp_path, 2, 40)
    with pytest.raises(CorpusError, match="this is another one"):
        corpus_rivals(tmp_path, checkpoint, load_dense(checkpoint))
