"""Side by side: two traces, their tokens aligned, and where routing and predictions differ."""

from functools import lru_cache

import numpy as np
import pandas as pd
import streamlit as st

from analysis import Trace
from analysis.figures import debug as debug_figures
from analysis.figures import summary
from analysis.figures.quoted import quoted
from analysis.figures.terms import level_name
from analysis.trace.pairs import Pairing, differing, overlap, pair
from app import reproduce
from app.messages import plain, plot, sortable
from app.settings import Settings
from app.state import Run, session
from app.strings import language, say, table
from app.views import again
from app.views.boxes import one_of
from app.views.trace import levels

_SHOWN = 200  # tokens in a list
_CONTEXT = 30  # characters on either side
_pair = lru_cache(maxsize=8)(pair)  # seconds for two long prompts; a rerun has the same prompts


def show(run: Run, settings: Settings) -> None:
    """The tab."""
    st.caption(say("beside_help"))
    others = {other.trace.run: other for other in session().runs if other.trace.run != run.trace.run}
    if not others:
        st.info(say("beside_one"), icon=":material/compare:")
        return
    names = {key: other.name for key, other in others.items()}
    chosen = one_of(say("beside_with"), list(names), names.__getitem__, "beside with")
    compare(run.trace, others[chosen].trace, (run.name, names[chosen]))
    again.show(reproduce.compared(), note=say("again_saved"))


def compare(first: Trace, second: Trace, names: tuple[str, str]) -> None:
    """Two traces in numbers and figures."""
    pairing = _pair(first.prompt, second.prompt)
    st.caption(
        plain(
            say(
                "beside_paired",
                n=f"{len(pairing.first):,}",
                first=f"{first.num_tokens:,}",
                second=f"{second.num_tokens:,}",
            )
        )
    )
    rows = [
        {"": say("beside_first"), say("beside_run"): names[0], **_summary(first)},
        {"": say("beside_second"), say("beside_run"): names[1], **_summary(second)},
    ]
    st.dataframe(pd.DataFrame(rows), hide_index=True)
    if not len(pairing.first) or not min(first.routing.num_levels, second.routing.num_levels):
        st.info(say("beside_nothing"))
        return
    _levels(first, second, pairing)


def _summary(trace: Trace) -> dict[str, str]:
    """What a run keeps, costs and predicts; a cell says so if it was not measured."""
    predictions, likelihood, continuation = trace.predictions, trace.likelihood, trace.continuation
    nothing = say("unmeasured")
    likeliest = nothing
    if predictions is not None:
        likeliest = f"{quoted(str(predictions.next_pieces[0]))} {predictions.next_probabilities[0]:.1%}"
    perplexity = nothing
    if likelihood is not None:
        perplexity = f"{likelihood.perplexity:.2f}" if trace.num_tokens > 1 else "–"
    return {
        say("beside_kept"): ", ".join("–" if np.isnan(kept) else f"{kept:.0%}" for kept in trace.routing.retention)
        or "–",
        say("beside_work"): f"{summary.work(trace):.0%}",
        say("beside_next"): likeliest,
        say("beside_perplexity"): perplexity,
        say("continuation_title"): nothing if continuation is None else continuation.text,
    }


def _levels(first: Trace, second: Trace, pairing: Pairing) -> None:
    words = table(language())
    found = overlap(first.routing, second.routing, pairing)
    names = {level: level_name(first, level, words) for level in found.index}
    st.table(summary.overlap_table(first, found, words))
    st.caption(say("beside_levels"))
    level = one_of(say("edit_level"), list(names), names.__getitem__, "beside level")
    left, right = st.columns(2)
    silent = next((trace for trace in (first, second) if not trace.routing.scores_tokens(level)), None)
    if silent is None:
        plot(left, debug_figures.score_pairs(first, second, pairing, level, words), "beside scores")
    else:
        left.info(plain(levels.no_scores(silent, level)))
    with right:
        _differing(first, second, pairing, level)


def _differing(first: Trace, second: Trace, pairing: Pairing, level: int) -> None:
    """Tokens that only one of the two keeps, with their context."""
    tokens = differing(first.routing, second.routing, pairing, level)
    prompt, rows = first.prompt, []
    for index in tokens[:_SHOWN]:
        a, b = int(pairing.first[index]), int(pairing.second[index])
        start, end = int(prompt.starts[a]), int(prompt.ends[a])
        rows.append(
            {
                say("flip_token"): a,
                say("beside_context"): f"…{prompt.text[max(start - _CONTEXT, 0) : start]}⟦{prompt.text[start:end]}⟧"
                f"{prompt.text[end : end + _CONTEXT]}…",
                say("beside_who"): say("beside_first" if first.routing.kept[level - 1, a] else "beside_second"),
                say("beside_score_first"): float(first.routing.scores[level - 1, a]),
                say("beside_score_second"): float(second.routing.scores[level - 1, b]),
            }
        )
    st.markdown(f"**{say('beside_differing', n=f'{len(tokens):,}')}**")
    if rows:  # NaN is the score of a token that did not reach the level, or of a router that does not score
        forms = {say("flip_token"): ",", say("beside_score_first"): "+.3f", say("beside_score_second"): "+.3f"}
        st.dataframe(sortable(pd.DataFrame(rows), forms), hide_index=True, placeholder="–", height=300)
