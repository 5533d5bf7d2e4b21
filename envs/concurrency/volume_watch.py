"""Detects whether a volume answers, without blocking a thread of this process.

    check ---> the watch's thread --a path--> sh: [ -e path ] --a line--> answered
                        '-- no line for `LIMIT_S` --> hangs, until there is a line

A file system in user space that hangs blocks its callers in a sleep that no signal ends. A process
with such a thread cannot exit, and its parent waits as long as the volume hangs. So a separate
process queries the volume first. It looks for a name that never existed, because the kernel could
answer for any other name from its cache.

Time in which this process did not run does not count (`_TICK_S`): after a freeze, the answer has
arrived already, or arrives as soon as the other process runs again.
"""

from __future__ import annotations

import itertools
import logging
import os
import select
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from .disk_hangs import DiskHangs

__all__ = ["VolumeWatch"]

_log = logging.getLogger(__name__)

#: A volume that has not answered for this long hangs.
LIMIT_S: Final = 5.0
#: A result is reused for operations that begin within this time.
_FRESH_S: Final = 0.05
#: Seconds between two queries while a caller waits for the volume.
_PERIOD_S: Final = 1.0
#: The most that the time between two readings of the clock counts for.
_TICK_S: Final = 0.5
#: How long the querying process may take to exit, unless it hangs.
_EXIT_S: Final = 1.0

_ASK: Final = 'while IFS= read -r path; do [ -e "$path" ]; echo; done'


class VolumeWatch:
    """The watch over one volume; any thread may use it."""

    def __init__(self, volume: Path, *, limit_s: float = LIMIT_S) -> None:
        self.volume = volume
        self.limit_s = limit_s
        #: Whether the volume has not answered for too long.
        self.hangs = False
        #: Called, in the watch's thread, when the volume begins to hang.
        self.on_hang: list[Callable[[], None]] = []
        self._changed = threading.Condition()
        self._asked = self._answered = 0
        self._answered_at = -_FRESH_S
        self._users = 0
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._asker: subprocess.Popen[bytes] | None = None
        self._names = itertools.count()

    def __repr__(self) -> str:
        return f"<VolumeWatch {self.volume} {'hangs' if self.hangs else 'answers'}>"

    def check(self) -> None:
        """Return once the volume has answered; raise `DiskHangs` if it hangs."""
        with self._changed:
            fresh = time.monotonic() - self._answered_at < _FRESH_S
            if not self.hangs and (fresh or self._stopping):
                return
            self._asked = max(self._asked, self._answered + 1)
            wanted = self._asked
            self._run()
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._answered >= wanted or self.hangs or self._stopping)
            if self.hangs:
                raise DiskHangs(f"{self.volume} has not answered for {self.limit_s:g} s")

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Query the volume again and again during this block."""
        with self._changed:
            self._users += 1
            self._run()
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._users -= 1

    def stop(self) -> None:
        """Stop the process and the thread; do not wait for a process that hangs."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    # The thread.

    def _run(self) -> None:
        if self._thread is None and not self._stopping:
            self._thread = threading.Thread(
                target=self._watch, name="flashpool-volume-watch", daemon=True
            )
            self._thread.start()

    def _watch(self) -> None:
        while self._next_question():
            if not self._ask():
                # The volume's state is unknown, and no operation may be blocked because of that.
                self._end_asker()
            with self._changed:
                if self._stopping:
                    break
                self._answered = self._asked
                self._answered_at = time.monotonic()
                if self.hangs:
                    _log.warning("%s responds again", self.volume)
                self.hangs = False
                self._changed.notify_all()
        self._end_asker()

    def _next_question(self) -> bool:
        with self._changed:
            while self._asked <= self._answered and not self._stopping:
                told = self._changed.wait(_PERIOD_S if self._users else None)
                if self._users and not told:
                    break
            return not self._stopping

    def _ask(self) -> bool:
        """Query once and wait for the answer, however long; return False if the query failed."""
        try:
            asker = self._asker or self._start_asker()
            assert asker.stdin is not None
            assert asker.stdout is not None
            name = f".is-it-there-{os.getpid()}-{next(self._names)}"
            asker.stdin.write(os.fsencode(self.volume / name) + b"\n")
            asker.stdin.flush()
            waited, poll = 0.0, select.poll()
            poll.register(asker.stdout, select.POLLIN)
            while not self._stopping:
                began = time.monotonic()
                if poll.poll(_TICK_S * 1000):
                    return bool(os.read(asker.stdout.fileno(), 1))
                waited += min(time.monotonic() - began, 2 * _TICK_S)
                if waited >= self.limit_s and not self.hangs:
                    self._begin_to_hang()
        except OSError as error:
            _log.debug("%s cannot be watched: %s", self.volume, error)
            return False
        return True

    def _begin_to_hang(self) -> None:
        _log.warning("%s has not responded for %g s and is not used", self.volume, self.limit_s)
        with self._changed:
            self.hangs = True
            self._changed.notify_all()
        for tell in list(self.on_hang):
            tell()

    def _start_asker(self) -> subprocess.Popen[bytes]:
        self._asker = subprocess.Popen(
            ["/bin/sh", "-c", _ASK],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
            bufsize=0,
            start_new_session=True,
        )
        return self._asker

    def _end_asker(self) -> None:
        asker, self._asker = self._asker, None
        if asker is None:
            return
        assert asker.stdin is not None
        assert asker.stdout is not None
        asker.kill()
        asker.stdin.close()
        asker.stdout.close()
        try:
            asker.wait(_EXIT_S)
        except subprocess.TimeoutExpired:
            # The process has got SIGKILL, and exits when the volume answers or is unmounted.
            _log.info("the process that asks %s hangs with it", self.volume)
            asker.returncode = -9
