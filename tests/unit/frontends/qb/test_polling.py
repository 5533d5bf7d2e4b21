"""Polls whose answer is slow, stalls or is cut off; the server is scripted."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

import aiohttp
import pytest

from flashpool.frontends.qb import polling
from flashpool.frontends.qb.jobs import Job
from flashpool.frontends.qb.polling import Taken, Taker

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 24\r\n\r\n"
BODY = b'{"id":"a","input":"xyz"}'
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def taken(answer: Answer, *, cancel_s: float | None = None) -> Taken:
    """Return the result of one poll."""
    served: list[asyncio.Future[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(asyncio.ensure_future(see_through(reader, writer)))

    async def see_through(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await answer(reader, writer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def take() -> Taken:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        # Where aiodns is installed, aiohttp's default resolver starts a thread that never exits.
        connector = aiohttp.TCPConnector(resolver=aiohttp.ThreadedResolver())
        taker = Taker(lambda _wanted: f"http://127.0.0.1:{port}/job-take/pod?x=y")
        try:
            async with server, aiohttp.ClientSession(connector=connector) as session:
                return await asyncio.wait_for(taker.take(session, 1), cancel_s or 20)
        finally:
            await asyncio.gather(*served)

    return asyncio.run(take())


async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD)
    for start in range(0, len(BODY), 4):
        await asyncio.sleep(0.1)
        writer.write(BODY[start : start + 4])


async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + BODY[:10])


async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + BODY[:10])
    await reader.read()


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


def test_an_answer_that_has_begun_may_outlast_the_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the platform begins to answer, the job is assigned to this worker."""
    monkeypatch.setattr(polling, "POLL_S", 0.3)
    assert taken(drip).jobs == [Job(id="a", input=b'"xyz"')]


@pytest.mark.parametrize("answer", [half, stall])
def test_an_answer_that_is_cut_off_is_logged(
    answer: Answer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(polling, "_STALL_S", 0.2)
    found = taken(answer)
    assert found.jobs == []
    assert found.pause_s > 0
    assert "and they are lost" in caplog.text


def test_an_answer_that_is_cancelled_is_logged_as_lost(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(asyncio.TimeoutError):
        taken(stall, cancel_s=0.2)
    assert "and they are lost" in caplog.text


def test_a_poll_without_an_answer_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(polling, "POLL_S", 0.2)
    with caplog.at_level(logging.INFO):
        assert taken(silence) == Taken(jobs=[])
    assert not caplog.text


@pytest.mark.parametrize("body", [b"[]", b"null", b"{}", b'[{"input":1}]', b"", b"5"])
def test_the_next_poll_after_an_empty_answer_is_delayed(body: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    found = taken(answer)
    assert found.jobs == []
    assert found.pause_s > 0


@pytest.mark.parametrize("status", [401, 403])
def test_the_error_of_a_refused_poll_names_the_key(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status)

    taken(answer)
    assert "RUNPOD_AI_API_KEY" in caplog.text
