"""Deployed applications at the seam: what is to be served, its requests, and their ends.

    front-end --App--> Backend.open_app --> AppService
    front-end --AppRequest, AppSink--> AppService.request --> response, piece*, ended
              <------- body, credit, leave -------'

As with calls, only data crosses. An app has one state: it is loading, it is served, or it cannot be
loaded (``failure`` says why, and it is tried again). Its requests end in exactly one `ended`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from flashpool.envs import Spec

    from .stats import NeighbourStats, RouteStats

#: Names and values of headers, as they are on the wire.
Headers = list[tuple[bytes, bytes]]


class LoadedRoute(NamedTuple):
    """A route as a loaded application has it; those of a mount come before the mount itself."""

    path: str
    #: In capitals; WEBSOCKET alone for a WebSocket; None: any.
    methods: tuple[str, ...] | None


class RequestPolicy(NamedTuple):
    """What applies to a request."""

    #: Seconds for the first of its answer, and again for each piece; None: any time.
    limit_s: float | None
    #: Whether it runs in a process of its own.
    isolated: bool = False
    #: The route's template; empty: the app has none for it.
    route: str = ""


#: What applies to a request of this method and path, by the routes of the loaded application.
Policies = Callable[[str, str], RequestPolicy]


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
    #: How fresh the addresses of its other resources are; None: nobody looks after them.
    neighbours: Callable[[], NeighbourStats] | None = None
    #: Its requests by route, for stats; None: nobody counts them.
    routes: Callable[[], list[RouteStats]] | None = None
    #: What is said first where it cannot be loaded, for its cause may be that.
    hint: str = ""
    #: Devices of each of its workers; None: the pool's default.
    gpus: int | None = None
    #: MiB that the process tree of one worker may hold.
    memory_mb: int | None = None
    workers: int = 1
    #: Requests in one worker at once, and those that may wait for room.
    concurrency: int = 100
    #: WebSockets that one worker may have open; they do not count among its requests.
    websockets: int = 1000
    queue_limit: int = 1000
    queue_timeout_s: float | None = None
    #: Threads for functions that are no coroutines; None: as the framework has it.
    threads: int | None = None
    start_timeout_s: float = 300.0
    #: Called with the routes once it is loaded; None: what each request says applies to it.
    policies: Callable[[Sequence[LoadedRoute]], Policies] | None = None
    #: Whether requests of some routes may run in processes of their own.
    isolates: bool = False
    #: Called before each retry to load the app after a failure; None: nobody wants to know.
    on_retry: Callable[[], None] | None = None


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
    #: Whether it is for a WebSocket: it does not wait for room, and its sink is a `SocketSink`.
    socket: bool = False


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


class SocketSink(AppSink, Protocol):
    """Hears of one WebSocket; an answer that the app gives in its place comes as of a request."""

    def accepted(self, subprotocol: str, headers: Headers) -> None:
        """It is open."""

    def message(self, piece: bytes, more: bool, text: bool) -> None:
        """A piece of a message."""

    def closed(self, code: int, reason: str) -> None:
        """The app has closed it, or refused it. Nothing more comes."""


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

    async def settled(self) -> AppState:
        """Wait until all of its workers have loaded it, or one could not."""

    def retire(self, within_s: float, then: Callable[[], None]) -> None:
        """Let it finish the requests it has, within so many seconds, and leave; then call ``then``."""

    def note(self, text: str) -> None:
        """Have stats tell this of it; nothing where it is empty."""

    def request(self, request: AppRequest, sink: AppSink) -> int:
        """Take a request; returns its number. Its end may come before this returns."""

    def body(self, number: int, piece: bytes, more: bool) -> None:
        """A piece of its body, within what the sink was told that there is room for."""

    def message(self, number: int, piece: bytes, *, more: bool, text: bool) -> None:
        """A piece of a WebSocket's message, of which `app_messages.weight` is what it takes of the room."""

    def credit(self, number: int, size: int) -> None:
        """So many bytes of the answer, or so much weight of messages, were passed on."""

    def leave(self, number: int, code: int = ..., reason: str = ...) -> None:
        """Nobody waits for the answer any more; the sink hears nothing more.

        A WebSocket's client has closed it with this code, or has left without one.
        """

    def interrupt(self, number: int, *, spares: bool) -> None:
        """Cancel a request, and end its worker if that does not help within the grace.

        Its sink hears nothing more. ``spares``: not while others run in that worker, which takes no
        new ones until this is settled.
        """
