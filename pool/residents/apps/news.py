"""Sends each event of an app's workers to its receiver: the app, or its isolated requests."""

from __future__ import annotations

from flashpool.pool._child import wire
from flashpool.pool.exit_causes import Cause

from .isolated import IsolatedRequests
from .routing import Routes
from .workers import AppNews


class SplitNews:
    """Receives events of all workers of one app (`workers.AppNews`)."""

    def __init__(self, shared: AppNews) -> None:
        self._shared = shared
        #: Set by the owner, once it has created them.
        self.isolated: IsolatedRequests | None = None

    def _of(self, worker: int) -> IsolatedRequests | None:
        isolated = self.isolated
        return isolated if isolated is not None and worker in isolated else None

    def worker_loaded(self, worker: int, routes: Routes, load_s: float) -> None:
        """A worker is loaded and takes requests."""
        if isolated := self._of(worker):
            isolated.worker_loaded(worker, load_s)
        else:
            self._shared.worker_loaded(worker, routes, load_s)

    def worker_sent(self, worker: int, frame: wire.Frame) -> None:
        """Handle a frame of a worker's request."""
        if isolated := self._of(worker):
            isolated.worker_sent(worker, frame)
        else:
            self._shared.worker_sent(worker, frame)

    def worker_died(self, worker: int, cause: Cause, *, ours: bool) -> None:
        """A worker died, or was not available."""
        if isolated := self._of(worker):
            isolated.worker_died(worker, cause)
        else:
            self._shared.worker_died(worker, cause, ours=ours)

    def worker_gone(self, worker: int) -> None:
        """The process tree of a worker is gone."""
        self._shared.worker_gone(worker)
