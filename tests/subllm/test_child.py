"""A program that a command starts ends with it."""

import ast
import sys
import threading
import time
from pathlib import Path

import pytest

import subllm
from analysis import RunStopped
from subllm.child import run_child
from tests.subllm.runs.jobs import child, started


def test_exit_code_and_words_of_a_program_come_back(tmp_path):
    script = "import os, sys; print(os.getcwd(), os.environ['A']); print('err', file=sys.stderr); sys.exit(3)"
    code, said = run_child([sys.executable, "-c", script], folder=tmp_path, environment={"A": "b"})
    assert code == 3
    assert sorted(said.splitlines()) == [f"{tmp_path} b", "err"]
    assert run_child([sys.executable, "-c", "print('\\u00e9')"])[0] == 0
    with pytest.raises(FileNotFoundError):
        run_child(["no-such-program"])


def test_what_is_called_meanwhile_may_end_the_program(tmp_path):
    threads, file = [], tmp_path / "pid"
    script = f"import os, time; open({str(file)!r}, 'w').write(str(os.getpid())); time.sleep(600)"

    def stop():
        threads.append(threading.current_thread())
        if file.exists() and file.read_text():
            raise RunStopped("stopped")

    with pytest.raises(RunStopped):
        run_child([sys.executable, "-c", script], meanwhile=stop)
    assert {*threads} == {threading.main_thread()}  # a page draws in its own thread only
    pid = int(file.read_text())
    while alive(pid):  # it is killed, and takes a moment
        time.sleep(0.01)
    code, said = run_child([sys.executable, "-c", "import time; time.sleep(1); print('whole')"], meanwhile=lambda: None)
    assert (code, said) == (0, "whole\n")


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
def test_a_killed_process_leaves_neither_its_child_nor_the_childs_child(tmp_path):
    process = started(child, tmp_path / "pids")
    while not (tmp_path / "pids").exists():
        process.join(0.02)
        assert process.is_alive()
    pids = [int(word) for word in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2 and all(map(alive, pids))
    process.kill()
    process.join()
    deadline = time.monotonic() + 60
    while any(map(alive, pids)) and time.monotonic() < deadline:  # they are killed, and take a moment
        time.sleep(0.01)
    assert not any(map(alive, pids))


def test_every_program_that_commands_start_is_such_a_child():
    allowed = {"child.py", "confined.py"}  # the second waits for a reply for a limited time
    for path in Path(subllm.__file__).parent.rglob("*.py"):
        names = {alias.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import)
                 for alias in node.names}  # fmt: skip
        assert "subprocess" not in names or path.name in allowed, path
