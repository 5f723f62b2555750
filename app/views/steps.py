"""Step by step: a continuation that can be paused, taken back and branched, with the dense model beside it."""

import time
from collections.abc import Sequence

import numpy as np
import pandas as pd
import streamlit as st

from analysis import AnalysisError, Trace, debug_figures, figures
from analysis.generate import Generation, NewToken, Sampling, parting
from analysis.prompt import decode_pieces, read_prompt
from app import runs
from app.messages import REDRAW, ProgressBar, plain, plot, show_error
from app.settings import Settings
from app.strings import language, say, table
from app.views import whatif
from subllm import SubllmError

_MOST = 400  # tokens written at one press


def show(trace: Trace, source: runs.Source, settings: Settings) -> None:
    """The tab.

    Args:
        trace: of the prompt.
        source: of the trace.
        settings: what the operator allows.
    """
    st.caption(say("steps_intro"))
    sampling = _sampling()
    texts = _texts(trace, source, sampling, settings)
    if not texts:
        return
    ours = texts[0]
    dense = texts[1] if len(texts) > 1 else None
    many = _buttons(ours, source)
    progress, text_place = ProgressBar("stop writing"), st.empty()
    _text(text_place, ours, dense, source)
    if many:
        try:
            drawn = 0.0
            with progress:
                for _ in runs.write(texts, many, progress):
                    if time.monotonic() - drawn > REDRAW:
                        _text(text_place, ours, dense, source)
                        drawn = time.monotonic()
        except (SubllmError, AnalysisError) as error:
            show_error(error)
        else:
            _text(text_place, ours, dense, source)
            st.rerun()  # the buttons above can now go back
    if ours.finished:
        st.info(say("steps_ended"), icon=":material/flag:")
    if ours.tokens:
        _tokens(trace, ours, dense, source)


def _sampling() -> Sampling:
    with st.expander(say("sampling"), icon=":material/tune:"):
        columns = st.columns(5)
        return Sampling(
            columns[0].slider(say("temperature"), 0.0, 2.0, 0.0, 0.05, help=say("temperature_help")),
            columns[1].slider(say("top_p"), 0.05, 1.0, 1.0, 0.05),
            columns[2].number_input(say("top_k"), 0, 1000, 0, help=say("top_k_help")),
            columns[3].slider(say("repetition"), 1.0, 2.0, 1.0, 0.05),
            columns[4].number_input(say("seed"), 0, 2**31, 0),
        )


def _texts(trace: Trace, source: runs.Source, sampling: Sampling, settings: Settings) -> list[Generation]:
    """The texts that are written: by the SUBLLM, and beside it by the dense model."""
    left, middle, right = st.columns([2, 3, 2], vertical_alignment="bottom")
    chat = left.toggle(say("chat"), key="steps chat", help=say("chat_help"), persist_state="session")
    system = middle.text_input(say("system"), key="system", disabled=not chat, persist_state="session")
    beside = right.toggle(say("steps_dense"), key="steps dense", help=say("steps_dense_help"), persist_state="session")
    edits = tuple(whatif.in_force(trace))
    if edits:
        st.caption(plain(say("steps_edits", edits="; ".join(map(str, edits)))))
    checkpoint, _ = source.load()
    key = (trace.digest, chat, system if chat else "", sampling, edits, beside, id(checkpoint.model))
    if st.session_state.get("texts", (None,))[0] == key:
        return st.session_state["texts"][1]
    try:
        with ProgressBar() as progress:
            ids = trace.token_ids.tolist()
            if chat and not source.chat:
                limit = min(settings.max_tokens, checkpoint.model.config.max_position_embeddings)
                prompt = read_prompt(source.text, checkpoint.tokenizer, limit, chat=True, system=system)
                ids = prompt.token_ids.tolist()
            texts = [
                runs.generation(source, ids, sampling, edits, progress, dense=dense)
                for dense in ([False, True] if beside else [False])
            ]
    except (SubllmError, AnalysisError) as error:
        show_error(error)
        return []
    st.session_state["texts"] = (key, texts)
    return texts


def _buttons(ours: Generation, source: runs.Source) -> int:
    """What is to be done; the tokens to write."""
    columns = st.columns([2, 2, 2, 2, 3], vertical_alignment="bottom")
    step = columns[0].button(say("steps_one"), icon=":material/skip_next:", width="stretch", disabled=ours.finished)
    go = columns[1].button(
        say("steps_go"), icon=":material/play_arrow:", width="stretch", type="primary", disabled=ours.finished
    )
    columns[2].button(
        say("steps_back"), icon=":material/skip_previous:", width="stretch", disabled=not ours.tokens,
        on_click=_take_back, args=(len(ours.tokens) - 1,),
    )  # fmt: skip
    columns[3].button(
        say("steps_restart"), icon=":material/restart_alt:", width="stretch", disabled=not ours.tokens,
        on_click=_take_back, args=(0,),
    )  # fmt: skip
    many = columns[4].number_input(say("steps_many"), 1, _MOST, 40, key="many", persist_state="session")
    return 1 if step else int(many) if go else 0


def _take_back(length: int) -> None:
    for text in st.session_state["texts"][1]:
        text.take_back(length)


def _branch(length: int, token: int) -> None:
    for text in st.session_state["texts"][1]:
        if len(text.tokens) >= length:
            text.branch(length, token)


def _text(place: object, ours: Generation, dense: Generation | None, source: runs.Source) -> None:
    """Both texts so far; tokens that a level dropped are marked in the table below."""
    tokenizer = source.load()[0].tokenizer
    with place.container():  # type: ignore[attr-defined]
        columns = st.columns(2 if dense else 1)
        for column, text, name in zip(
            columns, [ours, dense] if dense else [ours], ("SUBLLM", say("dense")), strict=False
        ):
            assert text is not None
            column.markdown(f"**{name}**")
            written = str(tokenizer.decode([token.id for token in text.tokens]))
            column.code(written or " ", language=None, wrap_lines=True)
            if text.tokens:
                rate = len(text.tokens) / sum(token.seconds for token in text.tokens)
                column.caption(say("steps_rate", n=len(text.tokens), rate=f"{rate:.1f}"))
        if dense is not None:
            at = parting([token.id for token in ours.tokens], [token.id for token in dense.tokens])
            st.caption(say("steps_same") if at is None else say("steps_parting", n=at))


def _tokens(trace: Trace, ours: Generation, dense: Generation | None, source: runs.Source) -> None:
    """Every new token, and what could have come instead."""
    words = table(language())
    tokenizer = source.load()[0].tokenizer
    pieces = decode_pieces(np.asarray([token.id for token in ours.tokens]), tokenizer)
    frame = pd.DataFrame([_row(trace, number, token, pieces) for number, token in enumerate(ours.tokens)])
    event = st.dataframe(
        frame, hide_index=True, on_select="rerun", selection_mode="single-row", key=f"new tokens {len(frame)}",
        height=320,
    )  # fmt: skip
    chosen = event.selection.rows if hasattr(event, "selection") else []
    if chosen and chosen[0] < len(ours.tokens):
        _alternatives(chosen[0], ours.tokens[chosen[0]], tokenizer)
    else:
        st.caption(say("steps_choose"))
    left, right = st.columns(2)
    plot(left, debug_figures.token_times(ours, dense, words), "token times")
    left.caption(say("steps_times"))
    plot(right, debug_figures.level_growth(ours, dense, words), "level growth")
    right.caption(say("growth_help"))


def _row(trace: Trace, number: int, token: NewToken, pieces: Sequence[str] | np.ndarray) -> dict[str, object]:
    words = table(language())
    probability = dict(token.alternatives)[token.id]
    row: dict[str, object] = {
        "#": number,
        say("flip_text"): str(pieces[number]),
        say("steps_probability"): f"{probability:.1%}",
        say("steps_by"): "" if token.chosen else say("steps_person"),
    }
    for span, (score, kept) in enumerate(zip(token.scores, token.kept, strict=True)):
        state = "absent" if np.isnan(score) else "kept" if kept else "dropped"
        shown = say(f"view_{state}State")
        row[figures.level_name(trace, span, words)] = shown if state == "absent" else f"{shown} ({score:+.3f})"
    row[say("steps_blocks")] = token.blocks
    row["ms"] = round(1000 * token.seconds, 1)
    return row


def _alternatives(number: int, token: NewToken, tokenizer: object) -> None:
    """Buttons that go back and write another token."""
    st.markdown(f"**{say('steps_instead', n=number)}**")
    ids = [each for each, _ in token.alternatives]
    pieces = decode_pieces(np.asarray(ids), tokenizer)  # type: ignore[arg-type]
    columns = st.columns(4)
    for index, (each, probability) in enumerate(token.alternatives):
        columns[index % 4].button(
            f"{plain(repr(str(pieces[index])))} {probability:.1%}", key=f"branch {number} {each}", width="stretch",
            disabled=each == token.id, on_click=_branch, args=(number, each),
        )  # fmt: skip
