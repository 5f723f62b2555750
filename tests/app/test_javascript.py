"""The component's script: modules that Node.js tests and lints, joined into one for the browser."""

import csv
import io
import json
import shutil
import subprocess

import pytest

from analysis.figures import modules
from analysis.figures.modules import join
from analysis.figures.routing_view import element
from analysis.lesson.answers import COLUMNS, joined
from tests.browser.server import ROOT

NODE = shutil.which("node")
FOLDER = ROOT / "analysis" / "figures" / "routing_view"


@pytest.mark.skipif(NODE is None, reason="Node.js is not installed: modules of the component are not tested")
def test_the_modules_pass_their_own_tests():
    files = sorted((ROOT / "tests" / "javascript").glob("*.test.mjs"))
    assert files
    done = subprocess.run([NODE, "--test", *files], capture_output=True, text=True)
    assert not done.returncode, done.stdout


@pytest.mark.skipif(NODE is None, reason="Node.js is not installed: the component's script is not checked")
def test_the_joined_script_is_a_module_that_exports_the_component(tmp_path):
    (tmp_path / "view.mjs").write_text(join(FOLDER / "view.js"), encoding="utf-8")
    script = "import('./view.mjs').then((view) => console.log(typeof view.default, Object.keys(view).length))"
    done = subprocess.run([NODE, "-e", script], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.split() == ["function", "1"]


@pytest.mark.skipif(NODE is None, reason="Node.js is not installed: a learner's file is not made")
def test_a_learners_file_and_a_joined_one_guard_the_same_cells_against_spreadsheets():
    texts = [*(f"{chr(code)}1" for code in range(1, 0x250) if chr(code) not in "\r\n"), "\r1", "＝1", "=", "a=1", "'=1"]
    rows = [[text] * (len(COLUMNS) - 1) for text in texts]
    path = (ROOT / "app" / "components" / "lesson" / "csv.js").as_uri()
    script = (
        f"import('{path}').then((m) => process.stdout.write(m.csv({json.dumps(COLUMNS)}, {json.dumps(rows)}, 'Ada')))"
    )
    made = subprocess.run([NODE, "-e", script], capture_output=True, check=True).stdout
    raw = io.StringIO()
    csv.writer(raw).writerows([COLUMNS, *(["Ada", *row] for row in rows)])
    (_, *theirs), (_, *ours) = ([*joined([("a.csv", each)])] for each in (made, raw.getvalue().encode()))
    in_browser = [*csv.reader(io.StringIO(made.decode("utf-8-sig"), newline=""))][1:]
    assert [row[1] for row in in_browser] == [row[2] for row in ours]
    assert theirs == ours, "guarded once"
    assert ours[texts.index("=1")][2] == "'=1"


def test_every_module_is_in_the_script_and_no_import_is():
    script = element.JS
    for path in FOLDER.glob("*.js"):
        assert path.read_text(encoding="utf-8").splitlines()[-2] in script, path.name
    assert "\nimport " not in script and modules._EXPORT.search(script) is None


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"a": 'import { x } from "./b.js";\n', "b": "const x = 1;\n"}, "a.js imports x, which b.js does not export"),
        ({"a": 'import { x } from "./b.js";\n', "b": 'import { y } from "./a.js";\n'}, "a.js -> b.js -> a.js"),
        ({"a": 'import { x } from "./b.js";\nconst y = 2;\n', "b": "export const x = 1;\nconst y = 1;\n"}, "have a y"),
    ],
)
def test_modules_that_cannot_be_one_script_are_refused(tmp_path, files, said):
    for name, source in files.items():
        (tmp_path / f"{name}.js").write_text(source)
    with pytest.raises(ValueError, match=said):
        join(tmp_path / "a.js")
