"""Records facts for a pool's statistics: outcomes, latencies, failures, and its own errors.

Everything is bounded: histograms, the last hour by the minute, the latest failures, and counters by
cause.
"""

from __future__ import annotations

import logging
import os
import resource
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Final

from .calls import Outcome, Receipt
from .errors import BY_NAME
from .histograms import Histogram, LastHour
from .stats import (
    EndedExitStats,
    ExitStats,
    FailureStats,
    LatencyStats,
    MinuteStats,
    SupervisorStats,
)

_log = logging.getLogger(__name__)

#: Most failures that are remembered.
FAILURES: Final = 50
_ERROR_TEXT: Final = 300
#: Most bytes that are kept of a failed call's last output.
_LAST_LINES: Final = 1000
#: Replaces an unknown error type: user code wrote it to its worker's channel.
OTHER: Final = "other"
#: Phases of a receipt, in the order of a call; the first three are about its environment.
PROVISIONING: Final = ("resolve", "fetch", "build")
PHASES: Final = (*PROVISIONING, "queue", "start", "run", "exit", "total")
#: Outcomes that are counted in one batch, at a tenth of what counting each alone would cost.
_TOGETHER: Final = 256


class Recorder:
    """Counts outcomes; keeps the latest failures."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.calls = 0
        #: Calls that were refused because the queue was full, by what they would have waited for.
        self.refused: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self._failures: deque[FailureStats] = deque(maxlen=FAILURES)
        self._phases = {name: Histogram() for name in PHASES}
        self._hour = LastHour()
        #: Receipts that are not counted yet, of calls that ended in one minute: the one that is
        #: over at `_minute_over`.
        self._receipts: list[Receipt] = []
        self._minute_over = 0.0
        self.origins: Counter[str] = Counter()
        self._exits_ended = 0
        self._exits: deque[EndedExitStats] = deque(maxlen=FAILURES)
        self._callback_errors = 0
        self._last_callback_error: str | None = None

    def ended(self, call_id: int | None, label: str, outcome: Outcome) -> None:
        """Record the outcome of a call."""
        receipts, now = self._receipts, time.time()
        if now >= self._minute_over or len(receipts) >= _TOGETHER:
            self._count(now)
            receipts = self._receipts
        receipts.append(outcome.receipt)
        if (origin := outcome.receipt.provision.origin) not in ("base", ""):
            self.origins[origin] += 1
        if outcome.error_type is None:
            self.calls += 1
            self.outcomes["ok"] += 1
        else:
            self._hour.failed(now)
            self._failed(call_id, label, outcome, outcome.error_type)

    def _count(self, now: float) -> None:
        """Count the receipts that are not counted yet."""
        receipts, self._receipts = self._receipts, []
        begun = [receipt for receipt in receipts if receipt.attempts]
        provided = [one for one in receipts if one.provision.origin not in ("base", "")]
        for phase, seconds in self._phases.items():
            if phase in PROVISIONING:
                seconds.add(map(attrgetter(f"provision.{phase}_s"), provided))
            else:
                always = phase in ("queue", "total")
                seconds.add(map(attrgetter(f"{phase}_s"), receipts if always else begun))
        if receipts:
            self._hour.add(self._minute_over - 60.0, [receipt.total_s for receipt in receipts])
        self._minute_over = (now // 60 + 1) * 60.0

    def unprovided(self, call_id: int | None, label: str, outcome: Outcome) -> None:
        """Record a call whose environment was not available; it took no time of the pool."""
        if outcome.error_type is not None:
            self.origins["failed"] += 1
            now = time.time()
            self._hour.add(now, (0.0,))
            self._hour.failed(now)
            self._failed(call_id, label, outcome, outcome.error_type)

    def _failed(self, call_id: int | None, label: str, outcome: Outcome, error_type: str) -> None:
        cause = error_type if error_type in BY_NAME else OTHER
        if outcome.from_user:
            cause = "UserException"
        self.calls += 1
        self.outcomes[cause] += 1
        self._failures.append(
            FailureStats(
                at=time.time(),
                call=call_id,
                label=label,
                cause=cause,
                error_type=error_type[:_ERROR_TEXT],
                error=(outcome.error or "")[:_ERROR_TEXT],
                last_lines=outcome.output[-_LAST_LINES:].decode("utf-8", "replace"),
                run_s=round(outcome.receipt.run_s, 6),
                pid=outcome.receipt.pid,
                receipt=outcome.receipt.as_dict(),
            )
        )

    def exit_ended(self, call_id: int, label: str, what: str, seconds: float) -> None:
        """Record that something a call had left was stopped at the limit."""
        self._exits_ended += 1
        self._exits.append(
            EndedExitStats(
                at=time.time(), call=call_id, label=label, what=what, seconds=round(seconds, 3)
            )
        )

    def exits(self, running: int) -> ExitStats:
        """Return what was stopped, newest last, and the number of exits that run."""
        return ExitStats(running=running, ended=self._exits_ended, recent=list(self._exits))

    def callback_failed(self, where: str, error: Exception) -> None:
        """Record an error of flashpool itself; the caller ends the call or worker concerned."""
        self._callback_errors += 1
        self._last_callback_error = f"{where}: {type(error).__name__}: {error}"[:_ERROR_TEXT]
        _log.error("Bug in flashpool, in %s", where, exc_info=error)

    @contextmanager
    def counted(
        self, where: str, then: Callable[[Exception], object] | None = None
    ) -> Iterator[None]:
        """Record any error that is raised in this block, and continue after the block.

        ``then`` ends the call or worker concerned; an error in ``then`` is recorded as well.
        """
        try:
            yield
        except Exception as error:  # noqa: BLE001 - any error is recorded
            self.callback_failed(where, error)
            if then is not None:
                with self.counted(f"the end of {where}"):
                    then(error)

    def failures(self) -> list[FailureStats]:
        """Return the latest failures, newest last."""
        return list(self._failures)

    def latency(self) -> dict[str, LatencyStats]:
        """Return seconds by phase, without phases that no call had."""
        self._count(time.time())
        return {phase: one.stats() for phase, one in self._phases.items() if one.count}

    def last_hour(self) -> list[MinuteStats]:
        """Return calls by the minute in which they ended, oldest first."""
        now = time.time()
        self._count(now)
        return self._hour.stats(now)

    def supervisor(self) -> SupervisorStats:
        """Measure this process."""
        return SupervisorStats(
            pid=os.getpid(),
            uptime_s=round(time.monotonic() - self.started, 3),
            rss_mb=round(_resident_bytes() / 1e6, 1),
            open_files=_open_files(),
            callback_errors=self._callback_errors,
            last_callback_error=self._last_callback_error,
        )


# Both functions work without a free descriptor: statistics matter most during a shortage.


def _resident_bytes() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _open_files() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
