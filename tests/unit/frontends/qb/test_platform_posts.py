"""Which answers mean that a report is accepted; the server is real."""

import asyncio

import aiohttp
import pytest
from aiohttp import web

from flashpool.frontends.qb.outbox import JobReport
from flashpool.frontends.qb.platform_posts import Addresses, PlatformPosts, Verdict


def posted(status: int, location: str = "") -> tuple[Verdict, list[tuple[str, str]]]:
    """Post a report that is answered so; return the verdict and what reached the server."""
    asked: list[tuple[str, str]] = []

    async def done(request: web.Request) -> web.Response:
        asked.append((request.path, await request.text()))
        headers = {"Location": location} if location else {}
        return web.Response(status=status, headers=headers)

    async def other(request: web.Request) -> web.Response:
        asked.append((request.path, await request.text()))
        return web.Response(text="<html>")

    async def post() -> Verdict:
        app = web.Application()
        app.router.add_post("/done/{job}", done)
        app.router.add_route("*", "/other", other)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            at = f"http://127.0.0.1:{runner.addresses[0][1]}/done/$ID?gpu=x"
            # Where aiodns is installed, aiohttp's default resolver starts a thread that never exits.
            connector = aiohttp.TCPConnector(resolver=aiohttp.ThreadedResolver())
            async with aiohttp.ClientSession(connector=connector) as session:
                posts = PlatformPosts(session, Addresses(done=at, stream=None))
                return await posts.report(JobReport(job_id="a", body=b"{}"))
        finally:
            await runner.cleanup()

    return asyncio.run(post()), asked


@pytest.mark.parametrize(
    ("status", "verdict"),
    [(200, Verdict.TAKEN), (204, Verdict.TAKEN), (302, Verdict.REFUSED), (401, Verdict.REFUSED),
     (404, Verdict.UNKNOWN), (410, Verdict.GONE), (413, Verdict.TOO_LARGE), (500, Verdict.REFUSED)],
)  # fmt: skip
def test_each_status_has_a_verdict(status: int, verdict: Verdict) -> None:
    assert posted(status) == (verdict, [("/done/a", "{}")])


@pytest.mark.parametrize("status", [301, 302, 303])
def test_a_redirect_that_drops_the_report_is_refused(status: int) -> None:
    """Such as a redirect to the login page of a proxy."""
    verdict, asked = posted(status, "/other")
    assert asked[1:] == [("/other", "")]
    assert verdict is Verdict.REFUSED


def test_a_redirect_that_keeps_the_report_is_followed() -> None:
    assert posted(307, "/other") == (Verdict.TAKEN, [("/done/a", "{}"), ("/other", "{}")])
