"""Posts to the platform about a job: its report, items, and progress.

    job-done    {"output": .., "error": ..}                        once
    job-done    {"status": "IN_PROGRESS", "output": ..}            progress
    job-stream  {"output": item}                                   in order

The SDK's own functions swallow a refusal after three tries in five seconds, and set the id
of the job on the session, where jobs side by side overwrite each other's. Here a post has one
answer, and who posted decides.
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

#: Seconds a post may take, and bytes for each of which it gets a second more.
_POST_S: Final = 30.0
_BYTES_PER_S: Final = 256 * 1024
_HEADERS: Final = {"charset": "utf-8", "Content-Type": "application/x-www-form-urlencoded"}


class Verdict(enum.Enum):
    """The platform's verdict on a post."""

    TAKEN = "taken"
    #: The platform does not know the job, or no longer.
    UNKNOWN = "unknown"
    GONE = "gone"
    TOO_LARGE = "too large"
    REFUSED = "refused"
    #: The connection could not be made, or broke.
    UNREACHABLE = "unreachable"
    SILENT = "no answer in time"


#: Answers of 404 in a row that are believed: one may be a mistake of something in between.
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
        """The end of a job."""
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
        # A header cannot carry every id that a queue can.
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
        # Redirected to a page that says 200, it has arrived nowhere.
        if response.status < 300 and response.method == "POST":
            return Verdict.TAKEN
        _log.debug("Job %s: a post was answered with status %d", job_id, response.status)
        return _VERDICTS.get(response.status, Verdict.REFUSED)
