"""A stand-in for the platform's side of job reports, with scripted answers."""

import asyncio
import contextlib
import json
from collections.abc import Iterator
from typing import Any

from flashpool.frontends.qb.delivery import ReportDelivery
from flashpool.frontends.qb.outbox import JobReport, Outbox
from flashpool.frontends.qb.platform_posts import Verdict


class Platform:
    """Answers posts as scripted; the last answer repeats."""

    streams = True

    def __init__(self, *verdicts: Verdict) -> None:
        self.verdicts = list(verdicts)
        self.posts: list[Any] = []

    def _next(self) -> Verdict:
        return self.verdicts.pop(0) if len(self.verdicts) > 1 else self.verdicts[0]

    async def report(self, report: JobReport) -> Verdict:
        self.posts.append(report)
        await asyncio.sleep(0)
        return self._next()

    async def item(self, job_id: str, body: bytes) -> Verdict:
        self.posts.append(json.loads(body))
        await asyncio.sleep(0)
        return self._next()

    async def progress(self, job_id: str, output: dict[str, object]) -> Verdict:
        self.posts.append(output)
        await asyncio.sleep(0.01)
        return self._next()


class Names(set[str]):
    """The jobs that the heartbeat names."""

    @contextlib.contextmanager
    def __call__(self, job_id: str) -> Iterator[None]:
        self.add(job_id)
        try:
            yield
        finally:
            self.remove(job_id)


def reports_of(platform: Platform, outbox: Outbox) -> ReportDelivery:
    return ReportDelivery(platform, outbox, 60, lambda report: report)  # type: ignore[arg-type]
