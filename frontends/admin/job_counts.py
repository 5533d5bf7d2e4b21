"""Jobs of the platform's queue, as operators see them. Counted on the loop, a few additions a job."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class JobsStats:
    """Jobs since the start: ``taken`` is the sum of ``running``, ``done`` and ``failed``."""

    taken: int
    #: Until its report is made; it may wait for a slot, or for its environment.
    running: int
    done: int
    #: Those whose report has an error, whoever made it.
    failed: int
    #: Made, and not yet taken by the platform.
    reports_waiting: int


class JobCounts:
    """Counts them."""

    __slots__ = ("done", "failed", "taken")

    def __init__(self) -> None:
        self.taken = self.done = self.failed = 0

    def ended(self, *, failed: bool) -> None:
        """One that was taken has its report."""
        if failed:
            self.failed += 1
        else:
            self.done += 1

    def stats(self, reports_waiting: int) -> JobsStats:
        """All of it, as it is now."""
        return JobsStats(
            taken=self.taken,
            running=self.taken - self.done - self.failed,
            done=self.done,
            failed=self.failed,
            reports_waiting=reports_waiting,
        )
