"""Links: they open a run in another browser, and this reads the one that opened the session.

`app.state` lists what is in a link. A link comes from a stranger: it can name what the operator offers, and nothing
else.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlencode

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from analysis import AnalysisError
from analysis.debug.edits import parse_edits, read_edits, write_edits
from analysis.debug.rules import Rule
from analysis.figures.routing_view.data import Shown
from analysis.guard import silent
from analysis.report.again import MOST_CHARACTERS
from app.components import link_fragment
from app.edit_list import EditList
from app.messages import show_error
from app.packed_prompt import pack, unpack
from app.settings import OLD_IDS, Settings
from app.state import Elsewhere, Form, Run, session
from app.strings import language
from subllm import CheckpointError
from subllm.errors import shortened

_LINK = "2"  # number of the form of links: levels count from 1; before, there was no number, and they counted from 0
_LONGEST_LINK = 8000  # characters of a query as it is sent: a Chinese one takes nine; servers refuse longer ones


def open_link(settings: Settings) -> None:
    """Read the link that opened the session; `Session.take_asked` says whether it asks for a run.

    Call this before the widgets are made. Later the address follows the page, and is read only after Back or Forward in
    the browser, to show again what it showed. A link to a checkpoint that is not offered is refused; its prompt is
    filled in nevertheless. A link with a checkpoint but no prompt asks for the first example. What a link asks for and
    does not get is noted in `Session.refused`.

    Args:
        settings: what the operator allows.
    """
    own = session()
    if own.opened:
        context = get_script_run_ctx()
        if context is not None and context.is_history_navigation:
            own.return_to(st.query_params.to_dict())
            st.session_state["answer"] = own.answer
        return
    fields = st.query_params.to_dict()
    if fields.get("long") == "1" and "prompt" not in fields:
        fragment = link_fragment.read()
        if fragment is None:
            st.stop()  # the browser's answer runs the page again
        try:
            fields["prompt"] = unpack(fragment)
        except AnalysisError as error:
            own.refused.append(error)
    own.opened = True
    own.lesson.stop = fields.get("lesson", "")
    own.lesson.pinned = fields.get("pin") == "1" and bool(own.lesson.stop)
    if "prompt" in fields:  # else the form stays at the first example
        own.form = Form(fields["prompt"], fields.get("chat") == "1")
    offered, lost = _choose(settings, fields.get("checkpoint")), fields.get("long") == "1" and "prompt" not in fields
    if lost or not offered or not {"prompt", "checkpoint"} & {*fields}:
        if own.form is None:
            own.begin()
            own.shown = _shown_in(fields)
        return
    version = fields.get("v")
    if version not in (None, _LINK):
        own.refused.append(
            AnalysisError(
                "This link was made by another version of the app (its format is {version}, and {known} is read here), "
                "so its level and its edits are ignored. If that version is newer, update the app to open them.",
                version=repr(shortened(version)),
                known=repr(_LINK),
            )
        )
        fields = {key: value for key, value in fields.items() if key not in ("level", "edits", "made", "rule")}
    first = 0 if version is None and "prompt" in fields else 1
    own.shown = _shown_in(fields)
    if "level" in own.shown and not first:
        own.shown = {**own.shown, "level": _next(fields["level"])}
    own.answer = fields.get("answer", "")
    own.linked_edits = EditList()
    try:
        own.linked_edits.edits = parse_edits(fields.get("edits", ""), first)
    except AnalysisError as error:
        own.linked_edits.unread = error
    if "made" in fields or "rule" in fields:
        _take_rule(fields, first)
    own.asked = True


def _take_rule(fields: Mapping[str, str], first: int) -> None:
    """Take the edits that the run of a link was made with, under the name of their rule if that can be offered."""
    own = session()
    try:
        own.linked_rule = Rule("", "", tuple(parse_edits(fields.get("made", fields.get("edits", "")), first)))
    except AnalysisError as error:
        own.refused.append(
            AnalysisError(
                "The run of this link was made with edits that cannot be used, so it is made without them. {why}",
                why=error,
            )
        )
        return
    if "rule" not in fields:
        return
    try:
        named = replace(own.linked_rule, name=fields["rule"])
        own.chosen["rule"] = own.keep_rule(named)  # the next runs are made with it, too
    except AnalysisError as error:
        own.refused.append(
            AnalysisError(
                "The run of this link is made with its edits, but not under the name of its rule. {why}", why=error
            )
        )
        return
    own.linked_rule = named


def _choose(settings: Settings, name: str | None) -> bool:
    """Choose the checkpoint of a link; False if it is not offered."""
    if name is None:
        return True
    name = OLD_IDS.get(name, name)
    if not _offered(settings, name):
        session().refused.append(
            AnalysisError(
                "This link asks for a checkpoint that is not available here: {name}. Choose one from the list, then "
                "run the prompt.",
                name=repr(shortened(name)),
            )
        )
        return False
    st.session_state["checkpoint"] = name
    return True


def show_refused() -> None:
    """Say what the link that opened the session asked for and did not get, until another run is shown."""
    for error in session().refused:
        show_error(error)


def write_link(run: Run) -> None:
    """Write the address that opens this run, with its edits, in another browser; see `link_of`.

    Args:
        run: run that is shown.
    """
    link = link_of(run) or _link({})
    session().note_place(link.fields, run)
    if st.query_params.to_dict() != link.fields:
        st.query_params.from_dict(link.fields)
    if link.fragment:
        link_fragment.write(link.fragment, urlencode(link.fields))


@dataclass(frozen=True)
class Link:
    """An address within the app.

    Attributes:
        fields: of its query.
        fragment: what stands after the #.
    """

    fields: Mapping[str, str]
    fragment: str = ""

    def __str__(self) -> str:
        return f"?{urlencode(self.fields)}" + (f"#{self.fragment}" if self.fragment else "")


def link_of(run: Run) -> Link | None:
    """The address that opens a run, with its edits, in another browser. That of the shipped run is the app's.

    Edits are in it twice if those that the run was made with are not those that stand in What if. A run has no address
    if its prompt or edits are too long, or if its model is absent: its file is to be sent.

    Args:
        run: of the session.
    """
    own, recipe = session(), run.origin
    shown = vars(Shown.parse(own.shown, run.trace))
    if recipe is Elsewhere.SHIPPED:
        usual = vars(Shown.parse({}, run.trace))
        return _link({key: str(value) for key, value in shown.items() if value != usual[key]})
    if recipe is Elsewhere.FILE or not recipe.again:
        return None
    fields = {"v": _LINK, "checkpoint": recipe.model.checkpoint}
    short = len(recipe.text) <= MOST_CHARACTERS  # longer ones are compressed, after the #
    fragment = "" if short else pack(recipe.text)
    if fragment is None:
        return None
    fields |= {"prompt": recipe.text} if short else {"long": "1"}
    fields["chat"] = str(int(recipe.chat))
    fields |= {key: str(value) for key, value in shown.items() if value is not None}
    edits, where = own.edits_of(run.trace).edits, run.trace.provenance
    if edits:
        fields["edits"] = write_edits(edits)
    if where.edits:
        if where.rule:
            fields["rule"] = where.rule
        if not where.rule or tuple(map(str, edits)) != where.edits:
            fields["made"] = write_edits(read_edits(where.edits))
    if own.answer:
        fields["answer"] = own.answer
    link = _link(fields, fragment)
    return None if len(urlencode(link.fields)) > _LONGEST_LINK else link


def _link(fields: Mapping[str, str], fragment: str = "") -> Link:
    """An address with what every address says."""
    return Link({**fields, **session().lesson.fields, "lang": language()}, fragment)


def _shown_in(fields: Mapping[str, str]) -> dict[str, str]:
    """What a link says about the text and the map."""
    return {key: fields[key] for key in ("level", "selected", "until", "colour") if key in fields}


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
