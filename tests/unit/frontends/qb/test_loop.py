"""Jobs that arrive, or whose reports are pending, while the process stops."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from flashpool.frontends.qb import loop as job_loop
from flashpool.frontends.qb.heartbeat import Heartbeat
from flashpool.frontends.qb.job_runners import LiveJobs
from flashpool.frontends.qb.jobs import Job
from flashpool.frontends.qb.loop import JobLoop
from flashpool.frontends.qb.outbox import JobReport, Outbox
from flashpool.frontends.qb.paths import report_key
from flashpool.frontends.qb.platform_posts import Addresses
from flashpool.frontends.qb.polling import Taken
from flashpool.frontends.qb.results import Results
from flashpool.frontends.qb.worker import QueueWorker, report_limit, spill_of
from flashpool.frontends.service import Service
from flashpool.frontends.settings.table import Settings
from flashpool.pool.calls import Outcome
from support.frontends.stand_in import StandInPool

JOB = Job(id="late", input=b'{"function_name":"f","function_code":"def f(): pass"}')
DRAIN_S = 0.5


class Taker:
    """A poll that is cancelled after its answer has begun."""

    jobs: tuple[Job, ...] = ()
    receiving = False

    def __init__(self, address: Callable[[int], str]) -> None:
        pass

    async def take(self, session: object, wanted: int) -> Taken:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            # Longer than the loop waits for the rest of such an answer.
            await asyncio.sleep(0.2)
            return Taken(jobs=list(self.jobs))
        raise AssertionError


class Slow(Taker):
    """A poll whose answer is still arriving when the time is up."""

    receiving = True

    async def take(self, session: object, wanted: int) -> Taken:
        await asyncio.sleep(0.8)
        return Taken(jobs=list(self.jobs))


class Loop(JobLoop):
    """The loop without the SDK's session, stop channel and signals."""

    async def leave(self, worker: QueueWorker, *jobs: Job) -> None:
        """Start these jobs, then stop as after a signal."""
        self._loop = asyncio.get_running_loop()
        self._worker = worker
        for job in jobs:
            self._begin(job)
        session: Any = None
        running = asyncio.gather(self.get_jobs(session), self.run_jobs(session))
        await asyncio.sleep(0.05)
        self._on_signal("SIGTERM")
        await asyncio.wait_for(running, 30)


def left(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    pool: StandInPool,
    *jobs: Job,
    taker: type[Taker] | None = None,
) -> dict[str, Any]:
    """Return the reports on disk, by job id, when the platform does not answer."""
    monkeypatch.setattr(Taker, "jobs", (JOB,) if taker else ())
    monkeypatch.setattr(job_loop, "Taker", taker or Taker)
    monkeypatch.setenv("RUNPOD_POD_ID", "pod")
    monkeypatch.setenv("RUNPOD_AI_API_KEY", "the platform's")
    variables = {"FLASHPOOL_STATE_DIR": str(folder), "RUNPOD_POD_ID": "pod"}
    settings = Settings.from_environ(variables)

    async def main() -> None:
        nobody = Addresses(done="http://127.0.0.1:9/job-done/pod/$ID?x=y", stream=None)
        # Where aiodns is installed, aiohttp's default resolver starts a thread that never exits.
        connector = aiohttp.TCPConnector(resolver=aiohttp.ThreadedResolver())
        async with aiohttp.ClientSession(connector=connector) as session:
            service = Service(pool, result_limit=None)
            runner = LiveJobs(settings, service, report_limit(settings), spill_of(settings))
            worker = QueueWorker(settings, runner, session, nobody, None)
            loop = Loop(
                {"concurrency_modifier": worker.concurrency},
                make=lambda: worker,
                drain_s=DRAIN_S,
                heartbeat=Heartbeat(print),
            )
            await loop.leave(worker, *jobs)

    asyncio.run(main())
    return {report.job_id: json.loads(report.body) for report in kept(folder)}


def kept(folder: Path) -> list[JobReport]:
    (place,) = {path.parent for path in folder.rglob("*.json")} or {folder}
    settings = Settings.from_environ({"FLASHPOOL_STATE_DIR": str(folder)})
    return list(Outbox(place, report_key(settings)).waiting(60))


@pytest.mark.parametrize("taker", [Taker, Slow])
def test_a_job_that_arrives_during_the_stop_is_reported_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taker: type[Taker]
) -> None:
    found = left(tmp_path, monkeypatch, StandInPool(outcome=None), taker=taker)
    assert found["late"]["output"]["error_type"] == "Cancelled"
    assert [report.cut_off for report in kept(tmp_path)] == [True]
    assert "FLASHPOOL_DRAIN_S" in found["late"]["error"]


def test_a_job_whose_result_is_not_written_in_time_is_reported_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The volume to which its result is written is slow."""

    async def slow(_self: Results, _job_id: str, _outcome: Outcome, **_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Results, "report", slow)
    found = left(tmp_path, monkeypatch, StandInPool(), Job(id="a", input=JOB.input))
    assert found["a"]["output"]["success"] is False
    assert "the server stopped" in found["a"]["error"]
    assert [report.cut_off for report in kept(tmp_path)] == [True]


def test_only_jobs_ended_by_the_stop_are_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The user's code raised Cancelled itself, before the stop.
    outcome = Outcome(error_type="Cancelled", error="Cancelled: by hand", from_user=True)
    left(tmp_path, monkeypatch, StandInPool(outcome=outcome), Job(id="a", input=JOB.input))
    assert [report.cut_off for report in kept(tmp_path)] == [False]


def test_a_call_that_ignores_its_cancellation_delays_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = StandInPool(outcome=None)
    monkeypatch.setattr(pool, "cancel", lambda _call_id, _reason: None)
    found = left(tmp_path, monkeypatch, pool, Job(id="a", input=JOB.input))
    assert "the server stopped" in found["a"]["error"]
