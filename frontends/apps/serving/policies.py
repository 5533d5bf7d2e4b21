"""Applies the settings of routes to each request, once the app has reported its routes.

    App.policies --routes of the loaded app--> RouteTable --method, path--> RequestPolicy

The rules are logged as they apply, and so are rules that match none of the app's routes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final

from flashpool.frontends.apps.route_checks import differences
from flashpool.frontends.apps.route_limits import AppRoute, RouteTable
from flashpool.frontends.settings.table import Settings
from flashpool.pool.apps import LoadedRoute, Policies, RequestPolicy

_log = logging.getLogger(__name__)

_CALL: Final = "call"
#: Pairs of method and path whose policies are cached.
_REMEMBERED: Final = 4096


def policies_of(
    settings: Settings, name: str, declared: Sequence[AppRoute] = ()
) -> Callable[[Sequence[LoadedRoute]], Policies]:
    """Return ``policies`` for the `App` of that name; its manifest has ``declared`` routes."""

    def policies(routes: Sequence[LoadedRoute]) -> Policies:
        loaded = [_app_route(route) for route in routes]
        table = RouteTable.of(settings, loaded)
        _log.info("%s: limits: %s", name, table.timeouts_text())
        _log.info("%s: isolation: %s", name, table.isolation_text())
        # Where the app differs from its manifest, the app is right.
        odd = differences(declared, loaded) if declared else []
        for sentence in (*table.warnings(), *odd):
            _log.warning("%s: %s", name, sentence)

        @lru_cache(maxsize=_REMEMBERED)
        def policy(method: str, path: str) -> RequestPolicy:
            found = table.policy(method, path)
            return RequestPolicy(found.timeout_s, found.isolation == _CALL, found.route)

        return policy

    return policies


def isolates(settings: Settings) -> bool:
    """Return whether requests of some routes may run in processes of their own."""
    return any(rule.value == _CALL for rule in settings.route_isolation)


def _app_route(route: LoadedRoute) -> AppRoute:
    methods = None if route.methods is None else frozenset(route.methods)
    return AppRoute(path=route.path, methods=methods)
