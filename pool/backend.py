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

    # Life cycle.

    async def start(self) -> None:
        """Begin to start; return before calls can run."""

    async def wait_ready(self) -> None:
        """Wait until `ready`.

        Raises:
            EnvironmentStartFailed: no call can run, because the interpreter does not start.
            PoolClosed: the backend was stopped meanwhile.
        """

    async def drain(self, limit_s: float) -> bool:
        """Refuse new calls; return whether all accepted calls finished within ``limit_s``.

        Calls whose environments are still being built are accepted calls.
        """

    def take_calls(self, taking: bool) -> bool:
        """Refuse new calls, or accept them again; accepted calls continue.

        Return False if the backend drains or stops permanently, which cannot be undone.
        """

    async def stop(self, reason: str = ..., *, grace_s: float | None = None) -> None:
        """Stop everything; calls that have not finished fail with the reason.

        Running calls have ``grace_s`` to exit after SIGTERM, and get SIGKILL at once if it is 0;
        None: the usual grace period. A second `stop` can only shorten the grace period, and also
        returns when all processes are gone.
        """

    # Capacity.

    @property
    def ready(self) -> bool:
        """Whether calls can start at once."""

    @property
    def draining(self) -> bool:
        """Whether new calls are refused."""

    @property
    def not_ready_reason(self) -> str:
        """Why no call can run here for now although everything is up; otherwise empty."""

    @property
    def slots(self) -> int:
        """How many calls of the usual kind can run at once, on slots or on GPUs."""

    @property
    def free_slots(self) -> int:
        """How many slots are free for calls that could begin now."""

    @property
    def unfinished(self) -> int:
        """How many accepted calls `drain` would wait for."""

    def stats(self) -> PoolStats:
        """Return the current statistics."""

    @property
    def watching(self) -> CallWatching | None:
        """The interface for questions about calls; None: not supported."""

    # Calls.

    def submit(self, call: Call, sink: Sink) -> int:
        """Accept a call and return its id; from now on its sink is notified.

        The call's descriptors belong to the backend from here on, unless this raises. Problems
        found later are reported to the sink: the outcome then names the same errors.

        Raises:
            Overloaded: there is no room, or the backend drains.
            InstanceConflict, InstanceLost: the instance has another class or packages, or is gone.
            InvalidRequest: the call asks for something that this backend does not have.
            PoolClosed: the backend was stopped.
        """

    def cancel(self, call_id: int, reason: str = ...) -> None:
        """Cancel a call, wherever it is; do nothing if it has finished."""

    def credit(self, call_id: int, items: int) -> None:
        """Allow a streaming call to send ``items`` more items."""

    def open_app(self, app: App) -> AppService:
        """Serve an app until the backend stops; its workers load it in the background.

        Raises:
            PoolClosed: the backend was stopped.
        """

    def release(self, instance: str, reason: str) -> None:
        """Close an instance when its calls have finished."""
