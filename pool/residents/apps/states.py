"""Types of `AppTable`: commands, states of workers, policy."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final, NamedTuple

#: Seconds until the next try after failures to load, in a row; the last one again and again.
PAUSES_S: Final = (0.5, 4.0, 15.0, 30.0)
#: Seconds after which a failure does not count any more.
FAILURES_S: Final = 60.0


class StartWorker(NamedTuple):
    """Have a worker load the app: `loading`, then `loaded` or `died` follow."""

    worker: int


class TryLater(NamedTuple):
    """Call `retry` after so many seconds."""

    seconds: float


class SendRequest(NamedTuple):
    """Send the request to the worker, with a slot of its ledger."""

    request: int
    worker: int
    slot: int


class TurnAway(NamedTuple):
    """End a request that no worker has: there is no room."""

    request: int


class Hopeless(NamedTuple):
    """End a request that no worker has: the app cannot be loaded."""

    request: int


class LoseRequest(NamedTuple):
    """End a request whose worker died."""

    request: int
    #: Whether the request had begun.
    began: bool
    #: Whether the worker was stopped because of another request.
    sibling: bool


class Interrupt(NamedTuple):
    """Have the worker cancel its task; `answered` follows, or `grace_over` must be called."""

    request: int
    worker: int


class KillWorker(NamedTuple):
    """End the worker: `died` follows."""

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

    #: It waits for a process, which then loads the app.
    STARTING = "starting"
    READY = "ready"
    #: It is being killed.
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
    #: Free slots of its ledger.
    slots: list[int]
    #: Free slots for WebSockets.
    socket_slots: list[int] = field(default_factory=list)
    state: AppWorkerState = AppWorkerState.STARTING
    #: Requests that it has not answered, and their slots.
    requests: dict[int, int] = field(default_factory=dict)
    #: Those of them that are WebSockets.
    sockets: set[int] = field(default_factory=set)
    #: Tasks that continue after their requests were answered or given up.
    lingering: int = 0
    #: Requests whose cancelling is not over yet.
    doubts: set[int] = field(default_factory=set)
    #: Requests since its start.
    served: int = 0
    #: The request it is killed for.
    culprit: int | None = None

    @property
    def load(self) -> int:
        """Return its load without WebSockets, which mostly wait."""
        return len(self.requests) - len(self.sockets) + self.lingering
