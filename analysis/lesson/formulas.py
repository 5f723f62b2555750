"""The live figures of the lesson's stops: numbers of the run on screen, and the formula that they stand in.

A stop names a formula of `FORMULAS`, and its texts have placeholders for the values of that formula.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..trace.statistics import score_rank
from .place import Place, doubtful, inwards, kept_and_dropped, key_token, pair, step, viewer_and_viewed, window

Value = float | int | str


@dataclass(frozen=True)
class Figures:
    """Live figures of a stop.

    Attributes:
        values: for the placeholders of the stop's texts.
        latex: the formula with its numbers; "" if there is none.
        tokens: that the figures are about.
        law: the formula without numbers, in LaTeX, which gives no answer away; "" if there is none.
    """

    values: Mapping[str, Value]
    latex: str = ""
    tokens: tuple[int, ...] = ()
    law: str = ""


@dataclass(frozen=True)
class Formula:
    """How a stop's figures come from a place.

    Attributes:
        needs: what the run must have, each one of `NEEDS`.
        names: of the values.
        figures: the function.
    """

    needs: tuple[str, ...]
    names: frozenset[str]
    figures: Callable[[Place], Figures]


FORMULAS: dict[str, Formula] = {}


def _formula(needs: str, names: str) -> Callable[[Callable[[Place], Figures]], Callable[[Place], Figures]]:
    def keep(figures: Callable[[Place], Figures]) -> Callable[[Place], Figures]:
        FORMULAS[figures.__name__] = Formula(tuple(needs.split()), frozenset(names.split()), figures)
        return figures

    return keep


def _lines(*formulas: str) -> str:
    """Formulas below each other: a panel is narrow."""
    return r"\begin{gathered} " + r" \\ ".join(formulas) + r" \end{gathered}"


@_formula("drops", "level window first last dropped share")
def editor(place: Place) -> Figures:
    """How many tokens of a stretch the level drops."""
    near = window(place)
    count, dropped, ends = int(near.sum()), int((near & place.dropped).sum()), near.nonzero()[0][[0, -1]]
    values: dict[str, Value] = {
        "level": place.level,
        "window": count,
        "first": int(ends[0]),
        "last": int(ends[1]),
        "dropped": dropped,
        "share": dropped / count,
    }
    return Figures(values, rf"\frac{{{dropped}}}{{{count}}} = {dropped / count:.2f}")


@_formula("levels", "tokens blocks cells done saved work")
def grid(place: Place) -> Figures:
    """Tokens times blocks, and how much of that was worked on."""
    tokens, blocks = place.trace.num_tokens, place.routing.num_blocks
    done = float(place.routing.work.sum(dtype=np.float64))
    values: dict[str, Value] = {
        "tokens": tokens,
        "blocks": blocks,
        "cells": tokens * blocks,
        "done": done,
        "saved": tokens * blocks - done,
        "work": done / (tokens * blocks),
    }
    return Figures(values, rf"T \times L = {tokens} \times {blocks} = {tokens * blocks}", law=r"T \times L")


@_formula("scores", "level one one_score one_rank two two_score two_rank reached norm")
def score(place: Place) -> Figures:
    """The scores of two tokens, and their ranks."""
    one, two = pair(place)
    scores = place.routing.scores_of(place.level)
    norm = float(place.routing.stream_norm[place.row, one])
    values: dict[str, Value] = {"level": place.level, "reached": int(place.reached.sum()), "norm": norm}
    for name, token in (("one", one), ("two", two)):
        values |= {
            name: place.named(token),
            f"{name}_score": float(scores[token]),
            f"{name}_rank": score_rank(place.routing, place.level, token)[0],
        }
    latex = _lines(rf"s_{{{one}}} = x_{{{one}}} \cdot w = {scores[one]:.2f}", rf"s_{{{two}}} = {scores[two]:.2f}")
    return Figures(values, latex, (one, two), r"s = x \cdot w")


@_formula("scores", "level token token_score threshold step moved weight kept reached retention nominal left")
def threshold(place: Place) -> Figures:
    """A score beside the threshold, and what is kept in all."""
    token, routing, row = doubtful(place), place.routing, place.row
    limit, by = float(routing.thresholds[row]), step(place)
    scores = routing.scores_of(place.level)
    own, weight = float(scores[token]), float(routing.weights[row, token])
    values: dict[str, Value] = {
        "level": place.level,
        "token": place.named(token),
        "token_score": own,
        "threshold": limit,
        "step": by,
        "moved": limit + by,
        "weight": weight,
        "kept": int(place.kept.sum()),
        "reached": int(place.reached.sum()),
        "retention": float(routing.retention[row]),
        "nominal": float(routing.retention_ratios[row]),
        "left": int((scores > limit + by).sum()),
    }
    lines = [rf"s = {own:.2f} > \theta = {limit:.2f}"]
    if routing.routers[row] == "subllm":
        rest = f"{own:.2f}" if limit == 0 else f"{own:.2f} - {limit:.2f}"
        lines.append(rf"a = \mathrm{{clamp}}({rest},\ 0,\ 1) = {weight:.2f}")
    return Figures(values, _lines(*lines), (token,), r"s > \theta")


@_formula("nesting", "levels nominal share inner tokens innermost")
def nesting(place: Place) -> Figures:
    """The shares of nested levels, multiplied: as training aimed at, and as this prompt has it."""
    routing, chain = place.routing, inwards(place.routing)
    counts = [place.trace.num_tokens, *(int(routing.kept[level - 1].sum()) for level in chain)]
    nominal = [float(routing.retention_ratios[level - 1]) for level in chain]
    product, share = float(np.prod(nominal)), counts[-1] / counts[0]
    values: dict[str, Value] = {
        "levels": len(chain),
        "nominal": product,
        "share": share,
        "inner": counts[-1],
        "tokens": counts[0],
        "innermost": chain[-1],
    }
    aimed = r" \cdot ".join(f"{ratio:.2f}" for ratio in nominal)
    real = r" \cdot ".join(rf"\frac{{{b}}}{{{a}}}" for a, b in pairwise(counts) if a)
    latex = _lines(rf"{aimed} \approx {product:.2f}", rf"{real} \approx {share:.2f}")
    return Figures(values, latex, law=r"\rho_1 \cdot \rho_2 \cdots")


@_formula("drops blocks", "level viewer viewed before inside place slot")
def inside(place: Place) -> Figures:
    """How many of the tokens before one are in its level with it, and where it stands."""
    viewer, viewed = viewer_and_viewed(place)
    before = int(place.kept[: viewer + 1].sum())
    values: dict[str, Value] = {
        "level": place.level,
        "viewer": place.named(viewer),
        "viewed": place.named(viewed),
        "before": viewer + 1,
        "inside": before,
        "place": viewer,
        "slot": before - 1,
    }
    return Figures(values, rf"{before}\ /\ {viewer + 1}", (viewer, viewed))


@_formula("drops", "level one two weight scale low high stream change added two_stream two_added")
def bypass(place: Place) -> Figures:
    """What the level adds to a token that it keeps, and to one that it drops."""
    one, two = kept_and_dropped(place)
    routing, row = place.routing, place.row
    scales = routing.bypass_scale[row] if routing.bypassed[row] else np.ones(1)
    weight, added = float(routing.weights[row, one]), float(routing.contribution_norm[row, one])
    values: dict[str, Value] = {
        "level": place.level,
        "one": place.named(one),
        "two": place.named(two),
        "weight": weight,
        "scale": float(scales.mean()),
        "low": float(scales.min()),
        "high": float(scales.max()),
        "stream": float(routing.stream_norm[row, one]),
        "change": float(routing.difference_norm[row, one]),
        "added": added,
        "two_stream": float(routing.stream_norm[row, two]),
        "two_added": float(routing.contribution_norm[row, two]),
    }
    factor = r"\beta \odot a" if routing.bypassed[row] else "a"
    norm = rf"\lVert {factor}\,(f(x) - x) \rVert"
    law = rf"\mathrm{{out}} = x + {factor}\,(f(x) - x)"
    latex = _lines(
        law,
        rf"{norm}_{{{one}}} = {added:.1f}",
        rf"{norm}_{{{two}}} = {values['two_added']:.1f}",
    )
    return Figures(values, latex, (one, two), law)


@_formula("costs", "tokens own dense speed hoped inner work cache dense_cache cache_share agreement divergence")
def cost(place: Place) -> Figures:
    """Measured time and cache beside the dense model's, and the speed that one may have hoped for."""
    trace = place.trace
    assert trace.costs is not None and trace.agreement is not None
    own, dense = trace.costs.subllm, trace.costs.dense
    inner, work = float(trace.routing.level_tokens.min() / trace.num_tokens), float(grid(place).values["work"])
    values: dict[str, Value] = {
        "tokens": trace.num_tokens,
        "own": 1000 * own.median_seconds,
        "dense": 1000 * dense.median_seconds,
        "speed": dense.median_seconds / own.median_seconds,
        "hoped": 1 / inner if inner else float("inf"),
        "inner": inner,
        "work": work,
        "cache": own.cache_bytes / 2**20,
        "dense_cache": dense.cache_bytes / 2**20,
        "cache_share": own.cache_bytes / dense.cache_bytes,
        "agreement": float(trace.agreement.agrees.mean()),
        "divergence": float(trace.agreement.divergence.mean()),
    }
    latex = (
        rf"\frac{{{values['dense']:.1f}\,\mathrm{{ms}}}}{{{values['own']:.1f}\,\mathrm{{ms}}}} = {values['speed']:.2f}"
    )
    return Figures(values, latex)


@_formula("drops continuation unedited", "level token answer chance new new_kept new_tokens")
def broken(place: Place) -> Figures:
    """A token to drop, the likeliest next token, and how many new tokens the level kept."""
    token, found, new = key_token(place), place.trace.predictions, place.trace.continuation
    assert found is not None and new is not None
    values: dict[str, Value] = {
        "level": place.level,
        "token": place.named(token),
        "answer": repr(str(found.next_pieces[0])),
        "chance": float(found.next_probabilities[0]),
        "new": repr(str(new.pieces[0])),
        "new_kept": int(new.kept[place.row].sum()),
        "new_tokens": len(new.ids),
    }
    return Figures(values, rf"P = {values['chance']:.3f}", (token,))
