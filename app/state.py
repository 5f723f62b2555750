"""What a session remembers, and which part of it a link carries. Only this module keeps anything per visitor.

| what | kept in | in the link |
| --- | --- | --- |
| prompt, chat, checkpoint of the run that is shown | `Session.runs` | yes, if the prompt is short |
| level, selected tokens, colour | `Session.shown` | yes |
| edits of the run that is shown, answer that is watched | `Session.edits`, `answer` | yes |
| language | the widget's own state | yes |
| device, dtype, new tokens, comparison, sampling | the widgets' own state | no |
| what was asked for on demand: lens, attention, attribution, effects, generated text | `Session.found` | no |

Sessions hold recipes and arrays; models and what lies on a device are the engine's (`app.engine`). A link comes from a
stranger: it can name what the operator offers, and nothing else.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import streamlit as st

from analysis import AnalysisError, Trace
from analysis.debug.edits import MOST_EDITS, Edit, parse_edits, write_edits
from analysis.guard import silent
from app.components.routing_view import Exchange, Shown
from app.engine import Recipe
from app.messages import plain
from app.settings import OLD_IDS, Settings
from app.strings import language, name_of, say
from subllm import CheckpointError

_RUNS = 8  # that are kept
_LINK = "2"  # number of the form of links: levels count from 1; before, there was no number, and they counted from 0
_LONGEST = 600  # characters of a prompt that a link carries
_LONGEST_LINK = 4000  # characters of a link; servers refuse much longer ones
_LONGEST_NAME = 80  # characters of a name that a message repeats


@dataclass(frozen=True, eq=False)
class Run:
    """A run of the session.

    Attributes:
        trace: what was measured.
        recipe: what was run.
        number: number in the session, from 1.
    """

    trace: Trace
    recipe: Recipe
    number: int

    @property
    def name(self) -> str:
        """The name on screen, which is unique because of the number."""
        where = self.trace.provenance
        edits = f" · {'; '.join(where.edits)}" if where.edits else ""
        prompt = repr(self.trace.prompt.text.strip()[:60])
        return f"{self.number} · {prompt} · {name_of(where.checkpoint)} · {where.dtype}{edits}"


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
class EditList:
    """The edits of one run, with undo and redo.

    Attributes:
        edits: in force, if they fit.
        unread: why the edits of a link cannot be read.
        mistake: why the edit that was added last cannot be made.
    """

    edits: list[Edit] = field(default_factory=list)
    unread: AnalysisError | None = None
    mistake: AnalysisError | None = None
    _before: list[list[Edit]] = field(default_factory=list)
    _after: list[list[Edit]] = field(default_factory=list)

    def change(self, edits: list[Edit]) -> None:
        """Set the edits; the old ones can be restored."""
        self.mistake = None
        if len(edits) > MOST_EDITS:
            self.mistake = AnalysisError(
                "There are {most} edits in force, and no more fit into a link.", most=MOST_EDITS
            )
        elif edits != self.edits:
            self._before.append(self.edits)
            self._after.clear()
            self.edits = list(edits)

    @property
    def can_undo(self) -> bool:
        """Whether there is a change to undo."""
        return bool(self._before)

    @property
    def can_redo(self) -> bool:
        """Whether there is a change to redo."""
        return bool(self._after)

    def undo(self) -> None:
        """Restore the edits before the last change."""
        if self._before:
            self._after.append(self.edits)
            self.edits = self._before.pop()

    def redo(self) -> None:
        """Make the change again that was undone last."""
        if self._after:
            self._before.append(self.edits)
            self.edits = self._after.pop()


@dataclass
class Session:
    """One person's session; see the module's docstring.

    Attributes:
        runs: the last runs, the newest first.
        shown_run: name (`Trace.run`) of the run that is shown.
        shown: what the text and map show, on every page and tab.
        views: what was exchanged with the browser, by the key of the text and map.
        answer: text whose probability is measured.
        form: the prompt's form as it was filled in last.
        failure: why the last run failed.
        found: what was asked for on demand, by its name: a key of its inputs, and the result.
    """

    runs: list[Run] = field(default_factory=list)
    shown_run: str | None = None
    shown: Mapping[str, Any] = field(default_factory=dict)
    views: dict[str, Exchange] = field(default_factory=dict)
    answer: str = ""
    form: Form | None = None
    failure: Exception | None = None
    found: dict[str, tuple[Hashable, Any]] = field(default_factory=dict)
    made: int = 0  # runs
    changes: int = 0  # of the run that is shown, other than by its selector
    page: str = ""  # opened last
    visits: int = 0  # to pages
    edits: dict[str, EditList] = field(default_factory=dict)
    opened: bool = False
    linked_edits: EditList | None = None

    def run(self) -> Run | None:
        """The run that is shown; None if there is none yet."""
        return next((run for run in self.runs if run.trace.run == self.shown_run), None)

    def remember(self, trace: Trace, recipe: Recipe, *, shown: bool = True) -> None:
        """Keep a run; the oldest one goes if there are too many.

        Args:
            trace: of the run.
            recipe: of the run.
            shown: whether it is shown from now on.
        """
        known = next((run for run in self.runs if run.trace.run == trace.run), None)
        if known is None:
            self.made += 1
        else:
            trace = trace.completed(known.trace)  # what is known of it stays known
        run = Run(trace, recipe, self.made if known is None else known.number)
        if shown and self.shown_run != trace.run:
            self.shown_run = trace.run
            self.changes += 1
            if self.linked_edits is None:  # a link selects tokens of the run that it asks for
                self._deselect()
        if self.linked_edits is not None and shown:  # the run that a link asked for
            self.edits[trace.run], self.linked_edits = self.linked_edits, None
        others = [other for other in self.runs if other is not known]
        while len(others) >= _RUNS:
            others.remove(next(other for other in reversed(others) if other.trace.run != self.shown_run))
        self.runs = [run, *others]
        kept = {run.trace.run for run in self.runs}
        self.edits = {name: edits for name, edits in self.edits.items() if name in kept}

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
        before, chosen = self.run(), next((run for run in self.runs if run.trace.run == name), None)
        if chosen is None:
            return
        self.shown_run = name
        if before is not None and before.trace.subject != chosen.trace.subject:  # its tokens are others
            self._deselect()

    def _deselect(self) -> None:
        self.shown = {key: value for key, value in self.shown.items() if key in ("level", "colour")}

    def end_link(self) -> None:
        """Forget what a link said about a run that failed."""
        if self.linked_edits is not None:
            self.linked_edits = None
            self._deselect()

    def edits_of(self, trace: Trace) -> EditList:
        """The edits of a run, which begin with those that it was made with."""
        if trace.run not in self.edits:
            self.edits[trace.run] = EditList([Edit.parse(text) for text in trace.provenance.edits])
        return self.edits[trace.run]

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


def open_link(settings: Settings) -> bool:
    """Read the link that opened the session; True if there is a prompt to run.

    Call this before the widgets are made. Later calls do nothing, since the address then follows the page. A
    link to a checkpoint that is not offered is refused with a message; its prompt is filled in nevertheless.

    Args:
        settings: what the operator allows.
    """
    own = session()
    if own.opened:
        return False
    own.opened = True
    fields = st.query_params.to_dict()
    if "prompt" not in fields:
        return False
    own.form = Form(fields["prompt"], fields.get("chat") == "1")
    name = fields.get("checkpoint")
    name = OLD_IDS.get(name, name) if name is not None else None
    if name is not None and not _offered(settings, name):
        short = name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…"
        st.error(plain(say("link_checkpoint", name=repr(short))), icon=":material/error:")
        return False
    if name is not None:
        st.session_state["checkpoint"] = name
    version = fields.get("v")
    if version not in (None, _LINK):
        st.error(plain(say("link_version", version=repr(version[:_LONGEST_NAME]))), icon=":material/error:")
        fields = {key: value for key, value in fields.items() if key not in ("level", "edits")}
    first = 0 if version is None else 1
    own.shown = {key: fields[key] for key in ("level", "selected", "until", "colour") if key in fields}
    if "level" in own.shown and not first:
        own.shown = {**own.shown, "level": _next(fields["level"])}
    own.answer = fields.get("answer", "")
    own.linked_edits = EditList()
    try:
        own.linked_edits.edits = parse_edits(fields.get("edits", ""), first)
    except AnalysisError as error:
        own.linked_edits.unread = error
    return True


def write_link(run: Run) -> None:
    """Write the address that opens this run, with its edits, in another browser.

    A run with a long prompt, or a long link, has no address.

    Args:
        run: run that is shown.
    """
    own, recipe = session(), run.recipe
    if not carries(recipe):
        st.query_params.from_dict({"lang": language()})
        return
    fields = {"v": _LINK, "checkpoint": recipe.model.checkpoint, "prompt": recipe.text, "chat": str(int(recipe.chat))}
    shown = vars(Shown.parse(own.shown, run.trace))
    fields |= {key: str(value) for key, value in shown.items() if value is not None}
    edits = own.edits_of(run.trace).edits
    if edits:
        fields["edits"] = write_edits(edits)
    if own.answer:
        fields["answer"] = own.answer
    if sum(map(len, fields.values())) > _LONGEST_LINK:
        fields = {}
    st.query_params.from_dict(fields | {"lang": language()})


def carries(recipe: Recipe) -> bool:
    """Whether a prompt is short enough for a link or a command."""
    return len(recipe.text) <= _LONGEST


def _next(level: str) -> str:
    return str(int(level) + 1) if level.isdecimal() and len(level) < 6 else level


def _offered(settings: Settings, name: str) -> bool:
    if name in settings.choices():
        return True
    try:
        settings.locate(name, silent)  # a folder: nothing is built or fetched for it
    except CheckpointError:
        return False
    return True
