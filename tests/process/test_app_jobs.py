"""Jobs in app workers of a real pool: their outcomes, and what happens to other jobs."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flashpool.frontends.qb.deployed.app_job import AppJob, JobOptions
from flashpool.pool.apps import App, AppService, AppState
from flashpool.pool.calls import Outcome
from flashpool.pool.errors import Cancelled, Timeout
from support.interpreters import virtualenv
from support.live import Live
from support.waiting import PATIENCE

HANDLERS = Path(__file__).with_name("handlers")
LIMIT = 1_000_000


class Jobs:
    """An app that runs jobs."""

    def __init__(self, live: Live, name: str, concurrency: int = 1, **more: Any) -> None:
        self.live = live
        app = App(
            name=name,
            directory=str(HANDLERS),
            file=f"handler_{name}.py",
            attribute="handler",
            jobs=True,
            functions=("function", "rest"),
            concurrency=concurrency,
            threads=concurrency,
            **more,
        )

        async def opened() -> AppService:
            return live.supervisor.open_app(app)

        self.app: AppService = live.run(opened())

    def served(self) -> "Jobs":
        self.live.until(lambda: self.app.state is AppState.SERVED)
        return self

    def begin(self, do: Any = None, body: "bytes | None" = None, **given: Any) -> AppJob:
        return self.start(JobOptions(item_limit=LIMIT, result_limit=LIMIT), do, body, **given)

    def start(
        self, options: JobOptions, do: Any = None, body: "bytes | None" = None, **given: Any
    ) -> AppJob:
        if body is None:
            body = json.dumps({"do": do, **given} if do else given).encode()

        async def begin() -> AppJob:
            job = AppJob(self.app, options)
            job.begin("job-1", b'{"id":"job-1","input":%b}' % body)
            return job

        found: AppJob = self.live.run(begin())
        return found

    def end_of(self, job: AppJob) -> Outcome:
        outcome: Outcome = self.live.run(asyncio.wait_for(job.outcome, 30 * PATIENCE))
        return outcome

    def run(self, do: Any = None, body: "bytes | None" = None, **given: Any) -> Outcome:
        return self.end_of(self.begin(do, body, **given))

    def value(self, do: Any = None, body: "bytes | None" = None, **given: Any) -> Any:
        outcome = self.run(do, body, **given)
        assert outcome.ok, outcome.error
        return json.loads(outcome.body)

    def deaths(self) -> int:
        (app,) = self.live.stats().apps
        return app.deaths


@pytest.fixture
def jobs(live: Live) -> Callable[..., Jobs]:
    return lambda name, concurrency=1, **more: Jobs(live, name, concurrency, **more).served()


@pytest.mark.parametrize(("name", "concurrency"), [("one", 1), ("many", 3)])
def test_each_job_has_its_own_outcome(
    jobs: Callable[..., Jobs], name: str, concurrency: int
) -> None:
    app = jobs(name, concurrency)
    assert app.value("ends", how="value", value={"a": [1, None]}) == {"a": [1, None]}
    assert app.value("count") == 1
    for how, error_type in {
        "exit": "SystemExit",
        "interrupt": "KeyboardInterrupt",
        "base": "BaseException",
        "cancelled": "CancelledError",
    }.items():
        outcome = app.run("ends", how=how)
        assert (outcome.error_type, outcome.from_user) == (error_type, True), outcome
        assert "in ends" in (outcome.error or "")
    # The handler reports an `Exception` itself.
    assert app.value("ends", how="stop")["error"]
    for how, words in {
        "set": "the result['a'][1] is of the type set",
        "bytes": "the result is of the type bytes",
        "nan": "the result[0] is nan",
        "infinity": "the result['x'][1] is -inf",
        "object": "the result['o'] is of the type object",
        "surrogate": "the result['s'] is text with half of a surrogate pair",
        "key": "the result has a key of the type tuple",
        "itself": "contains itself",
        "deep": "is more than 200 levels deep",
    }.items():
        outcome = app.run("ends", how=how)
        assert (outcome.error_type, outcome.from_user) == ("ResultNotSerializable", False)
        assert words in (outcome.error or "")
    outcome = app.run("large", size=LIMIT)
    assert outcome.error_type == "ResultTooLarge"
    assert app.value("large", size=LIMIT - 100) == "x" * (LIMIT - 100)
    assert app.value("ends", how="fork") == "once"
    outcome = app.run(body=b"[" * 100_000 + b"]" * 100_000)
    assert outcome.error_type == "InvalidRequest"
    assert app.run(body=b'{"x": \xff}').error_type == "InvalidRequest"
    large = "y" * 700_000
    assert app.value("ends", how="value", value=large) == large
    assert app.value("count") == 2
    assert app.deaths() == 0


def test_one_job_at_a_time_has_the_main_thread_and_no_loop(jobs: Callable[..., Jobs]) -> None:
    app = jobs("one")
    assert app.value(__empty=True) == ["id", "input"]
    assert app.value(body=b"null") == ["id", "input"]
    assert app.value("ends", how="main") is True
    assert app.value("ends", how="database") == [1]
    assert app.value("ends", how="run") == "ran"
    # Coroutines run to their end on the one loop.
    assert app.value("later", value=5) == 5
    assert app.value("loop") == app.value("loop")
    assert app.value(body=b"[1]")["error"] == "no dictionary: list"


def test_several_jobs_run_on_threads_and_on_one_loop(
    jobs: Callable[..., Jobs], tmp_path: Path
) -> None:
    app = jobs("many", 3)
    assert app.value("ends", how="main") is False
    paths = [tmp_path / str(n) for n in range(3)]
    blocking = [app.begin("blocks", path=str(path), seconds=0.3) for path in paths]
    app.live.until(lambda: all(path.exists() for path in paths))
    assert [json.loads(app.end_of(job).body) for job in blocking] == ["over"] * 3
    paths = [tmp_path / f"w{n}" for n in range(3)]
    waiting = [app.begin("waits", path=str(path), seconds=0.3) for path in paths]
    app.live.until(lambda: all(path.exists() for path in paths))
    assert [json.loads(app.end_of(job).body) for job in waiting] == ["over"] * 3
    assert len({app.value("loop") for _ in range(3)}) == 1
    assert app.value(body=b"[1]") == {
        "success": False, "error": "Malformed input: expected dict, got list"
    }  # fmt: skip
    assert app.run(body=b"null").ok


def test_methods_of_an_instance_keep_its_state(jobs: Callable[..., Jobs]) -> None:
    app = jobs("counter", 2)
    assert [app.value(method=m, by=2) for m in ("add", "add_later", "add")] == [2, 4, 6]
    assert "nothing" in app.value(method="add", nothing=1)["error"]


def test_positional_arguments_are_passed(jobs: Callable[..., Jobs]) -> None:
    app = jobs("rest")
    assert app.value(args=[1, "b"]) == [1, "b"]


@pytest.mark.parametrize(("name", "concurrency"), [("one", 1), ("many", 2)])
def test_generators_yield_their_items(
    jobs: Callable[..., Jobs], name: str, concurrency: int, tmp_path: Path
) -> None:
    app = jobs(name, concurrency)
    seen: list[Any] = []
    options = JobOptions(
        item_limit=100_000,
        result_limit=LIMIT,
        on_item=lambda item: seen.append(json.loads(item)),
    )
    go = tmp_path / "go"
    job = app.start(options, "items", number=3, path=str(go))
    app.live.until(lambda: len(seen) == 3)
    assert not job.outcome.done()
    go.touch()
    wanted = [{"n": 0}, {"n": 1}, {"n": 2}]
    assert json.loads(app.end_of(job).body) == seen == wanted
    assert app.value("items_later", number=3) == [0, 1, 2]
    assert app.value("items", number=0) == []
    for given, error_type, words in [
        ({"fails": 1}, "ValueError", "no more"),
        ({"odd": 1}, "ResultNotSerializable", "item 1['n'] is of the type set"),
    ]:
        outcome = app.run("items", number=3, **given)
        assert outcome.error_type == error_type
        assert words in (outcome.error or "")
    assert app.value("items", number=3, says=1) == {"error": "enough"}
    plain = JobOptions(item_limit=LIMIT, result_limit=LIMIT, lists=False)
    assert app.end_of(app.start(plain, "items", number=3)).body == b"[]"


def test_a_generator_waits_until_its_items_are_read(jobs: Callable[..., Jobs]) -> None:
    app = jobs("one")
    seen: list[bytes] = []
    options = JobOptions(
        item_limit=LIMIT, result_limit=100 * LIMIT, on_item=seen.append, lists=False
    )
    job = app.start(options, "items", number=20_000)
    app.live.until(lambda: len(seen) > 1000)
    app.live.run(asyncio.sleep(0.2))
    before = len(seen)
    assert before < 18_000

    async def take() -> None:
        taken = 0
        while not job.outcome.done():
            while taken < len(seen):
                job.credit_item()
                taken += 1
            await asyncio.sleep(0.001)

    app.live.run(asyncio.wait_for(take(), 60 * PATIENCE))
    assert len(seen) == 20_000
    assert job.outcome.result().ok


def test_each_jobs_output_is_captured_separately(jobs: Callable[..., Jobs]) -> None:
    for name, concurrency in (("one", 1), ("many", 3)):
        app = jobs(name, concurrency)
        printed: list[list[bytes]] = []
        started = []
        for number, do in enumerate(("says", "says_later", "says")[:concurrency]):
            chunks: list[bytes] = []
            options = JobOptions(item_limit=LIMIT, result_limit=LIMIT, on_output=chunks.append)
            printed.append(chunks)
            started.append(app.start(options, do, text=f"job {number}", times=5))
        assert all(app.end_of(job).ok for job in started)
        for number, chunks in enumerate(printed):
            last = b"" if number == 1 else b"unfinished job %d" % number
            assert b"".join(chunks) == b"job %d\n" % number * 5 + last


def test_a_dead_worker_fails_only_the_jobs_it_ran(
    jobs: Callable[..., Jobs], tmp_path: Path
) -> None:
    app = jobs("many", 2)
    assert app.value("count") == 1
    beside = app.begin("blocks", path=str(tmp_path / "begun"), seconds=60)
    app.live.until((tmp_path / "begun").exists)
    inside = app.begin("dies", how="leave")
    next_one = app.begin("count")
    for job in (inside, beside):
        outcome = app.end_of(job)
        assert outcome.error_type == "WorkerCrashed"
        assert "exit code 5" in (outcome.error or "")
    assert json.loads(app.end_of(next_one).body) == 1
    assert app.deaths() == 1


def test_cancelling_an_awaiting_job_keeps_the_workers_state(
    jobs: Callable[..., Jobs], tmp_path: Path
) -> None:
    app = jobs("many", 2)
    job = app.begin("waits", path=str(tmp_path / "begun"), seconds=60)
    app.live.until((tmp_path / "begun").exists)
    end(app, job, Cancelled("stopped"), spares=True)
    assert app.end_of(job).error_type == "Cancelled"
    while app.value("cancelled") != 1:
        pass
    assert app.deaths() == 0


def test_a_job_that_cannot_be_cancelled_ends_its_worker(
    jobs: Callable[..., Jobs], tmp_path: Path
) -> None:
    app = jobs("one")
    job = app.begin("blocks", path=str(tmp_path / "begun"), seconds=60)
    app.live.until((tmp_path / "begun").exists)
    end(app, job, Timeout("too long", phase="run", limit_s=1.0), spares=True)
    assert app.end_of(job).error_type == "Timeout"
    assert app.value("count") == 1
    assert app.deaths() == 1


@pytest.mark.parametrize("spares", [True, False])
def test_other_jobs_of_the_worker_may_finish_first_or_are_lost(
    jobs: Callable[..., Jobs], tmp_path: Path, *, spares: bool
) -> None:
    app = jobs("many", 2)
    stuck = app.begin("blocks", path=str(tmp_path / "stuck"), seconds=60)
    beside = app.begin("blocks", path=str(tmp_path / "beside"), seconds=2)
    app.live.until(lambda: (tmp_path / "stuck").exists() and (tmp_path / "beside").exists())
    end(app, stuck, Cancelled("stopped"), spares=spares)
    outcome = app.end_of(beside)
    assert outcome.ok is spares
    if not spares:
        assert outcome.error_type == "ResidentLost"
    assert app.value("count") == 1
    assert app.deaths() == 1


def test_jobs_of_an_app_that_cannot_be_loaded_fail(live: Live) -> None:
    broken = Jobs(live, "broken")
    live.until(lambda: broken.app.state is AppState.FAILED)
    assert not broken.app.failure_passes
    outcome = broken.run()
    assert outcome.error_type == "AppNotLoaded"
    assert "no model here" in (outcome.error or "")


def end(app: Jobs, job: AppJob, cause: Any, *, spares: bool) -> None:
    async def do() -> None:
        job.end(cause, spares=spares)

    app.live.run(do())


def test_an_apps_interpreter_has_the_apps_time_to_start(
    make_live: Callable[..., Live], tmp_path: Path
) -> None:
    hangs = str(virtualenv(tmp_path / "env", at_start="while True: pass"))
    live = make_live(base_python=hangs, start_timeout_s=600.0)
    app = Jobs(live, "one", start_timeout_s=1.0).app
    live.until(lambda: "did not come up within 1 s" in app.failure)
