"""Decides which worker of an app gets which request, and what to do after a worker's death.

    start, loaded, died, retry        StartWorker, TryLater
    requested, withdrawn, answered    SendRequest, TurnAway, Hopeless, LoseRequest
    late, grace_over                  Interrupt, KillWorker

Events are methods; each returns the commands to carry out, in order.

The rules:

* A request goes to the ready worker with the lowest load, or waits, first come, first served.
* While a worker cancels a request that exceeded its limit, the worker gets no other request: it may
  have to be killed.
* A worker that died is replaced at once. Requests that had not begun in it wait for another worker,
  once; those that had begun are lost.
* A WebSocket never waits: if no worker has room for it, it is turned away.
* An app that fails to load is tried again, less and less often, and its requests end at once.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Collection, Iterator

from .states import (
    FAILURES_S,
    PAUSES_S,
    AppPolicy,
    AppWorkerRow,
    AppWorkerState,
    Command,
    Hopeless,
    Interrupt,
    KillWorker,
    LoseRequest,
    SendRequest,
    StartWorker,
    TryLater,
    TurnAway,
)


class AppTable:
    """The workers of one app, and its unanswered requests."""

    def __init__(self, policy: AppPolicy, numbers: Iterator[int] | None = None) -> None:
        """``numbers``: numbers for workers; a worker's number is its generation."""
        self.policy = policy
        self.numbers = itertools.count(1) if numbers is None else numbers
        self.workers: dict[int, AppWorkerRow] = {}
        #: Oldest first.
        self.waiting: deque[int] = deque()
        #: The worker of each request that has one.
        self._where: dict[int, AppWorkerRow] = {}
        #: Requests that no other worker gets: a worker died with them, or nobody waits for them.
        self._once_more: set[int] = set()
        #: Why the latest attempt to load the app failed; empty if it succeeded.
        self.failure = ""
        self._failures: deque[float] = deque()
        #: Number of pending calls of `retry`.
        self._pausing = 0
        self.closing = False
        #: Number of loaded workers that died, and why the last of them did.
        self.deaths = 0
        self.last_death = ""

    # Views.

    @property
    def is_served(self) -> bool:
        """Return whether a worker is ready."""
        return any(one.state is AppWorkerState.READY for one in self.workers.values())

    @property
    def is_complete(self) -> bool:
        """Return whether all workers are ready."""
        ready = [one for one in self.workers.values() if one.state is AppWorkerState.READY]
        return len(ready) >= self.policy.workers

    def worker_of(self, request: int) -> int | None:
        """Return the worker that has a request, if any."""
        row = self._where.get(request)
        return None if row is None else row.worker

    # Workers.

    def start(self) -> list[Command]:
        """Start all workers."""
        return [self._another() for _ in range(self.policy.workers)]

    def _another(self) -> Command:
        worker = next(self.numbers)
        first = self.policy.concurrency
        sockets = list(range(first, first + self.policy.websockets))
        self.workers[worker] = AppWorkerRow(worker, list(range(first)), sockets)
        return StartWorker(worker)

    def loaded(self, worker: int) -> list[Command]:
        """Handle a worker that has loaded the app, and takes requests from now on."""
        self.workers[worker].state = AppWorkerState.READY
        self.failure = ""
        return self._dispatch()

    def died(
        self, worker: int, begun: Collection[int], reason: str, now: float, *, ours: bool = False
    ) -> list[Command]:
        """Handle a worker that died, or could not load the app.

        ``begun``: its requests that had begun. ``ours``: the app is not at fault.
        """
        row = self.workers.pop(worker)
        commands: list[Command] = []
        again = []
        for request in row.requests:
            del self._where[request]
            began = request in begun
            if began or request in self._once_more or request in row.sockets:
                self._once_more.discard(request)
                sibling = row.culprit is not None and row.culprit != request
                commands.append(LoseRequest(request, began, sibling))
            else:
                self._once_more.add(request)
                again.append(request)
        self.waiting.extendleft(reversed(again))
        if row.state is AppWorkerState.STARTING:
            if not ours:
                self.failure = reason
        else:
            self.deaths += 1
            self.last_death = reason
        if not self.closing:
            commands += self._replace(row, now, ours=ours)
        if self.failure and not self.is_served:
            commands += self._give_up_waiting()
        return commands + self._dispatch()

    def _replace(self, row: AppWorkerRow, now: float, *, ours: bool) -> list[Command]:
        if row.served or ours:
            return [self._another()]
        failures = self._failures
        failures.append(now)
        while now - failures[0] > FAILURES_S:
            failures.popleft()
        if row.state is not AppWorkerState.STARTING and len(failures) == 1:
            return [self._another()]
        self._pausing += 1
        return [TryLater(PAUSES_S[min(len(failures), len(PAUSES_S)) - 1])]

    def _give_up_waiting(self) -> list[Command]:
        given_up, self.waiting = self.waiting, deque()
        self._once_more.difference_update(given_up)
        return [Hopeless(request) for request in given_up]

    def retry(self) -> list[Command]:
        """Start another worker after a pause."""
        self._pausing -= 1
        return [] if self.closing else [self._another()]

    # Requests.

    def requested(self, request: int, *, socket: bool = False) -> list[Command]:
        """Accept a request; ``socket``: it is a WebSocket, for whose end no request waits."""
        if self.failure and not self.is_served:
            return [Hopeless(request)]
        if socket:
            return self._requested_socket(request)
        if not self.waiting and (row := self._least_loaded()) is not None:
            return [self._send(request, row)]
        if len(self.waiting) >= self.policy.queue_limit:
            return [TurnAway(request)]
        self.waiting.append(request)
        return []

    def _requested_socket(self, request: int) -> list[Command]:
        row = self._fewest_sockets()
        if row is None:
            return [TurnAway(request)]
        return [self._send(request, row, socket=True)]

    def withdrawn(self, request: int) -> None:
        """Drop a request that waits for a worker."""
        if request in self.waiting:
            self.waiting.remove(request)
        self._once_more.discard(request)

    def abandoned(self, request: int) -> None:
        """Mark a request that a worker has: no other worker will get it."""
        self._once_more.add(request)

    def answered(self, request: int) -> list[Command]:
        """Handle a request whose answer is complete, or whose task is over."""
        self._leaves(request)
        return self._dispatch() if self.waiting else []

    def _leaves(self, request: int) -> None:
        row = self._where.pop(request, None)
        self._once_more.discard(request)
        if row is not None:
            slots = row.socket_slots if request in row.sockets else row.slots
            slots.append(row.requests.pop(request))
            row.sockets.discard(request)
            row.doubts.discard(request)

    def lingers(self, worker: int) -> None:
        """Count a task that continues after its request was answered."""
        self.workers[worker].lingering += 1

    def no_longer(self, worker: int) -> list[Command]:
        """Handle the end of a task that continued after its request was answered."""
        row = self.workers[worker]
        row.lingering = max(0, row.lingering - 1)
        return self._dispatch() if self.waiting else []

    # Limits.

    def late(self, request: int, *, began: bool) -> list[Command]:
        """Cancel a request that exceeded its limit; its worker gets no others until it ends.

        A request that has not begun does no harm, as it will not begin.
        """
        row = self._where.get(request)
        if row is None:
            self.withdrawn(request)
            return []
        self.abandoned(request)
        if began:
            row.doubts.add(request)
        return [Interrupt(request, row.worker)]

    def grace_over(self, request: int) -> list[Command]:
        """Have a request's worker killed if the task has continued for the whole grace."""
        row = self._where.get(request)
        if row is None or request not in row.doubts or row.state is not AppWorkerState.READY:
            return []
        row.state = AppWorkerState.CONDEMNED
        row.culprit = request
        return [KillWorker(row.worker, request)]

    def has_others(self, request: int) -> bool:
        """Return whether the worker of a request has others that were not cancelled."""
        row = self._where.get(request)
        return row is not None and any(one not in row.doubts for one in row.requests)

    def condemned(self, worker: int) -> None:
        """Mark a worker that is being killed for another reason."""
        row = self.workers[worker]
        if row.state is AppWorkerState.READY:
            row.state = AppWorkerState.CONDEMNED

    # Dispatch.

    def _dispatch(self) -> list[Command]:
        commands: list[Command] = []
        while self.waiting and (row := self._least_loaded()) is not None:
            commands.append(self._send(self.waiting.popleft(), row))
        return commands

    def _least_loaded(self) -> AppWorkerRow | None:
        best = None
        for row in self.workers.values():
            if row.slots and not row.doubts and row.state is AppWorkerState.READY:
                load = row.load
                if load < self.policy.concurrency and (best is None or load < best.load):
                    best = row
        return best

    def _fewest_sockets(self) -> AppWorkerRow | None:
        rows = [
            row
            for row in self.workers.values()
            if row.socket_slots and not row.doubts and row.state is AppWorkerState.READY
        ]
        return min(rows, key=lambda row: len(row.sockets), default=None)

    def _send(self, request: int, row: AppWorkerRow, *, socket: bool = False) -> Command:
        slot = (row.socket_slots if socket else row.slots).pop()
        if socket:
            row.sockets.add(request)
        row.requests[request] = slot
        row.served += 1
        self._where[request] = row
        return SendRequest(request, row.worker, slot)
