"""A call of a `Pool` as its engine knows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from flashpool.pool.calls import Outcome

if TYPE_CHECKING:
    from flashpool.envs import Spec


class Task(Protocol):
    """A call as the engine sees it: a sink that can also be failed or abandoned."""

    wants_output: bool
    #: The environment that the call waits for, if any.
    waits_for: Spec | None
    #: Set by the engine when the backend has accepted the call.
    call_id: int | None

    def told(self, line: str) -> None: ...

    def environment_ready(self) -> None: ...

    def output(self, chunk: bytes, *, stderr: bool = False) -> None: ...

    def item(self, body: bytes, fds: tuple[int, ...]) -> None: ...

    def done(self, outcome: Outcome) -> None: ...

    def fail(self, error: BaseException) -> None:
        """Fail the call without an outcome. Delivery thread."""

    def is_queued(self) -> bool:
        """Return whether the call can be cancelled without killing a process."""

    def running(self) -> bool:
        """Return whether a worker has, or had, the call."""

    def is_over(self) -> bool:
        """Return whether no code waits for the call, because it was cancelled."""

    def cancel(self) -> bool:
        """Cancel the call's future, or what the future became; return False if it has ended."""

    def closing(self) -> None:
        """Note that the pool is closing and waits for this call. Loop thread."""

    def abandon(self, error: BaseException) -> None:
        """Fail the call in a process that is a fork of its caller's."""
