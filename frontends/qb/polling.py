"""Takes jobs from the platform, one long poll at a time.

    GET job-take, job-take-batch --> 200 jobs | 204, 400 nothing | 429 | anything else

Unlike the SDK's own loop, this poller reports a job that it cannot read, if the job has an id. It
pauses instead of polling at once after errors, and after empty answers of a platform that does not
hold the poll open.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import aiohttp

from .jobs import Job, NoJobs, decode

_log = logging.getLogger(__name__)

#: Seconds the platform may hold a poll open.
POLL_S: Final = 90.0
#: Seconds that an answer may take once it has begun: in total, and without a byte.
_BODY_S: Final = 600.0
_STALL_S: Final = 60.0
#: The session's limit would include the wait for an answer, and its body.
_NO_LIMIT: Final = aiohttp.ClientTimeout(total=None)
_TOO_MANY_PAUSE_S: Final = 5.0
_ERROR_PAUSE_S: Final = 0.25
_LONGEST_PAUSE_S: Final = 10.0
#: An empty answer within so many seconds: the platform did not hold the poll open.
_SOON_S: Final = 0.1
_EMPTY_PAUSE_S: Final = 0.05
_LONGEST_EMPTY_PAUSE_S: Final = 1.0
_EMPTY: Final = (204, 400)
_NOTHING: Final = (b"", b"[]", b"null")
_KEY_HINT: Final = "; is RUNPOD_AI_API_KEY the key of this endpoint?"
_HINTS: Final = {401: _KEY_HINT, 403: _KEY_HINT}


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """The jobs that a poll returned, and how long to wait before the next poll."""

    jobs: list[Job]
    pause_s: float = 0.0


class Taker:
    """Polls, and counts consecutive errors and quick empty answers."""

    def __init__(self, address: Callable[[int], str]) -> None:
        #: Returns the URL for a number of jobs.
        self._address = address
        self._errors = 0
        self._soon = 0
        #: Whether an answer has begun to arrive: the platform gives its jobs to no other worker.
        self.receiving = False

    async def take(self, session: aiohttp.ClientSession, wanted: int) -> Taken:
        """Poll once; fails only by being cancelled."""
        began = asyncio.get_running_loop().time()
        asking = session.get(self._address(wanted), timeout=_NO_LIMIT)
        try:
            response = await asyncio.wait_for(asking, POLL_S)
        except asyncio.TimeoutError:
            return Taken(jobs=[])
        except (aiohttp.ClientError, OSError) as error:
            return self._failed(f"{type(error).__name__}: {error}")
        self.receiving = True
        try:
            async with response:
                return await self._taken(response, began)
        finally:
            self.receiving = False

    async def _taken(self, response: aiohttp.ClientResponse, began: float) -> Taken:
        status = response.status
        try:
            body = await _body(response)
        except asyncio.CancelledError:
            _say_lost(status, "this process stops")
            raise
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
            _say_lost(status, f"{type(error).__name__}: {error}")
            return self._failed("an answer broke off")
        if status == 429:
            return Taken(jobs=[], pause_s=_TOO_MANY_PAUSE_S)
        if status in _EMPTY or (status == 200 and body.strip() in _NOTHING):
            return self._empty(asyncio.get_running_loop().time() - began)
        if status != 200:
            return self._failed(f"status {status}{_HINTS.get(status, '')}")
        try:
            jobs = decode(body)
        except NoJobs as error:
            return self._failed(f"the answer is not valid JSON ({error}); a job in it is lost")
        if not jobs:
            return self._failed("the answer contains no job that can be read")
        self._errors = self._soon = 0
        return Taken(jobs=jobs)

    def _empty(self, took_s: float) -> Taken:
        self._errors = 0
        self._soon = self._soon + 1 if took_s < _SOON_S else 0
        if not self._soon:
            return Taken(jobs=[])
        return Taken(jobs=[], pause_s=min(_EMPTY_PAUSE_S * self._soon, _LONGEST_EMPTY_PAUSE_S))

    def _failed(self, why: str) -> Taken:
        self._errors += 1
        if self._errors & (self._errors - 1) == 0:
            # Log the 1st, 2nd, 4th, 8th ... error, so that an hour of errors does not fill the log.
            _log.warning("Jobs cannot be taken (%d in a row): %s", self._errors, why)
        pause = min(_ERROR_PAUSE_S * 2 ** min(self._errors - 1, 10), _LONGEST_PAUSE_S)
        return Taken(jobs=[], pause_s=pause * random.uniform(0.8, 1.2))  # noqa: S311 - no secret


async def _body(response: aiohttp.ClientResponse) -> bytes:
    loop = asyncio.get_running_loop()
    end, chunks = loop.time() + _BODY_S, []
    while not response.content.at_eof():
        limit = min(_STALL_S, end - loop.time())
        chunks.append(await asyncio.wait_for(response.content.readany(), limit))
    return b"".join(chunks)


def _say_lost(status: int, why: str) -> None:
    if status == 200:
        _log.error("Jobs were taken but the response was cut off, and they are lost: %s", why)
