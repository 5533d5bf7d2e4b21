"""The adapter between store and pool: leases, errors, and messages between the two."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flashpool import envs
from flashpool.envs import EnvSettings, Spec
from flashpool.envs.lease import Environment, Lease
from flashpool.envs.store.preloads import Preloads
from flashpool.pool.apps import App
from flashpool.pool.calls import BASE_ENVIRONMENT
from flashpool.pool.errors import EnvironmentError, InvalidRequest, Timeout
from flashpool.pool.supervisor.environment_leases import StoredEnvironments
from support.waiting import until

BASE = Path("/base/python")
SPEC = Spec(requirements=("thing",))


class Pool:
    """The registry of a pool, which records the calls it gets."""

    on_unused: Callable[[str], None]
    on_learned: Callable[[str, tuple[str, ...], tuple[str, ...]], None]

    def __init__(self) -> None:
        self.added: list[tuple[str, str, tuple[str, ...]]] = []
        self.retired: list[str] = []

    def short(self, who: str, what: str) -> None:
        raise AssertionError(f"{who}: {what}")

    def add(
        self, name: str, python: str, preload: Iterable[str] = (), entries: Iterable[str] = ()
    ) -> None:
        assert tuple(entries) == ("numpy",)
        self.added.append((name, python, tuple(preload)))

    def add_app(self, name: str, python: str, app: App) -> None:
        self.added.append((name, python, app.preload))

    def retire_idle(self, name: str) -> bool:
        self.retired.append(name)
        return True

    def supersede(self, name: str) -> None:
        self.retired.append(name)


class Provider:
    """Records who listens for pressure, and how often room was made."""

    def __init__(self) -> None:
        self.rooms = 0

    def on_pressure(self, tell: Callable[[tuple[str, ...]], list[str]]) -> None:
        self.tell = tell

    async def make_room(self, *, reserve: bool) -> None:
        assert not reserve
        self.rooms += 1


class Store:
    """Gives leases on one environment, or fails."""

    def __init__(self, failure: Exception | None = None, root: Path | None = BASE) -> None:
        self.failure = failure
        self.environment = Environment(
            digest="abc",
            python=Path("/made/python") if root else BASE,
            root=root,
            site_dirs=(),
            mode="layer",
            origin="memo",
        )
        self.leased = 0
        self.recorded: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = []
        self.provider = Provider()
        self.go = asyncio.Event()
        self.go.set()

    async def acquire(self, spec: Spec, *, progress: Any) -> Lease:
        if self.failure:
            raise self.failure
        self.leased += 1
        return Lease(self.environment, self._give_back)

    def _give_back(self, _digest: str) -> None:
        self.leased -= 1

    async def preloads(self, digest: str) -> Preloads:
        await self.go.wait()
        return Preloads(modules=("numpy",), entries=("numpy",))

    async def record_preloads(
        self, digest: str, modules: tuple[str, ...], entries: tuple[str, ...]
    ) -> None:
        self.recorded.append((digest, modules, entries))

    async def open(self) -> Provider:
        return self.provider

    async def close(self) -> None:
        pass


def made(store: Store) -> tuple[StoredEnvironments, Pool]:
    pool = Pool()
    environments = StoredEnvironments(EnvSettings(base_python=BASE), pool)  # type: ignore[arg-type]
    environments._store = store  # type: ignore[assignment]
    return environments, pool


def ignore(_line: str) -> None:
    pass


def test_one_lease_for_all_calls_until_the_pool_has_no_more_use() -> None:
    async def main() -> None:
        store = Store()
        environments, pool = made(store)
        store.go.clear()
        asking = [asyncio.ensure_future(environments.resolve(SPEC, ignore)) for _ in range(5)]
        await asyncio.sleep(0)
        store.go.set()
        found = await asyncio.gather(*asking)
        assert {one.environment for one in found} == {"abc"}
        assert pool.added == [("abc", "/made/python", ("numpy",))]
        assert store.leased == 1
        pool.on_unused("abc")
        assert store.leased == 0
        await environments.resolve(SPEC, ignore)
        assert (store.leased, len(pool.added)) == (1, 2)
        await environments.close()
        assert store.leased == 0

    asyncio.run(main())


def test_the_workers_of_an_app_have_a_lease_of_their_own() -> None:
    async def main() -> None:
        store = Store()
        environments, pool = made(store)
        app = App(name="a", directory="/a", spec=SPEC, preload=("fastapi",))
        first = await environments.open_app(app, ignore)
        second = await environments.open_app(app, ignore)
        assert pool.added == [(name, "/made/python", ("fastapi",)) for name in (first, second)]
        assert first != second
        assert {one.partition("~")[0] for one in (first, second)} == {"abc"}
        assert store.leased == 2
        pool.on_unused(first)
        assert store.leased == 1
        environments._lose("abc")
        assert pool.retired == [second]
        assert environments.is_lost(second)
        pool.on_unused(second)
        assert (store.leased, environments.is_lost(second)) == (0, False)

    asyncio.run(main())


def test_a_request_cancelled_during_registration_leaves_no_lease() -> None:
    async def main() -> None:
        store = Store()
        environments, pool = made(store)
        store.go.clear()
        asking = asyncio.ensure_future(environments.resolve(SPEC, ignore))
        await asyncio.sleep(0)
        assert store.leased == 1
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert (store.leased, pool.added) == (0, [])

    asyncio.run(main())


def test_the_base_needs_no_lease() -> None:
    async def main() -> None:
        store = Store(root=None)
        environments, pool = made(store)
        found = await environments.resolve(SPEC, ignore)
        assert found.environment == BASE_ENVIRONMENT
        assert (store.leased, pool.added) == (0, [])

    asyncio.run(main())


def test_under_pressure_idle_environments_are_retired() -> None:
    async def main() -> None:
        store = Store()
        environments, pool = made(store)
        await environments.resolve(SPEC, ignore)
        assert store.provider.tell(("abc", "not ours")) == ["abc"]
        assert pool.retired == ["abc"]
        pool.on_unused("abc")
        await asyncio.sleep(0)
        assert (store.leased, store.provider.rooms) == (0, 1)

    asyncio.run(main())


def test_a_lost_copy_gets_no_new_call() -> None:
    """The store's thread reports the loss; the next request gets a new name and lease."""

    async def main() -> None:
        store = Store()
        environments, pool = made(store)
        assert (await environments.resolve(SPEC, ignore)).environment == "abc"
        await asyncio.to_thread(environments._found_lost, "abc")
        await until(lambda: pool.retired == ["abc"])
        again = await environments.resolve(SPEC, ignore)
        assert again.environment != "abc"
        assert again.digest == "abc"
        assert store.leased == 2
        pool.on_learned(again.environment, ("numpy",), ())
        await asyncio.sleep(0)
        assert store.recorded == [("abc", ("numpy",), ())]
        assert (await environments.resolve(SPEC, ignore)).environment == again.environment
        pool.on_unused("abc")
        assert store.leased == 1
        assert (await environments.resolve(SPEC, ignore)).environment == again.environment
        pool.on_unused(again.environment)
        assert store.leased == 0
        assert (await environments.resolve(SPEC, ignore)).environment == "abc"
        await environments.close()

    asyncio.run(main())


def test_a_copy_in_another_place_has_processes_of_its_own() -> None:
    """After the volume is lost, a copy is built on local disk; calls in the old copy finish."""

    async def main() -> None:
        store = Store()
        environments, pool = made(store)
        await environments.resolve(SPEC, ignore)
        store.environment = replace(store.environment, python=Path("/local/python"))
        again = await environments.resolve(SPEC, ignore)
        assert [(name, python) for name, python, _ in pool.added] == [
            ("abc", "/made/python"),
            (again.environment, "/local/python"),
        ]
        assert pool.retired == ["abc"]
        assert store.provider.tell(("abc",)) == ["abc"]
        assert pool.retired == ["abc", "abc", again.environment]
        await environments.close()
        assert store.leased == 0

    asyncio.run(main())


def test_what_was_learned_is_recorded() -> None:
    async def main() -> None:
        store = Store()
        environments, pool = made(store)
        await environments.resolve(SPEC, ignore)
        pool.on_learned("abc", ("numpy", "pandas"), ("pandas",))
        await asyncio.sleep(0)
        assert store.recorded == [("abc", ("numpy", "pandas"), ("pandas",))]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("failure", "error", "details"),
    [
        (envs.SpecRefused("no", requirement="-r x"), InvalidRequest, {"requirement": "-r x"}),
        (envs.BuildTimeout("late"), Timeout, {"phase": "build"}),
        (
            envs.ResolutionFailed("no", requirement="a==7", words="uv said"),
            EnvironmentError,
            {"kind": "ResolutionFailed", "phase": "resolve", "requirement": "a==7"},
        ),
        (envs.DiskFull("full"), EnvironmentError, {"kind": "DiskFull", "retryable": True}),
        (envs.BuildAbandoned("left"), EnvironmentError, {"retryable": True}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_failures_are_translated_to_the_pools_errors(
    failure: Exception, error: type[Exception], details: dict[str, Any]
) -> None:
    async def main() -> None:
        environments, _pool = made(Store(failure))
        with pytest.raises(error) as caught:
            await environments.resolve(SPEC, ignore)
        assert str(failure) in str(caught.value)
        assert details.items() <= caught.value.details.items()  # type: ignore[attr-defined]

    asyncio.run(main())
