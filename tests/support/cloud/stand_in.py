"""The stand-in as tests use it; it serves from a thread of its own.

with Platform() as platform:
    worker = platform.start_worker([python, "handler.py"])    # or your own Popen with
                                                              # env=platform.worker_env()
    job = platform.submit({"function_name": ...})
    record = platform.wait(job)                               # until it is final
    assert record.status is Status.COMPLETED and record.done_count == 1
"""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from aiohttp import web

from support.cloud import client_side, control_plane, serverless, worker_side
from support.cloud.addresses import Urls, client_env, pod_env
from support.cloud.faults import Fault
from support.cloud.jobs import Job
from support.cloud.pods import Pods, Worker
from support.cloud.recording import STATE, record
from support.cloud.records import Exchange, JobRecord, Ping
from support.cloud.state import Config, State

T = TypeVar("T")

#: The endpoint that exists from the start without provisioning.
ENDPOINT: Final = "ep-local"
_LOOPBACK: Final = "127.0.0.1"
#: Larger than every limit of the platform, so that flashpool's own limit refuses.
_MOST_BYTES: Final = 256 * 1024 * 1024
#: A call from the test's thread to the loop's thread.
_CALL_LIMIT_S: Final = 30.0


class Platform:
    """RunPod's cloud on loopback: worker side, client side and control plane."""

    def __init__(
        self,
        *,
        worker: Sequence[str] | None = None,
        worker_variables: Mapping[str, str] | None = None,
        port: int = 0,
        poll_s: float = 1.0,
        sync_wait_s: float = 90.0,
        execution_timeout_s: float = 600.0,
        gone: int = 200,
        lost_after_s: float | None = None,
        redeliveries: int = 0,
        ping_interval_s: int = 1,
        api_key: str = "client-key",
        endpoint_key: str = "endpoint-key",
        worker_key: str = "worker-key",
    ) -> None:
        """Say how it differs from the usual.

        ``worker``               the command that starts a provisioned endpoint's worker
        ``worker_variables``     what every worker has in its environment besides
        ``poll_s``               how long job-take and job-stop are held open for nothing
        ``sync_wait_s``          how long runsync waits for the end
        ``execution_timeout_s``  for jobs without `policy.executionTimeout`
        ``gone``                 the answer to a job-done for a job that has ended already
        ``lost_after_s``         a worker that is silent that long has lost its jobs: they are
                                 queued again ``redeliveries`` times, then TIMED_OUT
        """
        self._config = Config(
            poll_s=poll_s,
            sync_wait_s=sync_wait_s,
            execution_timeout_s=execution_timeout_s,
            gone=gone,
            lost_after_s=lost_after_s,
            redeliveries=redeliveries,
            api_key=api_key,
            endpoint_key=endpoint_key,
            worker_key=worker_key,
        )
        self._port = port
        self._ping_interval_s = ping_interval_s
        self.pods = Pods(self._pod_env, worker, worker_variables or {})
        self._state = State(self._config, self.pods)
        self._state.add_endpoint(ENDPOINT)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="cloud", daemon=True)
        self._listens = threading.Event()
        self._leave = asyncio.Event()

    # Life

    def __enter__(self) -> "Platform":  # noqa: PYI034 - no Self in Python 3.10
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> "Platform":
        self._thread.start()
        assert self._listens.wait(_CALL_LIMIT_S), "the stand-in does not listen"
        return self

    def stop(self) -> None:
        """Ends its workers (SIGTERM, then SIGKILL) and its server; also on leaving `with`.

        Fails afterwards if a worker had to be killed.
        """
        self.clear_faults()
        try:
            self.pods.close()
        finally:
            self._loop.call_soon_threadsafe(self._leave.set)
            self._thread.join(_CALL_LIMIT_S)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._life())
        finally:
            self._loop.close()

    async def _life(self) -> None:
        app = web.Application(middlewares=[record], client_max_size=_MOST_BYTES)
        app[STATE] = self._state
        for side in (worker_side, client_side, control_plane, serverless):
            side.add_routes(app)
        runner = web.AppRunner(
            app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None
        )
        await runner.setup()
        site = web.TCPSite(runner, _LOOPBACK, self._port)
        await site.start()
        self._port = runner.addresses[0][1]
        watch = asyncio.ensure_future(self._state.watch_for_lost())
        self._listens.set()
        await self._leave.wait()
        watch.cancel()
        await runner.cleanup()

    # Where it is

    def urls(self) -> Urls:
        return Urls.at(f"http://{_LOOPBACK}:{self._port}")

    def worker_env(self, endpoint: str = ENDPOINT, *, worker: str | None = None) -> dict[str, str]:
        """Return the variables that the platform adds to a worker's environment; each call is a new
        pod.
        """
        return self._pod_env(endpoint, worker or self.pods.name())

    def _pod_env(self, endpoint: str, worker: str) -> dict[str, str]:
        return pod_env(
            self.urls(),
            endpoint,
            worker,
            key=self._config.worker_key,
            ping_interval_s=self._ping_interval_s,
        )

    def client_env(self) -> dict[str, str]:
        """Return the variables that lead the real client here; it also needs a home without
        RunPod's configuration.
        """
        return client_env(self.urls(), self._config.api_key)

    # Workers

    def start_worker(
        self,
        command: Sequence[str],
        *,
        endpoint: str = ENDPOINT,
        variables: Mapping[str, str] | None = None,
    ) -> Worker:
        """Start a worker process with `worker_env`; the end of the stand-in stops the worker."""
        return self.pods.start(endpoint, command, variables or {})

    def workers(self, endpoint: str | None = None) -> list[Worker]:
        """The processes started, here and for provisioned endpoints."""
        return [one for one in self.pods.workers if endpoint in {None, one.endpoint}]

    def endpoints(self) -> dict[str, dict[str, Any]]:
        """By id: the fields that the client has saved for each provisioned endpoint."""
        return {
            id_: dict(one.saved)
            for id_, one in list(self._state.endpoints.items())
            if id_ != ENDPOINT
        }

    def add_endpoint(self, endpoint: str) -> None:
        """Add an endpoint without the control plane."""
        self._call(self._state.add_endpoint, endpoint)

    # Jobs

    def submit(
        self,
        input: Any,
        *,
        endpoint: str = ENDPOINT,
        policy: Mapping[str, Any] | None = None,
        sync: bool = False,
        **fields: Any,
    ) -> str:
        """Put a job in the queue, and return its id. ``fields`` are passed to the worker beside
        `input`.

        Inputs that a client could not send are accepted as well: any `input`, of any size; the
        worker gets an `id` of your own, while the record keeps the stand-in's.
        """
        given = {"input": input, **({"policy": dict(policy)} if policy else {}), **fields}
        return self._call(self._submit, endpoint, given, sync).id

    def _submit(self, endpoint: str, given: dict[str, Any], sync: bool) -> Job:
        return self._state.submit(self._state.endpoints[endpoint], given, sync=sync)

    def job(self, job: str) -> JobRecord:
        return self._found(job).record()

    def jobs(self, endpoint: str | None = None) -> list[JobRecord]:
        """Return all jobs, in the order of their arrival at each endpoint."""
        return [
            job.record()
            for one in list(self._state.endpoints.values())
            if endpoint in {None, one.id}
            for job in list(one.queue.jobs.values())
        ]

    def wait(self, job: str, seconds: float = 30.0) -> JobRecord:
        """Wait until a job is final."""
        found = self._found(job)
        self.until(lambda: found.final, seconds)
        return found.record()

    def wait_all(self, jobs: Sequence[str], seconds: float = 60.0) -> list[JobRecord]:
        found = [self._found(job) for job in jobs]
        self.until(lambda: all(job.final for job in found), seconds)
        return [job.record() for job in found]

    def until(self, holds: Callable[[], T], seconds: float = 30.0) -> T:
        """Wait until a condition is true, checking it after each change; return its value."""
        return self._state.changes.watch(holds, seconds)

    def cancel(self, job: str) -> None:
        """Cancel a job like a client's POST cancel: CANCELLED at once, and the worker is told to
        stop it.
        """
        self._call(self._state.cancel, self._found(job))

    def send_stop(self, job: str, *, worker: str | None = None) -> None:
        """Tell the worker to stop a job, and nothing else: the job stays as it is.

        ``job`` need not exist, if a ``worker`` is named.
        """
        self._call(self._state.send_stop, job, worker)

    def _found(self, job: str) -> Job:
        found = self._state.find(job)
        assert found, f"no job {job}"
        return found

    # Faults

    def script(self, *faults: Fault) -> None:
        for fault in faults:
            self._call(self._state.add_fault, fault)

    def clear_faults(self) -> None:
        """Remove all faults; requests that hang continue."""
        self._call(self._state.clear_faults)

    # What happened

    def exchanges(
        self, verb: str | None = None, *, job: str | None = None, worker: str | None = None
    ) -> list[Exchange]:
        return [
            one
            for one in list(self._state.exchanges)
            if verb in {None, one.verb} and job in {None, one.job} and worker in {None, one.worker}
        ]

    def pings(self, worker: str | None = None) -> list[Ping]:
        return [one for one in list(self._state.pings) if worker in {None, one.worker}]

    def _call(self, function: Callable[..., T], *args: Any) -> T:
        """Run a function on the loop, which owns all state."""

        async def call() -> T:
            return function(*args)

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(_CALL_LIMIT_S)
