"""The texts of a lesson, read from a JSON file of the shape of `assets/lesson.json` (docs/lesson.md).

A text is an object with one entry per language. It is plain text, with placeholders for live figures, such as
`{saved:,.0f}`, and with terms that light up in the prompt and the map, such as `[kept](kept)`.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from subllm.errors import shortened

from ..errors import AnalysisError
from .checks import CHECKS, OPTIONS
from .formulas import FORMULAS, Value

FORMAT = 1
MOST_BYTES = 1 << 18
MOST_STOPS = 30
TERMS = ("kept", "dropped", "score", "threshold", "level", "block", "numbers", "token")
ACTIONS = ("edits", "example", "attention")
_PLACEHOLDER = re.compile(r"\{(\w{1,30})(?::([^{}]{0,8}))?\}")
_SPEC = re.compile(r"[+]?,?(?:(?:\.\d)?[fg%])?")  # whole numbers and fractions alike can be written so
_TERM = re.compile(r"\[([^\[\]()]{1,80})\]\((\w{1,20})\)")
_KEY = re.compile(r"[a-z][a-z0-9-]{0,29}")

Text = Mapping[str, str]


@dataclass(frozen=True)
class Piece:
    """A stretch of a text.

    Attributes:
        text: what is read.
        term: that lights up; "" for plain text.
    """

    text: str
    term: str = ""


@dataclass(frozen=True)
class Action:
    """Something to do with the run, beside what the learner does in the text.

    Attributes:
        kind: one of `ACTIONS`: run the prompt with edits, fill in an example, or look at attention.
        what: the edits, with placeholders, or the name of the example; "" for attention.
        label: of the button.
        after: whether the button comes with the reveal, because it would give the answer away.
    """

    kind: str
    what: str
    label: Text
    after: bool = False


@dataclass(frozen=True)
class Stop:
    """One stop of a lesson.

    Attributes:
        key: names the stop in links and in files of answers.
        title: heading.
        idea: what there is to understand, in a sentence or two.
        do: one thing to do.
        question: asked before the reveal; without one there is nothing to answer.
        reveal: what the answer is on this run, and why.
        yours: what the learner's answer comes to, beside it.
        mistake: what people get wrong.
        hint: a nudge towards the answer.
        formula: one of `FORMULAS`; "" if the texts have no live figures.
        check: one of `CHECKS`; "" without a question.
        options: texts of what can be chosen, by key, where the check has such.
        action: something to do with a button; None if there is nothing.
        colour: what colours text and map before the reveal; "" to leave that.
        light: term that is lit.
        variants: texts that replace others where a level's router is another one, by router and field.
    """

    key: str
    title: Text
    idea: Text
    do: Text
    question: Text
    reveal: Text
    mistake: Text
    hint: Text = field(default_factory=dict)
    yours: Text = field(default_factory=dict)
    formula: str = ""
    check: str = ""
    options: Mapping[str, Text] = field(default_factory=dict)
    action: Action | None = None
    colour: str = ""
    light: str = ""
    variants: Mapping[str, Mapping[str, Text]] = field(default_factory=dict)

    def text(self, name: str, router: str) -> Text:
        """One of the texts, as it fits a router.

        Args:
            name: of the field.
            router: of the level.
        """
        found: Text = self.variants.get(router, {}).get(name) or getattr(self, name)
        return found

    @property
    def needs(self) -> tuple[str, ...]:
        """What the run must have for this stop."""
        formula = FORMULAS[self.formula].needs if self.formula else ()
        check = CHECKS[self.check].needs if self.check else ()
        return tuple(dict.fromkeys([*formula, *check]))


@dataclass(frozen=True)
class Question:
    """A closing question with fixed answers.

    Attributes:
        key: names the question in files of answers.
        text: the question.
        options: what can be chosen.
        answer: index of the right one.
        why: said after the answer.
    """

    key: str
    text: Text
    options: tuple[Text, ...]
    answer: int
    why: Text


@dataclass(frozen=True)
class Lesson:
    """A lesson.

    Attributes:
        title: heading.
        intro: what it is, how long it takes.
        stops: in order.
        questions: at the end.
        closing: said at the end.
    """

    title: Text
    intro: Text
    stops: tuple[Stop, ...]
    questions: tuple[Question, ...] = ()
    closing: Text = field(default_factory=dict)

    def stop(self, key: str) -> Stop | None:
        """The stop with a key; None if there is none."""
        return next((stop for stop in self.stops if stop.key == key), None)

    @classmethod
    def read(cls, content: bytes) -> "Lesson":
        """The lesson in a file.

        Args:
            content: the file's bytes.

        Raises:
            AnalysisError: if it is not a lesson; says what was found and what is allowed.
        """
        if len(content) > MOST_BYTES:
            raise AnalysisError(
                "A lesson has at most {most} bytes; this file has {n}.", most=MOST_BYTES, n=len(content)
            )
        try:
            found = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise AnalysisError(
                "This file is not JSON, so it is not a lesson; choose the .json file of a lesson."
            ) from error
        entry = _object(found, "lesson")
        if entry.get("format") != FORMAT:
            raise AnalysisError(
                "This file has the lesson format {found}; format {expected} is read.",
                found=shortened(repr(entry.get("format"))), expected=FORMAT,
            )  # fmt: skip
        _known(entry, {"format", "title", "intro", "stops", "questions", "closing"}, "lesson")
        stops = tuple(map(_stop, _list(entry.get("stops"), "stops")))
        questions = tuple(map(_question, _list(entry.get("questions", []), "questions")))
        if not stops:
            raise AnalysisError("A lesson has at least one stop; this one has none.")
        keys = [*(stop.key for stop in stops), *(question.key for question in questions)]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise AnalysisError(
                "The key {key} stands twice in this lesson; each stop and question has its own.", key=twice
            )
        return cls(
            _text(entry.get("title"), "title"),
            _text(entry.get("intro"), "intro"),
            stops,
            questions,
            _text(entry.get("closing", {}), "closing", needed=False),
        )


def in_language(text: Text, language: str) -> str:
    """A text in a language; in another one of the lesson if it lacks that; "" if there is no text."""
    return text.get(language) or next(iter(text.values()), "")


def filled(text: str, values: Mapping[str, Value]) -> str:
    """A text with its placeholders filled in.

    Args:
        text: with placeholders that are names of values.
        values: by name.
    """

    def put(match: re.Match[str]) -> str:
        value, spec = values[match[1]], match[2] or ""
        return value if isinstance(value, str) else format(value, spec)

    return _PLACEHOLDER.sub(put, text)


def pieces(text: str, values: Mapping[str, Value]) -> Iterator[Piece]:
    """A text cut at its terms, with its placeholders filled in; what is filled in is never read as a term."""
    at = 0
    for match in _TERM.finditer(text):
        if match.start() > at:
            yield Piece(filled(text[at : match.start()], values))
        yield Piece(filled(match[1], values), match[2])
        at = match.end()
    if at < len(text):
        yield Piece(filled(text[at:], values))


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise AnalysisError("{where} of the lesson must be an object; it is {found}.", where=where, found=_kind(value))
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or len(value) > MOST_STOPS:
        raise AnalysisError(
            "{where} of the lesson must be a list of at most {most}; it is {found}.",
            where=where, most=MOST_STOPS, found=f"{len(value)}" if isinstance(value, list) else _kind(value),
        )  # fmt: skip
    return value


def _kind(value: Any) -> str:
    return shortened(repr(value))


def _known(entry: Mapping[str, Any], allowed: set[str], where: str) -> None:
    unknown = next((key for key in entry if key not in allowed), None)
    if unknown is not None:
        raise AnalysisError(
            "{where} of the lesson has {found}; allowed: {allowed}.",
            where=where, found=shortened(repr(unknown)), allowed=", ".join(sorted(allowed)),
        )  # fmt: skip


def _one_of(value: Any, allowed: Sequence[str], where: str) -> str:
    if value not in allowed:
        raise AnalysisError(
            "{where} of the lesson has {found}; allowed: {allowed}.",
            where=where, found=_kind(value), allowed=", ".join(allowed),
        )  # fmt: skip
    return str(value)


def _text(value: Any, where: str, names: frozenset[str] = frozenset(), *, needed: bool = True) -> Text:
    """A text by language, whose placeholders are names of values."""
    entry = _object(value, where)
    if needed and not entry:
        raise AnalysisError("{where} of the lesson has no text in any language.", where=where)
    for language, text in entry.items():
        if not isinstance(text, str) or not text.strip() or len(language) > 20:
            raise AnalysisError(
                "{where} of the lesson must be text; it is {found}.", where=f"{where}.{language:.20}", found=_kind(text)
            )
        for name, spec in _PLACEHOLDER.findall(text):
            _one_of(name, sorted(names), f"{where}.{language}")
            if not _SPEC.fullmatch(spec):
                raise AnalysisError(
                    "{where} of the lesson formats a number as {found}; allowed are forms such as ,.2f and .0%.",
                    where=f"{where}.{language}", found=shortened(repr(spec)),
                )  # fmt: skip
        for _, term in _TERM.findall(text):
            _one_of(term, TERMS, f"{where}.{language}")
    return dict(entry)


def _key(value: Any) -> str:
    if not isinstance(value, str) or not _KEY.fullmatch(value):
        raise AnalysisError(
            "The key of a stop is {found}; it must be small letters, digits and hyphens.", found=_kind(value)
        )
    return value


def _stop(value: Any) -> Stop:
    entry = _object(value, "stops")
    key = _key(entry.get("key"))
    _known(entry, {each.name for each in fields(Stop)}, key)
    formula = _one_of(entry.get("formula", ""), ("", *FORMULAS), f"{key}.formula")
    check = _one_of(entry.get("check", ""), ("", *CHECKS), f"{key}.check")
    names = FORMULAS[formula].names if formula else frozenset()
    answered = names | (CHECKS[check].names if check else frozenset())

    def text(name: str, source: Mapping[str, Any] = entry, *, needed: bool = True) -> Text:
        allowed = answered if name == "yours" else names
        return _text(source.get(name, {}), f"{key}.{name}", allowed, needed=needed)

    options = _object(entry.get("options", {}), f"{key}.options")
    for option in OPTIONS.get(check, ()):
        _text(options.get(option, {}), f"{key}.options.{option}", names)
    variants = {
        str(router)[:30]: {
            name: text(name, _object(replaced, f"{key}.variants"))
            for name in replaced
            if _one_of(name, ("idea", "do", "question", "reveal", "yours", "mistake", "hint"), f"{key}.variants")
        }
        for router, replaced in _object(entry.get("variants", {}), f"{key}.variants").items()
    }
    return Stop(
        key=key,
        title=text("title"),
        idea=text("idea"),
        do=text("do"),
        question=text("question", needed=bool(check)),
        reveal=text("reveal", needed=bool(check)),
        mistake=text("mistake"),
        hint=text("hint", needed=False),
        yours=text("yours", needed=False),
        formula=formula,
        check=check,
        options={option: options[option] for option in OPTIONS.get(check, ())},
        action=None if entry.get("action") is None else _action(entry["action"], key, names),
        colour=str(entry.get("colour", ""))[:30],
        light=_one_of(entry.get("light", ""), ("", *TERMS), f"{key}.light"),
        variants=variants,
    )


def _action(value: Any, key: str, names: frozenset[str]) -> Action:
    entry = _object(value, f"{key}.action")
    _known(entry, {each.name for each in fields(Action)}, f"{key}.action")
    kind, what = _one_of(entry.get("kind"), ACTIONS, f"{key}.action"), entry.get("what", "")
    if not isinstance(what, str) or len(what) > 200:
        raise AnalysisError(
            "{where} of the lesson must be text; it is {found}.", where=f"{key}.action.what", found=_kind(what)
        )
    _text({"edits": what or "–"}, f"{key}.action.what", names)
    label = _text(entry.get("label"), f"{key}.action.label", names)
    return Action(kind, what, label, entry.get("after") is True)


def _question(value: Any) -> Question:
    entry = _object(value, "questions")
    key = _key(entry.get("key"))
    _known(entry, {each.name for each in fields(Question)}, key)
    options = tuple(_text(each, f"{key}.options") for each in _list(entry.get("options"), f"{key}.options"))
    answer = entry.get("answer")
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(options):
        raise AnalysisError(
            "{where} of the lesson has {found}; allowed: {allowed}.",
            where=f"{key}.answer", found=_kind(answer), allowed=", ".join(map(str, range(len(options)))),
        )  # fmt: skip
    return Question(
        key, _text(entry.get("text"), f"{key}.text"), options, answer, _text(entry.get("why"), f"{key}.why")
    )
