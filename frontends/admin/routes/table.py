"""All routes of the admin port, in one list."""

from __future__ import annotations

from flashpool.frontends.admin.gate import Gate
from flashpool.frontends.admin.served import Served

from . import calls, page, probes, reload, session, stats
from .route import AdminRoute


def all_routes(served: Served, gate: Gate) -> list[AdminRoute]:
    """Return every route of the port. A new group of routes gets a line here."""
    return [
        *stats.routes(served, gate),
        *probes.routes(served, gate),
        *reload.routes(served, gate),
        *page.routes(gate),
        *calls.routes(served),
        *session.routes(gate),
    ]
