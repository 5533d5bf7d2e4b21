"""The pool's clock: monotonic seconds, less those in which this process did not run.

A paused container, a SIGSTOP or a suspended machine delays everything that has a limit. That time
must not count: calls, zygotes and idle instances continue where they were. So limits are compared
with this clock, and a timer of the loop that fires too early by this clock is set again for the
rest.

    beat, every BEAT_S, and before a limit is compared: notices a pause

Each call reads the clock a dozen times: `now` is composed of functions in C, so that reading it
enters no Python frame.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import repeat, starmap
from operator import getitem, sub
from typing import Final

#: Seconds between two beats, and how late a beat may be before the delay counts as a pause.
BEAT_S: Final = 0.25
SLACK_S: Final = 0.5


class RunningTime:
    """Monotonic seconds in which this process ran."""

    __slots__ = ("_late_at", "_monotonic", "_still", "now")

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        #: Seconds in which this process did not run.
        self._still = [0.0]
        #: When the next beat counts as late; never, before the first beat.
        self._late_at = float("inf")
        still = iter(partial(getitem, self._still, 0), None)
        #: The monotonic time, less the known pauses.
        self.now: Callable[[], float] = map(sub, starmap(monotonic, repeat(())), still).__next__

    @property
    def stood_still(self) -> float:
        """Seconds in which this process did not run."""
        return self._still[0]

    def beat(self) -> float:
        """Record that this process runs, every `BEAT_S`; return the time less pauses."""
        at = self._monotonic()
        if at > self._late_at:
            # The pause began when the beat was due.
            self._still[0] += at - (self._late_at - SLACK_S)
        self._late_at = at + BEAT_S + SLACK_S
        return at - self._still[0]
