"""Step by step: a continuation that can be paused, taken back and branched, next to the dense model's."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from transformers import PreTrainedTokenizerBase

from analysis import AnalysisError, Trace
from analysis.debug.generation import NewToken, Sampling, first_difference
from analysis.figures import debug as debug_figures
from analysis.figures.quoted import quoted
from analysis.figures.terms import common_word, level_name, state_in_words, system_name
from analysis.trace.tokenize import decode_pieces, read_prompt
from app import engine, reproduce
from app.engine import Text
from app.messages import REDRAW, ProgressBar, plain, plot, show_error, sortable
from app.settings import Settings
from app.state import Run, session
from app.strings import language, say, table
from app.views import again, boxes
from app.views.debug import whatif
from app.views.trace import answers
from app.visitors import working
from subllm import SubllmError

_MOST = 400  # tokens generated per click


def show(run: Run, settings: Settings) -> None:
    """The tab."""
    words = table(language())
    st.caption(common_word(run.trace, "steps_intro", words, "\n\n"))
    sampling = _sampling()
    beginning = ProgressBar()
    texts = _texts(run, sampling, settings, beginning)
    if not texts:
        return
    texts = _branched(texts, settings, beginning)
    try:
        ended = _ended(texts, settings, beginning)
    except (SubllmError, AnalysisError) as error:
        show_error(error)
        return
    many = _buttons(texts[0], min(_MOST, settings.limits.new_tokens), ended=ended)
    progress, place = ProgressBar(), st.empty()
    _text(place, texts, run, beginning)
    if many:
        try:
            drawn = 0.0
            with working("generation", settings, progress) as work:
                for written in engine.write(texts, many, work):
                    _keep(written)
                    if time.monotonic() - drawn > REDRAW:
                        _text(place, written, run, beginning)
                        drawn = time.monotonic()
        except (SubllmError, AnalysisError) as error:
            show_error(error)
        else:
            st.rerun()  # the buttons above can now go back
    if ended:
        st.info(say("steps_ended"), icon=":material/flag:")
    if texts[0].tokens:
        _tokens(run, texts, beginning)
        ids = [token.id for token in texts[0].tokens]
        answers.offer(run, texts[0].prompt, ids, texts[0].edits, settings)
        _again(run, texts[0])


def _again(run: Run, ours: Text) -> None:
    """What writes the text again; a command has no system prompt, and chooses no token by hand."""
    chat = run.recipe.chat or ours.prompt.text != run.trace.prompt.text
    system = chat and not run.recipe.chat and st.session_state.get("system")
    if run.recipe.again and not system and all(token.chosen for token in ours.tokens):
        recipe = replace(run.recipe, chat=chat)
        again.show(reproduce.continued(recipe, ours.sampling, ours.edits, len(ours.tokens)))


def _keep(texts: Sequence[Text]) -> None:
    """Keep the texts under the key that they were begun with."""
    found = session().found
    found["texts"] = (found["texts"][0], list(texts))


def _ended(texts: Sequence[Text], settings: Settings, progress: ProgressBar) -> bool:
    """Whether the first text has ended; the model is asked only when the text has changed."""
    own, ours = session(), texts[0]
    key = (own.found["texts"][0], tuple(token.id for token in ours.tokens))
    known = own.recall("ended", key)
    if known is None:
        with working("generation", settings, progress) as work:
            known = engine.finished(ours, work)
        own.found["ended"] = (key, known)
    return bool(known)


def _sampling() -> Sampling:
    with st.expander(say("sampling"), icon=":material/tune:"):
        one, two, three, four, five = st.columns(5)
        return Sampling(
            one.slider(
                say("temperature"), 0.0, 2.0, 0.0, 0.05, key="temperature", help=say("temperature_help"),
                persist_state="session",
            ),
            two.slider(say("top_p"), 0.05, 1.0, 1.0, 0.05, key="top p", persist_state="session"),
            three.number_input(
                say("top_k"), 0, 1000, 0, key="top k", help=say("top_k_help"), persist_state="session"
            ),
            four.slider(say("repetition"), 1.0, 2.0, 1.0, 0.05, key="repetition", persist_state="session"),
            five.number_input(say("seed"), 0, 2**31, 0, key="seed", persist_state="session"),
        )  # fmt: skip


def _texts(run: Run, sampling: Sampling, settings: Settings, progress: ProgressBar) -> list[Text]:
    """The texts of the SUBLLM and, if it is wanted, of the dense model."""
    own, trace, recipe = session(), run.trace, run.recipe
    left, middle, right = st.columns([2, 3, 2], vertical_alignment="bottom")
    chat = left.toggle(say("chat"), key="steps chat", help=say("chat_help"), persist_state="session")
    system = middle.text_input(say("system"), key="system", disabled=not chat or recipe.chat, persist_state="session")
    beside = right.toggle(say("steps_dense"), key="steps dense", help=say("steps_dense_help"), persist_state="session")
    edits = tuple(whatif.in_force(run))
    if chat and not recipe.chat:  # another prompt, in which tokens have other numbers
        edits = tuple(edit for edit in edits if not edit.tokens[:1].isdecimal())
    if edits:
        st.caption(plain(say("steps_edits", edits="; ".join(map(str, edits)))))
    key = (trace.run, chat, system if chat else "", sampling, edits, beside)
    known: list[Text] | None = own.recall("texts", key)
    if known is not None:
        return known
    try:
        with working("generation", settings, progress) as work:
            checkpoint, _ = recipe.model.load(work)
            prompt = trace.prompt
            if chat and not recipe.chat:
                limit = min(settings.limits.tokens, checkpoint.model.config.max_position_embeddings)
                prompt = read_prompt(recipe.text, checkpoint.tokenizer, limit, chat=True, system=system)
            texts = [
                Text(recipe.model, prompt, sampling, edits, dense) for dense in ([False, True] if beside else [False])
            ]
            for text in texts:
                engine.finished(text, work)
    except (SubllmError, AnalysisError) as error:
        show_error(error)
        return []
    own.found["texts"] = (key, texts)
    return texts


def _buttons(ours: Text, most: int, *, ended: bool) -> int:
    """The buttons; how many tokens are to be generated."""
    columns = st.columns([2, 2, 2, 2, 3], vertical_alignment="bottom")
    step = columns[0].button(say("steps_one"), icon=":material/skip_next:", width="stretch", disabled=ended)
    go = columns[1].button(
        say("steps_go"), icon=":material/play_arrow:", width="stretch", type="primary", disabled=ended
    )
    columns[2].button(
        say("steps_back"), icon=":material/skip_previous:", width="stretch", disabled=not ours.tokens,
        on_click=_take_back, args=(len(ours.tokens) - 1,),
    )  # fmt: skip
    columns[3].button(
        say("steps_restart"), icon=":material/restart_alt:", width="stretch", disabled=not ours.tokens,
        on_click=_take_back, args=(0,),
    )  # fmt: skip
    boxes.put("many", min(st.session_state.get("many", 40), most))
    many = columns[4].number_input(say("steps_many"), 1, most, key="many", persist_state="session")
    return 1 if step else min(int(many), most) if go else 0


def _take_back(length: int) -> None:
    _keep([replace(text, tokens=text.tokens[:length]) for text in session().found["texts"][1]])


def _ask_for_branch(length: int, token: int) -> None:
    """Note the token that is to follow the first ones. The page's next run generates it, and can be stopped."""
    found = session().found
    found["branch"] = (found["texts"][0], (length, token))


def _branched(texts: list[Text], settings: Settings, progress: ProgressBar) -> list[Text]:
    """The texts, with the token that was chosen instead of another one."""
    own = session()
    asked = own.recall("branch", own.found["texts"][0])
    own.found.pop("branch", None)
    if asked is None:
        return texts
    length, token = asked
    try:
        with working("generation", settings, progress) as work:
            texts = [engine.branch(text, length, token, work) if len(text.tokens) >= length else text for text in texts]
    except (SubllmError, AnalysisError) as error:
        show_error(error)
    else:
        _keep(texts)
    return texts


def _tokenizer(run: Run, progress: ProgressBar) -> PreTrainedTokenizerBase:
    """The tokenizer of a run; its checkpoint is loaded again if others have pushed it out, which can be stopped."""
    checkpoint, _ = run.recipe.model.load(progress)
    progress.clear()
    return checkpoint.tokenizer


def _text(place: Any, texts: Sequence[Text], run: Run, progress: ProgressBar) -> None:
    """Both texts so far; tokens that a level dropped are marked in the table below."""
    tokenizer = _tokenizer(run, progress)
    own = system_name(run.trace.routing.routers.tolist(), table(language()))
    with place.container():
        columns = st.columns(len(texts))
        for column, text, name in zip(columns, texts, (own, say("dense")), strict=False):
            column.markdown(f"**{name}**")
            written = str(tokenizer.decode([token.id for token in text.tokens]))
            column.code(written or " ", language=None, wrap_lines=True)
            if text.tokens:
                rate = len(text.tokens) / sum(token.seconds for token in text.tokens)
                column.caption(say("steps_rate", n=len(text.tokens), rate=f"{rate:.1f}"))
        if len(texts) > 1:
            at = first_difference(*([token.id for token in text.tokens] for text in texts))
            st.caption(say("steps_same") if at is None else say("steps_parting", n=at))


def _tokens(run: Run, texts: Sequence[Text], progress: ProgressBar) -> None:
    """A table of the new tokens, and alternatives to the selected one."""
    words, ours = table(language()), texts[0].tokens
    dense = texts[1].tokens if len(texts) > 1 else ()
    tokenizer = _tokenizer(run, progress)
    pieces = decode_pieces(np.asarray([token.id for token in ours]), tokenizer)
    frame = pd.DataFrame([_row(run.trace, ours, number, str(piece)) for number, piece in enumerate(pieces)])
    event = st.dataframe(
        sortable(frame, {say("steps_probability"): ".1%", "ms": ",.1f"}), hide_index=True, on_select="rerun",
        selection_mode="single-row", key=f"new tokens {len(frame)}", height=320,
    )  # fmt: skip
    chosen = event.selection.rows if hasattr(event, "selection") else []
    if chosen and chosen[0] < len(ours):
        _alternatives(chosen[0], ours[chosen[0]], tokenizer)
    else:
        st.caption(say("steps_choose"))
    left, right = st.columns(2)
    plot(left, debug_figures.token_times(ours, dense, words), "token times")
    left.caption(say("steps_times"))
    plot(right, debug_figures.level_growth(run.trace, ours, dense, words), "level growth")
    right.caption(say("growth_help"))


def _row(trace: Trace, tokens: Sequence[NewToken], number: int, piece: str) -> dict[str, object]:
    """A line of the table. A token of a merging level waits for its group until a later one carries it."""
    token, later, words = tokens[number], tokens[number + 1 :], table(language())
    probability = dict(token.alternatives)[token.id]
    row: dict[str, object] = {
        "#": number,
        say("flip_text"): quoted(piece),
        say("steps_probability"): probability,
        say("steps_by"): "" if token.chosen else say("steps_person"),
    }
    for level in trace.routing.levels:
        score, open_group = token.scores[level - 1], not any(other.kept[level - 1] for other in later)
        state = state_in_words(trace, level, token.reached, token.kept, -1 if open_group else None, words)
        row[level_name(trace, level, words)] = state if score is None else f"{state} ({score:+.3f})"
    row[say("steps_blocks")] = token.blocks
    row["ms"] = 1000 * token.seconds
    return row


def _alternatives(number: int, token: NewToken, tokenizer: PreTrainedTokenizerBase) -> None:
    """Buttons that go back and choose another token."""
    st.markdown(f"**{say('steps_instead', n=number)}**")
    ids = [each for each, _ in token.alternatives]
    pieces = decode_pieces(np.asarray(ids), tokenizer)
    columns = st.columns(4)
    for index, (each, probability) in enumerate(token.alternatives):
        columns[index % 4].button(
            f"{plain(quoted(str(pieces[index])))} {probability:.1%}", key=f"branch {number} {each}", width="stretch",
            disabled=each == token.id, on_click=_ask_for_branch, args=(number, each),
        )  # fmt: skip
