"""How tokens are selected: the decision (`Selection`), who takes it (`Router`), and the record of it."""

from . import fixed, scorer  # noqa: F401 - they register their routers
from .bypass import Bypass
from .lengths import Lengths
from .overrides import AtRetention, Replay
from .record import RoutingRecord, routing_arrays
from .router import ROUTERS, Override, Router, RoutingWork
from .selection import LevelTokens, Packing, Selection

__all__ = [
    "ROUTERS",
    "AtRetention",
    "Bypass",
    "Lengths",
    "LevelTokens",
    "Override",
    "Packing",
    "Replay",
    "Router",
    "RoutingRecord",
    "RoutingWork",
    "Selection",
    "routing_arrays",
]
