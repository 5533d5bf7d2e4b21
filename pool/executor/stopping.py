"""Stops a pool's calls early, and tells the user on stderr.

the `with` block is left by           calls that have not begun    calls that run
----------------------------------    -------------------------    ----------------------
its end, or `shutdown`                run                          finish
an exception                          cancelled                    finish
the same, on_error="terminate"        cancelled                    SIGTERM, grace, SIGKILL
KeyboardInterrupt, SystemExit         cancelled                    SIGTERM, grace, SIGKILL
a further Ctrl-C during that                                       SIGKILL
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

#: Values of `Pool(on_error=...)`.
FINISH: Final = "finish"
TERMINATE: Final = "terminate"
#: Seconds after which stderr says what the pool waits for. Most calls exit sooner.
PATIENCE_S: Final = 1.0


class OpenCalls(NamedTuple):
    """The calls that a pool had when it was stopped."""

    #: Calls that run, or for which a slot is free.
    running: int = 0
    #: Calls that had not begun, and were cancelled.
    cancelled: int = 0


class Stoppable(Protocol):
    """An engine that has not stopped."""

    @property
    def grace_s(self) -> float:
        """Seconds that calls have to exit after SIGTERM."""

    def end(self, reason: str, *, grace_s: float | None = None) -> OpenCalls:
        """Accept no more calls, cancel those that have not begun, stop the rest. Does not wait."""

    def join(self, timeout: float | None = None) -> bool:
        """Wait until all calls have ended; return False on timeout."""


def at_once(error: BaseException) -> bool:
    """Return whether an exception that leaves a pool's block stops the calls at once."""
    if isinstance(error, asyncio.CancelledError):
        return _is_task_cancelled()
    return isinstance(error, (KeyboardInterrupt, SystemExit))


def _is_task_cancelled() -> bool:
    """Return whether this task was cancelled: ``asyncio.run`` does that on Ctrl-C.

    Otherwise the task awaited something that was cancelled, which is an ordinary error.
    """
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no loop runs in this thread
        return False
    # Python 3.10 cannot tell.
    cancelling = getattr(task, "cancelling", None)
    return cancelling is None or cancelling() > 0


def end_now(engines: Sequence[Stoppable], what: str) -> None:
    """Stop all calls, report that, and wait for them; a further Ctrl-C kills the remaining ones.

    ``what``: what happened, for the message.
    """
    try:
        found = [engine.end(what) for engine in engines]
        running = sum(one.running for one in found)
        say_what_ended(what, OpenCalls(running, sum(one.cancelled for one in found)))
        _join(engines)
    except BaseException:
        for engine in engines:
            engine.end(f"{what}, twice", grace_s=0.0)
        for engine in engines:
            engine.join()
        raise


def _join(engines: Sequence[Stoppable]) -> None:
    late = [engine for engine in engines if not engine.join(PATIENCE_S)]
    if late:
        grace_s = max(engine.grace_s for engine in late)
        _say(
            f"processes of calls have {grace_s:.3g} s to exit in (grace_s). Ctrl-C kills them now."
        )
    for engine in late:
        engine.join()


def say_what_ended(what: str, found: OpenCalls) -> None:
    """Report that calls were ended, because of ``what``."""
    parts = []
    if found.running:
        parts.append(f"{_calls(found.running, 'running')} ended")
    if found.cancelled:
        parts.append(f"{_calls(found.cancelled, 'waiting')} cancelled")
    if parts:
        _say(f"{what}: {' and '.join(parts)}.")


def say_what_finishes(error: BaseException, found: OpenCalls) -> None:
    """Report that an exception left the block, and that running calls may finish."""
    if not any(found):
        return
    words = f"{type(error).__name__} left the block of a Pool: "
    if found.cancelled:
        words += f"{_calls(found.cancelled, 'waiting')} cancelled"
        words += "; " if found.running else "."
    if found.running:
        words += (
            f"{_calls(found.running, 'running', may=True)} finish. "
            'Ctrl-C ends such calls, and Pool(on_error="terminate") never waits for them.'
        )
    _say(words)


def _calls(number: int, kind: str, *, may: bool = False) -> str:
    verb = "may" if may else "was" if number == 1 else "were"
    return f"{number} {kind} call{'' if number == 1 else 's'} {verb}"


def _say(words: str) -> None:
    try:
        # One write, so that lines of other threads come before or after this line.
        sys.stderr.write(f"flashpool: {words}\n")
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        pass  # closed or None: there is no way to tell the user
