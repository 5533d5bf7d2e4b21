"""Posts to the platform about a job: its report, items, and progress.

    job-done    {"output": .., "error": ..}                        once
    job-done    {"status": "IN_PROGRESS", "output": ..}            progress
    job-stream  {"output": item}                                   in order

The SDK's own functions ignore a refusal after three attempts in five seconds, and set the id of the
job on the session, where concurrent jobs overwrite each other's id. Here a post has one verdict,
and the caller decides whether to post again.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

import aiohttp
import msgspec
from yarl import URL

from .outbox import JobReport

_log = logging.getLogger(__name__)

#: Seconds that a post may take, plus a second for so many bytes.
_POST_S: Final = 30.0
_BYTES_PER_S: Final = 256 * 1024
_HEADERS: Final = {"charset": "utf-8", "Content-Type": "application/x-www-form-urlencoded"}


class Verdict(enum.Enum):
    """The platform's verdict on a post."""

    TAKEN = "taken"
    #: 404: the platform does not know the job, or a proxy made a mistake.
    UNKNOWN = "unknown"
    GONE = "gone"
    TOO_LARGE = "too large"
    REFUSED = "refused"
    #: The connection could not be made, or broke.
    UNREACHABLE = "unreachable"
    SILENT = "no answer in time"


#: Consecutive answers of 404 that are believed: a single one may be a mistake of a proxy.
UNKNOWN_LIMIT: Final = 4
_VERDICTS: Final = {404: Verdict.UNKNOWN, 410: Verdict.GONE, 413: Verdict.TOO_LARGE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """URLs in which ``$ID`` stands for the job."""

    done: str
    #: The URL for items; None: the platform accepts none.
    stream: str | None


class PlatformPosts:
    """Posts about the jobs of one worker."""

    def __init__(self, session: aiohttp.ClientSession, addresses: Addresses) -> None:
        self._session = session
        self._addresses = addresses

    @property
    def streams(self) -> bool:
        """Return whether items can be posted."""
        return self._addresses.stream is not None

    async def report(self, report: JobReport) -> Verdict:
        """Post the report of a job."""
        return await self._post(
            self._addresses.done, report.job_id, report.body, is_stream=report.streamed
        )

    async def progress(self, job_id: str, output: dict[str, object]) -> Verdict:
        """Post the progress of a job."""
        body = msgspec.json.encode({"status": "IN_PROGRESS", "output": output})
        return await self._post(self._addresses.done, job_id, body)

    async def item(self, job_id: str, body: bytes) -> Verdict:
        """Post one item of a generator, as JSON."""
        assert self._addresses.stream is not None
        return await self._post(self._addresses.stream, job_id, b'{"output":' + body + b"}")

    async def _post(
        self, template: str, job_id: str, body: bytes, *, is_stream: bool = False
    ) -> Verdict:
        address = template.replace("$ID", quote(job_id, safe=""))
        url = URL(f"{address}&isStream={str(is_stream).lower()}", encoded=True)
        limit = aiohttp.ClientTimeout(total=_POST_S + len(body) / _BYTES_PER_S)
        # Not every id of a queue can be a header's value.
        name = {"X-Request-ID": job_id} if job_id.isascii() and job_id.isprintable() else {}
        try:
            async with self._session.post(
                url, data=body, headers={**_HEADERS, **name}, timeout=limit
            ) as response:
                await response.read()
        except asyncio.TimeoutError:
            return Verdict.SILENT
        except (aiohttp.ClientError, OSError) as error:
            _log.debug("Job %s: a post failed: %s: %s", job_id, type(error).__name__, error)
            return Verdict.UNREACHABLE
        # A post that was redirected to a page with status 200 has not arrived.
        if response.status < 300 and response.method == "POST":
            return Verdict.TAKEN
        _log.debug("Job %s: a post was answered with status %d", job_id, response.status)
        return _VERDICTS.get(response.status, Verdict.REFUSED)
