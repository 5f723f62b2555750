"""The prompt as text and as a map of blocks by tokens; level, selected tokens and colour are those of the session."""

from analysis import Trace
from app.components.routing_view import Shown, routing_view
from app.state import session
from app.strings import language, table


def show(trace: Trace, key: str) -> Shown:
    """Show a trace as the session asks, and note what the visitor changed.

    Args:
        trace: trace of a prompt.
        key: key of the element.
    """
    own = session()
    asked = Shown.parse(own.shown, trace)
    shown = draw(trace, asked, key)
    own.show(shown, asked)
    return shown


def draw(trace: Trace, asked: Shown, key: str) -> Shown:
    """Show a trace; what the browser shows of it.

    Args:
        trace: trace of a prompt.
        asked: what is to be shown.
        key: key of the element.
    """
    views = session().views
    views[key] = routing_view(trace, asked, views.get(key), table(language()), key)
    return views[key].received
