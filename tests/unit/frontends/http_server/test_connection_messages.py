"""Upgrades, headers, trailers and bodies that no client should send; real sockets, both loops."""

import asyncio
import contextlib

import pytest

from flashpool.frontends.http_server.connection import HEADERS_LIMIT
from support.frontends.sockets import PING, Run, closed, raw, send
from support.frontends.stand_in import StandInPool
from support.frontends.wire import (
    BODY,
    at_end,
    post,
    read_reply,
    serving,
    until,
)


@pytest.mark.parametrize("piece", [1, 50, 1 << 20])
@pytest.mark.parametrize("chunked", [False, True])
def test_an_upgrade_is_ignored(run: Run, piece: int, chunked: bool) -> None:
    async def main() -> None:
        pool = StandInPool()
        upgrade = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c"}
        data = post(BODY, **upgrade, **{"HTTP2-Settings": "AAMAAABk"})
        if chunked:
            head = data[: -len(BODY)].replace(
                b"Content-Length: %d" % len(BODY), b"Transfer-Encoding: chunked"
            )
            data = head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
        ping = PING[:-2] + b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n"
        async with serving(pool) as client, client.connect() as (reader, writer):
            for whole in (data, ping, data + PING):
                for start in range(0, len(whole), piece):
                    writer.write(whole[start : start + piece])
                    if piece == 1:
                        await asyncio.sleep(0)
                assert (await read_reply(reader)).status == 200
            assert (await read_reply(reader)).status == 200
        assert [call.body for call in pool.calls] == [BODY, BODY]

    run(main())


def test_a_tunnel_is_refused(run: Run) -> None:
    async def main() -> None:
        async with serving(StandInPool()) as client:
            for target in (b"x:443", b"/execute", b"/ping"):
                async with client.connect() as (reader, writer):
                    writer.write(b"CONNECT %s HTTP/1.1\r\nHost: x\r\n\r\n" % target + post(BODY))
                    assert (await read_reply(reader)).status == 400

    run(main())


# Floods


@pytest.mark.parametrize("size", [65, 80, 128, 240, 2000])
@pytest.mark.parametrize("before", [b"", PING * 3])
def test_oversized_headers_are_refused_however_they_arrive(
    run: Run, size: int, before: bytes
) -> None:
    async def main() -> None:
        async with serving(StandInPool()) as client:
            for filler in (b"X: " + b"y" * (size * 1024), b"X: y\r\n" * (size * 171) + b"Y: z"):
                async with client.connect() as (reader, writer):
                    writer.write(before + PING[:-2] + filler + b"\r\n\r\n")
                    for _ in range(before.count(b"GET")):
                        assert (await read_reply(reader)).status == 200
                    assert (await read_reply(reader)).status == 431
                    assert await at_end(reader) == b""

    run(main())


@pytest.mark.parametrize("before", [b"", PING * 3, post(b" " * 100_000 + BODY)])
def test_headers_within_the_limit_are_accepted(run: Run, before: bytes) -> None:
    async def main() -> None:
        async with serving(StandInPool()) as client, client.connect() as (reader, writer):
            filler = b"X: " + b"y" * (HEADERS_LIMIT - 200) + b"\r\n\r\n"
            writer.write(before + PING[:-2] + filler + PING)
            for _ in range(2 + before.count(b" HTTP/1.1")):
                assert (await read_reply(reader)).status == 200

    run(main())


@pytest.mark.parametrize(
    "endless",
    [b"1;" + b"e" * 500_000, b"0\r\nX: " + b"y" * 500_000, b"0\r\n" + b"X: y\r\n" * 90_000],
    ids=["chunk extension", "trailer", "trailers"],
)
def test_endless_chunk_extensions_and_trailers_close_the_connection(
    run: Run, endless: bytes
) -> None:
    async def main() -> None:
        async with serving(StandInPool()) as client, raw(client) as sock:
            head = b"POST /execute HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"
            await send(sock, head)
            with contextlib.suppress(ConnectionError):
                await send(sock, endless)
            await until(lambda: closed(sock))

    run(main())


def test_trailers_do_not_count_as_headers(run: Run) -> None:
    async def main() -> None:
        async with serving(StandInPool(), FLASHPOOL_TOKEN="t") as client:
            head = b"POST /execute HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
            chunk = b"%x\r\n%s\r\n0\r\nAuthorization: Bearer t\r\n\r\n" % (len(BODY), BODY)
            assert (await client.send(head + chunk)).status == 401

    run(main())


@pytest.mark.parametrize(
    "head",
    [
        b"POST /execute HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n{}  ",
        b"POST /execute HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        b"POST /execute HTTP/1.1\r\nContent-Length: -1\r\n\r\n{}",
        b"POST /execute HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n{}",
        b"POST /execute HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
        b"POST /execute HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n{}",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /ping HTTP/1.1\r\nX : y\r\n\r\n",
        b"GET /ping HTTP/1.1\r\nX: a\0b\r\n\r\n",
    ],
)
def test_ambiguous_requests_are_refused(run: Run, head: bytes) -> None:
    async def main() -> None:
        pool = StandInPool()
        async with serving(pool) as client, client.connect() as (reader, writer):
            writer.write(head)
            assert (await at_end(reader)).startswith(b"HTTP/1.1 400 ")
        assert pool.calls == []

    run(main())
