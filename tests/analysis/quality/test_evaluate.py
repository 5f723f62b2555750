"""Evaluations agree with what they are made of, and the public harness runs on our checkpoints."""

import json
import math
import random
import shutil
from pathlib import Path

import pytest
import torch

from analysis import AnalysisError
from analysis.commands.evaluate import main
from analysis.quality.chats import NEW_TOKENS, QUESTIONS, REPEATED, Answer, answer_questions, repeats
from analysis.quality.evaluate import at_retention, held_out_blocks, in_a_cell, run_tasks
from analysis.quality.needles import needle_prompt, needles
from analysis.trace.tokenize import read_prompt
from subllm import SubllmForCausalLM
from subllm.checkpoints.dense import load_dense, routing_off
from subllm.checkpoints.load import load_checkpoint
from subllm.convert.fidelity import measure_fidelity
from subllm.routing import ROUTERS
from subllm.text.packed import pack
from tests.conftest import run_command, tiny_model

ROOT = Path(__file__).parents[3]
TASKS = Path(__file__).parent / "tasks"


@pytest.fixture
def loaded(tiny_checkpoint):
    checkpoint = load_checkpoint(tiny_checkpoint, "cpu", "float32")
    return checkpoint, load_dense(checkpoint)


def test_a_needle_is_where_it_is_said_to_be(loaded):
    checkpoint, _ = loaded
    filler = [1] * 300  # a token that no needle has
    for depth in (0.0, 0.25, 0.5, 1.0):
        ids, answer, place = needle_prompt(checkpoint, filler, 220, depth, random.Random(1))
        assert [ids[index] for index in place] == answer
        assert len(ids) + len(answer) == 220
        text = checkpoint.tokenizer.decode(ids)
        assert text.count("secret number of the") == 2
        assert ids[: place.start].count(1) == pytest.approx(depth * ids.count(1), abs=0.5)


def test_a_model_that_keeps_nothing_keeps_no_needle(loaded):
    checkpoint, dense = loaded
    for subsampler in checkpoint.model.model.subsamplers:
        subsampler.weight.data.zero_()
    found = needles(checkpoint, dense, 250, [0.5], trials=2)[0]
    assert found.kept == [0.0] * len(found.kept)
    with pytest.raises(AnalysisError, match="does not fit"):
        needles(checkpoint, dense, 20, [0.5], trials=1)
    with pytest.raises(AnalysisError, match="shares from 0 to 1"):
        needles(checkpoint, dense, 250, [5.0])
    for trials in (0, -1):
        with pytest.raises(AnalysisError, match=f"There are {trials} needles at each depth; give 1 or more"):
            needles(checkpoint, dense, 250, [0.5], trials=trials)


@pytest.mark.parametrize("router", sorted(ROUTERS))
def test_every_router_can_be_evaluated_at_a_share_of_tokens(router):
    model = tiny_model("T(T(T)T)T", router=router, retention_ratio=0.25)
    blocks = torch.randint(1, 97, (4, 64), generator=torch.Generator().manual_seed(0))
    if not ROUTERS[router].scores_tokens:
        with pytest.raises(AnalysisError, match=rf"No level of this model scores tokens \(routers: {router}\)"):
            at_retention(model, blocks, 0.5)
        return
    moved = measure_fidelity(model, routing_off(model), blocks, at_retention(model, blocks, 0.5))
    assert moved.retention == pytest.approx([0.5, 0.5], abs=0.02)
    assert moved.divergence > 0
    assert at_retention(model, blocks, 0.0) is None
    with pytest.raises(AnalysisError, match=r"A retention of 1\.5 cannot be evaluated"):
        at_retention(model, blocks, 1.5)


def test_held_out_text_comes_from_packed_folders_and_from_files(loaded, tmp_path):
    checkpoint, _ = loaded
    (tmp_path / "text.jsonl").write_text(
        "".join(json.dumps({"text": f"{n} cats sat on {n} mats"}) + "\n" for n in range(200))
    )
    blocks = held_out_blocks(checkpoint, [tmp_path / "text.jsonl"], 16, 4)
    assert blocks.shape == (4, 16)
    packed = pack([tmp_path / "text.jsonl"], checkpoint.tokenizer, tmp_path / "packed", held_out=0.3)
    assert held_out_blocks(checkpoint, [packed.folder], 16, 3).shape == (3, 16)
    for texts in ([tmp_path / "text.jsonl"], [packed.folder]):
        for length, count in ((0, 1), (-5, 1), (1, 1), (513, 1), (16, 0), (16, -2)):
            with pytest.raises(AnalysisError, match=f"on {count} blocks of {length} tokens; .* of 2 to 512 tokens"):
                held_out_blocks(checkpoint, texts, length, count)
    (tmp_path / "short.txt").write_text("three cats")
    with pytest.raises(AnalysisError, match="of the 512 tokens of one block"):
        held_out_blocks(checkpoint, [tmp_path / "short.txt"], 512, 1)


def test_the_command_reports_what_the_model_computes(tiny_checkpoint, tmp_path):
    (tmp_path / "text.txt").write_text("the cat sat on the mat and the dog saw it " * 20)
    command = ["--checkpoint", str(tiny_checkpoint)]
    out = tmp_path / "found.json"
    done = run_command(main, *command, "--data", str(tmp_path / "text.txt"), "--lengths", "32", "--blocks", "2",
         "--retentions", "0", "0.5", "1", "--out", str(out))  # fmt: skip
    assert done.returncode == 0, done.stderr
    found, half, everything = json.loads(out.read_text())["perplexity"]
    checkpoint = load_checkpoint(tiny_checkpoint, "cpu", "float32")
    blocks = held_out_blocks(checkpoint, [tmp_path / "text.txt"], 32, 2)
    with torch.no_grad():
        expected = checkpoint.model(blocks, labels=blocks).loss.item()
    assert found["perplexity"] == pytest.approx(math.exp(expected), rel=1e-4)
    spans = len(checkpoint.model.config.retention_ratios)
    assert half["asked"] == 0.5 and half["retention"] == pytest.approx([0.5] * spans, abs=0.04)
    assert everything["retention"] == [1.0] * spans
    wrong = run_command(main, *command, "--data", str(tmp_path / "text.txt"), "--lengths", "32", "--retentions", "5")
    assert wrong.returncode == 1 and "from 0 to 1" in wrong.stderr
    options = ["--lengths", "32", "513", "--retentions", "5"]  # all lengths are checked before anything is measured
    long = run_command(main, *command, "--data", str(tmp_path / "text.txt"), *options)
    assert long.returncode == 1 and "32 blocks of 513 tokens; give 1 block or more, of 2 to 512" in long.stderr
    nothing = run_command(main, *command)
    assert nothing.returncode == 1 and "nothing to do" in nothing.stderr


def test_repeats_are_runs_of_tokens_that_stood_before():
    assert repeats(list(range(40))) == repeats([1] * (REPEATED - 1)) == 0
    assert repeats([1] * (REPEATED + 2)) == 2
    assert repeats([*range(10), 99, *range(10)]) == 3


def test_everyday_questions_are_answered_as_the_models_write_and_stand_in_a_card(tiny_checkpoint, loaded, tmp_path):
    checkpoint, dense = loaded
    template = "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}<assistant>"
    checkpoint.tokenizer.chat_template = template
    for model in (checkpoint.model, dense.model):
        model.generation_config.repetition_penalty = 3.0  # no setting of a model's own counts
    found = list(answer_questions(checkpoint, dense))
    assert [each.question for each in found] == list(QUESTIONS)
    last = read_prompt(QUESTIONS[-1], checkpoint.tokenizer, 512, chat=True)
    answers = []
    for model in (checkpoint.model, dense.model):
        ids = torch.tensor(last.token_ids)[None]
        with torch.no_grad():
            for _ in range(NEW_TOKENS):
                ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
                if ids[0, -1] == checkpoint.model.generation_config.eos_token_id:
                    break
        new = ids[0, len(last) :].tolist()
        answers.append((checkpoint.tokenizer.decode(new, skip_special_tokens=True).strip(), repeats(new)))
    assert answers[0] != answers[1]
    (text, again), (dense_text, dense_again) = answers
    assert found[-1] == Answer(QUESTIONS[-1], text, again, dense_text, dense_again)

    own = tmp_path / "with a template"
    shutil.copytree(tiny_checkpoint, own)
    checkpoint.tokenizer.save_pretrained(own)
    card = tmp_path / "README.md"
    card.write_text("# A model\n\n## Evaluation\n\nby hand\n")
    for number in range(2):  # the second time, its own tables are replaced
        if number:
            card.write_text(f"{card.read_text()}\n## Licence\n\nfree\n")
        done = run_command(main, "--checkpoint", str(own), "--device", "cpu", "--chats", "--card", str(card))
        assert done.returncode == 0, done.stderr
        text = card.read_text()
        assert text.startswith("# A model\n\n## Evaluation\n\nby hand\n\n## Evaluation\n\n<!-- subllm evaluate -->\n")
        assert all(text.count(f"| {question} |") == 1 for question in QUESTIONS)
        assert text.count("```\nsubllm evaluate --checkpoint") == 1 and f"- checkpoint: {checkpoint.digest}" in text
    assert text.endswith("<!-- end of subllm evaluate -->\n\n## Licence\n\nfree\n")


def test_what_is_written_into_a_card_during_the_measurement_stays(tiny_checkpoint, tmp_path, monkeypatch):
    card = tmp_path / "README.md"
    card.write_text("# A model\n")

    def edited(*arguments, **options):
        card.write_text("# A better model\n")
        return needles(*arguments, **options)

    monkeypatch.setattr("analysis.commands.evaluate.needles", edited)
    command = ("--checkpoint", str(tiny_checkpoint), "--device", "cpu", "--needles", "200", "--trials", "1")
    done = run_command(main, *command, "--depths", "0.5", "--card", str(card))
    assert done.returncode == 0, done.stderr
    assert card.read_text().startswith("# A better model\n\n## Evaluation") and "recall" in card.read_text()


@pytest.mark.parametrize(
    "content, message",
    [
        (b"caf\xe9", "cannot be read as UTF-8"),
        (b"<!-- subllm evaluate -->\nold", 'no "<!-- end of subllm evaluate -->"'),
    ],
)
def test_a_card_that_cannot_take_tables_is_refused_before_anything_is_measured(
    content, message, tiny_checkpoint, tmp_path
):
    card = tmp_path / "README.md"
    card.write_bytes(content)
    for path, said in ((card, message), (tmp_path / "nowhere" / "x.md", "its folder does not exist")):
        done = run_command(main, "--checkpoint", str(tiny_checkpoint), "--needles", "9", "--card", str(path))
        assert done.returncode == 1 and said in done.stderr and "needle" not in done.stderr
    assert card.read_bytes() == content


def test_what_a_model_writes_is_no_markup_in_a_card():
    assert in_a_cell("a | <b>\n\n*c* `d` [e](f) ~~g~~ $h$") == (r"a \| &lt;b&gt; \*c\* \`d\` \[e\](f) \~\~g\~\~ \$h\$")


def test_the_harness_runs_a_task_on_our_checkpoint(tiny_checkpoint, monkeypatch):
    monkeypatch.chdir(ROOT)
    checkpoint = load_checkpoint(tiny_checkpoint, "cpu", "bfloat16")
    loaded = []
    usual = SubllmForCausalLM.forward

    def seen(self, *args, **kwargs):
        loaded.append((str(self.device), self.dtype))
        return usual(self, *args, **kwargs)

    monkeypatch.setattr(SubllmForCausalLM, "forward", seen)
    found = run_tasks(checkpoint, ["small_sums"], own=TASKS)
    assert 0 <= found["small_sums"]["acc,none"] <= 1
    assert set(loaded) == {("cpu", torch.bfloat16)}, "as the card says"
    with pytest.raises(AnalysisError, match="no task"):
        run_tasks(checkpoint, ["nothing_like_it"])
