"""A call's soft time limit: an exception in its main thread, so that ``finally`` runs.

    supervisor: the limit has passed -> zygote -> `SIGNAL` -> `_raise`, in the main thread

The hard limit is later and ends the process, even if the call caught the exception. Processes
ignore this signal by default, so it does not disturb a call without a soft limit, or one that has
just finished. On an instance's loop, the exception could hit another call. There, a timer of the
loop cancels the call's task, and the call raises `SoftTimeout`.
"""

from __future__ import annotations

import signal
import sys
from time import monotonic

from .outcome import failed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from .outcome import Outcome

SIGNAL = signal.SIGURG
#: The exception class where user code has not imported flashpool's, which may not be installed.
_STAND_IN: type[TimeoutError] = type(
    "SoftTimeout", (TimeoutError,), {"__module__": "flashpool.pool"}
)
#: A signal before this share of the limit has passed was for the previous call of an instance.
_TOO_SOON = 0.9


class SoftLimit:
    """A context in which the signal raises; ``seconds``: the limit, or None for no limit."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self.began = monotonic()
        self.armed = False

    def __enter__(self) -> SoftLimit:
        if self.seconds is not None:
            self.began = monotonic()
            self.armed = True
            signal.signal(SIGNAL, self._raise)
        return self

    def __exit__(self, *_error: object) -> None:
        if self.seconds is not None:
            self.armed = False
            signal.signal(SIGNAL, signal.SIG_DFL)

    def _raise(self, _number: int, _frame: object) -> None:
        assert self.seconds is not None
        if not self.armed or monotonic() - self.began < self.seconds * _TOO_SOON:
            return
        self.armed = False
        raise self._passed()

    def _passed(self) -> BaseException:
        return _kind()(
            f"the call ran longer than its soft limit of {self.seconds:g} s (phase: run). "
            "Raise soft_timeout_s if it needs longer."
        )

    def on_loop(self, coroutine: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, Any]:
        """Return the coroutine, with this limit applied."""
        return coroutine if self.seconds is None else self._awaited(coroutine, self.seconds)

    async def _awaited(self, coroutine: Coroutine[Any, Any, Any], seconds: float) -> Any:
        import asyncio

        self.armed = False
        task, passed = asyncio.current_task(), False
        assert task is not None

        def cancel() -> None:
            nonlocal passed
            passed = True
            task.cancel()

        left_s = seconds - (monotonic() - self.began)
        timer = asyncio.get_running_loop().call_later(left_s, cancel)
        try:
            return await coroutine
        except asyncio.CancelledError:
            if not passed:
                raise
            raise self._passed() from None
        finally:
            timer.cancel()


def limited(seconds: float, run: Callable[..., Outcome], *args: Any) -> Outcome:
    """Run a call with a soft limit, and return its outcome."""
    try:
        with SoftLimit(seconds):
            outcome = run(*args)
    except BaseException as error:
        # The signal came after the function had returned, before the outcome was complete.
        return failed(error)
    return outcome


def _kind() -> type[BaseException]:
    """Return flashpool's class if user code imported it, which may catch it; else the stand-in."""
    errors = sys.modules.get("flashpool.pool.errors")
    kind = getattr(errors, "SoftTimeout", _STAND_IN)
    return kind if isinstance(kind, type) and issubclass(kind, TimeoutError) else _STAND_IN
