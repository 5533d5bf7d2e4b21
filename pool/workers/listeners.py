"""Who hears of zygotes and workers: what follows from it is decided above this folder."""

from __future__ import annotations

from typing import Protocol

from flashpool.pool._child import wire
from flashpool.pool.scheduling.commands import ZygoteKey

from .worker import ActiveCall, Worker
from .zygote import ZygoteProcess


class ZygoteListener(Protocol):
    """Who hears of zygotes."""

    def zygote_ready(self, zygote: ZygoteProcess) -> None:
        """It can fork."""

    def zygote_lost(
        self, key: ZygoteKey, zygote: ZygoteProcess | None, reason: str, *, short: bool = False
    ) -> None:
        """It, and every process below it, is gone; None when it never was.

        ``short``: it could not start, for want of descriptors, processes or memory.
        """

    def not_forked(self, zygote: ZygoteProcess, number: int) -> None:
        """It could not fork that many."""


class WorkerListener(Protocol):
    """Who hears of workers."""

    def worker_ready(self, worker: Worker) -> None:
        """It waits for its call."""

    def worker_not_ready(self, worker: Worker) -> None:
        """It died before it could take one."""

    def item(self, worker: Worker, running: ActiveCall, frame: wire.Frame) -> None:
        """Its call yielded."""

    def result(
        self, worker: Worker, running: ActiveCall, frame: wire.Frame, meta: wire.ResultMeta
    ) -> None:
        """Its call ended."""

    def exit_told(self, worker: Worker, frame: wire.Frame) -> None:
        """How the exit of one gets on whose call ended."""

    def exit_over(self, worker: Worker) -> None:
        """One has nothing to do any more but to exit."""

    def exit_died(self, worker: Worker) -> None:
        """One died whose call had ended, whether its exit was over or not."""

    def spoilt(self, worker: Worker, running: ActiveCall, problem: str) -> None:
        """Something else than a frame came over its channel."""

    def stillborn(self, worker: Worker, death: wire.Exited) -> None:
        """It ended though nobody asked it to, before user code began in it."""

    def died(self, worker: Worker, running: ActiveCall, death: wire.Exited) -> None:
        """It died without a result."""

    def resident_sent(self, worker: Worker, frame: wire.Frame) -> None:
        """Something of one of its calls."""

    def resident_spoilt(self, worker: Worker, problem: str) -> None:
        """Something else than a frame came over its channel."""

    def resident_died(self, worker: Worker, death: wire.Exited) -> None:
        """It died, with the calls in it."""

    def worker_failed(self, worker: Worker, error: Exception) -> None:
        """What was to be done for it raised this, a mistake of ours: its calls end."""

    def worker_stuck(self, worker: Worker) -> None:
        """It was killed and is still there, or gone without a word: its call ends."""

    def worker_dead(self, worker: Worker) -> None:
        """It is dead, or as good as that; it, or some of what it started, is not gone."""

    def worker_gone(self, worker: Worker) -> None:
        """It and all that it started are gone."""
