"""Ways in which a checkpoint's folder can be broken or hostile, each chosen by a number."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

_NESTED: Any = "[" * 100_000 + "]" * 100_000  # not made of lists: writing them would need as deep a stack
_VALUES = [
    None, True, False, 0, -1, 1, 2, 7, 64, 10**4, 10**7, 10**9, 10**12, 10**30, 0.5, -0.5, 1e-30, 1e30,
    float("nan"), float("inf"), "", "x", "T", "0", "-1", "\0", "\ud800", "a" * 200_000, "T" * 200_000, "T(" * 5_000,
    "../../etc/passwd", "/dev/zero", "cuda", [], [0], [None], ["x"] * 5, [[]], {}, {"a": 1}, {"type": "x"},
    "float99", "gelu", "linear", "yarn", "longrope", "auto",
]  # fmt: skip
_FIELDS = {  # that libraries act on, beside those of the file
    "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M", "AutoTokenizer": ["evil.T", "evil.T"]},
    "num_labels": 10**9,
    "id2label": {"x": "y"},
    "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "transformers_weights": "../outside/model.safetensors",
    "fusion_config": {"patch_embeddings": True},
    "tokenizer_class": "BertJapaneseTokenizer",
    "model_type": "bert",
    "_attn_implementation": "someone/kernel",
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1e6},
    "rope_scaling": {"rope_type": "yarn", "factor": 0.0},
    "vocab_size": 10**7,
    "num_hidden_layers": 20_000,
    "structure": "T" * 20_000,
    "head_dim": 0,
    "max_position_embeddings": 10**12,
    "output_hidden_states": True,
    "dtype": "float99",
    "padding": {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                "pad_type_id": 0, "pad_token": "<eos>"},
    "normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaaaaaaaa"}] * 12},
    "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "^(a+)+$"}, "behavior": "Isolated", "invert": False},
    "chat_template": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "added_tokens_decoder": {"5000": {"content": "<far>", "special": True}},
    "extra_special_tokens": ["<a>", 1],
    "model_max_length": "x",
    "custom_generate": "evil",
    "cache_implementation": "static",
}  # fmt: skip
_TEMPLATES = [
    "{% if %}",
    "{{ nobody.role }}",
    "{{ raise_exception('no') }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% set ns = namespace(t='a') %}{% for i in range(60) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}{{ ns.t }}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ 'a' * 10 ** 10 }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.append(1) }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ messages[0]['content'] }}" * 200,
    "\ufeff{{ messages[0].content }}",
]
_INDEXED = [
    "../outside/model.safetensors", "/dev/zero", "model.bin", "sub/model.safetensors", "..", "", ".", "a" * 300,
    "missing.safetensors", "..\\model.safetensors", "\ud800.safetensors", 1, None, ["x"], "tokenizer.json",
]  # fmt: skip


def mutate(folder: Path, seed: int) -> str:
    """Break a folder in one way.

    Args:
        folder: of a checkpoint; a folder `outside` lies beside it.
        seed: chooses the way.

    Returns:
        What was done.
    """
    chosen = random.Random(seed)
    way = chosen.choice([_field, _value, _value, _value, _removed, _text, _bytes, _bytes, _place, _place, _index,
                         _template, _config, _config])  # fmt: skip
    return f"{way.__name__} {way(folder, chosen)}"


def _files(folder: Path, end: str = "") -> list[Path]:
    return sorted(path for path in folder.rglob(f"*{end}") if path.is_file() and not path.is_symlink())


def _pick(folder: Path, chosen: random.Random, end: str = "") -> Path:
    return chosen.choice(_files(folder, end) or [folder / f"config{end}"])


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1 << 22)  # an earlier mutation may have made it of many gigabytes


def _change(path: Path, change: Callable[[Any], Any]) -> None:
    try:
        content = json.loads(_start(path))
    except (OSError, ValueError):  # of an earlier mutation
        content = {}
    path.write_text(json.dumps(change(content)))


def _places(content: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Places in a JSON value; of long lists and tables some."""
    found = [place]
    keys = list(content) if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    for key in list(keys)[:40]:
        found += _places(content[key], (*place, key))
    return found


def _replaced(content: Any, place: tuple[Any, ...], change: Callable[[Any, Any], None], whole: Any) -> Any:
    if not place:
        return whole
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    change(inner, place[-1])
    return content


def _value(folder: Path, chosen: random.Random) -> str:
    path, value = _pick(folder, chosen, ".json"), chosen.choice(_VALUES)

    def change(content: Any) -> Any:
        place = chosen.choice(_places(content))
        said.append(place)
        return _replaced(content, place, lambda inner, key: inner.__setitem__(key, value), value)

    said: list[Any] = []
    _change(path, change)
    return f"{path.name} {said} {str(value)[:40]!a}"


def _config(folder: Path, chosen: random.Random) -> str:
    path, value = folder / "config.json", chosen.choice(_VALUES)
    said: list[Any] = []

    def change(content: Any) -> Any:
        key = chosen.choice(sorted(content)) if isinstance(content, dict) and content else "structure"
        said.append(key)
        return {**(content if isinstance(content, dict) else {}), key: value}

    _change(path, change)
    return f"{said} {str(value)[:40]!a}"


def _removed(folder: Path, chosen: random.Random) -> str:
    path = _pick(folder, chosen, ".json")

    def change(content: Any) -> Any:
        place = chosen.choice(_places(content))
        return _replaced(content, place, lambda inner, key: inner.__delitem__(key), {})

    _change(path, change)
    return path.name


def _field(folder: Path, chosen: random.Random) -> str:
    path, name = _pick(folder, chosen, ".json"), chosen.choice(sorted(_FIELDS))
    _change(path, lambda content: {**(content if isinstance(content, dict) else {}), name: _FIELDS[name]})
    return f"{path.name} {name}"


def _text(folder: Path, chosen: random.Random) -> str:
    path = _pick(folder, chosen, ".json")
    text = chosen.choice(["", "{", "[]", "null", "1", '"x"', _NESTED, "{}", "\ufeff{}", "NaN", "{'a': 1}", "1" * 5000])
    path.write_text(text)
    return f"{path.name} {text[:20]!r}"


def _bytes(folder: Path, chosen: random.Random) -> str:
    path = _pick(folder, chosen)
    content = bytearray(_start(path))
    way = chosen.choice(["cut", "empty", "zeros", "flip", "long", "header", "swap", "holes"])
    start = chosen.randrange(len(content) + 1)
    if way == "cut":
        content = content[:start]
    elif way == "empty":
        content = bytearray()
    elif way == "zeros":
        content[start:] = bytes(len(content) - start)
    elif way == "flip":
        for _ in range(20):
            if content:
                content[chosen.randrange(len(content))] ^= 1 << chosen.randrange(8)
    elif way == "long":
        content += b"\xff" * 1000
    elif way == "header":
        content[:8] = chosen.choice([0, 1, 1 << 20, 1 << 40, (1 << 64) - 1]).to_bytes(8, "little")
    elif way == "swap":
        content = bytearray(_start(_pick(folder, chosen)))
    path.write_bytes(bytes(content))
    if way == "holes":
        os.truncate(path, 1 << 36)
    return f"{path.name} {way} {start}"


def _place(folder: Path, chosen: random.Random) -> str:
    path = _pick(folder, chosen)
    way = chosen.choice(
        ["gone", "outside", "pipe", "folder", "zero", "nothing", "circle", "renamed", "pickle", "extra"]
    )
    if way == "extra":
        name = chosen.choice(
            [
                "two\nlines.json",
                "a" * 200 + ".json",
                "\udcff.json",
                "evil.py",
                "adapter_config.json",
                "chat_template.jinja",
                "additional_chat_templates",
                "custom_generate",
                "spiece.model",
            ]
        )
        if "." in name:
            (folder / name).write_text("{}")
        else:
            (folder / name).mkdir(exist_ok=True)
            (folder / name / "default.jinja").write_text("{{ 9 ** (9 ** 9) }}")
        return ascii(name)
    path.unlink()
    if way == "outside":
        target = folder.parent / "outside" / path.name
        path.symlink_to(target if target.exists() else folder.parent / "outside" / "config.json")
    elif way == "pipe":
        os.mkfifo(path)
    elif way == "folder":
        path.mkdir()
    elif way in ("zero", "nothing", "circle"):
        path.symlink_to({"zero": "/dev/zero", "nothing": "nowhere", "circle": path.name}[way])
    elif way == "renamed":
        path.with_name(f"old-{path.name}").write_text("{}")
    elif way == "pickle":
        path.with_suffix(".bin").write_bytes(b"\x80\x04cposix\nsystem\n(S'touch ran'\ntR.")
    return f"{path.name} {way}"


def _index(folder: Path, chosen: random.Random) -> str:
    name = chosen.choice(_INDEXED)
    shared = chosen.random() < 0.5

    def change(content: Any) -> Any:
        places = content.get("weight_map", {}) if isinstance(content, dict) else {}
        places = dict(places) if isinstance(places, dict) and shared else {}
        return {"metadata": {}, "weight_map": {**places, "model.norm.weight": name}}

    _change(folder / "model.safetensors.index.json", change)
    return repr(name)[:40]


def _template(folder: Path, chosen: random.Random) -> str:
    text = chosen.choice(_TEMPLATES)
    (folder / "chat_template.jinja").write_text(text, encoding="utf-8")
    return text[:40]


def copy(base: Path, into: Path) -> Path:
    """A copy of a checkpoint to be broken, with another one outside of it."""
    folder = into / "root" / "broken"
    shutil.copytree(base, folder)
    shutil.copytree(base, into / "root" / "outside")
    return folder
