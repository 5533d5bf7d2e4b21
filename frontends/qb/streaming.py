"""Posts to the platform while a job runs: a generator's items, and progress.

    item -> [ at most a window ] -> job-stream, one after the other -> credit -> worker goes on
    tell -> the latest only, every half second                     -> job-done IN_PROGRESS

All items must arrive, in order: a refused item is posted again, and its generator waits. Progress
may be skipped, but must never arrive after the job's report.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from flashpool.frontends.responses import is_base64, is_json

from .platform_posts import UNKNOWN_LIMIT, PlatformPosts, Verdict
from .waiting import within

_log = logging.getLogger(__name__)

#: Most bytes that the platform accepts in a post with an item; and the bytes around the item.
CHUNK_LIMIT: Final = 1_000_000
AROUND: Final = len('{"output":""}')
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0
_PROGRESS_S: Final = 0.5
#: How the base64 of a pickle begins (protocol 2 and later); JSON never begins so.
_PICKLE: Final = b"gA"


class JobItems:
    """The items of one job that are being posted."""

    def __init__(self, job_id: str, posts: PlatformPosts, credit: Callable[[], None]) -> None:
        self._job_id = job_id
        self._posts = posts
        #: Lets the worker send another item.
        self._credit = credit
        self._waiting: deque[bytes] = deque()
        self._sending: asyncio.Task[None] | None = None
        self._wanted = True
        #: Whether the job yielded any items.
        self.any = False
        #: Whether items were dropped that the platform may have wanted.
        self.lost = False

    def put(self, item: bytes) -> None:
        """Queue an item: the base64 of a pickle, or JSON."""
        self.any = True
        self._waiting.append(_chunk(item))
        if self._sending is None or self._sending.done():
            self._sending = asyncio.ensure_future(self._send())

    async def close(self, limit_s: float) -> None:
        """Wait until all items are posted; drop those that are not posted in time."""
        if self._sending is None:
            return
        await asyncio.wait({self._sending}, timeout=max(0.0, limit_s))
        if not self._sending.done():
            self.cancel()

    def cancel(self) -> None:
        """Post no further items."""
        self._wanted = False
        if self._sending is not None and not self._sending.done():
            _log.warning(
                "Job %s: the platform did not accept all of its items in time", self._job_id
            )
            self.lost = True
            self._sending.cancel()

    async def _send(self) -> None:
        while self._waiting:
            if self._wanted:
                self._wanted = await self._offer(self._waiting[0])
            self._waiting.popleft()
            self._credit()

    async def _offer(self, item: bytes) -> bool:
        """Post an item until it is accepted; return False if the platform wants no more."""
        pause, unknown = _FIRST_PAUSE_S, 0
        while True:
            verdict = await self._posts.item(self._job_id, item)
            if verdict is Verdict.TAKEN:
                return True
            unknown = unknown + 1 if verdict is Verdict.UNKNOWN else 0
            if verdict is Verdict.GONE or unknown >= UNKNOWN_LIMIT:
                return False
            if pause == _FIRST_PAUSE_S:
                _log.warning(
                    "Job %s: the platform did not accept an item (%s)", self._job_id, verdict.value
                )
            if verdict is Verdict.TOO_LARGE:
                item = _too_large(len(item))
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_S)


class Progress:
    """Reports the progress of one job."""

    def __init__(self, job_id: str, posts: PlatformPosts) -> None:
        self._job_id = job_id
        self._posts = posts
        self._latest: dict[str, object] | None = None
        self._posting: asyncio.Task[None] | None = None
        self._pause = asyncio.Event()

    def tell(self, phase: str, message: str = "") -> None:
        """Post this progress unless newer progress replaces it; ignored after `close`."""
        if self._pause.is_set():
            return  # a build that other calls wait for goes on, and reports progress
        self._latest = {"phase": phase, "message": message}
        if self._posting is None or self._posting.done():
            self._posting = asyncio.ensure_future(self._post())

    async def close(self, limit_s: float) -> None:
        """Post nothing more; return when the last post has ended, or the time is up."""
        self._latest = None
        self._pause.set()
        if self._posting is not None:
            await asyncio.wait({self._posting}, timeout=limit_s)
            self._posting.cancel()

    def cancel(self) -> None:
        """Stop reporting, and abort the post in progress: the job is being stopped."""
        self._latest = None
        self._pause.set()
        if self._posting is not None:
            self._posting.cancel()

    async def _post(self) -> None:
        while self._latest is not None:
            output, self._latest = self._latest, None
            await self._posts.progress(self._job_id, output)
            await within(self._pause.wait(), _PROGRESS_S)


def _chunk(item: bytes) -> bytes:
    """Return an item's text for a post. Invalid items are of user code that found the channel."""
    if len(item) > CHUNK_LIMIT - AROUND:
        return _too_large(len(item))
    if item.startswith(_PICKLE) and is_base64(item):
        return b'"' + item + b'"'
    if is_json(item):
        return item
    return msgspec.json.encode(
        {"success": False, "error": "The worker's item message is malformed"}
    )


def _too_large(size: int) -> bytes:
    error = f"ResultTooLarge: the item has {size} bytes, the platform takes {CHUNK_LIMIT - AROUND}"
    return msgspec.json.encode(
        {"success": False, "error_type": "ResultTooLarge", "error": error, "size": size}
    )
