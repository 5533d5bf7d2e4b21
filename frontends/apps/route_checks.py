"""Warns about routes of a manifest, in the terms of the client's guide; refuses nothing.

The loaded app decides which routes exist; differences in the manifest are only reported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

from flashpool.frontends.settings.route_patterns import WEBSOCKET

from .manifest import DeclaredRoute
from .route_limits import AppRoute

__all__ = ["METHODS", "RESERVED", "declared_routes", "differences", "oddities"]

METHODS: Final = ("GET", "POST", "PUT", "DELETE", "PATCH")
RESERVED: Final = ("/execute", "/ping")
#: Routes that FastAPI adds, which no manifest lists.
_OWN: Final = ("/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc", *RESERVED)


def oddities(routes: Iterable[DeclaredRoute]) -> list[str]:
    """Return a sentence for each conflict, unknown method, path without ``/`` and reserved path."""
    routes = list(routes)
    found = []
    for route in routes:
        method, path = route.method.upper(), route.path
        of = f" (function {route.function!r})" if route.function else ""
        if method not in METHODS:
            found.append(f"method must be one of {', '.join(METHODS)}, got: {route.method!r}{of}")
        if not path.startswith("/"):
            found.append(f"path must start with '/', got: {path!r}{of}")
        if path in RESERVED:
            found.append(
                f"Function {route.function!r} cannot use reserved path {path!r}. "
                f"Reserved paths: {', '.join(RESERVED)}"
            )
    counts = Counter(f"{route.method.upper()} {route.path}" for route in routes)
    for key, count in counts.items():
        if count > 1:
            times = "twice" if count == 2 else f"{count} times"
            found.append(f"Route conflict detected: {key} defined {times}")
    return found


def declared_routes(routes: Iterable[DeclaredRoute]) -> tuple[AppRoute, ...]:
    """Return the routes that the app has if it matches its manifest."""
    return tuple(
        AppRoute(path=route.path, methods=frozenset({route.method.upper()})) for route in routes
    )


def differences(declared: Iterable[AppRoute], loaded: Iterable[AppRoute]) -> list[str]:
    """Return sentences about routes that only the manifest or only the app has."""
    in_manifest, in_app = _keys(declared), _keys(loaded)
    # Starlette adds HEAD to GET, and documentation is FastAPI's own.
    of_users = {key for key in in_app if not _is_own(key, in_app)}
    found = []
    if missing := sorted(in_manifest - in_app):
        found.append(f"the manifest has routes that the app lacks: {', '.join(missing)}")
    if more := sorted(of_users - in_manifest):
        found.append(f"the app has routes that the manifest lacks: {', '.join(more)}")
    return found


def _keys(routes: Iterable[AppRoute]) -> set[str]:
    return {
        f"{method} {route.path}"
        for route in routes
        for method in route.methods or ()
        if method != WEBSOCKET
    }


def _is_own(key: str, in_app: set[str]) -> bool:
    method, _, path = key.partition(" ")
    return path in _OWN or (method == "HEAD" and f"GET {path}" in in_app)
