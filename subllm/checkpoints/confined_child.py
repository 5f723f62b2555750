"""The process in which `subllm.checkpoints.confined` works: it reads a request as JSON, and writes the answer as JSON.

It is started as a script and imports neither torch nor transformers, so that it is there in a tenth of a second.
"""

import json
import sys
from collections.abc import Iterator
from typing import Any

# regular expressions of common tokenizers, which take time in proportion to the text
_KNOWN = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",  # Llama 3
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",  # Qwen 2
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2
}
_MOST_GROWTH = 8  # characters that a normalizer may make of one
_LONGEST_WORD, _LONGEST_PIECE = 200, 256  # characters; larger ones take time with the square of the text's length
_LONGEST_MESSAGE = 200


def main() -> None:
    """Answer one request."""
    request = json.load(sys.stdin)
    _limit(request["megabytes"], request["seconds"])
    try:
        answer = {"tokenizer": _try_tokenizer, "template": _render}[request["task"]](request)
    except BaseException as error:  # a panic of a library that is written in Rust is no Exception
        answer = {"error": f"{type(error).__name__}: {error}"[:_LONGEST_MESSAGE]}
    json.dump(answer, sys.stdout)


def _limit(megabytes: int, seconds: float) -> None:
    """Bound what this process takes, also if the one that waits for it is gone."""
    try:
        import resource  # noqa: PLC0415 - not on Windows, where the time limit has to do
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _try_tokenizer(request: dict[str, Any]) -> dict[str, Any]:
    """Read a tokenizer, and texts with it."""
    from tokenizers import Tokenizer  # noqa: PLC0415 - a template does not need it

    content = request.get("content")
    if content is None:
        with open(request["path"], encoding="utf-8") as file:
            content = file.read()
    tokenizer = Tokenizer.from_str(content)
    tokenizer.no_padding()  # transformers sets both for each text
    tokenizer.no_truncation()
    for text in request["texts"]:
        tokenizer.encode(text)
    return {"known": _is_known(json.loads(content))}


def _is_known(tokenizer: dict[str, Any]) -> bool:
    """Whether a tokenizer is certain to read any text in time and memory in proportion to its length."""
    growth = 1.0
    for part in _parts(
        {name: tokenizer.get(name) for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder")}
    ):
        pattern = part.get("pattern")
        if isinstance(pattern, dict) and "Regex" in pattern and pattern["Regex"] not in _KNOWN:
            return False
        if isinstance(pattern, dict) and isinstance(part.get("content"), str):
            growth *= max(1.0, len(part["content"]) / max(1, len(pattern.get("String", "-"))))
        if part.get("type") == "Precompiled":
            return False
    model = tokenizer.get("model") or {}
    pieces = model.get("vocab") if model.get("type") == "Unigram" else None
    long_piece = isinstance(pieces, list) and any(len(piece[0]) > _LONGEST_PIECE for piece in pieces)
    long_word = model.get("max_input_chars_per_word", 0) > _LONGEST_WORD
    return growth <= _MOST_GROWTH and not long_piece and not long_word


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _parts(inner)


def _render(request: dict[str, Any]) -> dict[str, Any]:
    """Put messages into a chat template, in the environment that transformers gives to templates.

    Source: transformers, utils/chat_template_utils.py, `_cached_compile_jinja_template`.
    """
    import jinja2  # noqa: PLC0415 - a tokenizer does not need it
    import jinja2.ext  # noqa: PLC0415
    from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415

    class Generation(jinja2.ext.Extension):
        """The tag around what a model wrote, which has no effect here."""

        tags = {"generation"}  # noqa: RUF012 - as jinja2 asks for it

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    def refuse(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def to_json(
        x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def time_now(form: str) -> str:
        import datetime  # noqa: PLC0415 - few templates ask for it

        return datetime.datetime.now().strftime(form)

    class Namespace(jinja2.utils.Namespace):
        """A namespace without attributes that lead into Python."""

        def __setitem__(self, name: str, value: Any) -> None:
            check_name(name)
            super().__setitem__(name, value)

    def namespace(*items: Any, **named: Any) -> Namespace:
        attributes = dict(*items, **named)
        for name in attributes:
            check_name(name)
        return Namespace(attributes)

    def check_name(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace cannot have the attribute {name!r}")

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals |= {"raise_exception": refuse, "strftime_now": time_now}
    environment.globals |= {"dict": _dictionary, "namespace": namespace}
    template = environment.from_string(request["template"])
    text = template.render(**request["values"])
    most = request["characters"]
    return {"text": text} if len(text) <= most else {"characters": len(text)}


def _dictionary(*items: Any, **named: Any) -> dict[Any, Any]:
    return dict(*items, **named)


if __name__ == "__main__":
    main()
