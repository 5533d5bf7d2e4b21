"""Types of `AppTable`: commands, states of workers, policy."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final, NamedTuple

#: Seconds until the next attempt after one, two, ... failed loads; the last value repeats.
PAUSES_S: Final = (0.5, 4.0, 15.0, 30.0)
#: Seconds for which a failure counts.
FAILURES_S: Final = 60.0


class StartWorker(NamedTuple):
    """Have a worker load the app; `loaded` or `died` follows."""

    worker: int


class TryLater(NamedTuple):
    """Call `retry` after ``seconds``."""

    seconds: float


class SendRequest(NamedTuple):
    """Send the request to the worker, with a slot of its ledger."""

    request: int
    worker: int
    slot: int


class TurnAway(NamedTuple):
    """End a request that no worker has, because there is no room."""

    request: int


class Hopeless(NamedTuple):
    """End a request that no worker has, because the app cannot be loaded."""

    request: int


class LoseRequest(NamedTuple):
    """End a request whose worker died."""

    request: int
    #: Whether the request had begun.
    began: bool
    #: Whether the worker was stopped because of another request.
    sibling: bool


class Interrupt(NamedTuple):
    """Have the worker cancel the request's task; `answered` or, later, `grace_over` follows."""

    request: int
    worker: int


class KillWorker(NamedTuple):
    """Kill the worker; `died` follows."""

    worker: int
    culprit: int


Command = (
    StartWorker
    | TryLater
    | SendRequest
    | TurnAway
    | Hopeless
    | LoseRequest
    | Interrupt
    | KillWorker
)


class AppWorkerState(enum.Enum):
    """States of a worker."""

    #: The worker waits for a process, or its process loads the app.
    STARTING = "starting"
    READY = "ready"
    #: The worker is being killed.
    CONDEMNED = "condemned"


@dataclass(frozen=True, slots=True, kw_only=True)
class AppPolicy:
    """The table's settings."""

    workers: int = 1
    concurrency: int = 100
    websockets: int = 1000
    queue_limit: int = 1000


@dataclass(slots=True)
class AppWorkerRow:
    """One worker."""

    worker: int
    #: Free slots of the worker's ledger.
    slots: list[int]
    #: Free slots for WebSockets.
    socket_slots: list[int] = field(default_factory=list)
    state: AppWorkerState = AppWorkerState.STARTING
    #: Unanswered requests, and their slots.
    requests: dict[int, int] = field(default_factory=dict)
    #: Those requests that are WebSockets.
    sockets: set[int] = field(default_factory=set)
    #: Number of tasks that continue after their requests were answered.
    lingering: int = 0
    #: Requests that were cancelled and have not ended.
    doubts: set[int] = field(default_factory=set)
    #: Number of requests since the worker's start.
    served: int = 0
    #: The request because of which the worker is killed.
    culprit: int | None = None

    @property
    def load(self) -> int:
        """Return the worker's load, without WebSockets, which mostly wait."""
        return len(self.requests) - len(self.sockets) + self.lingering
