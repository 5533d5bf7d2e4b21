"""Applies settings to the routes of an app: time limits, and whether requests are isolated.

    settings' rules + the app's routes, in their order --> RouteTable
    RouteTable.policy(method, path) --> RoutePolicy of the route that the app itself would choose

A route is chosen as in Starlette: the first whose path and method match, else the first whose path
matches (the app answers 405). Requests that match no route get the rule for everything else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from starlette.convertors import CONVERTOR_TYPES
from starlette.routing import compile_path

from flashpool.frontends.settings.route_patterns import (
    WEBSOCKET,
    RouteRule,
    RouteRules,
    segments_of,
)

if TYPE_CHECKING:
    from flashpool.frontends.settings.table import Settings

__all__ = ["AppRoute", "RoutePolicy", "RouteTable"]

_TIMEOUTS: Final = "FLASHPOOL_ROUTE_TIMEOUTS"
_ISOLATION: Final = "FLASHPOOL_ROUTE_ISOLATION"
_CONVERTER: Final = re.compile(r"(\{[^\W\d]\w*):([^\W\d]\w*)\}")
_SHARED: Final = "shared"
_MOST_LISTED: Final = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class AppRoute:
    """A route of the app; a mounted application is a route with ``{path:path}`` at its end."""

    path: str
    #: Methods in capitals, or WEBSOCKET alone; None: any method.
    methods: frozenset[str] | None = None

    def __str__(self) -> str:
        return f"{'|'.join(self._shown)} {self.path}" if self._shown else self.path

    @property
    def _shown(self) -> list[str]:
        methods = self.methods or frozenset()
        return sorted(methods - {"HEAD"} if "GET" in methods else methods)

    @property
    def rows(self) -> list[str]:
        """Return the methods to list in a table; an empty string stands for any method."""
        return self._shown or [""]

    @property
    def is_websocket(self) -> bool:
        return self.methods == frozenset({WEBSOCKET})

    def fits(self, method: str) -> bool:
        """Return whether the app accepts this method here."""
        if self.methods is None:
            return method != WEBSOCKET
        return method in self.methods


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutePolicy:
    """The rules for a request."""

    #: The route's template; empty if no route of the app matches.
    route: str
    timeout_s: float | None
    #: ``call`` or ``shared``.
    isolation: str


class RouteTable:
    """The app's routes, with the rules for each."""

    def __init__(
        self,
        routes: Iterable[AppRoute],
        *,
        timeouts: RouteRules[float | None],
        isolation: RouteRules[str],
        default_s: float | None,
    ) -> None:
        self.routes = tuple(routes)
        self._timeouts = timeouts
        self._isolation = isolation
        self._default_s = default_s
        self._compiled = [(route, _regex(route.path)) for route in self.routes]
        self._policies: dict[tuple[AppRoute | None, str], RoutePolicy] = {}

    @classmethod
    def of(cls, settings: Settings, routes: Iterable[AppRoute]) -> RouteTable:
        return cls(
            routes,
            timeouts=settings.route_timeouts,
            isolation=settings.route_isolation,
            default_s=settings.to_pool_config().call_timeout_s,
        )

    def choose(self, method: str, path: str) -> AppRoute | None:
        """Return the route that the app takes; ``path`` is decoded, as in an ASGI scope."""
        partial = None
        for route, regex in self._compiled:
            if regex.match(path) and (method == WEBSOCKET or not route.is_websocket):
                if route.fits(method):
                    return route
                partial = partial or route
        return partial

    def policy(self, method: str, path: str) -> RoutePolicy:
        """Return the rules for a request."""
        return self._policy(self.choose(method, path), method)

    def _policy(self, route: AppRoute | None, method: str) -> RoutePolicy:
        # Methods come from clients: only the route's own methods are cached.
        key = (route, method)
        found = self._policies.get(key)
        if found is None:
            found = self._find(route, method)
            if route is not None and route.methods and method in route.methods:
                self._policies[key] = found
        return found

    def _find(self, route: AppRoute | None, method: str) -> RoutePolicy:
        limit = self._best(self._timeouts, route, method)
        isolation = self._best(self._isolation, route, method)
        return RoutePolicy(
            route="" if route is None else route.path,
            timeout_s=self._default_s if limit is None else limit.value,
            isolation=_SHARED if isolation is None else isolation.value,
        )

    @staticmethod
    def _best(rules: RouteRules[Any], route: AppRoute | None, method: str) -> RouteRule[Any] | None:
        if route is None:
            return rules.otherwise(method)
        return rules.best(method, segments_of(route.path))

    def timeouts_text(self) -> str:
        """Return one line for the log: ``GET /items/{item_id}: 2 s; everything else: 60 s``."""
        rest = self._timeouts.otherwise()
        otherwise = self._default_s if rest is None else rest.value
        return _line(self._rows(self._timeouts), otherwise, _seconds)

    def isolation_text(self) -> str:
        """Return one line for the log: ``POST /render: call; everything else: shared``."""
        rest = self._isolation.otherwise()
        return _line(self._rows(self._isolation), _SHARED if rest is None else rest.value, str)

    def _rows(self, rules: RouteRules[Any]) -> Iterator[tuple[str, Any]]:
        """Yield each method and path with a rule of its own, and the rule's value."""
        rest = rules.otherwise()
        for route in self.routes:
            for method in route.rows:
                rule = self._best(rules, route, method)
                if rule is not None and rule is not rest:
                    yield f"{method} {route.path}".strip(), rule.value

    def warnings(self) -> list[str]:
        """Return a sentence for each rule that applies to no route of the app."""
        named = ((_TIMEOUTS, self._timeouts), (_ISOLATION, self._isolation))
        return [
            f"{setting}: no route of the app is {rule.pattern.text}; its routes: {self._listed()}"
            for setting, rules in named
            for rule in rules
            if not any(self._is_covered(rule, route) for route in self.routes)
            and rule.pattern.segments
        ]

    def _listed(self) -> str:
        shown = [str(route) for route in self.routes[:_MOST_LISTED]]
        more = len(self.routes) - len(shown)
        return (", ".join(shown) or "none") + (f" and {more} more" if more else "")

    @staticmethod
    def _is_covered(rule: RouteRule[Any], route: AppRoute) -> bool:
        methods = [rule.pattern.method] if route.methods is None else route.methods
        return rule.pattern.covers(segments_of(route.path)) and any(
            rule.pattern.nearness(method) >= 0 for method in methods
        )


def _line(rows: Iterable[tuple[str, Any]], otherwise: Any, show: Any) -> str:
    parts = [f"{name}: {show(value)}" for name, value in rows]
    return "; ".join([*parts, f"{'everything else' if parts else 'everything'}: {show(otherwise)}"])


def _seconds(value: float | None) -> str:
    return "no limit" if value is None else f"{value:g} s"


def _regex(template: str) -> re.Pattern[str]:
    # Converters that only the app knows are treated as plain ones.
    known = _CONVERTER.sub(
        lambda found: found[0] if found[2] in CONVERTOR_TYPES else found[1] + "}", template
    )
    try:
        return compile_path(known)[0]
    except (ValueError, AssertionError, re.error):
        return re.compile(re.escape(template) + "$")
