"""Deployed apps at the seam: what to serve, its requests, and how each request ends.

    front-end --App--> Backend.open_app --> AppService
    front-end --AppRequest, AppSink--> AppService.request --> response, piece*, ended
              <------- body, credit, leave -------'

As with calls, only data crosses. An app has one state: loading, served, or failed (``failure`` says
why, and loading is tried again). Each request ends exactly once: with the last piece of a complete
answer, or with `ended`.
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
    """A route of a loaded application; routes of a mounted app come before the mount itself."""

    path: str
    #: In capitals; WEBSOCKET alone for a WebSocket; None: any.
    methods: tuple[str, ...] | None


class RequestPolicy(NamedTuple):
    """The rules for a request."""

    #: Seconds until the first part of the answer, and again until each further part; None: no
    #: limit.
    limit_s: float | None
    #: Whether the request runs in a process of its own.
    isolated: bool = False
    #: The route's template; empty if no route of the app matches.
    route: str = ""


#: Returns the rules for a method and path, from the routes of the loaded application.
Policies = Callable[[str, str], RequestPolicy]


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """What to serve, and within which limits."""

    #: Name in logs and statistics.
    name: str
    #: The app's folder: first on ``sys.path``, and the working directory.
    directory: str
    #: A file of the directory to load by its path, or a module to import.
    file: str = ""
    module: str = ""
    #: Name of the application in its module.
    attribute: str = "app"
    #: Whether the client generated the app, which then loses its route ``/execute``.
    generated: bool = True
    #: Whether the app is a handler of jobs; and the names of the functions that it calls. Jobs
    #: arrive as requests that `job_messages` packs, with a `JobSink` each.
    jobs: bool = False
    functions: tuple[str, ...] = ()
    #: The packages that the app needs; None: the base environment.
    spec: Spec | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    #: Modules of the directory that later workers preload; others are learned from the first
    #: worker.
    preload: tuple[str, ...] = ()
    #: Returns how fresh the addresses of the other resources are; None: no addresses are kept.
    neighbours: Callable[[], NeighbourStats] | None = None
    #: Returns the app's requests by route, for statistics; None: they are not counted.
    routes: Callable[[], list[RouteStats]] | None = None
    #: Comes first in the message when the app cannot be loaded, because it may name the cause.
    hint: str = ""
    #: GPUs of each worker; None: the pool's default.
    gpus: int | None = None
    #: MiB that the process tree of one worker may hold.
    memory_mb: int | None = None
    workers: int = 1
    #: Requests that run at once in one worker, and requests that may wait.
    concurrency: int = 100
    #: WebSockets that one worker may have open; they do not count among its requests.
    websockets: int = 1000
    queue_limit: int = 1000
    queue_timeout_s: float | None = None
    #: Threads for functions that are not coroutines; None: the framework's default.
    threads: int | None = None
    start_timeout_s: float = 300.0
    #: Called with the routes after loading; None: each request carries its own rules.
    policies: Callable[[Sequence[LoadedRoute]], Policies] | None = None
    #: Whether requests of some routes may run in processes of their own.
    isolates: bool = False
    #: Called before each retry to load the app after a failure; None: not needed.
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
    #: The application failed in the middle of an answer.
    CUT = "cut"
    #: The worker died.
    CRASHED = "crashed"
    #: The worker was stopped because of another request.
    LOST = "lost"
    #: A time limit passed; ``phase`` names the limit.
    LATE = "late"
    #: There is no room for the request, or the pool stops.
    REFUSED = "refused"
    #: The application cannot be loaded.
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class AppEnd:
    """How a request ended without a complete answer, or before one."""

    kind: EndKind
    error_type: str = ""
    #: Message for the client.
    message: str = ""
    phase: str = ""
    #: Whether the request had begun to run.
    began: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AppRequest:
    """The head of a request, with the first piece of its body."""

    #: Fields as made by `app_messages.request_fields`.
    fields: Sequence[bytes]
    body: bytes = b""
    #: Whether more of the body follows.
    more: bool = False
    #: Whether the client waits for ``100 Continue`` before it sends the body.
    on_demand: bool = False
    #: Seconds until the first part of the answer, and again for each further part; None: no limit.
    limit_s: float | None = None
    #: Whether the limit covers the whole answer.
    whole: bool = False
    #: Whether the request is for a WebSocket: it does not wait for room, and its sink is a
    #: `SocketSink`.
    socket: bool = False


class AppSink(Protocol):
    """Receives the events of one request."""

    def response(self, status: int, headers: Headers, body: bytes, more: bool) -> None:
        """Receive the head of the answer, and the first piece of its body."""

    def piece(self, body: bytes, more: bool) -> None:
        """Receive the next piece of the body."""

    def room(self, size: int) -> None:
        """Allow ``size`` further bytes of the request's body to be sent."""

    def ended(self, end: AppEnd) -> None:
        """Receive the end of a request without a complete answer; nothing follows."""


class SocketSink(AppSink, Protocol):
    """Receives the events of one WebSocket; `response`, if the app answers without accepting it."""

    def accepted(self, subprotocol: str, headers: Headers) -> None:
        """Note that the app has accepted the WebSocket."""

    def message(self, piece: bytes, more: bool, text: bool) -> None:
        """Receive a piece of a message."""

    def closed(self, code: int, reason: str) -> None:
        """Note that the app has closed or refused the WebSocket; nothing follows."""


class JobSink(AppSink, Protocol):
    """Receives the events of one job."""

    def output(self, chunk: bytes) -> None:
        """Receive output of the job."""


class AppService(Protocol):
    """An app that is served. Its methods, and those of sinks, run on the pool's loop."""

    @property
    def state(self) -> AppState:
        """Whether requests can be served."""

    @property
    def failure(self) -> str:
        """Why the app cannot be loaded; otherwise empty."""

    @property
    def failure_passes(self) -> bool:
        """Whether the machine caused the failure, not the app, so that a retry may succeed."""

    @property
    def busy(self) -> int:
        """The number of requests that have not ended."""

    async def settled(self) -> AppState:
        """Wait until all workers have loaded the app, or a worker failed to."""

    def retire(self, within_s: float, then: Callable[[], None]) -> None:
        """Let the app finish its requests within ``within_s``, stop it, and call ``then``."""

    def note(self, text: str) -> None:
        """Set a remark for the app's statistics; an empty text removes it."""

    def request(self, request: AppRequest, sink: AppSink) -> int:
        """Accept a request and return its number; it may end before this returns."""

    def body(self, number: int, piece: bytes, more: bool) -> None:
        """Send a piece of a request's body, within the room that its sink was granted."""

    def message(self, number: int, piece: bytes, *, more: bool, text: bool) -> None:
        """Send a piece of a WebSocket's message.

        It uses up as much of the room as `app_messages.weight` says.
        """

    def credit(self, number: int, size: int) -> None:
        """Credit bytes of the answer, or weight of messages, that were passed on to the client."""

    def leave(self, number: int, code: int = ..., reason: str = ...) -> None:
        """Leave a request for whose answer nobody waits; its sink receives no more events.

        ``code``: the client's close code, if a WebSocket's client closed it with a code.
        """

    def interrupt(self, number: int, *, spares: bool) -> None:
        """Cancel a request, and stop its worker if that has no effect within the grace period.

        The sink receives no more events. ``spares``: do not stop a worker in which other requests
        run; that worker gets no new requests until this one is settled.
        """
