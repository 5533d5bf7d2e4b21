"""Reloads: which app replaces the one that is served, and when the old one stays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from flashpool.frontends.apps.errors import ResourceRefused
from flashpool.frontends.apps.serving.deployment import AppDeployment, FoundApp
from flashpool.frontends.apps.serving.room import free_memory_mb, no_room_for
from flashpool.frontends.service import ReloadOutcome
from flashpool.pool.apps import App, AppState


class Service:
    """A service whose app loads or fails to, as given."""

    def __init__(self, app: App, outcome: AppState) -> None:
        self.app = app
        self.outcome = outcome
        self.failure = "" if outcome is AppState.SERVED else "it raised"
        self.retired: float | None = None
        self.noted = ""

    @property
    def state(self) -> AppState:
        return self.outcome

    async def settled(self) -> AppState:
        await asyncio.sleep(0)
        return self.outcome

    def retire(self, within_s: float, then: Callable[[], None]) -> None:
        self.retired = within_s
        then()

    def note(self, text: str) -> None:
        self.noted = text


class Backend:
    """A backend whose apps load or fail as given, with the given number of free GPUs."""

    def __init__(self, *outcomes: AppState, free_gpus: int | None = None) -> None:
        self.outcomes = list(outcomes)
        self.opened: list[Service] = []
        self.free_gpus = free_gpus

    def open_app(self, app: App) -> Service:
        self.opened.append(Service(app, self.outcomes.pop(0)))
        return self.opened[-1]

    def stats(self) -> Any:
        devices = [SimpleNamespace(state="free", calls=0)] * (self.free_gpus or 0)
        total = 0 if self.free_gpus is None else 1
        return SimpleNamespace(gpus=SimpleNamespace(total=total, devices=devices))


class Finder:
    """Finds an app of another name each time, or raises."""

    def __init__(self) -> None:
        self.names = iter("abcdef")
        self.released: list[str] = []
        self.content = ""
        self.error: Exception | None = None

    async def __call__(self) -> FoundApp:
        if self.error is not None:
            raise self.error
        name = next(self.names)
        return FoundApp(
            app=App(name=name, directory="/x", workers=1),
            content=self.content,
            release=lambda: self.released.append(name),
        )


def run(story: Callable[[], Any]) -> None:
    asyncio.run(story())


SERVED, FAILED = AppState.SERVED, AppState.FAILED


def test_a_successor_takes_over_and_the_old_one_retires():
    async def story():
        backend, find = Backend(SERVED, SERVED), Finder()
        deployment = AppDeployment(backend, find, 30.0)
        assert deployment.service is None
        deployment.serve(await find())
        first = deployment.service
        assert (await deployment.reload()).outcome is ReloadOutcome.RELOADED
        assert deployment.service is backend.opened[1]
        assert first.retired == 30.0
        assert find.released == ["a"]

    run(story)


def test_a_successor_that_cannot_be_loaded_leaves_the_old_one_serving():
    async def story():
        backend, find = Backend(SERVED, FAILED), Finder()
        deployment = AppDeployment(backend, find, 30.0)
        deployment.serve(await find())
        outcome = await deployment.reload()
        assert outcome.outcome is ReloadOutcome.FAILED
        assert "it raised" in outcome.message
        first, second = backend.opened
        assert deployment.service is first
        assert first.noted == outcome.message
        assert (first.retired, second.retired) == (None, 0.0)
        assert find.released == ["b"]

    run(story)


def test_an_error_in_finding_the_app_leaves_the_old_one_serving():
    async def story():
        backend, find = Backend(SERVED), Finder()
        deployment = AppDeployment(backend, find, 30.0)
        deployment.serve(await find())
        find.error = ResourceRefused("there is none")
        outcome = await deployment.reload()
        assert outcome.outcome is ReloadOutcome.FAILED
        assert deployment.service is backend.opened[0]
        assert "there is none" in outcome.message

    run(story)


def test_an_artifact_that_is_served_already_is_left_alone():
    async def story():
        backend, find = Backend(SERVED, FAILED, SERVED), Finder()
        find.content = "one"
        deployment = AppDeployment(backend, find, 30.0)
        deployment.serve(await find())
        first = deployment.service
        find.content = "another"
        await deployment.reload()
        assert first.noted
        find.content = "one"
        assert (await deployment.reload()).outcome is ReloadOutcome.UNCHANGED
        assert (deployment.service, first.retired, first.noted) == (first, None, "")
        assert find.released == ["b", "c"]
        # An app that is not served is loaded again even if the artifact is the same.
        first.outcome = FAILED
        assert (await deployment.reload()).outcome is ReloadOutcome.RELOADED
        assert deployment.service is backend.opened[2]

    run(story)


@pytest.mark.parametrize(("outcome", "serving"), [(SERVED, 1), (FAILED, 2)])
def test_without_room_for_both_the_old_one_retires_first(outcome: AppState, serving: int):
    async def story():
        backend, find = Backend(SERVED, outcome, SERVED, free_gpus=0), Finder()
        deployment = AppDeployment(backend, find, 30.0)
        deployment.serve(await find())
        first = deployment.service
        is_reloaded = (await deployment.reload()).outcome is ReloadOutcome.RELOADED
        assert is_reloaded == (outcome is SERVED)
        assert first.retired == 30.0
        assert deployment.service is backend.opened[serving]
        assert deployment.service.app.name == ("b" if outcome is SERVED else "a")

    run(story)


@pytest.mark.parametrize("outcome", [SERVED, FAILED])
def test_a_reload_replaces_a_failed_app_unconditionally(
    outcome: AppState, caplog: pytest.LogCaptureFixture
):
    async def story():
        backend, find = Backend(FAILED, outcome), Finder()
        deployment = AppDeployment(backend, find, 30.0)
        await deployment.look_again()
        deployment.serve(await find())
        await deployment.look_again()
        assert len(backend.opened) == 1, "what lies there unpacked is read at each retry"
        find.content = "one"
        assert (await deployment.reload()).outcome is (
            ReloadOutcome.RELOADED if outcome is SERVED else ReloadOutcome.FAILED
        )
        assert (deployment.service, find.released) == (backend.opened[1], ["a"])
        assert (backend.opened[1].noted != "") == (outcome is FAILED)

    run(story)
    assert ("no app is served: it raised" in caplog.text) == (outcome is FAILED)


def test_a_retry_replaces_a_failed_app_only_if_the_artifact_changed(
    caplog: pytest.LogCaptureFixture,
):
    async def story():
        backend, find = Backend(FAILED, SERVED), Finder()
        find.content = "one"
        deployment = AppDeployment(backend, find, 30.0)
        deployment.serve(await find())
        await deployment.look_again()
        assert (len(backend.opened), find.released) == (1, ["b"])
        find.error = RuntimeError("odd")
        await deployment.look_again()
        await deployment.look_again()
        find.error, find.content = None, "two"
        await deployment.look_again()
        assert deployment.service is backend.opened[1]
        assert find.released == ["b", "a"]
        await deployment.look_again()
        assert len(backend.opened) == 2, "it serves"

    run(story)
    assert caplog.text.count("odd") == 1


def test_concurrent_reloads_are_one_reload():
    async def story():
        backend, find = Backend(SERVED, SERVED), Finder()
        deployment = AppDeployment(backend, find, 30.0)
        deployment.serve(await find())
        one, other = await asyncio.gather(deployment.reload(), deployment.reload())
        assert one is other
        assert len(backend.opened) == 2

    run(story)


def test_an_app_that_needs_more_than_the_free_memory_has_no_room():
    free = free_memory_mb()
    assert free is not None
    stats = Backend().stats()
    app = App(name="a", directory="/x", memory_mb=free * 2 + 10)
    assert "FLASHPOOL_MEMORY_MB" in no_room_for(app, stats)
    assert no_room_for(App(name="a", directory="/x", memory_mb=1), stats) == ""
