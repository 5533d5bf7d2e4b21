"""When jobs of a deployed app are taken, and when not; the app is a stand-in."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flashpool.frontends.apps.artifacts.artifact import AppFolder
from flashpool.frontends.apps.contract import EntryKind
from flashpool.frontends.apps.errors import ArtifactMissing, ResourceRefused
from flashpool.frontends.qb.deployed.app_jobs import AppJobs
from flashpool.frontends.qb.job_run import JobOutputs
from flashpool.frontends.qb.jobs import Job, NothingRuns
from flashpool.frontends.qb.log_lines import LiveLines
from flashpool.frontends.service import Service
from flashpool.frontends.settings.table import Settings
from flashpool.pool.apps import App, AppState
from flashpool.pool.calls import Outcome
from support.frontends.stand_in import StandInPool
from support.waiting import until


class StandInApp:
    """An app whose state a test sets."""

    def __init__(self) -> None:
        self.state = AppState.LOADING
        self.failure = "it is broken"
        self.failure_passes = False
        self.is_retired = False

    def retire(self, within_s: float, then: Callable[[], None]) -> None:
        self.is_retired = True
        then()


class AppPool(StandInPool):
    """A pool that opens stand-in apps."""

    def __init__(self) -> None:
        super().__init__()
        self.app = StandInApp()
        self.opened: list[App] = []

    async def start(self) -> None:
        pass

    def open_app(self, app: App) -> Any:
        self.opened.append(app)
        return self.app


class Entry:
    kind = EntryKind.HANDLER
    concurrency = 3


class Deployed:
    resource = "r"
    entry = Entry()
    functions = ()


class Prepared:
    """The result of preparing an app."""

    deployed = Deployed()
    neighbours = None
    released = False

    def __init__(self, digest: str = "") -> None:
        self.folder = AppFolder(path=Path("/"), digest=digest)

    def to_app(self, settings: Settings, workers: int) -> App:
        return App(name="r", directory="/", workers=workers)

    def release(self) -> None:
        self.released = True


class Source:
    """A source that raises the given errors, then succeeds."""

    resource = "r"

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.waits: list[bool] = []
        self.digest = ""
        self.prepared: list[Prepared] = []
        #: Whether somebody wrote to the artifact.
        self.is_changed = False

    async def may_differ(self) -> bool:
        return self.is_changed

    async def prepare(self, *, wait: bool) -> Any:
        self.waits.append(wait)
        if self.failures:
            raise self.failures.pop(0)
        self.is_changed = False
        self.prepared.append(Prepared(self.digest))
        return self.prepared[-1]


def with_jobs(source: Source, check: Callable[[AppJobs, AppPool], Any], **variables: str) -> None:
    settings = Settings.from_environ({"FLASHPOOL_APP_WORKERS": "2", **variables})

    async def run() -> None:
        pool = AppPool()
        made: Any = source
        jobs = AppJobs(
            settings,
            Service(pool, result_limit=None),
            made,
            report_limit=1000,
            result_limit=1000,
            spill=None,
        )
        await jobs.start()
        await jobs._known.wait()
        await check(jobs, pool)
        await jobs.stop("over")

    asyncio.run(run())


@pytest.mark.parametrize(("variables", "most"), [({}, 6), ({"FLASHPOOL_QB_CONCURRENCY": "4"}, 4)])
def test_a_loaded_app_takes_as_many_jobs_as_run_together(
    variables: dict[str, str], most: int
) -> None:
    async def check(jobs: AppJobs, pool: AppPool) -> None:
        assert pool.opened[0].jobs
        assert (pool.opened[0].concurrency, pool.opened[0].threads) == (3, 3)
        assert [jobs.room(active) for active in (0, 2)] == [0, 2]
        pool.app.state = AppState.SERVED
        assert [jobs.room(active) for active in (0, most, most + 3)] == [most, most, most + 3]

    with_jobs(Source(), check, **variables)


def test_permanent_failures_fail_jobs_and_temporary_ones_pause_taking() -> None:
    async def check(jobs: AppJobs, pool: AppPool) -> None:
        pool.app.state = AppState.FAILED
        assert jobs.room(0) == 6
        pool.app.failure_passes = True
        assert jobs.room(0) == 0
        await asyncio.sleep(0.06)
        pool.app.state = AppState.SERVED
        assert jobs.room(0) == 6
        pool.app.state = AppState.FAILED
        assert jobs.room(1) == 1
        await asyncio.sleep(0.06)
        with pytest.raises(NothingRuns, match=r"APP_GIVE_UP_S.*it is broken"):
            jobs.room(0)

    with_jobs(Source(), check, FLASHPOOL_APP_GIVE_UP_S="0.05")


@pytest.mark.parametrize(
    ("error", "room"),
    [(ArtifactMissing("no archive"), 0), (ResourceRefused("no such"), 1), (OSError("odd"), 0)],
    ids=lambda value: type(value).__name__,
)
def test_an_app_that_cannot_be_prepared_fails_jobs(error: Exception, room: int) -> None:
    async def check(jobs: AppJobs, pool: AppPool) -> None:
        assert jobs.room(0) == room
        outcome = await one(jobs)
        assert outcome.error_type == "AppNotLoaded"
        assert str(error) in (outcome.error or "")
        assert not pool.opened

    with_jobs(Source(error), check)


def test_preparing_is_retried_without_waiting_for_the_archive(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flashpool.frontends.qb.deployed.app_jobs._PAUSES_S", (0.001,))
    source = Source(ArtifactMissing("1"), ArtifactMissing("1"))

    async def check(jobs: AppJobs, pool: AppPool) -> None:
        await until(lambda: pool.opened)
        assert source.waits == [True, False, False]

    with_jobs(source, check)


def test_a_retry_replaces_a_failed_app_if_the_artifact_changed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = Source()
    source.digest = "one"

    async def check(jobs: AppJobs, pool: AppPool) -> None:
        first, retry = pool.app, pool.opened[0].on_retry
        assert retry is not None

        async def looks() -> None:
            source.is_changed = True
            before = len(source.waits)
            retry()
            await until(lambda: len(source.waits) > before)

        first.state = AppState.SERVED
        source.is_changed = True
        retry()
        await asyncio.sleep(0.01)
        assert source.waits == [True], "one of several workers is tried again"
        first.state = AppState.FAILED
        await looks()
        await until(lambda: source.prepared[0].released)
        assert (len(pool.opened), first.is_retired) == (1, False)
        source.failures = [OSError("odd"), OSError("odd")]
        await looks()
        await looks()
        source.digest = "two"
        pool.app = StandInApp()
        await looks()
        await until(lambda: len(pool.opened) == 2)
        assert (first.is_retired, jobs.room(0)) == (True, 0)
        pool.app.state = AppState.SERVED
        assert jobs.room(0) == 6
        assert [one.released for one in source.prepared] == [True, True, False]

    with_jobs(source, check)
    assert source.prepared[-1].released
    assert caplog.text.count("odd") == 1


def test_a_load_balanced_resource_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Entry, "kind", EntryKind.ASGI)

    async def check(jobs: AppJobs, pool: AppPool) -> None:
        assert "load-balanced image" in ((await one(jobs)).error or "")

    with_jobs(Source(), check)


async def one(jobs: AppJobs) -> Outcome:
    job = Job(id="a", input=b"{}")
    return await jobs.run(job, JobOutputs(lines=LiveLines("a", 100))).outcome()
