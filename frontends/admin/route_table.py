"""All routes of the admin listener: its groups, in one list."""

from __future__ import annotations

from . import call_routes, page_routes, probe_routes, reload_routes, session_routes, stats_routes
from .gate import Gate
from .routes import AdminRoute
from .served import Served


def all_routes(served: Served, gate: Gate) -> list[AdminRoute]:
    """Every route. A new group of routes gets a line here."""
    return [
        *stats_routes.routes(served, gate),
        *probe_routes.routes(served, gate),
        *reload_routes.routes(served, gate),
        *page_routes.routes(gate),
        *call_routes.routes(served),
        *session_routes.routes(gate),
    ]
