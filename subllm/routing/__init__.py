"""How tokens are selected: the decision (`Selection`), who takes it (`Router`), and the record of it."""

from . import fixed, mod, scorer, stride  # noqa: F401 - they register their routers
from .bypass import Bypass
from .lengths import Lengths
from .light_heavy import LIGHT_HEAVY_ROUTER, LightHeavyRouter, router_class
from .overrides import AtRetention, Replay
from .record import RoutingRecord, routing_arrays
from .router import ROUTERS, Override, Router, RoutingWork
from .selection import Carried, Entry, LevelTokens, Packing, Selection

__all__ = [
    "LIGHT_HEAVY_ROUTER",
    "ROUTERS",
    "AtRetention",
    "Bypass",
    "Carried",
    "Entry",
    "Lengths",
    "LevelTokens",
    "LightHeavyRouter",
    "Override",
    "Packing",
    "Replay",
    "Router",
    "RoutingRecord",
    "RoutingWork",
    "Selection",
    "router_class",
    "routing_arrays",
]
