"""The pool's clock: monotonic seconds, less those in which this process did not run.

A container that is paused, a SIGSTOP or a machine that is suspended holds up everything that has
a limit. Nobody is to be blamed for the time: calls, zygotes and idle instances go on where they
were. So limits are compared with this clock, and a timer of the loop that fires too early by it
is set again for what is left.

    beat, every BEAT_S, from the loop      now: the first to be asked after a pause notices it
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

#: Between two beats, and what a beat may be late before that counts as a pause.
BEAT_S: Final = 0.25
SLACK_S: Final = 0.5


class RunningTime:
    """Monotonic seconds in which this process ran."""

    __slots__ = ("_late_at", "_monotonic", "stood_still")

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        #: Seconds in which it did not run.
        self.stood_still = 0.0
        #: No beat is awaited before the first.
        self._late_at = float("inf")

    def now(self) -> float:
        """The time; a pause is noticed here, before anybody compares with a limit."""
        at = self._monotonic()
        if at > self._late_at:
            self._notice(at)
        return at - self.stood_still

    def beat(self) -> None:
        """This process runs; call it every `BEAT_S`."""
        at = self._monotonic()
        if at > self._late_at:
            self._notice(at)
        self._late_at = at + BEAT_S + SLACK_S

    def _notice(self, at: float) -> None:
        # The beat was due that long ago.
        self.stood_still += at - (self._late_at - SLACK_S)
        self._late_at = at + BEAT_S + SLACK_S
