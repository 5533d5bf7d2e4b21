"""What an endpoint answers until its app is prepared, and when it tries again."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from flashpool.frontends.apps.errors import AppError, ArtifactMissing, ResourceRefused
from flashpool.frontends.lb import deployed
from flashpool.frontends.lb.deployed import DeployedEndpoint
from flashpool.frontends.service import ReloadOutcome
from flashpool.frontends.settings.table import Settings
from flashpool.pool.apps import App, AppState
from support.waiting import until


class AppStandIn:
    """An open app whose state a test sets."""

    def __init__(self) -> None:
        self.state = AppState.LOADING
        self.failure = ""
        self.is_retired = False

    async def settled(self) -> AppState:
        self.state = AppState.SERVED
        return self.state

    def retire(self, within_s: float, then: Any) -> None:
        self.is_retired = True
        then()

    def note(self, text: str) -> None:
        pass


class Pool:
    """Records the apps that are opened."""

    draining = False

    def __init__(self) -> None:
        self.opened: list[Any] = []
        self.services: list[AppStandIn] = []

    def stats(self) -> Any:
        return SimpleNamespace(gpus=SimpleNamespace(total=0))

    def open_app(self, app: Any) -> Any:
        self.opened.append(app)
        self.services.append(AppStandIn())
        return self.services[-1]


class Service:
    """A service that starts and stops, and does nothing else."""

    def __init__(self) -> None:
        self.pool = Pool()
        self.running = False

    async def start(self) -> None:
        self.running = True

    async def stop(self) -> None:
        self.running = False


class Source:
    """Returns or raises the given answers, one after another."""

    resource = "shop"

    def __init__(self, *outcomes: Any) -> None:
        self.outcomes = list(outcomes)
        self.waits: list[bool] = []
        self.go = asyncio.Event()
        self.go.set()
        #: Whether somebody wrote to the artifact.
        self.is_changed = False

    async def may_differ(self) -> bool:
        return self.is_changed

    async def prepare(self, *, wait: bool) -> Any:
        await self.go.wait()
        self.is_changed = False
        self.waits.append(wait)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class Prepared:
    """What a source finally prepares."""

    neighbours = None
    released = False

    def __init__(self, digest: str = "") -> None:
        self.folder = SimpleNamespace(digest=digest)

    def to_app(self, _settings: Settings, workers: int) -> Any:
        return App(name="shop", directory="/x", workers=workers)

    def release(self) -> None:
        self.released = True


@contextlib.asynccontextmanager
async def serving(source: Source) -> AsyncIterator[tuple[DeployedEndpoint, Service]]:
    service = Service()
    make: Any = DeployedEndpoint
    endpoint = make(service, Settings.from_environ({}), source)
    async with endpoint.lifespan_context(endpoint):
        assert service.running
        yield endpoint, service
    assert not service.running


async def ask(
    endpoint: DeployedEndpoint, path: str, kind: str = "http", **more: Any
) -> list[dict[str, Any]]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": f"{kind}.connect"}

    scope = {"type": kind, "path": path, "method": "GET", "headers": [], **more}
    await endpoint(scope, receive, send)
    return sent


async def status(endpoint: DeployedEndpoint, path: str) -> tuple[int, Any]:
    head, body = await ask(endpoint, path)
    return head["status"], json.loads(body["body"] or b"null")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployed, "_PAUSES_S", (0.0,))
    monkeypatch.setattr(deployed, "_LOOK_S", 0.001)


def test_probes_are_answered_while_the_artifact_is_waited_for() -> None:
    async def main() -> None:
        prepared = Prepared()
        source = Source(prepared)
        source.go.clear()
        async with serving(source) as (endpoint, service):
            assert await status(endpoint, "/ping") == (204, None)
            code, body = await status(endpoint, "/items")
            assert (code, body["error_type"]) == (503, "AppNotLoaded")
            assert (await status(endpoint, "/execute"))[0] == 404
            service.pool.draining = True
            assert (await status(endpoint, "/ping"))[0] == 503
            service.pool.draining = False
            source.go.set()
            await until(lambda: service.pool.opened)
            assert service.pool.opened[0].workers == 1
        assert prepared.released

    asyncio.run(main())


def test_temporary_errors_are_retried_without_waiting_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        missing = [ArtifactMissing("no archive") for _ in range(3)]
        source = Source(*missing, OSError("odd"), Prepared())
        async with serving(source) as (_, service):
            await until(lambda: service.pool.opened)
        assert source.waits == [True, False, False, False, False]

    asyncio.run(main())
    assert caplog.text.count("no archive") == 1
    assert "odd" in caplog.text


def test_permanent_errors_are_reported_until_the_artifact_changes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        source = Source(ResourceRefused("no such resource"), AppError("no such file"), Prepared())
        async with serving(source) as (endpoint, service):
            await until(lambda: source.waits)
            assert await status(endpoint, "/ping") == (
                503,
                {"status": "unhealthy", "reason": "no such resource"},
            )
            assert (await status(endpoint, "/items"))[1]["detail"] == "no such resource"
            await asyncio.sleep(0.02)
            assert (source.waits, service.pool.opened) == ([True], [])
            source.is_changed = True
            await until(lambda: len(source.waits) == 2)
            reloaded = await endpoint.reload()
            assert reloaded.outcome is ReloadOutcome.NO_APP
            assert "no such file; the server now reads the artifact again" in reloaded.message
            await until(lambda: service.pool.opened)
        assert source.waits == [True, False, False]

    with caplog.at_level("INFO"):
        asyncio.run(main())
    assert "no such resource; it is tried again when the artifact has changed" in caplog.text
    assert "the artifact has changed: it is looked at again" in caplog.text


def test_a_retry_replaces_a_failed_app_if_the_artifact_changed() -> None:
    async def main() -> None:
        first, same, second = Prepared("one"), Prepared("one"), Prepared("two")
        source = Source(first, same, second)
        async with serving(source) as (_, service):
            pool = service.pool
            await until(lambda: pool.opened)
            retry = pool.opened[0].on_retry

            async def looks(times: int) -> None:
                retry()
                await until(lambda: len(source.waits) == times)

            source.is_changed = True
            pool.services[0].state = AppState.SERVED
            retry()
            await asyncio.sleep(0.01)
            assert source.waits == [True], "one of several workers is tried again"
            pool.services[0].state = AppState.FAILED
            await looks(2)
            await until(lambda: same.released)
            assert not first.released
            source.is_changed = True
            await looks(3)
            await until(lambda: len(pool.opened) == 2)
            assert pool.services[0].is_retired
            assert (first.released, second.released) == (True, False)
        assert second.released

    asyncio.run(main())


def test_websockets_are_refused_before_the_app_is_prepared() -> None:
    async def main() -> None:
        async with serving(Source(AppError("not yet"))) as (endpoint, _):
            await asyncio.sleep(0)
            extensions = {"websocket.http.response": {}}
            head, _ = await ask(endpoint, "/ws", "websocket", extensions=extensions)
            assert (head["type"], head["status"]) == ("websocket.http.response.start", 503)
            (close,) = await ask(endpoint, "/ws", "websocket")
            assert close["type"] == "websocket.close"

    asyncio.run(main())
