"""Every kind of work obeys the same limits, can be stopped, and lets others go first."""

import ast
import inspect
import logging
import math
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import app.views
from analysis import RunStopped
from analysis.cost.comparison import Setting
from analysis.debug.edits import Edit
from analysis.debug.generation import Sampling
from analysis.debug.target import Question
from analysis.guard import silent
from analysis.run import RunOptions
from analysis.trace.tokenize import read_prompt
from app import engine
from app.engine.queue import turn
from app.engine.runs import explain
from app.engine.work import Account, Use, Work
from app.limits import PROFILES
from tests.app.scripts import script

UNLIMITED = replace(PROFILES["private"], seconds=math.inf, turn_seconds=math.inf)
TEXT = "the cat sat on the mat and then the dog sat on the cat"


@pytest.fixture(scope="module")
def spec(tiny_checkpoint):
    return engine.ModelSpec("tiny", tiny_checkpoint, "cpu", "float32")


@pytest.fixture(scope="module")
def trace(spec):
    *_, (trace, _) = engine.run(
        engine.Recipe(TEXT, False, spec), RunOptions(0, False), silent, truncate=False, limit=512
    )
    return trace


def a_run(spec, trace, work, text):
    return list(engine.run(engine.Recipe(text, False, spec), RunOptions(4), work, truncate=False, limit=512))


def a_generation(spec, trace, work, text):
    prompt = read_prompt(text, spec.load()[0].tokenizer, 512)
    texts = [engine.Text(spec, prompt, Sampling(), (), dense) for dense in (False, True)]
    return list(engine.write(texts, 4, work))


KINDS = {
    "run": a_run,
    "lens": lambda spec, trace, work, text: engine.follow(spec, trace, 3, work),
    "confidence": lambda spec, trace, work, text: engine.read_off_all(spec, trace, work),
    "attention": lambda spec, trace, work, text: engine.attention(spec, trace, 3, work),
    "edits": lambda spec, trace, work, text: list(engine.edited(spec, trace, text, [Edit("dense", 1)], work, 512)),
    "search": lambda spec, trace, work, text: list(engine.effects(spec, trace, text, 1, 4, work, 512)),
    "generation": a_generation,
    "measurement": lambda spec, trace, work, text: engine.compare_setting(spec, Setting(16), "llama", 1, work),
    "calibration": lambda spec, trace, work, text: engine.calibrate("cpu", "float32", work),
} | {
    method: lambda spec, trace, work, text, method=method: explain(
        spec, trace, Question(5), work, method=method, steps=4
    )
    for method in ("integrated gradients", "input x gradient", "ablation", "occlusion", "conductance")
}
COUNTED = ("run", "edits", "search", "generation", "measurement")  # read or generate tokens


def unique(name):
    """A text that no other test has asked for, so that nothing is known of it."""
    unique.number += 1
    return f"{TEXT} {name} {unique.number}"


unique.number = 0


class Stopped(BaseException):
    """What a press of Stop raises."""


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_work_ends_at_its_time_limit(kind, spec, trace):
    work = Work(replace(UNLIMITED, seconds=0.0), Account(), silent)
    with pytest.raises(RunStopped, match="time limit was reached"):
        KINDS[kind](spec, trace, work, unique(kind))
    with turn("cpu", silent):  # and its device is free
        pass


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_work_ends_when_the_visitors_hour_is_used_up(kind, spec, trace):
    account = Account()
    account.add(Use(seconds=10))
    work = Work(replace(UNLIMITED, hourly_seconds=10), account, silent)
    with pytest.raises(RunStopped, match=r"seconds of computing: 10\)\. Try again in 60 min"):
        KINDS[kind](spec, trace, work, unique(kind))


@pytest.mark.parametrize("what", ["tokens", "texts"])
@pytest.mark.parametrize("kind", COUNTED)
def test_tokens_and_texts_are_counted_before_they_are_read(kind, what, spec, trace):
    account, generous = Account(), replace(UNLIMITED, hourly_tokens=10_000, hourly_texts=10_000)
    KINDS[kind](spec, trace, Work(generous, account, silent), unique(kind))
    used = 10_000 - getattr(account.left(generous), what)
    assert used > 0
    strict = replace(UNLIMITED, **{f"hourly_{what}": used})
    with pytest.raises(RunStopped, match=rf"in an hour \({what}: {used:,}\)"):
        KINDS[kind](spec, trace, Work(strict, account, silent), unique(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_work_can_be_stopped_at_any_report_and_leaves_the_device_free(kind, spec, trace):
    reports = []
    KINDS[kind](spec, trace, Work(UNLIMITED, Account(), lambda *told, **_: reports.append(told)), unique(kind))
    assert reports, "nothing is shown while it works"

    for last in {0, len(reports) // 2, len(reports) - 1}:
        seen = []

        def stop(share, stage, *, seen=seen, last=last, **values):
            if len(seen) == last:
                raise Stopped
            seen.append(stage)

        with pytest.raises(Stopped):
            KINDS[kind](spec, trace, Work(UNLIMITED, Account(), stop), unique(kind))
        with turn("cpu", silent):
            pass


@pytest.fixture
def clock(monkeypatch):
    """The time in seconds, which a test sets."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr("app.engine.work.time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def test_a_refusal_says_when_enough_is_free_again(clock):
    account = Account()
    work = Work(replace(UNLIMITED, hourly_tokens=1000), account, silent)
    for minute, tokens in ((0, 100), (10, 300), (20, 500)):
        clock.seconds = 60 * minute
        work.admit(tokens)
    clock.seconds = 60 * 30
    for more, minutes in ((150, 30), (200, 30), (201, 40), (500, 40), (501, 50), (1000, 50)):
        with pytest.raises(RunStopped, match=rf"tokens: 1,000\)\. Try again in {minutes} min"):
            work.admit(more)
        assert account.minutes("tokens", more, 1000) == minutes
    clock.seconds = 60 * 80  # the time that was said last
    work.admit(1000)


def test_what_no_waiting_makes_possible_is_said(clock):
    work = Work(replace(UNLIMITED, hourly_tokens=1000, hourly_texts=100), Account(), silent)
    with pytest.raises(RunStopped, match=r"more than a visitor can use in an hour \(tokens: 1,000\)\. Ask for less"):
        work.admit(1001)
    with pytest.raises(RunStopped, match=r"in an hour \(texts: 100\)\. Ask for less"):
        work.admit(1, texts=101)
    work.admit(1000, texts=100)


def test_seconds_of_the_work_that_was_stopped_count_when_it_is_begun_again(clock):
    account = Account()
    account.add(Use(seconds=81))
    clock.seconds = 60 * 10
    work = Work(replace(UNLIMITED, hourly_seconds=180), account, silent)
    with turn("cpu", work):
        clock.seconds += 100  # with the 81 from before, more than the hour has
        with pytest.raises(RunStopped, match=r"again in 60 min"):  # 81 s, free in 49 minutes, are too little
            work.check()
    assert work.clock() == 100 and account.left(work.limits).seconds == -1
    other = Work(replace(UNLIMITED, hourly_seconds=90), Account(), silent)
    with turn("cpu", other):
        clock.seconds += 100
        with pytest.raises(RunStopped, match=r"an hour \(seconds of computing: 90\)\. Ask for less"):
            other.check()


def test_a_small_corpus_counts_the_tokens_and_documents_that_it_reads(spec):
    texts, account = {f"{number}": f"{TEXT} {number}" for number in range(101)}, Account()
    limits = replace(UNLIMITED, hourly_tokens=20_000, hourly_texts=100)
    work = Work(limits, account, silent)
    found = engine.read_corpus(spec, dict(list(texts.items())[:3]), 20_000, work)
    assert work.tokens == found.about.tokens < 1000
    assert account.left(limits) == Use(math.inf, 20_000 - work.tokens, 97)
    part = Work(limits, account, silent)
    assert engine.read_corpus(spec, texts, work.tokens, part).about.documents == 3
    assert part.tokens == work.tokens and account.left(limits).texts == 94
    with pytest.raises(RunStopped, match=r"an hour \(texts: 100\)\. Ask for less"):
        engine.read_corpus(spec, texts, 20_000, Work(limits, Account(), silent))


def test_tokens_are_counted_by_each_work_and_seconds_only_on_the_device(spec, trace):
    work, account = Work(UNLIMITED, Account(), silent), Account()
    assert work.clock() == 0
    prompt = read_prompt(unique("counted"), spec.load()[0].tokenizer, 512)
    list(engine.write([engine.Text(spec, prompt, Sampling(), (), False)], 3, work))
    assert work.tokens == len(prompt) + 3 and work.clock() > 0
    assert account.left(UNLIMITED).seconds == math.inf


def test_pages_ask_for_work_within_the_limits_only():
    """Whatever takes a progress gets a work; loading a checkpoint that is known may get a bar, but never nothing."""
    takes_progress = {
        name for name in engine.__all__ if "progress" in inspect.signature(getattr(engine, name)).parameters
    } - {"Work"}
    seen = set()
    for path in sorted(Path(app.views.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            given = {each.id for each in node.args if isinstance(each, ast.Name)}
            if ast.unparse(node.func.value) == "engine" and node.func.attr in takes_progress:
                assert "work" in given, f"{path}:{node.lineno}"
                seen.add(node.func.attr)
            elif node.func.attr == "load":
                assert given & {"work", "progress"}, f"{path}:{node.lineno}"
    assert seen == takes_progress


LONG = ("ablation", "occlusion", "integrated gradients", "conductance", "measurement", "generation", "search", "run")


@pytest.mark.parametrize("kind", LONG)
def test_long_work_lets_the_next_in_the_queue_go_first(kind, spec, trace):
    """The other asks once the work has the device, and is served before it ends."""
    order, others = [], []

    def other():
        with turn("cpu", lambda *_, **__: asked.set()):
            order.append("other")

    def report(share, stage, **values):
        if not others and stage != "loading":
            others.append(threading.Thread(target=other))
            others[0].start()
            assert asked.wait(20)  # it stands in the queue

    asked = threading.Event()
    work = Work(replace(UNLIMITED, turn_seconds=0.0), Account(), report)
    KINDS[kind](spec, trace, work, unique(kind))
    order.append("work")
    others[0].join(20)
    assert order == ["other", "work"]


def test_work_that_let_others_go_first_has_the_same_result(spec, trace):
    alone = explain(spec, trace, Question(9), silent, method="conductance", steps=4)
    stop = threading.Event()

    def others():
        while not stop.is_set():
            explain(spec, trace, Question(4), Work(hasty, Account(), silent), method="ablation")

    hasty = replace(UNLIMITED, turn_seconds=0.0)
    thread = threading.Thread(target=others)
    thread.start()
    try:
        beside = explain(spec, trace, Question(9), Work(hasty, Account(), silent), method="conductance", steps=4)
    finally:
        stop.set()
        thread.join(60)
    assert (alone.values == beside.values).all() and alone.value == beside.value
    assert (alone.conductance.blocks == beside.conductance.blocks).all()


def test_waiting_counts_for_nobody_and_a_full_queue_refuses():
    work = Work(replace(UNLIMITED, seconds=0.0, waiting=1), Account(), silent)
    waits, release, holding = threading.Event(), threading.Event(), threading.Event()

    def hold():
        with turn("cpu", silent):
            holding.set()
            release.wait(20)

    def wait():
        with turn("cpu", lambda *_, **__: waits.set()):
            pass

    threads = [threading.Thread(target=hold), threading.Thread(target=wait)]
    threads[0].start()
    assert holding.wait(20)
    threads[1].start()
    assert waits.wait(20)
    with pytest.raises(RunStopped, match="1 runs wait for cpu already"), turn("cpu", work):
        pass
    assert work.clock() == 0
    work("0", "waiting", ahead=1)  # no time limit while waiting
    release.set()
    for thread in threads:
        thread.join(20)


def test_a_turn_that_is_needed_whole_lets_nobody_go_first():
    """Loading holds a lock that others on the device would wait for."""
    work = Work(replace(UNLIMITED, turn_seconds=0.0), Account(), silent)
    went, asked = [], threading.Event()

    def ask():
        with turn("cpu", lambda *_, **__: asked.set()):
            went.append("other")

    other = threading.Thread(target=ask)
    with turn("cpu", work, whole=True):
        other.start()
        assert asked.wait(20)
        work(0.5, "passes")
        went.append("loading")
    other.join(20)
    assert went == ["loading", "other"]


LINES = """
import streamlit as st
from app import visitors
from app.limits import Feature
from app.messages import ProgressBar, boundary
from app.settings import Settings
from analysis import AnalysisError

settings, bar = Settings.read(), ProgressBar()
for number, error in enumerate((None, AnalysisError("no"), ValueError("secret prompt\\n2026 ERROR app: forged"))):
    with boundary(), visitors.working(f"action {number}", settings, bar) as work:
        work.admit(5)
        if error is not None:
            raise error
with boundary(), visitors.working("measurement", settings, bar, Feature.MEASURING):
    st.write("measured")
"""


def test_every_action_has_one_line_in_the_log_that_says_how_it_ended(monkeypatch, capsys, caplog):
    from streamlit.testing.v1 import AppTest

    monkeypatch.setenv("SUBLLM_PROFILE", "public")
    with caplog.at_level(logging.INFO, "app"):
        page = AppTest.from_string(LINES, default_timeout=60).run()
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("visitor")]
    visitor = lines[0].partition(":")[0]
    assert lines == [
        f"{visitor}: action 0, 5 tokens, 0.0 s, done",
        f"{visitor}: action 1, 5 tokens, 0.0 s, refused (AnalysisError)",
        f"{visitor}: action 2, 5 tokens, 0.0 s, failed (ValueError)",
    ]
    said = [error.value.replace("\\", "") for error in page.error]
    assert said[0] == "no" and "went wrong" in said[1] and "switched off here (measuring)" in said[2]
    assert not any("measured" in each.value for each in page.markdown)


def test_a_visitor_too_many_is_told_and_comes_in_when_another_has_gone(monkeypatch):
    from app.visitors import _Visitors

    visitors = _Visitors()
    first, second = visitors.enter(None, 2), visitors.enter(None, 2)
    with pytest.raises(RunStopped, match="2 people are using the app"):
        visitors.enter(None, 2)
    assert visitors.enter(first, 2) is first
    assert second.number == first.number + 1
    del second
    third = visitors.enter(None, 2)
    first.seen -= 1000  # has done nothing for long
    fourth = visitors.enter(None, 2)
    assert fourth.number == third.number + 1
    with pytest.raises(RunStopped):
        visitors.enter(first, 2)


EFFICIENCY = script("efficiency")


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_offers_what_is_switched_on(profile, tiny_checkpoint, monkeypatch):
    from streamlit.testing.v1 import AppTest

    monkeypatch.setenv("SUBLLM_ROOTS", str(tiny_checkpoint.parent))
    monkeypatch.setenv("SUBLLM_PROFILE", profile)
    page = AppTest.from_string(EFFICIENCY, default_timeout=60)
    page.session_state["checkpoint"] = "tiny"
    page.run()
    assert not page.exception and not page.error
    features = PROFILES[profile].features
    assert bool([each for each in page.button if each.label == "Measure"]) == ("measuring" in features)
    assert bool([each for each in page.selectbox if each.label == "Device"]) == ("devices" in features)
    assert bool(page.get("file_uploader")) == ("uploads" in features)

    page = AppTest.from_string(script("debug"), default_timeout=60)
    page.query_params.update({"v": "2", "checkpoint": "tiny", "prompt": TEXT, "selected": "3"})
    page.session_state["debug"] = "Why"
    page.run()
    assert not page.exception and not page.error
    (method,) = [each for each in page.selectbox if each.label == "Method"]
    slow = [each for each in method.options if each.startswith(("ablation", "occlusion"))]
    assert len(slow) == (2 if "ablation" in features else 0)


PAGES = {
    "explore": "app.views.explore",
    "debug": "app.views.debug.page",
    "efficiency": "app.views.efficiency.page",
    "corpus": "app.views.corpus.page",
    "watch": "app.views.watch",
}


@pytest.mark.parametrize("name", PAGES)
def test_no_page_takes_files_folders_or_devices_where_features_are_switched_off(name, tiny_checkpoint, monkeypatch):
    from streamlit.testing.v1 import AppTest

    from app.strings import say

    monkeypatch.setenv("SUBLLM_ROOTS", str(tiny_checkpoint.parent))
    monkeypatch.setenv("SUBLLM_PROFILE", "public")
    page = AppTest.from_string(f"from {PAGES[name]} import show\nshow()\n", default_timeout=60).run()
    assert not page.exception and page.title
    assert not page.get("file_uploader")
    assert not [each for each in page.selectbox if each.label == say("device") or each.proto.accept_new_options]
