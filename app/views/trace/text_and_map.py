"""The prompt as text and as a map of blocks by tokens; level, selected tokens and colour are those of the session."""

from dataclasses import replace

from analysis import Trace
from analysis.figures.routing_view.data import Shown, Spotlight
from app.components.routing_view import heard, routing_view
from app.state import session
from app.strings import language, table


def show(trace: Trace, key: str, spotlight: Spotlight | None = None) -> Shown:
    """Show a trace as the session asks, and note what the visitor changed.

    Args:
        trace: trace of a prompt.
        key: key of the element.
        spotlight: what a lesson lights and hides; None without a lesson.
    """
    own = session()
    asked = Shown.parse(own.shown, trace)
    shown = draw(trace, asked, key, spotlight)
    own.show(shown, asked)
    return shown


def hear(trace: Trace, key: str) -> None:
    """Note what the visitor changed before the element is drawn, for what depends on it and is drawn with it.

    Args:
        trace: trace of a prompt.
        key: key of the element.
    """
    own = session()
    asked, before = Shown.parse(own.shown, trace), own.views.get(key)
    if before and (found := heard(trace, asked, before, key)):
        own.views[key] = replace(before, received=found)
        own.show(found, asked)


def draw(trace: Trace, asked: Shown, key: str, spotlight: Spotlight | None = None) -> Shown:
    """Show a trace; what the browser shows of it.

    Args:
        trace: trace of a prompt.
        asked: what is to be shown.
        key: key of the element.
        spotlight: as for `show`.
    """
    views = session().views
    views[key] = routing_view(trace, asked, views.get(key), table(language()), key, spotlight)
    return views[key].received
