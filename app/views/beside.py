"""Side by side: two traces, their tokens aligned, and where routing and predictions differ."""

import numpy as np
import pandas as pd
import streamlit as st

from analysis import Trace, debug_figures, figures
from analysis.beside import Pairing, differing, overlap, pair
from app import runs
from app.messages import plain, plot
from app.settings import Settings
from app.strings import language, say, table
from app.views import history

_SHOWN = 200  # tokens in a list
_CONTEXT = 30  # characters on either side


def show(trace: Trace, source: runs.Source, settings: Settings) -> None:
    """The tab.

    Args:
        trace: the first of the two.
        source: of the trace.
        settings: what the operator allows.
    """
    st.caption(say("beside_help"))
    others = [other for other in history.traces() if other.digest != trace.digest]
    if not others:
        st.info(say("beside_one"), icon=":material/compare:")
        return
    names = {other.digest: history.name_of(other) for other in others}
    digest = st.selectbox(say("beside_with"), list(names), format_func=names.__getitem__, key="beside with")
    other = next(other for other in others if other.digest == digest)
    compare(trace, other)


def compare(trace: Trace, other: Trace) -> None:
    """Two traces in numbers and figures.

    Args:
        trace: the first.
        other: the second.
    """
    pairing = pair(trace, other)
    st.caption(
        plain(
            say(
                "beside_paired",
                n=f"{len(pairing.first):,}",
                first=f"{trace.num_tokens:,}",
                second=f"{other.num_tokens:,}",
            )
        )
    )
    _summary(trace, other)
    if not len(pairing.first) or not min(trace.num_spans, other.num_spans):
        st.info(say("beside_nothing"))
        return
    _levels(trace, other, pairing)


def _name(trace: Trace) -> str:
    where = trace.provenance
    return f"{trace.prompt.strip()[:50]!r} · {where.checkpoint} · {where.dtype}"


def _summary(first: Trace, second: Trace) -> None:
    """What each keeps, costs and predicts."""
    rows = []
    for name, trace in ((say("beside_first"), first), (say("beside_second"), second)):
        work = trace.block_tokens.sum() / max(trace.num_blocks * trace.num_tokens, 1)
        likeliest = repr(str(trace.next_pieces[0])) if len(trace.next_pieces) else "–"
        probability = f" {trace.next_probabilities[0]:.1%}" if len(trace.next_probabilities) else ""
        rows.append(
            {
                "": name,
                say("beside_run"): _name(trace),
                say("beside_kept"): ", ".join(f"{share:.0%}" for share in trace.retention) or "–",
                say("beside_work"): f"{work:.0%}",
                say("beside_next"): likeliest + probability,
                say("beside_perplexity"): "–" if np.isnan(trace.perplexity) else f"{trace.perplexity:.2f}",
            }
        )
    st.dataframe(pd.DataFrame(rows), hide_index=True)


def _levels(first: Trace, second: Trace, pairing: Pairing) -> None:
    words = table(language())
    found = overlap(first, second, pairing)
    names = [figures.level_name(first, span, words) for span in range(len(found))]
    shown = pd.DataFrame(
        {
            say("beside_kept_first"): found["kept_first"].map("{:.0%}".format),
            say("beside_kept_second"): found["kept_second"].map("{:.0%}".format),
            say("beside_both"): found["both"].map("{:.0%}".format),
            say("beside_differ"): found["differ"].map("{:,}".format),
            say("beside_correlation"): found["correlation"].map(
                lambda value: "–" if np.isnan(value) else f"{value:.3f}"
            ),
        }
    )
    shown.index = pd.Index(names)
    st.table(shown)
    st.caption(say("beside_levels"))
    span = st.selectbox(say("edit_level"), range(len(names)), format_func=names.__getitem__, key="beside level")
    left, right = st.columns(2)
    plot(left, debug_figures.score_pairs(first, second, pairing, span, words), "beside scores")
    with right:
        _differing(first, second, pairing, span)


def _differing(first: Trace, second: Trace, pairing: Pairing, span: int) -> None:
    """Tokens that only one of the two keeps, with what stands around them."""
    tokens = differing(first, second, pairing)[span]
    rows = []
    for index in tokens[:_SHOWN]:
        a, b = int(pairing.first[index]), int(pairing.second[index])
        start, end = int(first.starts[a]), int(first.ends[a])
        rows.append(
            {
                say("flip_token"): a,
                say("beside_context"): f"…{first.prompt[max(start - _CONTEXT, 0) : start]}⟦{first.prompt[start:end]}⟧"
                f"{first.prompt[end : end + _CONTEXT]}…",
                say("beside_who"): say("beside_first" if first.kept[span, a] else "beside_second"),
                say("flip_before"): f"{first.scores[span, a]:+.3f}",
                say("flip_after"): f"{second.scores[span, b]:+.3f}",
            }
        )
    st.markdown(f"**{say('beside_differing', n=f'{len(tokens):,}')}**")
    if rows:
        st.dataframe(pd.DataFrame(rows), hide_index=True, height=300)
