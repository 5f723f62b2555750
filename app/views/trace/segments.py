"""Retention by segment: which turn, question, sentence, line, word or script a level chooses least of."""

from dataclasses import replace

import numpy as np
import pandas as pd
import streamlit as st
from pandas.io.formats.style import Styler

from analysis import Trace
from analysis.figures.routing_view.data import Shown
from analysis.figures.terms import level_name, level_words
from analysis.quality.segments import SegmentKind, Segments, has_turns, segments
from app.messages import plain, sortable
from app.state import session
from app.strings import language, say, table

_MOST_SHOWN = 300  # segments in the table


def show(trace: Trace, shown: Shown) -> None:
    """The segments of a kind, the worst one first; choosing one selects its first place in the text.

    Args:
        trace: trace of a prompt.
        shown: what the text and map show of it.
    """
    levels = [level for level in trace.routing.levels if not trace.routing.merges[level - 1]]
    if not levels:
        st.info(say("segments_none"))
        return
    kinds = [kind for kind in SegmentKind if kind != SegmentKind.TURN or has_turns(trace.prompt)]
    asked = st.segmented_control(
        say("segments_by"),
        kinds,
        default=SegmentKind.SENTENCE,
        format_func=lambda each: say(f"segment_{each}"),
        key="segment kind",
        required=True,
    )
    if SegmentKind.TURN not in kinds:
        st.caption(say("segments_no_turns"))
    kind = SegmentKind(asked) if asked in kinds else SegmentKind.SENTENCE  # a label of another language is none
    found = segments(trace.prompt, trace.routing, kind)
    level = shown.level if shown.level in levels else levels[0]
    order = found.order(level)
    names = {each: level_name(trace, each, table(language())) for each in levels}
    if len(order) > 1:
        worst = int(order[0])
        st.caption(
            plain(
                level_words(trace, level, table(language()))["segments_worst"].format(
                    level=names[level],
                    segment=_name(found, worst),
                    share=f"{found.share(level)[worst]:.0%}",
                    tokens=f"{found.tokens[worst]:,}",
                    whole=f"{trace.routing.kept[level - 1].mean():.0%}",
                )
            )
        )
    order = order[:_MOST_SHOWN]
    chosen = st.dataframe(
        _table(found, order, level, names),
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row",
        key=f"segments {trace.subject} {kind} {level}",
    )
    if len(found.names) > _MOST_SHOWN:
        st.caption(say("segments_more", n=f"{_MOST_SHOWN:,}", all=f"{len(found.names):,}"))
    st.caption(say("segments_note"))
    rows = chosen["selection"]["rows"]
    if not rows:
        session().found.pop("segment", None)
    elif rows[0] < len(order):
        _select(trace, shown, found.places(int(order[rows[0]])), (kind, level, rows[0]))


def _table(found: Segments, order: np.ndarray, level: int, names: dict[int, str]) -> Styler:
    low, high = found.interval(level)
    rows = pd.DataFrame(
        {
            say("segments_segment"): [_name(found, segment) for segment in order.tolist()],
            say("segments_tokens"): found.tokens[order],
            **{name: found.share(each)[order] for each, name in names.items()},
            say("segments_low"): low[order],
            say("interval_high"): high[order],
        }
    )
    shares = dict.fromkeys((*names.values(), say("segments_low"), say("interval_high")), ".1%")
    return sortable(rows, {say("segments_tokens"): ",", **shares})


def _name(found: Segments, segment: int) -> str:
    """A segment's text, or what it is."""
    name = found.names[segment]
    words = table(language())
    if found.kind == SegmentKind.TURN:
        number, _, role = name.partition(" ")
        return f"{number} {words.get(f'turn_{role}', role)}" if name else say("segments_before")
    if found.kind == SegmentKind.QUESTION:
        return name or say("segments_rest")
    return words.get(f"script_{name}", name) if found.kind == SegmentKind.SCRIPT else name


def _select(trace: Trace, shown: Shown, places: np.ndarray, choice: tuple[object, ...]) -> None:
    """Select the first stretch of a segment in the text, once for each choice."""
    own, key = session(), (trace.run, choice)
    if own.recall("segment", key):
        return
    own.found["segment"] = (key, True)
    gaps = np.flatnonzero(np.diff(places) > 1)
    last = places[gaps[0]] if len(gaps) else places[-1]
    own.show(replace(shown, selected=int(places[0]), until=int(last)), shown)
    st.rerun(scope="fragment")
