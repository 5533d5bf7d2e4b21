"""Applies the rules of routes to each request of an app; its workers report the routes."""

from __future__ import annotations

from flashpool.pool._child import wire
from flashpool.pool.apps import App, LoadedRoute, Policies

from .requests import LiveRequest

Routes = tuple[LoadedRoute, ...]


def routes_told(meta: wire.ResultMeta) -> Routes:
    """Return the routes that LOADED reports.

    Raises:
        BadFrame: the report is malformed.
    """
    found = []
    for one in meta.more.get("routes", ()):
        if type(one) is not list or len(one) != 2 or type(one[0]) is not str:
            raise wire.BadFrame("a malformed route of an app")
        path, methods = one
        if methods is not None:
            if type(methods) is not list or not all(type(name) is str for name in methods):
                raise wire.BadFrame("malformed methods of a route")
            methods = tuple(methods)
        found.append(LoadedRoute(path, methods))
    return tuple(found)


class AppRouting:
    """The policies of one app, once its routes are known."""

    def __init__(self, app: App) -> None:
        self._make = app.policies
        self._routes: Routes | None = None
        self._policies: Policies | None = None

    @property
    def is_known(self) -> bool:
        """Return whether the rules for requests are known, or the app has none."""
        return self._make is None or self._policies is not None

    def loaded(self, routes: Routes) -> None:
        """Record the routes of the app, which a worker has loaded."""
        if self._make is not None and routes != self._routes:
            self._routes, self._policies = routes, self._make(routes)

    def apply(self, live: LiveRequest) -> bool:
        """Set a request's limit, and return whether the request gets a process of its own."""
        if self._policies is None:
            return False
        _, method, _, path, *_ = live.fields
        policy = self._policies(method.decode(), path.decode("utf-8", "surrogatepass"))
        live.limit_s, live.routed = policy.limit_s, True
        return policy.isolated
