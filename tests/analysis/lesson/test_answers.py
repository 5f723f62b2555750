"""Files of answers are joined into one, with nothing in it that a spreadsheet would run."""

import csv
import io

import pytest

from analysis import AnalysisError
from analysis.commands import answers
from analysis.lesson.answers import COLUMNS, joined
from tests.conftest import run_command


def content(*rows):
    file = io.StringIO()
    csv.writer(file).writerows([COLUMNS, *rows])
    return b"\xef\xbb\xbf" + file.getvalue().encode()


def test_files_stand_one_after_another_with_their_names():
    row = ["Ada", *map(str, range(len(COLUMNS) - 1))]
    found = [*joined([("a.csv", content(row, row)), ("b.csv", content(["李, \n明", *row[1:]]))])]
    assert found == [
        ["file", *COLUMNS],
        ["a.csv", *row],
        ["a.csv", *row],
        ["b.csv", "李, \n明", *row[1:]],
    ]


def test_no_cell_is_a_formula():
    row = ["=HYPERLINK(1)", "@x", "-1", "+1"] + [""] * (len(COLUMNS) - 4)
    (_, found) = joined([("=a.csv", content(row))])
    assert found[:5] == ["'=a.csv", "'=HYPERLINK(1)", "'@x", "'-1", "'+1"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1,2\n", "its first line must be"),
        (b"", "its first line must be"),
        (content(["too", "few"]), "Line 2 of 'x.csv' has 2 cells"),
        (b"\xff", "cannot be read as CSV"),
        (b"x" * (1 << 21), "at most 1048576"),
    ],
)
def test_what_is_no_file_of_answers_is_refused(content, message):
    with pytest.raises(AnalysisError, match=message):
        [*joined([("x.csv", content)])]


def test_the_command_writes_one_file_or_says_what_is_wrong_in_a_line(tmp_path):
    row = ["李明"] + [""] * (len(COLUMNS) - 1)
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_bytes(content(row))
    files = (tmp_path / "a.csv", tmp_path / "b.csv")
    printed = run_command(answers.main, *files)
    assert printed.returncode == 0 and printed.stdout.count("李明") == 2
    written = run_command(answers.main, *files, "--out", tmp_path / "all.csv")
    assert written.returncode == 0 and written.stdout == ""
    assert (tmp_path / "all.csv").read_text(encoding="utf-8-sig") == printed.stdout
    (tmp_path / "b.csv").write_text("x")
    refused = run_command(answers.main, *files)
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1 and "'b.csv' is no file" in refused.stderr
