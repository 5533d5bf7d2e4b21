"""Interfaces for events of zygotes and workers; code above this folder decides what follows."""

from __future__ import annotations

from typing import Protocol

from flashpool.pool._child import wire
from flashpool.pool.scheduling.commands import ZygoteKey

from .worker import ActiveCall, Worker
from .zygote import ZygoteProcess


class ZygoteListener(Protocol):
    """Receives events of zygotes."""

    def zygote_ready(self, zygote: ZygoteProcess) -> None:
        """The zygote can fork."""

    def zygote_lost(
        self, key: ZygoteKey, zygote: ZygoteProcess | None, reason: str, *, short: bool = False
    ) -> None:
        """The zygote and every process below it are gone; ``zygote`` is None if it never started.

        ``short``: it could not start because descriptors, processes or memory are short.
        """

    def not_forked(self, zygote: ZygoteProcess, number: int) -> None:
        """The zygote could not fork ``number`` workers."""


class WorkerListener(Protocol):
    """Receives events of workers."""

    def worker_ready(self, worker: Worker) -> None:
        """The worker waits for its call."""

    def worker_not_ready(self, worker: Worker) -> None:
        """The worker died before it could take a call."""

    def item(self, worker: Worker, running: ActiveCall, frame: wire.Frame) -> None:
        """The worker's call yielded an item."""

    def result(
        self, worker: Worker, running: ActiveCall, frame: wire.Frame, meta: wire.ResultMeta
    ) -> None:
        """The worker sent the result of its call."""

    def exit_told(self, worker: Worker, frame: wire.Frame) -> None:
        """A worker whose function has returned reports the progress of its exit."""

    def exit_over(self, worker: Worker) -> None:
        """A worker only has to exit."""

    def exit_died(self, worker: Worker) -> None:
        """A worker died after its function had returned, whether its exit was over or not."""

    def spoilt(self, worker: Worker, running: ActiveCall, problem: str) -> None:
        """Bytes on the worker's channel are not a frame."""

    def stillborn(self, worker: Worker, death: wire.Exited) -> None:
        """The worker exited unexpectedly, before user code began in it."""

    def died(self, worker: Worker, running: ActiveCall, death: wire.Exited) -> None:
        """The worker died without a result."""

    def resident_sent(self, worker: Worker, frame: wire.Frame) -> None:
        """A resident sent a frame of one of its calls."""

    def resident_spoilt(self, worker: Worker, problem: str) -> None:
        """Bytes on a resident's channel are not a frame."""

    def resident_died(self, worker: Worker, death: wire.Exited) -> None:
        """A resident died, with the calls in it."""

    def worker_failed(self, worker: Worker, error: Exception) -> None:
        """flashpool's own code for the worker raised this error: the worker's calls fail."""

    def worker_stuck(self, worker: Worker) -> None:
        """The worker was killed and still exists, or vanished without a report: its call fails."""

    def worker_dead(self, worker: Worker) -> None:
        """The worker is dead, or considered dead; processes that it started may remain."""

    def worker_gone(self, worker: Worker) -> None:
        """The worker and all processes that it started are gone."""
