"""Counters of the platform's jobs for operators, kept on the loop with a few additions a job."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class JobsStats:
    """Jobs since the start: ``taken`` is the sum of ``running``, ``done`` and ``failed``."""

    taken: int
    #: Jobs without a report, including those that wait for a slot or an environment.
    running: int
    done: int
    #: Jobs whose report has an error, raised by the job or by flashpool.
    failed: int
    #: Reports that the platform has not accepted yet.
    reports_waiting: int


class JobCounts:
    """Counts the jobs of one server."""

    __slots__ = ("done", "failed", "taken")

    def __init__(self) -> None:
        self.taken = self.done = self.failed = 0

    def ended(self, *, failed: bool) -> None:
        """Count the end of a job: its report exists."""
        if failed:
            self.failed += 1
        else:
            self.done += 1

    def stats(self, reports_waiting: int) -> JobsStats:
        """Return the counters as they are now."""
        return JobsStats(
            taken=self.taken,
            running=self.taken - self.done - self.failed,
            done=self.done,
            failed=self.failed,
            reports_waiting=reports_waiting,
        )
