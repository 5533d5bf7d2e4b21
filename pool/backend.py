"""The seam between code that submits calls and code that runs them.

    Pool's engine --.                               .--> Supervisor: this machine
                     +-- Call ------> Backend ------+
    front-ends -----'                   |           '--> any other implementation
         ^                              |
         '--- Sink: progress, output, items, one Outcome

The submitter names what a call needs (`Call.spec`, limits, GPUs), and the backend decides where it
runs. The environment of a call, and the lease on it, are found behind the seam, where the call will
run. Only data crosses: a `Call` and an `Outcome` can be pickled, apart from the descriptors that
may travel beside a body if `shares_descriptors` is true.
"""

from __future__ import annotations

from typing import Protocol

from .apps import App, AppService
from .calls import Call, Sink
from .stats import PoolStats
from .watching import CallWatching


class Backend(Protocol):
    """Runs calls. Its methods are called on one event loop, and so are the sinks'."""

    @property
    def shares_descriptors(self) -> bool:
        """Whether descriptors in a `Call` reach the worker; else the whole call must be bytes."""

    # Life.

    async def start(self) -> None:
        """Begin to start; returns before calls can run."""

    async def wait_ready(self) -> None:
        """Wait until `ready`.

        Raises:
            EnvironmentStartFailed: calls will not run here.
            PoolClosed: it was stopped meanwhile.
        """

    async def drain(self, limit_s: float) -> bool:
        """Refuse new calls; True when all that were accepted have ended in time.

        Calls whose environments are still being made have been accepted.
        """

    def take_calls(self, taking: bool) -> bool:
        """Refuse new calls, or accept them again; accepted calls continue.

        Return False if the backend drains or stops permanently, which cannot be undone.
        """

    async def stop(self, reason: str = ..., *, grace_s: float | None = None) -> None:
        """Stop everything; calls that are still there get the reason.

        Running calls have ``grace_s`` to exit after SIGTERM, and get SIGKILL at once if it is 0;
        None: the usual grace. A second `stop` can only shorten the grace, and also returns when all
        processes are gone.
        """

    # What it has room for.

    @property
    def ready(self) -> bool:
        """Whether calls start at once."""

    @property
    def draining(self) -> bool:
        """Whether new calls are refused."""

    @property
    def not_ready_reason(self) -> str:
        """Why no call can be served here for now, although all is up; or nothing."""

    @property
    def slots(self) -> int:
        """Calls of the usual kind that can run at once: on slots, or on GPUs."""

    @property
    def free_slots(self) -> int:
        """Slots for calls that could begin now."""

    @property
    def unfinished(self) -> int:
        """Accepted calls that `drain` would wait for."""

    def stats(self) -> PoolStats:
        """Return all figures as they are now."""

    @property
    def watching(self) -> CallWatching | None:
        """The interface for looking into calls; None: not supported."""

    # Calls.

    def submit(self, call: Call, sink: Sink) -> int:
        """Accept a call; from now on its sink is notified. Returns the call's id.

        The call's descriptors belong to the backend from here on, unless this raises. Problems
        found later are reported to the sink: the outcome then names the same errors.

        Raises:
            Overloaded: there is no room, or it drains.
            InstanceConflict, InstanceLost: the instance it is for is another, or no more.
            InvalidRequest: it asks for what there is not here.
            PoolClosed: it was stopped.
        """

    def cancel(self, call_id: int, reason: str = ...) -> None:
        """End a call, wherever it is; nothing happens if it has ended."""

    def credit(self, call_id: int, items: int) -> None:
        """A streaming call may send so many items more."""

    def open_app(self, app: App) -> AppService:
        """Serve an app until this stops; its workers load it in the background.

        Raises:
            PoolClosed: it was stopped.
        """

    def release(self, instance: str, reason: str) -> None:
        """Close an instance when its calls are over."""
