"""Histograms of durations in seconds: one for each phase, and one for each recent minute.

Durations are counted in batches: sorting a batch first is cheaper than a search for each. Reading
costs the same however many were counted.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

from .stats import BucketStats, LatencyStats, MinuteStats

#: Upper bounds of the buckets, in seconds; one further bucket holds larger values.
BOUNDS: Final = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0),
)
#: Minutes for which figures are kept.
MINUTES: Final = 60


class Histogram:
    """Durations of one kind."""

    __slots__ = ("counts", "largest", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0
        self.largest = 0.0

    def add(self, seconds: Iterable[float]) -> None:
        """Count all these durations."""
        ordered = sorted(seconds)
        if not ordered:
            return
        below = 0
        for index, bound in enumerate(BOUNDS):
            reached = bisect_right(ordered, bound, below)
            self.counts[index] += reached - below
            below = reached
        self.counts[-1] += len(ordered) - below
        self.total += sum(ordered)
        self.largest = max(self.largest, ordered[-1])

    @property
    def count(self) -> int:
        """The number of counted values."""
        return sum(self.counts)

    def percentile(self, fraction: float) -> float:
        """Estimate the duration that ``fraction`` of all do not exceed; exact to its bucket."""
        wanted, before = fraction * self.count, 0
        for index, count in enumerate(self.counts):
            if count and before + count >= wanted:
                low = BOUNDS[index - 1] if index else 0.0
                high = min(self.largest, BOUNDS[index] if index < len(BOUNDS) else math.inf)
                return min(self.largest, low + (high - low) * (wanted - before) / count)
            before += count
        return self.largest

    def stats(self) -> LatencyStats:
        """Return the current figures."""
        return LatencyStats(
            count=self.count,
            sum_s=round(self.total, 6),
            p50_s=round(self.percentile(0.5), 6),
            p90_s=round(self.percentile(0.9), 6),
            p95_s=round(self.percentile(0.95), 6),
            p99_s=round(self.percentile(0.99), 6),
            max_s=round(self.largest, 6),
            buckets=_cumulative(self.counts),
        )


def _cumulative(counts: Sequence[int]) -> list[BucketStats]:
    """Accumulate like Prometheus: each bucket includes those below."""
    found, below = [], 0
    for index, count in enumerate(counts):
        below += count
        found.append(BucketStats(le_s=BOUNDS[index] if index < len(BOUNDS) else None, count=below))
    return found


class _Minute:
    __slots__ = ("at", "failed", "seconds")

    def __init__(self, at: int) -> None:
        self.at = at
        self.failed = 0
        self.seconds = Histogram()


class LastHour:
    """Calls of the last hour by the minute in which they ended, without empty minutes."""

    def __init__(self) -> None:
        self._minutes: deque[_Minute] = deque(maxlen=MINUTES)

    def add(self, now: float, seconds: Iterable[float]) -> None:
        """Count calls that ended in the same minute; ``now`` (since 1970) lies in that minute."""
        self._minute(now).seconds.add(seconds)

    def failed(self, now: float) -> None:
        """Count a failed call of this minute; its duration may be added before or after."""
        self._minute(now).failed += 1

    def _minute(self, now: float) -> _Minute:
        at = int(now // 60)
        if not self._minutes or self._minutes[-1].at != at:
            self._minutes.append(_Minute(at))
        return self._minutes[-1]

    def stats(self, now: float) -> list[MinuteStats]:
        """Return the figures of each minute, oldest first."""
        earliest = int(now // 60) - MINUTES
        return [
            MinuteStats(
                at=minute.at * 60,
                calls=minute.seconds.count,
                failed=minute.failed,
                p50_s=round(minute.seconds.percentile(0.5), 6),
                p95_s=round(minute.seconds.percentile(0.95), 6),
            )
            for minute in self._minutes
            if minute.at > earliest
        ]
