"""Passes functions from any thread to the loop thread, and from there to a thread for user code.

    any thread                     loop thread                     delivery thread
    ----------                     -----------                     ---------------
    Inbox.post(f, ..) --wake-->    f(..)
                                   Deliveries.deliver(g, ..) -->   g(..)

Posting while the loop is awake costs no wake-up; all deliveries of one turn of the loop together
cost one wake-up. Both keep the order.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

_log = logging.getLogger(__name__)

#: A function and its arguments.
Job = tuple[Callable[..., None], tuple[Any, ...]]


class Inbox:
    """Jobs for the loop thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._jobs: deque[Job] = deque()
        self._woken = False

    def post(self, function: Callable[..., None], *args: Any) -> bool:
        """Have the loop thread call a function; return False if the loop is closed.

        `unread` then takes the function out again.
        """
        self._jobs.append((function, args))
        if not self._woken:
            # Another thread may do the same now, and a second wake-up does no harm. A wake-up is
            # never missing: the loop clears the flag before it empties the inbox.
            self._woken = True
            try:
                self._loop.call_soon_threadsafe(self._empty)
            except RuntimeError:
                return False
        return True

    def _empty(self) -> None:
        self._woken = False
        while self._jobs:
            function, args = self._jobs.popleft()
            try:
                function(*args)
            except Exception:  # noqa: BLE001 - one job's error must not hold up the others
                # A failure must not end this loop: it would not be woken again for the jobs behind
                # it.
                _log.exception("a job for the pool's loop failed: %s", function)

    def unread(self) -> Iterator[Job]:
        """Remove and yield jobs that were posted too late. Any thread, and several at once."""
        # First, so that a thread that posts from now on wakes the loop again; earlier jobs are
        # handled here.
        self._woken = False
        while True:
            try:
                yield self._jobs.popleft()
            except IndexError:
                return


class Deliveries:
    """Jobs for the delivery thread. All methods but `run` belong to the loop thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._turn: list[Job] = []
        self._turns: SimpleQueue[list[Job] | None] = SimpleQueue()

    def deliver(self, function: Callable[..., None], *args: Any) -> None:
        """Have the delivery thread call a function, with others of this turn."""
        self._turn.append((function, args))
        if len(self._turn) == 1:
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._turn:
            self._turns.put(self._turn)
            self._turn = []

    def close(self) -> None:
        """Close the queue, after which the thread ends."""
        self._flush()
        self._turns.put(None)

    def run(self) -> None:
        """Run jobs until the queue is closed. Delivery thread."""
        while True:
            jobs = self._turns.get()
            if jobs is None:
                return
            jobs.reverse()
            while jobs:
                # No variable may hold a job while the thread waits for the next one.
                _run(*jobs.pop())


def _run(function: Callable[..., None], args: tuple[Any, ...]) -> None:
    try:
        function(*args)
    except BaseException:  # noqa: BLE001 - one result's error must not hold up the others
        _log.exception("delivering a result failed")
