"""Gives the workers of each app a zygote of their own, which has the app's directory.

    find(app) --no packages named--> the base's interpreter      --> a name in EnvironmentRegistry
              --a spec-------------> the store's environment ----'

The name of an app's environment lasts as long as the pool knows it: while the environment has
processes, and its zygote is not idle for too long. The next worker after that gets a new name.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

from flashpool.pool.apps import App
from flashpool.pool.calls import BASE_ENVIRONMENT, COPY

from .environment_registry import EnvironmentRegistry

if TYPE_CHECKING:
    from .provisioning import Provisioning


class AppEnvironments:
    """The environments of all apps of a pool."""

    def __init__(
        self,
        registry: EnvironmentRegistry,
        base_python: str,
        provisioning: Callable[[], Provisioning],
    ) -> None:
        self._registry = registry
        self._base_python = base_python
        self._provisioning = provisioning
        #: The current name of each app's environment; apps are compared by identity.
        self._names: dict[int, tuple[App, str]] = {}
        self._numbers = itertools.count(1)

    async def find(self, app: App) -> str:
        """Return the name; the caller must start something in it in the same turn of the loop.

        Raises:
            InvalidRequest, EnvironmentError, Timeout: the environment cannot be provided.
        """
        known = self._names.get(id(app))
        if known is not None and known[1] in self._registry and not self._is_lost(known):
            return known[1]
        if app.spec is None:
            name = f"{BASE_ENVIRONMENT}{COPY}app{next(self._numbers)}"
            self._registry.add_app(name, self._base_python, app)
        else:
            name = await self._provisioning().open_app(app)
        self._names[id(app)] = app, name
        return name

    def _is_lost(self, known: tuple[App, str]) -> bool:
        app, name = known
        return app.spec is not None and self._provisioning().is_lost(name)
