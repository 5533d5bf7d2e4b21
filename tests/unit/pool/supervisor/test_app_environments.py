"""The registered environment that an app's workers are forked in."""

import asyncio
from typing import Any

import pytest

from flashpool.envs import Spec
from flashpool.pool.apps import App
from flashpool.pool.errors import EnvironmentError
from flashpool.pool.supervisor.app_environments import AppEnvironments

PLAIN = App(name="a", directory="/a")
NEEDY = App(name="b", directory="/b", spec=Spec(requirements=("thing",)))


class Registry(dict[str, App]):
    """A registry like the pool's: it keeps what was added until told to forget it."""

    def add_app(self, name: str, python: str, app: App) -> None:
        self[name] = app


class Provisioning:
    """Opens an environment, or fails."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.opened = 0
        self.lost: set[str] = set()
        self.failure: Exception | None = None

    async def open_app(self, app: App) -> str:
        if self.failure:
            raise self.failure
        self.opened += 1
        name = f"digest~{self.opened}"
        self._registry.add_app(name, "python", app)
        return name

    def is_lost(self, name: str) -> bool:
        return name in self.lost


def made() -> tuple[AppEnvironments, Registry, Provisioning]:
    registry = Registry()
    provisioning = Provisioning(registry)
    environments: Any = AppEnvironments
    return environments(registry, "/base/python", lambda: provisioning), registry, provisioning


def test_an_app_keeps_its_environments_name_while_the_pool_knows_it() -> None:
    async def main() -> None:
        environments, registry, provisioning = made()
        name = await environments.find(NEEDY)
        assert await environments.find(NEEDY) == name
        del registry[name]
        again = await environments.find(NEEDY)
        assert again != name
        provisioning.lost.add(again)
        assert await environments.find(NEEDY) not in (name, again)
        assert provisioning.opened == 3

    asyncio.run(main())


def test_an_app_that_names_no_packages_needs_no_store() -> None:
    async def main() -> None:
        environments, registry, provisioning = made()
        name = await environments.find(PLAIN)
        assert name.startswith("base~")
        assert registry == {name: PLAIN}
        assert await environments.find(PLAIN) == name
        assert provisioning.opened == 0

    asyncio.run(main())


def test_a_failed_environment_is_requested_again() -> None:
    async def main() -> None:
        environments, _, provisioning = made()
        provisioning.failure = EnvironmentError("no index")
        with pytest.raises(EnvironmentError):
            await environments.find(NEEDY)
        provisioning.failure = None
        assert await environments.find(NEEDY) == "digest~1"

    asyncio.run(main())
