"""Links: they open a run in another browser, and this reads the one that opened the session.

`app.state` lists what is in a link. A link comes from a stranger: it can name what the operator offers, and nothing
else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

import streamlit as st

from analysis import AnalysisError
from analysis.debug.edits import parse_edits, write_edits
from analysis.debug.rules import Rule
from analysis.figures.routing_view.data import Shown
from analysis.guard import silent
from app.components import link_fragment
from app.edit_list import EditList
from app.messages import plain, show_error
from app.packed_prompt import pack, unpack
from app.settings import OLD_IDS, Settings
from app.state import Elsewhere, Form, Run, session
from app.strings import language, say
from subllm import CheckpointError
from subllm.errors import shortened

_LINK = "2"  # number of the form of links: levels count from 1; before, there was no number, and they counted from 0
_LONGEST = 600  # characters of a prompt that a link carries as it is; longer ones are compressed, after the #
_LONGEST_LINK = 8000  # characters of a query as it is sent: a Chinese one takes nine; servers refuse longer ones


def open_link(settings: Settings) -> None:
    """Read the link that opened the session; `Session.take_asked` says whether it asks for a run.

    Call this before the widgets are made. Later calls do nothing, since the address then follows the page. A
    link to a checkpoint that is not offered is refused with a message; its prompt is filled in nevertheless. A link
    with a checkpoint but no prompt asks for the first example.

    Args:
        settings: what the operator allows.
    """
    own = session()
    if own.opened:
        return
    fields = st.query_params.to_dict()
    if fields.get("long") == "1" and "prompt" not in fields:
        fragment = link_fragment.read()
        if fragment is None:
            st.stop()  # the browser's answer runs the page again
        try:
            fields["prompt"] = unpack(fragment)
        except AnalysisError as error:
            show_error(error)
    own.opened = True
    own.lesson.stop = fields.get("lesson", "")
    own.lesson.pinned = fields.get("pin") == "1" and bool(own.lesson.stop)
    asks = "prompt" in fields or ("checkpoint" in fields and fields.get("long") != "1")
    if not asks:
        own.begin()
        own.shown = _shown_in(fields)
        return
    if "prompt" in fields:  # else the form stays at the first example
        own.form = Form(fields["prompt"], fields.get("chat") == "1")
    name = fields.get("checkpoint")
    name = OLD_IDS.get(name, name) if name is not None else None
    if name is not None and not _offered(settings, name):
        st.error(plain(say("link_checkpoint", name=repr(shortened(name)))), icon=":material/error:")
        if own.form is None:
            own.begin()
        return
    if name is not None:
        st.session_state["checkpoint"] = name
    version = fields.get("v")
    if version not in (None, _LINK):
        st.error(plain(say("link_version", version=repr(shortened(version)))), icon=":material/error:")
        fields = {key: value for key, value in fields.items() if key not in ("level", "edits")}
    first = 0 if version is None and "prompt" in fields else 1
    own.shown = _shown_in(fields)
    if "level" in own.shown and not first:
        own.shown = {**own.shown, "level": _next(fields["level"])}
    own.answer = fields.get("answer", "")
    own.linked_edits = EditList()
    try:
        own.linked_edits.edits = parse_edits(fields.get("edits", ""), first)
        if "rule" in fields:  # the page Explore makes its run with it
            rule = Rule(fields["rule"], "", tuple(own.linked_edits.edits))
            own.chosen["rule"] = own.keep_rule(rule)
    except AnalysisError as error:
        own.linked_edits.unread = error
    own.asked = True


def write_link(run: Run) -> None:
    """Write the address that opens this run, with its edits, in another browser; see `link_of`.

    Args:
        run: run that is shown.
    """
    link = link_of(run) or _link({})
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

    A run with a prompt or edits that are too long, or whose model is absent, has no address: its file is to be sent.

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
    short = len(recipe.text) <= _LONGEST
    fragment = "" if short else pack(recipe.text)
    if fragment is None:
        return None
    fields |= {"prompt": recipe.text} if short else {"long": "1"}
    fields["chat"] = str(int(recipe.chat))
    fields |= {key: str(value) for key, value in shown.items() if value is not None}
    edits = own.edits_of(run.trace).edits
    if edits:
        fields["edits"] = write_edits(edits)
        where = run.trace.provenance
        if where.rule and tuple(map(str, edits)) == where.edits:
            fields["rule"] = where.rule
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
