"""Counts requests of a deployed app by the template of their route: outcomes and latency.

    App.policies, watched --method, path--> template     as soon as the app has reported its routes
    AppProxy --ended--> RouteCounts --stats--> AppStats.routes

No path that a client sent is kept, so there are at most as many rows as the app has routes. Counts
survive reloads. Counting a request costs a cached look-up, an addition and an append.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from flashpool.pool.apps import LoadedRoute, Policies
from flashpool.pool.histograms import Histogram
from flashpool.pool.stats import RouteStats

#: Names for requests without a route or before the app is loaded, and beyond the limit of rows.
NO_ROUTE: Final = "(none)"
OTHER: Final = "(other)"
#: Classes beside ``1xx`` to ``5xx``: the client left before an answer; the answer was cut off.
LEFT: Final = "left"
CUT: Final = "cut"
#: Largest number of templates with a row of their own, and of characters in one.
_MOST: Final = 200
_LONGEST: Final = 200
#: Most requests of a route whose seconds are kept one by one.
_TOGETHER: Final = 1000


class WatchedPolicies:
    """The ``policies`` of an `App`, and the `Policies` that they last returned."""

    def __init__(self, make: Callable[[Sequence[LoadedRoute]], Policies]) -> None:
        self._make = make
        #: None until the app has reported its routes.
        self.made: Policies | None = None

    def __call__(self, routes: Sequence[LoadedRoute]) -> Policies:
        """Create the policies, when the pool has the app's routes."""
        self.made = self._make(routes)
        return self.made


class _Row:
    __slots__ = ("_seconds", "ends", "latest")

    def __init__(self) -> None:
        self.ends: Counter[str] = Counter()
        self._seconds = Histogram()
        #: Seconds that are not in the histogram yet: adding many at once is faster.
        self.latest: list[float] = []

    def seconds(self) -> Histogram:
        """Return the histogram of the seconds of all requests so far."""
        self._seconds.add(self.latest)
        self.latest.clear()
        return self._seconds


class RouteCounts:
    """The counts of one endpoint."""

    def __init__(self) -> None:
        self._rows: dict[str, _Row] = {}
        self._policies: WatchedPolicies | None = None

    def serve(self, policies: WatchedPolicies | None) -> None:
        """Count requests by these policies from now on."""
        self._policies = policies

    def ended(self, method: str, path: str, end: str, seconds: float) -> None:
        """Count a request that has ended; ``end`` is its status class."""
        made = None if self._policies is None else self._policies.made
        route = "" if made is None else made(method, path).route
        row = self._rows.get(route) or self._new_row(route)
        row.ends[end] += 1
        row.latest.append(seconds)
        if len(row.latest) >= _TOGETHER:
            row.seconds()

    def _new_row(self, route: str) -> _Row:
        name = OTHER if route and len(self._rows) >= _MOST else route
        return self._rows.setdefault(name, _Row())

    def stats(self) -> list[RouteStats]:
        """Return the figures of all templates."""
        return [
            RouteStats(
                route=route[:_LONGEST] or NO_ROUTE,
                requests=dict(row.ends),
                latency=row.seconds().stats(),
            )
            for route, row in sorted(self._rows.items())
        ]


def end_of(status: int) -> str:
    """Return the class of a status; `LEFT` for 0, no status."""
    return f"{status // 100}xx" if status else LEFT
