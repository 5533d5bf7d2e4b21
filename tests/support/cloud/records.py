"""Records of the stand-in for tests: snapshots, never changed afterwards.

    JobRecord   one job, with every Done, Chunk, Progress and Delivery that came of it
    Exchange    one HTTP request and what was answered, in order of arrival
    Ping        one heartbeat

All times are `time.monotonic()` of this machine, so they compare with the test's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final


class Status(str, Enum):
    """A job's status, in the platform's terms."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"


#: No job leaves these by itself (`retry` takes it back to the queue).
FINAL: Final = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.TIMED_OUT})


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """The job was handed to a worker."""

    at: float
    worker: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A final job-done reached us."""

    at: float
    worker: str
    body: Mapping[str, Any]
    is_stream: bool
    #: Whether it ended the job; a second one, or one for a cancelled job, does not.
    counted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A job-stream reached us."""

    at: float
    output: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A job-done with the status IN_PROGRESS reached us."""

    at: float
    output: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """One job, as it is at this moment."""

    id: str
    endpoint: str
    input: Any
    status: Status
    submitted_at: float
    finished_at: float | None
    deliveries: tuple[Delivery, ...]
    dones: tuple[Done, ...]
    stream: tuple[Chunk, ...]
    progress: tuple[Progress, ...]
    #: Values as the SDK posted them, and a client sees them.
    output: Any
    error: str | None

    @property
    def final(self) -> bool:
        return self.status in FINAL

    @property
    def done_count(self) -> int:
        """Return how many final results arrived, including those that came too late to count."""
        return len(self.dones)

    @property
    def worker(self) -> str | None:
        """Return the worker that has it, or had it last."""
        return self.deliveries[-1].worker if self.deliveries else None

    @property
    def items(self) -> list[Any]:
        """Return the streamed items."""
        return [chunk.output for chunk in self.stream]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One request. Requests that a fault refused are here, too, with the fault's status."""

    at: float
    #: The verb of its path: "job-take", "job-take-batch", "job-done", "run", "status", ...
    verb: str
    method: str
    #: The path with its query, as received.
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    endpoint: str | None
    worker: str | None
    job: str | None
    #: None: no answer was sent (hung, or cut).
    status: int | None
    answered_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping:
    """One heartbeat."""

    at: float
    worker: str
    #: Jobs that the worker reports as running.
    jobs: tuple[str, ...]
    query: Mapping[str, str]
