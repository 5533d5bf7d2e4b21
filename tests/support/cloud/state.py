"""The state of the stand-in, which only this module changes; on the loop only.

The routes (`worker_side`, `client_side`, `control_plane`) translate HTTP to this; `stand_in`
hands it to tests.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from support.cloud.changes import Changes
from support.cloud.faults import Fault, Script
from support.cloud.jobs import Job, Queue
from support.cloud.records import Delivery, Exchange, Ping, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """See `Platform`."""

    poll_s: float
    sync_wait_s: float
    execution_timeout_s: float
    gone: int
    lost_after_s: float | None
    redeliveries: int
    api_key: str
    #: The `aiKey` of endpoints, with which clients ask about their jobs.
    endpoint_key: str
    worker_key: str


@dataclass(slots=True, kw_only=True, eq=False)
class Endpoint:
    """An endpoint as saved through the control plane, or created by the test."""

    id: str
    queue: Queue
    saved: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.saved.get("name") or self.id)


class Pods(Protocol):
    """The worker processes; see `pods`."""

    def provision(self, endpoint: str, variables: Mapping[str, str]) -> None: ...

    def remove(self, endpoint: str) -> None: ...

    def stop(self, worker: str) -> None: ...

    def initializing(self, endpoint: str, ready: set[str]) -> int: ...

    def log(self, worker: str) -> list[str]: ...


@dataclass(slots=True, kw_only=True)
class Seen:
    """A worker as seen from its requests."""

    endpoint: str
    at: float
    #: job-take requests open now.
    polls: int = 0


class State:
    """Endpoints, jobs, workers, faults and the record of all requests."""

    def __init__(self, config: Config, pods: Pods) -> None:
        self.config = config
        self.pods = pods
        self.changes = Changes()
        self.script = Script()
        self.endpoints: dict[str, Endpoint] = {}
        self.templates: dict[str, dict[str, Any]] = {}
        self.exchanges: list[Exchange] = []
        self.pings: list[Ping] = []
        self.seen: dict[str, Seen] = {}

    # Endpoints

    def add_endpoint(self, id_: str, saved: dict[str, Any] | None = None) -> Endpoint:
        made = Endpoint(
            id=id_, queue=Queue(id_, self.config.execution_timeout_s), saved=saved or {}
        )
        self.endpoints[id_] = made
        return made

    def by_name(self, name: str) -> Endpoint | None:
        """Find an endpoint by name, as the sentinel does."""
        names = {name, f"live-{name}"}
        return next((one for one in self.endpoints.values() if one.name in names), None)

    # Jobs

    def find(self, job: str) -> Job | None:
        return next(
            (one.queue.jobs[job] for one in self.endpoints.values() if job in one.queue.jobs), None
        )

    def submit(self, endpoint: Endpoint, given: Mapping[str, Any], *, sync: bool = False) -> Job:
        job = endpoint.queue.submit(given, sync=sync, now=time.monotonic())
        self._later(job.ttl_s, lambda: job.status is Status.IN_QUEUE, job)
        self.changes.tell()
        return job

    async def take(self, endpoint: Endpoint, worker: str, most: int) -> list[Job]:
        """Long-poll for jobs: those queued, or those that arrive while the poll is open."""
        queue, seen = endpoint.queue, self._see(endpoint.id, worker)
        seen.polls += 1
        self.changes.tell()
        try:
            await self.changes.until(queue.has_work, self.config.poll_s)
        finally:
            seen.polls -= 1
        taken = queue.take(worker, most, time.monotonic())
        for job in taken:
            self._handed_out(job, job.deliveries[-1])
        self.changes.tell()
        return taken

    def _handed_out(self, job: Job, its: Delivery) -> None:
        if self.script.meets("duplicate", job=job.id, worker=its.worker, now=its.at):
            self.endpoints[job.endpoint].queue.repeat(job)
        self._later(
            job.execution_timeout_s,
            lambda: job.status is Status.IN_PROGRESS and job.deliveries[-1] is its,
            job,
        )

    async def stops(self, endpoint: Endpoint, worker: str) -> list[str]:
        """Long-poll for the jobs that this worker must stop."""
        self._see(endpoint.id, worker)
        stops = endpoint.queue.stops
        return await self.changes.until(lambda: stops.pop(worker, []), self.config.poll_s)

    def done(self, job: Job, worker: str, body: Mapping[str, Any], *, is_stream: bool) -> bool:
        queue = self.endpoints[job.endpoint].queue
        counted = queue.done(job, worker, body, is_stream=is_stream, now=time.monotonic())
        if body.get("stopPod"):
            self.pods.stop(worker)
        self.changes.tell()
        return counted

    def cancel(self, job: Job) -> None:
        self.endpoints[job.endpoint].queue.cancel(job, time.monotonic())
        self.changes.tell()

    def send_stop(self, job: str, worker: str | None) -> None:
        found = self.find(job)
        held = found.deliveries[-1].worker if found and found.deliveries else None
        to = worker or held
        assert to, f"no worker has {job}"
        home = self.endpoints[found.endpoint if found else self.seen[to].endpoint]
        home.queue.stop(job, to)
        self.changes.tell()

    # Workers

    def ping(self, endpoint: Endpoint, ping: Ping) -> None:
        self._see(endpoint.id, ping.worker)
        self.pings.append(ping)
        self.changes.tell()

    def _see(self, endpoint: str, worker: str) -> Seen:
        seen = self.seen.setdefault(worker, Seen(endpoint=endpoint, at=0.0))
        seen.at = time.monotonic()
        return seen

    async def watch_for_lost(self) -> None:
        """Requeue the jobs of silent workers, or time them out."""
        limit = self.config.lost_after_s
        while limit is not None:
            await asyncio.sleep(limit / 4)
            silent = time.monotonic() - limit
            for worker in [name for name, seen in self.seen.items() if seen.at < silent]:
                self._lose(worker)

    def _lose(self, worker: str) -> None:
        queue = self.endpoints[self.seen[worker].endpoint].queue
        for job in queue.held_by(worker):
            if len(job.deliveries) <= self.config.redeliveries:
                queue.requeue(job)
            else:
                queue.expire(job, time.monotonic())
        self.changes.tell()

    # Faults

    def add_fault(self, fault: Fault) -> None:
        self.script.add(fault, time.monotonic())

    def clear_faults(self) -> None:
        self.script.clear()
        self.changes.tell()

    def _later(self, seconds: float, still: Callable[[], bool], job: Job) -> None:
        """Time the job out at that time, if its status is still the same."""

        def expire() -> None:
            if still():
                self.endpoints[job.endpoint].queue.expire(job, time.monotonic())
                self.changes.tell()

        asyncio.get_running_loop().call_later(seconds, expire)
