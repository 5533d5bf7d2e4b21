"""Deployed applications at the seam: what is to be served, its requests, and their ends.

    front-end --App--> Backend.open_app --> AppService
    front-end --AppRequest, AppSink--> AppService.request --> response, piece*, ended
              <------- body, credit, leave -------'

As with calls, only data crosses. An app has one state: it is loading, it is served, or it cannot be
loaded (``failure`` says why, and it is tried again). Its requests end in exactly one `ended`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from flashpool.envs import Spec

#: Names and values of headers, as they are on the wire.
Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """What is to be served, and within which bounds."""

    #: For logs and stats.
    name: str
    #: Where it lies: first on ``sys.path``, and the working directory.
    directory: str
    #: A file of the directory to load by its path, or a module to import.
    file: str = ""
    module: str = ""
    #: The application in it.
    attribute: str = "app"
    #: Whether the client generated it: then it loses its route of ``/execute``.
    generated: bool = True
    #: Whether it is a handler of jobs, which come as requests that `job_messages` makes, with a
    #: `JobSink` each; and the names of the functions that it calls.
    jobs: bool = False
    functions: tuple[str, ...] = ()
    #: The packages it needs; None: the base environment.
    spec: Spec | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    #: Modules of the directory that later workers find imported; others are learned from the first.
    preload: tuple[str, ...] = ()
    #: What is said first where it cannot be loaded, for its cause may be that.
    hint: str = ""
    #: Devices of each of its workers; None: the pool's default.
    gpus: int | None = None
    #: MiB that the process tree of one worker may hold.
    memory_mb: int | None = None
    workers: int = 1
    #: Requests in one worker at once, and those that may wait for room.
    concurrency: int = 100
    queue_limit: int = 1000
    queue_timeout_s: float | None = None
    #: Threads for functions that are no coroutines; None: as the framework has it.
    threads: int | None = None
    start_timeout_s: float = 300.0


class AppState(enum.Enum):
    """Whether requests can be served."""

    LOADING = "loading"
    SERVED = "served"
    FAILED = "failed"


class EndKind(enum.Enum):
    """How a request ended."""

    #: It was answered.
    ANSWERED = "answered"
    #: The application raised, or returned, before it answered.
    RAISED = "raised"
    #: It did so in the middle of an answer.
    CUT = "cut"
    #: Its worker died.
    CRASHED = "crashed"
    #: Its worker was ended because of another request.
    LOST = "lost"
    #: Its time was over; ``phase`` says of what.
    LATE = "late"
    #: There is no room for it, or the pool stops.
    REFUSED = "refused"
    #: The application cannot be loaded.
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class AppEnd:
    """The one end of a request."""

    kind: EndKind
    error_type: str = ""
    #: For whoever sent it.
    message: str = ""
    phase: str = ""
    #: Whether it had begun to run.
    began: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AppRequest:
    """A request's head, with the first piece of its body."""

    #: As `app_messages.request_fields` makes them.
    fields: Sequence[bytes]
    body: bytes = b""
    #: Whether more of the body follows.
    more: bool = False
    #: Whether the body is to be asked for (``Expect: 100-continue``).
    on_demand: bool = False
    #: Seconds for the first of the answer, and again for each piece; None: any time.
    limit_s: float | None = None
    #: Whether that is for all of the answer.
    whole: bool = False


class AppSink(Protocol):
    """Hears of one request."""

    def response(self, status: int, headers: Headers, body: bytes, more: bool) -> None:
        """The head of the answer, and the first piece of its body."""

    def piece(self, body: bytes, more: bool) -> None:
        """The next piece."""

    def room(self, size: int) -> None:
        """So many bytes more of the request's body may be sent."""

    def ended(self, end: AppEnd) -> None:
        """Nothing more comes. An answer that is complete has no other end."""


class JobSink(AppSink, Protocol):
    """Hears of one job."""

    def output(self, chunk: bytes) -> None:
        """It printed that."""


class AppService(Protocol):
    """One app that is served. Its methods are called on the pool's loop, and so are the sinks'."""

    @property
    def state(self) -> AppState:
        """Whether requests are served."""

    @property
    def failure(self) -> str:
        """Why it cannot be loaded, or nothing."""

    @property
    def failure_passes(self) -> bool:
        """Whether it may be loaded later with everything as it is: the machine, not the app, is the cause."""

    @property
    def busy(self) -> int:
        """Requests that have not ended."""

    def request(self, request: AppRequest, sink: AppSink) -> int:
        """Take a request; returns its number. Its end may come before this returns."""

    def body(self, number: int, piece: bytes, more: bool) -> None:
        """A piece of its body, within what the sink was told that there is room for."""

    def credit(self, number: int, size: int) -> None:
        """So many bytes of the answer were passed on."""

    def leave(self, number: int) -> None:
        """Nobody waits for the answer any more; the sink hears nothing more."""

    def interrupt(self, number: int, *, spares: bool) -> None:
        """Cancel a request, and end its worker if that does not help within the grace.

        Its sink hears nothing more. ``spares``: not while others run in that worker, which takes no
        new ones until this is settled.
        """
