"""Jobs and their queue: what becomes of a job, and nothing of HTTP.

    submit -> IN_QUEUE --take--> IN_PROGRESS --done--> COMPLETED | FAILED
                 ^  |                |
                 |  +----cancel------+------> CANCELLED
                 |  +----expire------+------> TIMED_OUT
                 +----retry, or a lost worker---+

Used on the stand-in's loop only. Times come from the caller.
"""

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from support.cloud.records import (
    FINAL,
    Chunk,
    Delivery,
    Done,
    JobRecord,
    Progress,
    Status,
)

#: The platform states limits in "MB" without a definition; the smaller unit is safe.
MB: Final = 1_000_000
#: The platform's limits, for inputs and for results.
RUN_LIMIT: Final = 10 * MB
RUNSYNC_LIMIT: Final = 20 * MB
CHUNK_LIMIT: Final = 1 * MB
_DAY_S: Final = 86400.0


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """One job; `record()` is what tests see of it."""

    id: str
    endpoint: str
    #: Handed to the worker unchanged.
    payload: dict[str, Any]
    submitted_at: float
    limit: int
    execution_timeout_s: float
    ttl_s: float
    status: Status = Status.IN_QUEUE
    finished_at: float | None = None
    deliveries: list[Delivery] = field(default_factory=list)
    dones: list[Done] = field(default_factory=list)
    stream: list[Chunk] = field(default_factory=list)
    progress: list[Progress] = field(default_factory=list)
    output: Any = None
    #: Whether the worker posted an output; null counts as an output.
    has_output: bool = False
    error: str | None = None
    #: Chunks that a client has read.
    read: int = 0
    retries: int = 0

    @property
    def final(self) -> bool:
        return self.status in FINAL

    def keep_output(self, body: Mapping[str, Any]) -> None:
        self.output, self.has_output = body.get("output"), "output" in body

    def record(self) -> JobRecord:
        return JobRecord(
            id=self.id,
            endpoint=self.endpoint,
            input=self.payload.get("input"),
            status=self.status,
            submitted_at=self.submitted_at,
            finished_at=self.finished_at,
            deliveries=tuple(self.deliveries),
            dones=tuple(self.dones),
            stream=tuple(self.stream),
            progress=tuple(self.progress),
            output=self.output,
            error=self.error,
        )

    def view(self) -> dict[str, Any]:
        """Return the answer for a client."""
        shown: dict[str, Any] = {"id": self.id, "status": self.status.value}
        if self.deliveries:
            first, last = self.deliveries[0], self.deliveries[-1]
            shown |= {"workerId": last.worker, "delayTime": _ms(first.at - self.submitted_at)}
            if self.finished_at is not None:
                shown["executionTime"] = _ms(self.finished_at - last.at)
        if self.has_output:
            shown["output"] = self.output
        if self.error is not None:
            shown["error"] = self.error
        return shown

    def unread(self) -> list[Any]:
        """Return the chunks that arrived since a client's last request."""
        new = [chunk.output for chunk in self.stream[self.read :]]
        self.read += len(new)
        return new

    def end(self, status: Status, now: float) -> None:
        self.status, self.finished_at = status, now


class Queue:
    """The jobs of one endpoint."""

    def __init__(self, endpoint: str, execution_timeout_s: float) -> None:
        self.endpoint = endpoint
        self.execution_timeout_s = execution_timeout_s
        self.jobs: dict[str, Job] = {}
        self.waiting: deque[Job] = deque()
        #: Jobs that were handed out and will be handed out again.
        self.repeated: deque[Job] = deque()
        #: For each worker, the jobs it must stop.
        self.stops: dict[str, list[str]] = {}

    def submit(self, given: Mapping[str, Any], *, sync: bool, now: float) -> Job:
        """``given``: `input` and what a client may add to it (policy, webhook, ...)."""
        number = len(self.jobs) + 1
        policy = given.get("policy") or {}
        job = Job(
            id=f"{'sync' if sync else 'job'}-{self.endpoint}-{number}",
            endpoint=self.endpoint,
            payload={},
            submitted_at=now,
            limit=RUNSYNC_LIMIT if sync else RUN_LIMIT,
            execution_timeout_s=_seconds(policy, "executionTimeout", self.execution_timeout_s),
            ttl_s=_seconds(policy, "ttl", _DAY_S),
        )
        job.payload = {"id": job.id, **given}
        self.jobs[job.id] = job
        self.waiting.append(job)
        return job

    def has_work(self) -> bool:
        return bool(self.repeated or self.waiting)

    def take(self, worker: str, most: int, now: float) -> list[Job]:
        """Take up to this many jobs."""
        taken: list[Job] = []
        while len(taken) < most and self.has_work():
            job = (self.repeated or self.waiting).popleft()
            job.deliveries.append(Delivery(at=now, worker=worker))
            if not job.final:
                job.status = Status.IN_PROGRESS
            taken.append(job)
        return taken

    def repeat(self, job: Job) -> None:
        """Hand a job out once more, whatever its state."""
        self.repeated.append(job)

    def give_back(self, job: Job) -> None:
        """Take back a job that was taken, but not delivered."""
        job.deliveries.pop()
        if job.deliveries:
            self.repeated.appendleft(job)
        else:
            self.waiting.appendleft(job)
            job.status = Status.IN_QUEUE

    def done(
        self, job: Job, worker: str, body: Mapping[str, Any], *, is_stream: bool, now: float
    ) -> bool:
        """Handle a job-done; return whether it ended the job."""
        if body.get("status") == "IN_PROGRESS":
            job.progress.append(Progress(at=now, output=body.get("output")))
            if not job.final:
                job.keep_output(body)
            return not job.final
        counted = not job.final
        job.dones.append(
            Done(at=now, worker=worker, body=body, is_stream=is_stream, counted=counted)
        )
        if counted:
            self._finish(job, body, now)
        return counted

    def _finish(self, job: Job, body: Mapping[str, Any], now: float) -> None:
        error = body.get("error")
        job.keep_output(body)
        job.error = None if not error else error if isinstance(error, str) else json.dumps(error)
        job.end(Status.FAILED if error else Status.COMPLETED, now)
        self._forget(job)

    def cancel(self, job: Job, now: float) -> None:
        self._break_off(job, Status.CANCELLED, now)

    def expire(self, job: Job, now: float) -> None:
        """End a job that has waited or run for too long, or whose worker is lost."""
        self._break_off(job, Status.TIMED_OUT, now)

    def _break_off(self, job: Job, status: Status, now: float) -> None:
        if job.final:
            return
        if job.status is Status.IN_PROGRESS:
            self.stop(job.id, job.deliveries[-1].worker)
        job.end(status, now)
        self._forget(job)

    def stop(self, job: str, worker: str) -> None:
        """Tell the worker to stop a job."""
        self.stops.setdefault(worker, []).append(job)

    def retry(self, job: Job) -> bool:
        """Put a failed job back into the queue; return whether it had failed."""
        if job.status not in {Status.FAILED, Status.TIMED_OUT}:
            return False
        job.retries += 1
        job.output = job.error = job.finished_at = None
        self.requeue(job)
        return True

    def requeue(self, job: Job) -> None:
        job.status = Status.IN_QUEUE
        self.waiting.append(job)

    def purge(self, now: float) -> int:
        """Cancel all queued jobs; return their number."""
        purged = [job for job in self.waiting if job.status is Status.IN_QUEUE]
        for job in purged:
            self.cancel(job, now)
        return len(purged)

    def count(self, status: Status) -> int:
        return sum(job.status is status for job in list(self.jobs.values()))

    def held_by(self, worker: str) -> list[Job]:
        """Return the jobs that this worker has taken and not ended."""
        return [
            job
            for job in self.jobs.values()
            if job.status is Status.IN_PROGRESS and job.deliveries[-1].worker == worker
        ]

    def _forget(self, job: Job) -> None:
        if job in self.waiting:
            self.waiting.remove(job)


def _seconds(policy: Mapping[str, Any], name: str, otherwise: float) -> float:
    """Convert a policy's milliseconds to seconds."""
    value = policy.get(name)
    return value / 1000 if isinstance(value, (int, float)) and value > 0 else otherwise


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
