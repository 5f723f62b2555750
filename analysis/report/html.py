"""A report: one HTML file with the text, the map, the lane and the tables of a run, or of runs side by side.

It opens from a disk: everything is in it, and its content security policy allows no network. What a prompt says is data
in it, packed as for the page, and escaped where it stands in a table.
"""

import base64
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

from ..figures import summary
from ..figures.modules import join
from ..figures.quoted import quoted
from ..figures.routing_view.data import Shown, view_data
from ..figures.routing_view.element import CSS, HTML
from ..figures.strings import LANGUAGES, spoken, table
from ..figures.terms import common_word, device_words, flag_in_words
from ..figures.words import Words
from ..trace.flags import flags
from ..trace.pairs import overlap, pair
from ..trace.trace import Trace
from . import again

_FOLDER = Path(__file__).parent
_STYLE = (_FOLDER / "report.css").read_text(encoding="utf-8")
_TRANSLATED = ("version", "channels", "levels", "labels")  # of a view's header


def report(
    traces: Sequence[Trace],
    *,
    language: str = "en",
    shown: Shown | None = None,
    names: Sequence[str] = (),
    note: str = "",
) -> str:
    """The report.

    Args:
        traces: one run, or several to see side by side.
        language: that it opens in, one of `LANGUAGES`; the reader can change it.
        shown: level, tokens and colour to begin with.
        names: what the runs are called; by default what their checkpoints are.
        note: text in front of everything.
    """
    data = [view_data(trace, _fitting(shown, trace), table("en")) for trace in traces]
    words = {
        "titles": {each: title(traces, names, table(each)) for each in LANGUAGES},
        "traces": {each: [_translation(trace, shown, each) for trace in traces] for each in LANGUAGES},
    }
    body = [
        *both(language, lambda words: _opening(traces, names, note, words)),
        *(part for index, trace in enumerate(traces) for part in _article(trace, names, index, len(traces), language)),
        *both(language, _closing),
        *(f'<script type="text/plain" class="data">{_packed(each)}</script>' for each in data),
    ]
    return document(body, words, "report.js", language, (CSS,))


def document(
    body: Iterable[str],
    words: Mapping[str, Any],
    module: str,
    language: str,
    styles: Sequence[str] = (),
) -> str:
    """A document that is complete in itself, with a choice of languages.

    Args:
        body: HTML.
        words: what the script is given; "titles" by language is needed.
        module: entry of the script, a file of this folder.
        language: that is shown first.
        styles: that stand in the body.
    """
    script = _script(module)
    allowed = " ".join(map(_hash, (_STYLE, *styles)))
    policy = f"default-src 'none'; script-src {_hash(script)}; style-src {allowed}; base-uri 'none'; form-action 'none'"
    return "\n".join(
        [
            f'<!doctype html>\n<html lang="{language}">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(words['titles'][language])}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
            _languages(language),
            "<main>",
            *body,
            "</main>",
            f'<script type="application/json" class="words">{_json(words)}</script>',
            f'<script type="module">{script}</script>\n</body>\n</html>\n',
        ]
    )


def title(traces: Sequence[Trace], names: Sequence[str], words: Words) -> str:
    """What a report is called."""
    called = [_name(trace, names, index, words) for index, trace in enumerate(traces)]
    if len(called) == 1:
        return words["report_title"].format(name=called[0])
    return words["report_pair_title"].format(names=words["comma"].join(called))


def element(tag: str, *content: str, **attributes: str) -> str:
    """An element whose content is HTML already; attributes are escaped, and `class_` is spelled `class`."""
    found = "".join(f' {name.strip("_").replace("_", "-")}="{escape(value)}"' for name, value in attributes.items())
    return f"<{tag}{found}>{''.join(content)}</{tag}>"


def html_table(rows: pd.DataFrame, *, numbers: bool = True) -> str:
    """A table of texts, with the index as its first column."""
    head = element("tr", element("td"), *(element("th", escape(str(name)), scope="col") for name in rows.columns))
    kind = {"class_": "number"} if numbers else {}
    body = [
        element(
            "tr",
            element("th", escape(str(index)), scope="row"),
            *(element("td", escape(str(value)), **kind) for value in row),
        )
        for index, row in zip(rows.index, rows.itertuples(index=False), strict=True)
    ]
    return element("div", element("table", head, *body), class_="scroll", tabindex="0")


def both(language: str, make: Callable[[Words], str]) -> Iterator[str]:
    """What `make` says in every language; only the one that the document opens in is shown."""
    for each in LANGUAGES:
        yield f'<div lang="{each}"{"" if each == language else " hidden"}>{make(table(each))}</div>'


@cache
def _script(module: str) -> str:
    return join(_FOLDER / module)


def _hash(text: str) -> str:
    """The source expression of a policy that allows this very text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _packed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 9)).decode()


def _json(value: Any) -> str:
    """JSON that cannot end the element that it stands in."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")


def _fitting(shown: Shown | None, trace: Trace) -> Shown:
    return Shown.parse(vars(shown or Shown()), trace)


def _translation(trace: Trace, shown: Shown | None, language: str) -> dict[str, Any]:
    """What the header of a view says in a language."""
    data = view_data(trace, _fitting(shown, trace), table(language))
    header = json.loads(data[4 : 4 + int.from_bytes(data[:4], "little")])
    return {key: header[key] for key in _TRANSLATED}


def _languages(language: str) -> str:
    buttons = [
        element(
            "button",
            escape(name),
            type="button",
            lang=each,
            data_language=each,
            aria_pressed=str(each == language).lower(),
        )
        for each, name in LANGUAGES.items()
    ]
    return element("nav", *buttons, aria_label="Language · 语言")


def _name(trace: Trace, names: Sequence[str], index: int, words: Words) -> str:
    checkpoint = trace.provenance.checkpoint
    return names[index] if names else words.get(f"name_{checkpoint}", checkpoint)


def _opening(traces: Sequence[Trace], names: Sequence[str], note: str, words: Words) -> str:
    """Title, note, and for several runs how they differ."""
    parts = [element("h1", escape(title(traces, names, words)))]
    if note:
        parts.append(element("p", escape(note), class_="note"))
    if len(traces) == 2:
        parts += _compared(traces[0], traces[1], words)
    parts.append(f"<noscript>{element('p', escape(words['report_no_script']))}</noscript>")
    return "".join(parts)


def _compared(first: Trace, second: Trace, words: Words) -> Iterator[str]:
    """The overlap of two runs at each level that both have."""
    pairing = pair(first.prompt, second.prompt)
    found = overlap(first.routing, second.routing, pairing)
    yield element(
        "p",
        escape(
            words["beside_paired"].format(
                n=f"{len(pairing.first):,}", first=f"{first.num_tokens:,}", second=f"{second.num_tokens:,}"
            )
        ),
        class_="small",
    )
    if not len(pairing.first) or not len(found):
        yield element("p", escape(words["beside_nothing"]))
        return
    yield html_table(summary.overlap_table(first, found, words))
    yield element("p", escape(words["beside_levels"]), class_="small")


def _article(trace: Trace, names: Sequence[str], index: int, count: int, language: str) -> Iterator[str]:
    """Everything about one run."""
    yield "<article>"
    yield from both(language, lambda words: _above(trace, names, index, count, words))
    style, open_root = element("style", CSS), '<template shadowrootmode="open">'
    yield f'<div class="view">{open_root}{style}{HTML}</template></div>'
    yield from both(language, lambda words: _below(trace, index, words))
    yield "</article>"


def _above(trace: Trace, names: Sequence[str], index: int, count: int, words: Words) -> str:
    """The run's name, its note, its most important numbers, and its edits."""
    where, parts = trace.provenance, []
    if count > 1:
        parts.append(element("h2", escape(_name(trace, names, index, words))))
    facts = (
        words.get(f"name_{where.checkpoint}", where.checkpoint),
        where.structure,
        device_words(where.device, words),
        where.dtype,
    )
    parts.append(element("p", escape(" · ".join((*facts, where.attention))), class_="small"))
    if trace.note:
        parts.append(element("p", escape(trace.note), class_="note", aria_label=words["report_note"]))
    figures = (
        element(
            "div",
            element("dt", escape(each.label)),
            element("dd", escape(each.value)),
            element("dd", escape(each.note)),
        )
        for each in summary.headline(trace, words)
    )
    parts.append(element("dl", *figures, class_="figures"))
    if odd := flags(trace):
        parts.append(element("p", escape(spoken(words, "flags_title", count=len(odd)))))
        parts.append(element("ul", *(element("li", escape(flag_in_words(trace, flag, words))) for flag in odd)))
    if where.edits or where.rule:
        parts.append(element("h2", escape(words["report_edits"])))
        if where.rule:
            parts.append(element("p", escape(words["report_rule"].format(name=where.rule))))
        parts.append(_lines(where.edits) if where.edits else element("p", escape(words["edits_none"])))
    parts += [element("h2", escape(words["read"])), element("p", escape(common_word(trace, "read_help", words)))]
    return "".join(parts)


def _below(trace: Trace, index: int, words: Words) -> str:
    """What the run says, costs and keeps, where that comes from, and how to make it again."""
    parts = [element("h2", escape(words["say"])), *_said(trace, words)]
    parts.append(element("h2", escape(words["costs"])))
    costs = summary.cost_table(trace, words)
    parts += [html_table(costs)] if len(costs) else []
    parts += [
        element("p", escape(text), class_="small")
        for text in (summary.agreement(trace, words), summary.measured(trace, words))
        if text
    ]
    if trace.routing.num_levels:
        parts += [element("h2", escape(words["by_level"])), html_table(summary.level_table(trace, words))]
        parts += [element("p", escape(words["overview_help"]), class_="small")] if any(trace.routing.scored) else []
    parts += [element("h2", escape(words["report_from"])), _provenance(trace, words)]
    parts += [element("h2", escape(words["report_again"])), *_again(trace, index, words)]
    return "".join(parts)


def _said(trace: Trace, words: Words) -> Iterator[str]:
    """The likeliest next tokens, and the continuation."""
    likeliest = [(piece, f"{probability:.1%}") for piece, probability in summary.next_tokens(trace)]
    if likeliest:
        yield element("p", escape(words["next_tokens"]), class_="small")
        rows = pd.DataFrame(likeliest, columns=["", words["probability"]]).set_index("")
        yield html_table(rows)
    found = trace.continuation
    if found is None:
        yield element("p", escape(words["continuation_none"]))
        return
    yield element("p", escape(spoken(words, "continuation", n=len(found.ids))), class_="small")
    yield _lines([found.text])
    if kept := summary.new_tokens(trace, words):
        yield element("p", escape(kept), class_="small")


def _lines(texts: Iterable[str]) -> str:
    """Texts as they are; the line break keeps the parser from dropping one that a text begins with."""
    return element("pre", "\n", escape("\n".join(texts)))


def _provenance(trace: Trace, words: Words) -> str:
    where = trace.provenance
    rows: Mapping[str, str] = {
        words["checkpoint"]: words.get(f"name_{where.checkpoint}", where.checkpoint),
        words["report_digest"]: where.digest,
        words["report_structure"]: where.structure,
        words["device"]: device_words(where.device, words),
        words["dtype"]: where.dtype,
        words["report_attention"]: where.attention,
        words["report_compared"]: words[f"dense_{where.dense}"] if where.dense else "",
        words["report_predictor"]: words["report_predictor_on"] if where.predictor else "",
        words["report_answer"]: f"{where.answer_from:,}" if where.answer_from else "",
        words["report_patch"]: where.patch,
        words["report_versions"]: where.versions,
    }
    body = (
        element("tr", element("th", escape(name), scope="row"), element("td", escape(value)))
        for name, value in rows.items()
        if value
    )
    return element("div", element("table", *body), class_="scroll", tabindex="0")


def _again(trace: Trace, index: int, words: Words) -> Iterator[str]:
    """The commands, the file with the prompt if they need it, and what they leave open."""
    where = trace.provenance
    if where.patch:
        yield element("p", escape(words["report_again_patch"]), class_="small")
    elif not again.located(trace):
        open_ = words["report_again_folder"].format(
            folder=again.FOLDER, name=quoted(where.checkpoint), digest=where.digest
        )
        yield element("p", escape(open_), class_="small")
    if again.needs_file(trace):
        button = element("button", escape(words["report_save_prompt"]), type="button", data_prompt=str(index))
        yield element("p", escape(words["report_again_file"]), " ", button)
    if again.from_template(trace):
        yield element("p", escape(words["report_again_template"]), class_="small")
    yield _lines(again.commands(trace))


def _closing(words: Words) -> str:
    return element("footer", escape(words["report_footer"].format(version=_version())))


def _version() -> str:
    try:
        return version("subllm")
    except PackageNotFoundError:  # a checkout that was never installed
        return "?"
