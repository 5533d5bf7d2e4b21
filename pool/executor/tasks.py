"""A call of a `Pool` as its engine knows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from flashpool.pool.calls import Outcome

if TYPE_CHECKING:
    from flashpool.envs import Spec


class Task(Protocol):
    """A call as the engine knows it: the sink, and what to tell when there is no call."""

    wants_output: bool
    #: What its environment is made of, as long as it waits for that.
    waits_for: Spec | None
    #: Set by the engine once the backend took the call.
    call_id: int | None

    def told(self, line: str) -> None: ...

    def environment_ready(self) -> None: ...

    def output(self, chunk: bytes, *, stderr: bool = False) -> None: ...

    def item(self, body: bytes, fds: tuple[int, ...]) -> None: ...

    def done(self, outcome: Outcome) -> None: ...

    def fail(self, error: BaseException) -> None:
        """It ended without an outcome. Delivery thread."""

    def is_queued(self) -> bool:
        """Whether it may be cancelled without killing anything."""

    def running(self) -> bool:
        """Whether a worker has it."""

    def is_over(self) -> bool:
        """Whether nobody waits for its end any more: it was cancelled."""

    def cancel(self) -> bool:
        """Cancel its future, or what that has become; False if it has ended."""

    def closing(self) -> None:
        """The pool is closing and waits for this call. Loop thread."""

    def abandon(self, error: BaseException) -> None:
        """This process is a fork of the one that made the call."""
