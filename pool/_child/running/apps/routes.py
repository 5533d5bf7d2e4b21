"""The routes of an application, in the order in which it searches them.

    application --routes_of--> [path, methods], ...    WEBSOCKET in place of methods; None: any

Routes of a mounted application come before the mount itself, prefixed with its path. No module of
the framework is imported: objects are recognised by their attributes.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    Route = tuple[str, list[str] | None]

#: Limits: depth of nested mounts or applications; number of routes; length of a path.
_DEEP = 10
_MOST = 5000
_LONG = 1000


def routes_of(app: Any) -> list[Route]:
    """Return the routes, up to the limit; empty if the application shows none."""
    found: list[Route] = []
    try:
        for route in _routes(app, "", _DEEP):
            if len(found) == _MOST:
                break
            found.append(route)
    except Exception as error:
        print(f"the routes of the application cannot be read: {error!r}", file=sys.stderr)
    return found


def _routes(app: Any, prefix: str, deep: int) -> Iterator[Route]:
    for _ in range(_DEEP):
        if isinstance(getattr(app, "routes", None), list):
            break
        app = getattr(app, "app", None)  # an application wrapped in another
    for route in getattr(app, "routes", None) or ():
        for one in _included(route, _DEEP):
            yield from _of(one, prefix, deep)


def _included(route: Any, deep: int) -> Iterator[Any]:
    """Yield the routes of a router that FastAPI included without copying; else the route itself."""
    candidates = getattr(route, "effective_candidates", None)
    if candidates is None:
        yield getattr(route, "starlette_route", None) or route
    elif deep:
        for one in candidates():
            yield from _included(one, deep - 1)


def _of(route: Any, prefix: str, deep: int) -> Iterator[Route]:
    path = getattr(route, "path", None)
    if not isinstance(path, str) or len(prefix) + len(path) > _LONG:
        return
    whole = prefix + path
    if hasattr(route, "methods"):
        methods = route.methods
        yield whole, None if methods is None else sorted(map(str, methods))
    elif hasattr(route, "endpoint"):
        yield whole, ["WEBSOCKET"]
    elif callable(getattr(route, "app", None)):
        whole = whole.rstrip("/")
        if deep:
            yield from _routes(route.app, whole, deep - 1)
        yield whole + "/{path:path}", None
