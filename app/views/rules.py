"""Rules: one for the runs of Explore, and in What if a place to save the edits as a rule and to use one."""

import re

import streamlit as st

from analysis import AnalysisError, Trace
from analysis.debug.edits import Edit, kinds_in
from analysis.debug.rules import LONGEST_DESCRIPTION, LONGEST_NAME, Rule
from app.edit_list import EditList
from app.limits import Feature
from app.messages import plain, show_error
from app.settings import Settings
from app.shipped_rules import check_name, rule_description, rule_name, shipped
from app.state import session
from app.strings import say
from app.views import boxes

_NONE = ""
_LARGEST_FILE = 1  # MB; a rule is much smaller still


def choose() -> Rule | None:
    """A selector of the rule for the next run; None for the model's own."""
    known = _known()
    chosen = boxes.one_of(say("rule"), list(known), _names().__getitem__, "rule", help=say("rule_help"))
    rule = known[chosen]
    if rule is not None:
        _describe(rule)
    return rule


def chosen() -> Rule | None:
    """The rule that was chosen last, in the selector or by a link; None for the model's own."""
    return _known().get(session().chosen.get("rule", _NONE))


def save_and_use(trace: Trace, known: EditList, edits: list[Edit], settings: Settings) -> None:
    """Save the edits in force under a name, and use a rule in their place.

    Args:
        trace: of the run that is shown.
        known: its edits.
        edits: those in force.
        settings: what the operator allows.
    """
    with st.expander(say("rules_title"), icon=":material/rule:"):
        st.caption(say("rules_help"))
        _save(edits)
        _use(trace, known, settings)


def _save(edits: list[Edit]) -> None:
    left, middle, right = st.columns([3, 4, 2], vertical_alignment="bottom")
    name = left.text_input(say("rule_name"), key="rule name", max_chars=LONGEST_NAME, persist_state="session")
    description = middle.text_input(
        say("rule_description"), key="rule description", max_chars=LONGEST_DESCRIPTION, persist_state="session"
    )
    rule: Rule | None = None
    if edits and name.strip():
        try:
            rule = Rule(name.strip(), description.strip(), tuple(edits))
            check_name(rule)
        except AnalysisError as error:
            rule = None
            show_error(error)
    right.download_button(
        say("rule_save"), b"" if rule is None else rule.written(), _file_name(name), "application/json",
        icon=":material/download:", disabled=rule is None, width="stretch", on_click=_keep, args=(rule,),
        help=say("rule_save_help"),
    )  # fmt: skip


def _use(trace: Trace, known: EditList, settings: Settings) -> None:
    if Feature.UPLOADS in settings.limits.features:
        file = st.file_uploader(say("rule_open"), type="json", max_upload_size=_LARGEST_FILE, key="rule file")
        if file is not None:
            try:
                opened = session().open_rule(file.file_id, file.getvalue)
            except AnalysisError as error:
                show_error(error)
            else:
                if opened is not None:
                    boxes.choose("rule to use", opened)
    choices = {key: rule for key, rule in _known().items() if rule is not None}
    left, right = st.columns([7, 2], vertical_alignment="bottom")
    chosen = boxes.one_of(say("rule_choose"), list(choices), _names().__getitem__, "rule to use", place=left)
    right.button(
        say("rule_use"), icon=":material/check:", width="stretch", on_click=_put, args=(chosen, trace, known),
        help=say("rule_use_help"),
    )  # fmt: skip
    _describe(choices[chosen])


def _put(key: str, trace: Trace, known: EditList) -> None:
    """Put a rule in place of the edits, and choose it for the next runs of Explore."""
    rule = _known()[key]
    assert rule is not None
    try:
        edits = rule.on(trace.prompt, kinds_in(trace.routing))
    except AnalysisError as error:
        known.mistake = error
        return
    known.change(list(edits))
    boxes.choose("rule", key)
    if not edits:
        st.toast(say("rule_names_nothing", name=plain(rule_name(rule.name))))


def _keep(rule: Rule | None) -> None:
    if rule is not None:
        session().keep_rule(rule)


def _known() -> dict[str, Rule | None]:
    """Rules that can be chosen, by a key for each; None is the model's own."""
    return {_NONE: None, **shipped(), **session().rules}


def _names() -> dict[str, str]:
    """What the rules are called on screen, by their keys."""
    return {key: say("rule_none") if rule is None else rule_name(rule.name) for key, rule in _known().items()}


def _describe(rule: Rule) -> None:
    edits = "; ".join(map(str, rule.edits))
    st.caption(plain(f"{rule_description(rule)} {edits}".strip()))


def _file_name(name: str) -> str:
    return f"{re.sub(r'[^A-Za-z0-9]+', '-', name).strip('-').lower() or 'rule'}.json"
