"""The seam between whoever submits calls and whoever runs them.

    Pool's engine --.                               .--> Supervisor: this machine
                     +-- Call ------> Backend ------+
    front-ends -----'                   |           '--> any other implementation
         ^                              |
         '--- Sink: progress, output, items, one Outcome

Whoever submits names what a call needs (`Call.spec`, limits, GPUs), and the backend decides where
it runs. The environment of a call is found behind the seam, at the place where the call will
run, and so is a lease on it. Only data crosses: a `Call` and an `Outcome` can be pickled, apart
from the descriptors that may travel beside a body where `shares_descriptors` says so.
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
        """Whether descriptors in a `Call` reach the worker; else all of it has to be bytes."""

    # Life.

    async def start(self) -> None:
        """Begin to start; returns before calls can run."""

    async def wait_ready(self) -> None:
        """Until `ready`.

        Raises:
            EnvironmentStartFailed: calls will not run here.
            PoolClosed: it was stopped meanwhile.
        """

    async def drain(self, limit_s: float) -> bool:
        """Refuse new calls; True when all that were accepted have ended in time.

        Calls whose environments are still being made have been accepted.
        """

    def take_calls(self, taking: bool) -> bool:
        """Refuse new calls, or take them again; what was accepted goes on, and nothing ends.

        False when it drains or stops for good: that is not taken back.
        """

    async def stop(self, reason: str = ..., *, grace_s: float | None = None) -> None:
        """End everything; calls still there are told the reason.

        What runs has ``grace_s`` to exit in when it was asked to, and is not asked if that is
        0; None: as much as is usual. Another `stop` meanwhile can only shorten that, and also
        returns when all is gone.
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
        """Those that could begin now."""

    @property
    def unfinished(self) -> int:
        """Accepted calls that `drain` would wait for."""

    def stats(self) -> PoolStats:
        """The whole of it as it is now."""

    @property
    def watching(self) -> CallWatching | None:
        """What looks into its calls; None: they cannot be looked into."""

    # Calls.

    def submit(self, call: Call, sink: Sink) -> int:
        """Accept a call; its sink hears of it from now on. Returns its id.

        The call's descriptors belong to the backend from here on, unless this raises. What it
        does not find out at once, it tells the sink: the outcome then names the same errors.

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
