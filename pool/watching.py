"""What operators may ask about calls: types that both sides of the seam share.

    CallWatching.find("job-7") -> 17      any id: number, name, or the caller's own id
                .calls, .call             CallView: running, waiting, and the latest that ended
                .follow                   OutputFeed: the output as far as it is kept, then live
                .stacks                   Stacks: where the call's threads are now
                .builds, .cancel_build    BuildView: environments that are being built

A backend may support none of this (`backend.Backend.watching`).
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

#: Bytes that may wait for a reader of one call's output; further output is dropped and counted.
FEED_LIMIT: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class CallView:
    """One call, as it is now or as it ended."""

    #: The call's name, unique among processes; and its number in this process.
    id: str
    number: int
    #: The caller's own id; empty if there is none.
    request_id: str
    label: str
    #: ``building``, ``queued``, ``running``, ``exiting`` or ``ended``.
    state: str
    #: ``ok``, or the type of the error; None while the call has not ended.
    outcome: str | None = None
    #: Whether user code raised the error.
    from_user: bool = False
    error: str | None = None
    #: Seconds since the call was accepted; for an ended call, from then to its end.
    age_s: float = 0.0
    #: Seconds since 1970.
    ended_at: float | None = None
    environment: str = ""
    instance: str | None = None
    pid: int | None = None
    gpus: tuple[str, ...] = ()
    #: The receipt as in an answer; for a running call, its parts so far.
    receipt: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stacks:
    """The Python stacks of a call's process."""

    pid: int | None
    #: In the form of `faulthandler`, without the runtime's own frames; empty: see ``problem``.
    text: str = ""
    #: Why there are no stacks.
    problem: str = ""
    #: Other calls in the same process: calls of one instance share its process.
    beside: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildView:
    """An environment that calls wait for."""

    #: Identifies the build for `CallWatching.cancel_build`.
    key: str
    requirements: tuple[str, ...]
    python_version: str | None
    #: The names of calls that wait for the build.
    calls: tuple[str, ...]
    age_s: float
    #: The latest progress line.
    progress: str


class OutputFeed:
    """A call's output for one reader: pieces in order, then the end. Never blocks the writer."""

    def __init__(self, kept: bytes = b"", limit: int = FEED_LIMIT) -> None:
        self._limit = limit
        self._pieces: deque[tuple[bytes, bool]] = deque()
        self._size = 0
        self._lost = 0
        self._changed = asyncio.Event()
        #: Set when the call has ended and all of its output was put here.
        self.outcome: Outcome | None = None
        #: Whether nothing more follows.
        self.ended = False
        if kept:
            self._pieces.append((kept, False))

    def put(self, chunk: bytes, *, stderr: bool = False) -> None:
        """Add output of the call."""
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
        """End the feed."""
        if self._lost:
            self._tell_lost()
        self.outcome, self.ended = outcome, True
        self._changed.set()

    async def next(self, wait_s: float | None = None) -> tuple[bytes, bool] | None:
        """Return the next piece and whether it is stderr; None at the end or after ``wait_s``."""
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
    """Answers questions about calls, on the backend's loop."""

    def find(self, text: str) -> int | None:
        """Return the number of the call that has this id, of any kind; None: unknown id."""

    def calls(self) -> list[CallView]:
        """Return calls that have not ended, oldest first; then those that have, newest first."""

    def call(self, number: int) -> CallView | None:
        """Return one call."""

    def follow(self, number: int) -> OutputFeed | None:
        """Return a feed of the call's output, for `unfollow` when done; None: no such call."""

    def unfollow(self, number: int, feed: OutputFeed) -> None:
        """Remove a feed that nobody reads any more."""

    async def stacks(self, number: int) -> Stacks | None:
        """Return the stacks of the call's threads; None: it is not running."""

    def instances(self) -> set[str]:
        """Return the names of instances that exist or are being created."""

    def close_instance(self, name: str, reason: str) -> bool:
        """Close an instance when its calls have finished; return False if it does not exist."""

    def builds(self) -> list[BuildView]:
        """Return the environments that calls wait for."""

    def cancel_build(self, key: str, reason: str) -> int | None:
        """Cancel all calls that wait for a build, and so the build; return how many, or None."""

    async def build(self, spec: Spec, wait_s: float) -> Mapping[str, Any]:
        """Build an environment ahead of its first call.

        Return facts about the environment, or that the build takes longer than ``wait_s``.

        Raises:
            FlashpoolError: the environment cannot be built.
        """

    async def explain(self, spec: Spec) -> Mapping[str, Any]:
        """Explain, package by package, what building would install; build nothing."""

    async def lock_of(self, digest: str) -> tuple[str, ...]:
        """Return the exact versions in an environment, as requirements; empty if it is gone."""

    async def environments(self) -> Mapping[str, Any]:
        """List the store's environments."""
