"""What a session remembers, and which part of it a link carries. Only this module keeps anything per visitor.

| what | kept in | in the link |
| --- | --- | --- |
| prompt, chat, checkpoint of the run that is shown | `Session.runs` | yes, long prompts compressed |
| level, selected tokens, colour | `Session.shown` | yes |
| edits that the run was made with, name of its rule | `Session.runs` | yes |
| edits in What if of the run that is shown, answer that is watched | `Session.edits`, `answer` | yes |
| rules that were saved, opened or linked | `Session.rules` | no |
| stop of the lesson, whether a teacher pinned it | `Session.lesson` | yes |
| answers to the lesson's questions | `Session.lesson` | no |
| language | the widget's own state | yes |
| device, dtype, new tokens, comparison, sampling | the widgets' own state | no |
| what the last addresses showed, for Back and Forward in the browser | `Session.places` | no |
| what was asked for on demand: lens, attention, attribution, effects, generated text | `Session.found` | no |

Sessions hold recipes and arrays; models and what lies on a device are the engine's (`app.engine`). Addresses are read
and written in `app.links`.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import IO, Any

import streamlit as st

from analysis import AnalysisError, Trace
from analysis.debug.edits import Edit, read_edits
from analysis.debug.rules import Rule
from analysis.figures.quoted import quoted
from analysis.figures.routing_view.data import Shown
from analysis.lesson.answers import Answer
from analysis.lesson.content import Lesson
from analysis.trace.untrusted import open_trace
from app.components.routing_view import Exchange
from app.edit_list import EditList
from app.engine import Recipe
from app.shipped_rules import check_name, rule_name, shipped, stem_of
from app.shipped_run import shipped_trace
from app.strings import name_of

_RUNS = 8  # that are kept
_RULES = 8  # the same
_PLACES = 100  # the same; browsers remember about 50


class Elsewhere(StrEnum):
    """Where a run comes from whose model is absent."""

    SHIPPED = "shipped"  # with the app, so that no page is blank
    FILE = "file"  # that a visitor opened


@dataclass(frozen=True, eq=False)
class Run:
    """A run of the session.

    Attributes:
        trace: what was measured.
        origin: what was run; or where the trace comes from, if its model is absent.
        number: number in the session, from 1.
        unfinished: whether the run ended before its continuation did.
    """

    trace: Trace
    origin: Recipe | Elsewhere
    number: int
    unfinished: bool = False

    @property
    def recipe(self) -> Recipe:
        """What it takes to run the model again.

        Raises:
            AnalysisError: if the model is absent.
        """
        if isinstance(self.origin, Elsewhere):
            raise AnalysisError(
                "This needs the model, and the run on screen was made elsewhere. Click Run to make one here."
            )
        return self.origin

    @property
    def has_model(self) -> bool:
        """Whether the model can be run again."""
        return isinstance(self.origin, Recipe)

    @property
    def name(self) -> str:
        """The name on screen, which is unique because of the number."""
        where = self.trace.provenance
        edits = rule_name(where.rule) if where.rule else "; ".join(where.edits)
        prompt = quoted(self.trace.prompt.text.strip()[:60])
        changes = (each for each in (edits, where.patch) if each)
        return " · ".join([str(self.number), prompt, name_of(where.checkpoint), where.dtype, *changes])


@dataclass(frozen=True)
class Form:
    """The prompt's form.

    Attributes:
        text: of the prompt.
        chat: whether it goes through the chat template.
        example: name of the example that is chosen; None for a prompt of one's own.
    """

    text: str
    chat: bool
    example: str | None = None


@dataclass
class LessonTaken:
    """How far somebody is in the lesson.

    Attributes:
        stop: key of the stop; "" if no lesson is taken.
        entered: the stop that was shown last.
        pinned: whether the link of a teacher hides everything else.
        own: a lesson from a file, in place of the one that is offered.
        answers: by key of the question.
        given: what was answered at stops, and the run, level and tokens that the question was about, by key.
        run: name (`Trace.run`) of the run that the stops are about.
        edited: names of runs that buttons of stops made with edits.
    """

    stop: str = ""
    entered: str = ""
    pinned: bool = False
    own: Lesson | None = None
    answers: dict[str, Answer] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)
    run: str = ""
    edited: set[str] = field(default_factory=set)

    @property
    def fields(self) -> dict[str, str]:
        """What a link says of it."""
        return ({"lesson": self.stop} if self.stop else {}) | ({"pin": "1"} if self.stop and self.pinned else {})


@dataclass(frozen=True)
class Place:
    """What an address showed when it was written.

    Attributes:
        run: name (`Trace.run`) of the run; "" where several runs have this address.
        shown: as `Session.shown`.
        edits: in What if.
        answer: text whose probability was measured.
        stop: of the lesson.
    """

    run: str
    shown: Mapping[str, Any]
    edits: list[Edit]
    answer: str
    stop: str


@dataclass
class Session:
    """One person's session; see the module's docstring.

    Attributes:
        runs: the last runs, the newest first.
        shown_run: name (`Trace.run`) of the run that is shown.
        shown: what the text and map show, on every page and tab.
        views: what was exchanged with the browser, by the key of the text and map.
        answer: text whose probability is measured.
        form: the form of the page Explore as it was filled in last.
        debug_form: that of the page Debug.
        failure: why the last run failed, and of which form.
        refused: what the link that opened the session asked for and did not get; said until another run is shown.
        places: what the last addresses showed, by their fields; for Back and Forward in the browser.
        found: what was asked for on demand, by its name: a key of its inputs, and the result.
        chosen: what was chosen in selectors with labels, by their keys; see `app.views.boxes`.
        rules: the last ones that this person saved or opened, by keys that no shipped rule has.
        lesson: how far this person is in the lesson.
    """

    runs: list[Run] = field(default_factory=list)
    shown_run: str | None = None
    shown: Mapping[str, Any] = field(default_factory=dict)
    views: dict[str, Exchange] = field(default_factory=dict)
    answer: str = ""
    form: Form | None = None
    debug_form: Form | None = None
    failure: tuple[Form, Exception] | None = None
    refused: list[Exception] = field(default_factory=list)
    places: dict[frozenset[tuple[str, str]], Place] = field(default_factory=dict)
    found: dict[str, tuple[Hashable, Any]] = field(default_factory=dict)
    chosen: dict[str, Any] = field(default_factory=dict)
    rules: dict[str, Rule] = field(default_factory=dict)
    lesson: LessonTaken = field(default_factory=LessonTaken)
    made: int = 0  # runs
    changes: int = 0  # of the run that is shown, other than by its selector
    page: str = ""  # opened last
    visits: int = 0  # to pages
    edits: dict[str, EditList] = field(default_factory=dict)
    opened: bool = False
    asked: bool = False  # whether a link asks for a run that was not begun yet
    linked_edits: EditList | None = None
    linked_rule: Rule | None = None  # that the run of a link is made with, whether it has a name or not

    def run(self) -> Run | None:
        """The run that is shown; None if there is none yet."""
        return self.named(self.shown_run)

    def named(self, name: str | None) -> Run | None:
        """The run whose trace has a name, `Trace.run`; None if there is none."""
        return next((run for run in self.runs if run.trace.run == name), None)

    def remember(
        self, trace: Trace, origin: Recipe | Elsewhere, *, shown: bool = True, unfinished: bool = False
    ) -> None:
        """Keep a run; the oldest one goes if there are too many, and the shipped one as soon as there is another.

        A run whose model is here stays as it is when it is opened from a file, whose note it takes if it has none. A
        note is never lost when its run is made or opened again.

        Args:
            trace: of the run.
            origin: of the run, as in `Run`.
            shown: whether it is shown from now on.
            unfinished: whether more of its continuation is to come.
        """
        if (noted := self.named(trace.run)) is not None and noted.trace.note and not trace.note:
            trace = replace(trace, note=noted.trace.note)
        self.runs = [run for run in self.runs if run.origin is not Elsewhere.SHIPPED]
        known = self.named(trace.run)
        if known is None:
            self.made += 1
        elif known.has_model and isinstance(origin, Recipe):  # never with what another machine measured
            trace = trace.completed(known.trace)  # what is known of it stays known
        elif known.has_model:
            trace, origin = replace(known.trace, note=known.trace.note or trace.note), known.origin
        before = known.trace.continuation if known is not None and known.has_model else None
        so_far = trace.continuation if unfinished else None
        if before is not None and so_far is not None and len(before.ids) >= len(so_far.ids):
            trace = replace(trace, continuation=before)  # of a run before, which may have been whole
        if known is not None and trace.continuation is known.trace.continuation:
            unfinished = known.unfinished
        run = Run(trace, origin, self.made if known is None else known.number, unfinished)
        if shown and self.shown_run != trace.run:
            self.shown_run = trace.run
            self.changes += 1
            self.failure = None
            if self.linked_edits is None:  # a link selects tokens of the run that it asks for
                self._deselect()
                if origin is not Elsewhere.SHIPPED:
                    self.refused.clear()
        if self.linked_edits is not None and shown:  # the run that a link asked for
            self.edits[trace.run], self.linked_edits = self.linked_edits, None
        others = [other for other in self.runs if other is not known]
        while len(others) >= _RUNS:
            others.remove(next(other for other in reversed(others) if other.trace.run != self.shown_run))
        self.runs = [run, *others]
        kept = {run.trace.run for run in self.runs}
        self.edits = {name: edits for name, edits in self.edits.items() if name in kept}

    def begin(self) -> None:
        """Show the run that ships with the app, which takes the number of the first own one."""
        if not self.runs:
            self.remember(shipped_trace(), Elsewhere.SHIPPED)
            self.made = 0

    def take_asked(self) -> bool:
        """Whether a link asks for a run that was not begun; from then on, it no longer does."""
        asked, self.asked = self.asked, False
        return asked

    def visit(self, page: str) -> int:
        """Number of this visit to a page; it changes when the visitor comes from another page."""
        if self.page != page:
            self.page, self.visits = page, self.visits + 1
        return self.visits

    def choose(self, name: str) -> None:
        """Show another of the runs.

        Args:
            name: of its trace, `Trace.run`.
        """
        before, chosen = self.run(), self.named(name)
        if chosen is None:
            return
        self.shown_run, self.failure = name, None
        self.refused.clear()
        if before is not None and before.trace.subject != chosen.trace.subject:  # its tokens are others
            self._deselect()

    def _deselect(self) -> None:
        self.shown = {key: value for key, value in self.shown.items() if key in ("level", "colour")}

    def note_place(self, address: Mapping[str, str], run: Run) -> None:
        """Note what an address shows from now on.

        Args:
            address: its fields.
            run: that is shown.
        """
        key, name = frozenset(address.items()), run.trace.run
        known = self.places.pop(key, None)
        if known is not None and known.run != name:
            name = ""  # of several runs, such as those of long prompts: nobody can tell which one is asked for
        edits = self.edits_of(run.trace).edits
        self.places[key] = Place(name, self.shown, edits, self.answer, self.lesson.stop)
        self.places = dict([*self.places.items()][-_PLACES:])

    def return_to(self, address: Mapping[str, str]) -> None:
        """Show again what an address showed. Nothing changes if its run is gone, or several have this address, or none.

        Args:
            address: its fields.
        """
        place = self.places.get(frozenset(address.items()))
        run = None if place is None else self.named(place.run)
        if place is None or run is None:
            return
        self.choose(place.run)
        self.changes += 1
        self.shown, self.answer, self.lesson.stop = place.shown, place.answer, place.stop
        self.edits_of(run.trace).change(place.edits)

    def end_link(self) -> None:
        """Forget what a link said about its run, which was made or failed."""
        self.linked_rule = None
        if self.linked_edits is not None:
            self.linked_edits = None
            self._deselect()

    def edits_of(self, trace: Trace) -> EditList:
        """The edits of a run, which begin with those that it was made with."""
        if trace.run not in self.edits:
            self.edits[trace.run] = EditList([Edit.parse(text) for text in trace.provenance.edits])
        return self.edits[trace.run]

    def open_trace(self, upload: str, file: IO[bytes], most_tokens: int) -> None:
        """Show the run in a file, once for each upload.

        Args:
            upload: id of the file in the page.
            file: that was uploaded.
            most_tokens: longest prompt.

        Raises:
            AnalysisError: if it holds no run that can be shown.
        """
        if self.recall("opened run", upload) is None:
            trace = open_trace(file, most_tokens)
            read_edits(trace.provenance.edits)
            self.found["opened run"] = (upload, True)
            self.remember(trace, Elsewhere.FILE)

    def annotate(self, name: str, note: str) -> None:
        """Write a note about a run.

        Args:
            name: of its trace, `Trace.run`.
            note: in place of the one before.
        """
        self.runs = [
            replace(run, trace=replace(run.trace, note=note)) if run.trace.run == name else run for run in self.runs
        ]

    def keep_rule(self, rule: Rule) -> str:
        """Offer a rule from now on, and return its key. The oldest one goes if there are too many.

        A rule with the name of a shipped one, and no edits but its own, is the shipped one.

        Raises:
            AnalysisError: if another rule with its name is shipped.
        """
        stem = stem_of(rule.name)
        if stem is not None and {*rule.edits} <= {*shipped()[stem].edits}:
            return stem
        check_name(rule)
        key = f"own:{rule.name}"
        others = {each: other for each, other in self.rules.items() if each != key}
        self.rules = dict([*others.items(), (key, rule)][-_RULES:])
        return key

    def open_rule(self, upload: str, content: Callable[[], bytes]) -> str | None:
        """Offer the rule in a file; its key, or None if the file was opened before.

        Args:
            upload: id of the file in the page.
            content: its bytes.

        Raises:
            AnalysisError: if it is no rule, or as `keep_rule`.
        """
        if self.recall("rule file", upload):
            return None
        key = self.keep_rule(Rule.read(content()))
        self.found["rule file"] = (upload, key)
        return key

    def show(self, shown: Shown, asked: Shown) -> None:
        """Note what a visitor changed in a view; a level or colour that this trace lacks stays for others that have it.

        Args:
            shown: by the browser.
            asked: what it was asked to show.
        """
        before = vars(asked)
        self.shown = {**self.shown, **{key: value for key, value in vars(shown).items() if value != before[key]}}

    def recall(self, what: str, key: Hashable) -> Any:
        """The result of what was asked for on demand; None if its inputs have changed.

        Args:
            what: such as "lens".
            key: everything that the result depends on.
        """
        found_for, found = self.found.get(what, (None, None))
        return found if found_for == key else None


def session() -> Session:
    """The session of the person whose browser this is."""
    found: Session = st.session_state.setdefault("session", Session())
    return found
