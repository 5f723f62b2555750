"""`make gpu` on a machine without one: every part runs at a tiny size, and nothing that goes wrong in one stops it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import packages_distributions

import psutil
import pytest

from analysis.cost.sizes import parameters
from subllm import SubllmConfig, SubllmForCausalLM
from subllm.train.config import TrainConfig
from tests.architecture import ROOT, imported
from tests.gpu import runner
from tests.gpu.bundle import TESTS
from tests.gpu.expected import EXPECTED, Expectation, compared, summary
from tests.gpu.making import CONFIG
from tests.gpu.parts import PARTS, TRAININGS
from tests.gpu.runner import Found, Outcome, Part, Status, Where, limit_size, run_parts
from tests.gpu.trainings import FAMILY


def command(out, *options):
    return [sys.executable, "-m", "tests.gpu", "--device", "cpu", "--dry", "--out", str(out), *options]


def environment():
    hidden = {"SUBLLM_TEST_DEVICE", "CUDA_VISIBLE_DEVICES"}
    return {name: value for name, value in os.environ.items() if name not in hidden} | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    """Folder of a dry run that was killed in one of its parts and then begun again; and what the second run said."""
    out = tmp_path_factory.mktemp("gpu")
    killed = subprocess.Popen(command(out), cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 900
    while not (out / "golden" / "result.json").is_file():
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)  # the moment to kill at is seen in the files that it writes
    family = psutil.Process(killed.pid).children(recursive=True)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive, "a part outlived the command"
    assert Outcome.read(out / "golden").status is Status.BEGUN
    done = subprocess.run(command(out), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr + (out / "summary.md").read_text()
    return out, done.stderr


def test_every_part_runs_and_a_killed_run_goes_on_with_the_part_that_it_was_at(dry):
    out, said = dry
    before = [line.split("] ")[1] for line in said.splitlines() if line.endswith("done before")]
    assert before == [f"{name}: done before" for name in ("facts", "demo", "device-tests")]
    outcomes = [Outcome.read(out / part.name) for part in PARTS]
    assert [outcome.status for outcome in outcomes] == [Status.DONE] * len(PARTS)
    for part in PARTS:
        page = (out / part.name / "result.md").read_text()
        assert "- processor: " in page and "- versions: torch" in page, "a table names its machine"
    facts = {outcome.name: outcome.facts for outcome in outcomes}
    assert facts["device-tests"]["passed"] and facts["golden"]["passed"] and not facts["golden"]["failed"]
    assert facts["training"]["largest difference of a loss after stopping"] <= 1e-6
    assert facts["conversion"]["chats"]
    assert sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) < runner.MOST_BYTES / 10


def test_facts_that_are_expected_are_found(dry):
    """Of sizes that a dry run has, too; others differ in their numbers only."""
    out, _ = dry
    found = {(part.name, name.partition(", ")[0]) for part in PARTS for name in Outcome.read(out / part.name).facts}
    only_on_a_gpu = {"MiB beyond the kept models' weights", "idle share"}
    for each in EXPECTED:
        name = each.fact.partition(", ")[0]
        assert name in only_on_a_gpu or name.startswith("predicted") or (each.part, name) in found, each
    assert any(name.startswith("predicted over measured prefill") for part, name in found if part == "calibration")


@pytest.mark.soak
def test_the_long_trainings_run_when_they_are_asked_for_and_go_on(tmp_path):
    names = [part.name for part in TRAININGS]
    asked = command(tmp_path / "results", "--only", *names)
    done = subprocess.run(asked, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    facts = {name: Outcome.read(tmp_path / "results" / name).facts for name in names}
    assert all(facts[f"{name}-conversion"]["perplexity over the dense one"] > 0 for name in ("deep", "demo"))
    assert set(facts["family"]) == {"loss, subllm", "loss, llama"}
    assert (tmp_path / "results" / "deep-conversion" / "learned" / "README.md").is_file()
    assert SubllmForCausalLM.from_pretrained(tmp_path / "results" / "family" / "subllm" / "final")

    shutil.rmtree(tmp_path / "results")  # such as after a change of the code, which the runs survive
    again = subprocess.run(asked, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=1800)
    assert again.returncode == 0, again.stderr
    assert Outcome.read(tmp_path / "results" / "family").facts == facts["family"], "nothing was trained again"


def test_the_family_has_every_router_and_all_members_have_a_model_of_the_same_size():
    models = [SubllmConfig(**TrainConfig.read(CONFIG, **settings).model) for _, _, settings in FAMILY]
    assert {name for model in models for name in model.routers} == {"subllm", "mod", "stride", "colt5"}
    sizes = [parameters(model) for model in models]
    assert max(sizes) / min(sizes) < 1.01  # but for routers and bypasses


def _fails(where):
    (where.folder / "partial.txt").write_text("so far")
    raise ValueError("no such kernel")


def _hangs(where):
    inside = "import subprocess, time; p = subprocess.Popen(['sleep', '600'], start_new_session=True); print(p.pid)"
    child = subprocess.Popen([sys.executable, "-u", "-c", f"{inside}; time.sleep(600)"], stdout=subprocess.PIPE)
    (where.folder / "pids.txt").write_text(f"{os.getpid()} {child.pid} {child.stdout.readline().decode()}")
    signal.pause()


def _ends(where):
    os._exit(3)


def _works(where):
    with (where.results / "worked.txt").open("a") as file:
        file.write(f"{where.work.is_dir()}\n")
    return Found({"answer": 42}, "a table")


def test_a_part_that_fails_hangs_or_dies_is_reported_and_the_rest_runs(tmp_path):
    parts = [Part("fails", 60, _fails), Part("hangs", 15, _hangs), Part("dies", 60, _ends), Part("works", 60, _works)]
    where = Where("cpu", True, tmp_path)
    said = []
    outcomes = {outcome.name: outcome for outcome in run_parts(parts, where, 120, said.append)}
    assert outcomes["fails"].status is Status.FAILED and outcomes["fails"].problem == "ValueError: no such kernel"
    assert "Traceback" in (tmp_path / "fails" / "log.txt").read_text()
    assert outcomes["hangs"].status is Status.LATE
    for pid in map(int, (tmp_path / "hangs" / "pids.txt").read_text().split()):
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert outcomes["dies"].status is Status.FAILED and "code 3" in outcomes["dies"].problem
    assert outcomes["works"].status is Status.DONE and outcomes["works"].facts == {"answer": 42}
    text = summary([*outcomes.values()], where, ["a note"])
    assert "| fails | failed |" in text and "| hangs | stopped at its time limit |" in text

    again = [*run_parts([parts[0], parts[3]], where, 120, said.append)]
    assert (tmp_path / "worked.txt").read_text().count("True") == 1, "what is done is not done again"
    assert (tmp_path / "fails" / "partial.txt").is_file() and again[0].status is Status.FAILED, "what failed is"


def test_other_code_or_another_card_makes_a_part_run_again(tmp_path, monkeypatch):
    parts, where = [Part("works", 60, _works)], Where("cpu", True, tmp_path)
    for cards in ([], ["NVIDIA H100", "driver 580"], ["NVIDIA H100", "driver 580"]):
        monkeypatch.setattr(runner, "cards", lambda cards=cards: cards)
        [*run_parts(parts, where, 120, lambda line: None)]
    assert (tmp_path / "worked.txt").read_text().count("True") == 2
    before = runner.state(where)
    monkeypatch.setattr(runner, "_CODE", ("tests/gpu",))
    assert runner.state(where)["code"] != before["code"]


def test_what_the_time_for_all_does_not_allow_is_not_begun(tmp_path):
    (outcome,) = run_parts([Part("works", 60, _works)], Where("cpu", True, tmp_path), 1, lambda line: None)
    assert outcome.status is Status.NOT_RUN and not (tmp_path / "worked.txt").exists()
    assert json.loads((tmp_path / "works" / "result.json").read_text())["status"] == Status.NOT_RUN


def test_results_stay_small(tmp_path):
    for name, size in (("summary.md", 10), ("part/large.bin", 900), ("part/small.bin", 300)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    assert limit_size(tmp_path, 2000) == []
    assert limit_size(tmp_path, 500) == ["part/large.bin"]
    assert (tmp_path / "part" / "small.bin").exists()


@pytest.mark.parametrize(
    ("low", "high", "value", "met"),
    [(1, 2, 1.5, True), (1, 2, 2.5, False), (None, 2, 0, True), (1, None, 0, False), ("cuda", None, "cpu", False)],
)
def test_what_was_found_is_compared_with_what_is_expected(low, high, value, met):
    expected = [Expectation("part", "fact", low, high), Expectation("part", "other", 1)]
    rows = compared([Outcome("part", Status.DONE, facts={"fact": value})], expected)
    assert [row[-1] for row in rows] == ["met" if met else "missed", "not measured"]


def test_all_limits_together_leave_room_for_a_part_that_takes_its_whole_time():
    assert sum(part.seconds for part in PARTS) < 30 * 60
    assert len({part.name for part in PARTS}) == len(PARTS)
    assert {each.part for each in EXPECTED} <= {part.name for part in PARTS}


def test_the_bundle_has_all_that_the_tests_on_the_card_import():
    folders = [ROOT / "tests" / name for name in ("analysis", "subllm", "device", "gpu")]
    files = [ROOT / "tests" / "conftest.py", *(path for folder in folders for path in folder.rglob("*.py"))]
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE)
    carried = {name.lower().replace("_", "-") for name in (*pinned, *TESTS)}
    owners = packages_distributions()
    foreign = set().union(*map(imported, files)) - {*sys.stdlib_module_names, "subllm", "analysis", "app", "tests"}
    lacking = {name for name in foreign if not {each.lower().replace("_", "-") for each in owners[name]} & carried}
    assert not lacking
