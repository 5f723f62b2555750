"""A small corpus with a bit of everything, good and bad."""

import json
import random
from pathlib import Path

WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "dog", "(said)", "“yes”", "12", "你好", "don't", "stop.")


def write_texts(folder: Path, documents: int = 24) -> Path:
    """Write documents of 1 to 120 words as rows of a file, and a longer one as a file of its own."""
    rng = random.Random(0)
    folder.mkdir()
    rows = [{"text": " ".join(rng.choices(WORDS, k=rng.randint(1, 120)))} for _ in range(documents)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "whole.txt").write_text("\n".join(rng.choices(WORDS, k=600)), encoding="utf-8")
    return folder


def poison(folder: Path) -> dict[str, str]:
    """Add what cannot be read; words of the reason by name."""
    (folder / "binary.txt").write_bytes(b"\0\1\2 text")
    (folder / "empty.txt").write_text("")
    (folder / "latin.txt").write_bytes("café".encode("latin-1"))
    (folder / "line.txt").write_text("x" * 10_000_000)
    (folder / "odd.jsonl").write_text('{"text": "fine"}\nno json\n{"text": 7}\n{"other": "x"}\n')
    return {
        "binary.txt": "binary",
        "empty.txt": "empty",
        "latin.txt": "UTF-8",
        "line.txt": "line of 500,000 characters or more",
        "odd.jsonl:2": "JSON",
        "odd.jsonl:3": "type int",
        "odd.jsonl:4": "no 'text'",
    }
