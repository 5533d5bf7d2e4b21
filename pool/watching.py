"""What an operator sees of calls, and may ask of them: the words that both sides of the seam share.

    CallWatching.find("job-7") -> 17      any id: number, name, or what its caller calls it
                .calls, .call             CallView: running, waiting, and the latest that ended
                .follow                   OutputFeed: what it wrote as far as kept, then live
                .stacks                   Stacks: where its threads are now
                .builds, .cancel_build    BuildView: environments that are being made

A backend that cannot be looked into has none of this (`backend.Backend.watching`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from .calls import Outcome

if TYPE_CHECKING:
    from flashpool.envs import Spec

#: Bytes that wait for a reader of one call's output; what comes beyond is dropped, and counted.
FEED_LIMIT: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class CallView:
    """One call, as it is now or as it ended."""

    #: Its name, which no call of another process has; and its number in this one.
    id: str
    number: int
    #: What its caller calls it; empty: nothing.
    request_id: str
    label: str
    #: ``building``, ``queued``, ``running``, ``exiting`` or ``ended``.
    state: str
    #: ``ok``, or the type of its error; None while it has not ended.
    outcome: str | None = None
    #: Whether user code raised that error.
    from_user: bool = False
    error: str | None = None
    #: Seconds since it was taken; of an ended one, from there to its end.
    age_s: float = 0.0
    #: Seconds of the epoch.
    ended_at: float | None = None
    environment: str = ""
    instance: str | None = None
    pid: int | None = None
    gpus: tuple[str, ...] = ()
    #: As in an answer; of one that runs, as far as it has come.
    receipt: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stacks:
    """The Python stacks of a call's process."""

    pid: int | None
    #: As `faulthandler` writes them, the runtime's own frames left out; empty: see ``problem``.
    text: str = ""
    #: Why there are none.
    problem: str = ""
    #: Other calls that run in the same process, as an instance's do.
    beside: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildView:
    """An environment that calls wait for."""

    #: Names it for `CallWatching.cancel_build`.
    key: str
    requirements: tuple[str, ...]
    python_version: str | None
    #: The names of calls that wait for it.
    calls: tuple[str, ...]
    age_s: float
    #: What was told last of how it gets on.
    progress: str


class OutputFeed:
    """What a call writes, for one reader: pieces in order, then its end. Never blocks the writer."""

    def __init__(self, kept: bytes = b"", limit: int = FEED_LIMIT) -> None:
        self._limit = limit
        self._pieces: deque[tuple[bytes, bool]] = deque()
        self._size = 0
        self._lost = 0
        self._changed = asyncio.Event()
        #: Set when the call has ended, and all of it was put.
        self.outcome: Outcome | None = None
        #: Whether nothing more comes.
        self.ended = False
        if kept:
            self._pieces.append((kept, False))

    def put(self, chunk: bytes, *, stderr: bool = False) -> None:
        """It wrote that."""
        if self._size + len(chunk) > self._limit:
            self._lost += len(chunk)
        else:
            if self._lost:
                self._tell_lost()
            self._pieces.append((chunk, stderr))
            self._size += len(chunk)
        self._changed.set()

    def _tell_lost(self) -> None:
        lost, self._lost = self._lost, 0
        self._pieces.append((b"\n[... %d bytes were not read in time ...]\n" % lost, False))

    def end(self, outcome: Outcome | None) -> None:
        """It has ended."""
        if self._lost:
            self._tell_lost()
        self.outcome, self.ended = outcome, True
        self._changed.set()

    async def next(self, wait_s: float | None = None) -> tuple[bytes, bool] | None:
        """The next piece, and whether it is of stderr; None at the end, or after so long."""
        while not self._pieces:
            if self.ended:
                return None
            self._changed.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed.wait(), wait_s)
                continue
            return None
        chunk, stderr = self._pieces.popleft()
        self._size = max(0, self._size - len(chunk))
        return chunk, stderr


class CallWatching(Protocol):
    """What can be asked; on the backend's loop."""

    def find(self, text: str) -> int | None:
        """The number of the call that has this id, of any kind; None: there is none."""

    def calls(self) -> list[CallView]:
        """Those that have not ended, oldest first; then those that have, newest first."""

    def call(self, number: int) -> CallView | None:
        """One of them."""

    def follow(self, number: int) -> OutputFeed | None:
        """What it wrote, and writes; None: no such call. Give it back to `unfollow`."""

    def unfollow(self, number: int, feed: OutputFeed) -> None:
        """Nobody reads that any more."""

    async def stacks(self, number: int) -> Stacks | None:
        """Where its threads are; None: it is not running."""

    def instances(self) -> set[str]:
        """Names of the instances that are there, or being created."""

    def close_instance(self, name: str, reason: str) -> bool:
        """Close an instance when its calls are over; False: there is none of that name."""

    def builds(self) -> list[BuildView]:
        """Environments that calls wait for."""

    def cancel_build(self, key: str, reason: str) -> int | None:
        """Cancel all calls that wait for one, and so its build; how many; None: no such build."""

    async def build(self, spec: Spec, wait_s: float) -> Mapping[str, Any]:
        """Make an environment ahead of its first call; what it is, or that it takes longer.

        Raises:
            FlashpoolError: it cannot be had.
        """

    async def explain(self, spec: Spec) -> Mapping[str, Any]:
        """What making it would take, package by package; nothing is built."""

    async def lock_of(self, digest: str) -> tuple[str, ...]:
        """The exact versions in an environment, as requirements; nothing where it is gone."""

    async def environments(self) -> Mapping[str, Any]:
        """What the store holds."""
