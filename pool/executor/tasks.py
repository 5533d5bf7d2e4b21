"""A call of a `Pool` as its engine knows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from flashpool.pool.calls import Outcome

if TYPE_CHECKING:
    from flashpool.envs import Spec


class Task(Protocol):
    """A call as the engine knows it: the sink, and the end of a call that never started."""

    wants_output: bool
    #: The environment that it waits for, if any.
    waits_for: Spec | None
    #: Set by the engine once the backend took the call.
    call_id: int | None

    def told(self, line: str) -> None: ...

    def environment_ready(self) -> None: ...

    def output(self, chunk: bytes, *, stderr: bool = False) -> None: ...

    def item(self, body: bytes, fds: tuple[int, ...]) -> None: ...

    def done(self, outcome: Outcome) -> None: ...

    def fail(self, error: BaseException) -> None:
        """End without an outcome. Delivery thread."""

    def is_queued(self) -> bool:
        """Return whether it may be cancelled without killing anything."""

    def running(self) -> bool:
        """Return whether a worker has it."""

    def is_over(self) -> bool:
        """Return whether its end is no longer awaited, because it was cancelled."""

    def cancel(self) -> bool:
        """Cancel its future, or what that has become; False if it has ended."""

    def closing(self) -> None:
        """The pool is closing and waits for this call. Loop thread."""

    def abandon(self, error: BaseException) -> None:
        """Fail in a process that is a fork of the one that made the call."""
