"""Clients that do not read, pipeline, upgrade, hang up or flood; real sockets, both loops."""

import asyncio
import contextlib
import ctypes
import gc
import resource
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import psutil
import pytest
import uvloop
from unit.frontends.stand_in import NONE, StandInPool
from unit.frontends.wire import (
    BODY,
    PATIENCE_S,
    Client,
    at_end,
    post,
    read_reply,
    serving,
    until,
)

from flashpool.frontends.connections import HEADERS_LIMIT
from flashpool.pool.calls import Outcome, Receipt

Run = Callable[[Coroutine[Any, Any, None]], None]

DONE = Outcome(body=NONE, receipt=Receipt(pid=7))
MB = 1 << 20
PING = b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"
FAST = {"FLASHPOOL_SEND_TIMEOUT_S": "1"}

# The first loop of a process makes a pipe that stays.
uvloop.new_event_loop().close()


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    make = asyncio.new_event_loop if request.param == "asyncio" else uvloop.new_event_loop

    def run_on(main: Coroutine[Any, Any, None]) -> None:
        loop = make()
        try:
            loop.run_until_complete(asyncio.wait_for(main, 50))
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    return run_on


@contextlib.asynccontextmanager
async def raw(client: Client, receive_buffer: int = 0) -> AsyncIterator[socket.socket]:
    """A socket that reads only when told to."""
    with await connected(client, receive_buffer) as sock:
        yield sock


async def connected(client: Client, receive_buffer: int = 0) -> socket.socket:
    sock = socket.socket()
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", client.port))
    return sock


async def send(sock: socket.socket, data: bytes) -> None:
    await asyncio.wait_for(asyncio.get_running_loop().sock_sendall(sock, data), PATIENCE_S)


# A client that does not read


def test_a_client_that_never_reads_is_cut(run: Run) -> None:
    async def main() -> None:
        pool = StandInPool(outcome=Outcome(body=b"A" * (9 * MB), receipt=Receipt(pid=7)))
        async with serving(pool, **FAST) as client, raw(client, 4096) as sock:
            begun = time.monotonic()
            await send(sock, post(BODY))
            await until(lambda: pool.calls)
            # The kernel says so, without a byte being read: the answer was dropped.
            await until(lambda: sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
            assert time.monotonic() - begun >= 1

    run(main())


@pytest.mark.slow
def test_what_clients_do_not_read_does_not_pile_up(run: Run) -> None:
    async def main() -> None:
        pool = StandInPool(outcome=Outcome(body=b"A" * (9 * MB), receipt=Receipt(pid=7)))
        process = psutil.Process()
        async with serving(pool, **FAST) as client, contextlib.AsyncExitStack() as stack:
            before = process.memory_info().rss
            socks = [await stack.enter_async_context(raw(client, 4096)) for _ in range(12)]
            for sock in socks:
                await send(sock, post(BODY))
            await until(lambda: len(pool.calls) == 12)
            for sock in socks:
                await until(lambda s=sock: s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

            def freed() -> bool:
                gc.collect()
                ctypes.CDLL(None).malloc_trim(0)  # libc may keep what is free for later
                return process.memory_info().rss < before + 30 * MB

            await until(freed)

    run(main())


def test_the_result_of_a_call_that_was_watched_leaves_no_garbage(run: Run) -> None:
    async def main() -> None:
        pool = StandInPool(outcome=None)
        async with serving(pool) as client, client.connect() as (reader, writer):
            gc.collect()
            gc.set_debug(gc.DEBUG_SAVEALL)
            try:
                writer.write(post(BODY))
                await until(lambda: pool.held)
                await asyncio.sleep(0.2)  # long enough for its client to be watched
                pool.finish(1, Outcome(body=NONE, receipt=Receipt(pid=7)))
                assert (await read_reply(reader)).status == 200
                gc.collect()
                assert not [one for one in gc.garbage if isinstance(one, Outcome)]
            finally:
                gc.set_debug(0)
                gc.garbage.clear()

    run(main())


def test_a_slow_reader_gets_it_all(run: Run) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        pool = StandInPool(outcome=Outcome(body=b"A" * (9 * MB), receipt=Receipt(pid=7)))
        limit = {"FLASHPOOL_SEND_TIMEOUT_S": "2"}
        async with serving(pool, **limit) as client, raw(client, 256 * 1024) as sock:
            await send(sock, post(BODY, Connection="close"))
            got, begun = 0, time.monotonic()
            # Slow for twice the limit, never without taking something for a small part of it.
            while data := await asyncio.wait_for(loop.sock_recv(sock, 256 * 1024), PATIENCE_S):
                got += len(data)
                if time.monotonic() - begun < 4:
                    await asyncio.sleep(0.2)
            assert got > 9 * MB

    run(main())


@pytest.mark.slow
def test_an_idle_connection_is_none_that_does_not_read(run: Run) -> None:
    async def main() -> None:
        async with serving(StandInPool(), **FAST) as client, client.connect() as (reader, writer):
            for _ in range(2):
                writer.write(post(BODY))
                assert (await read_reply(reader)).status == 200
                await asyncio.sleep(2)

    run(main())


# Pipelining


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("more", [post(BODY), post(BODY) * 50, post(BODY)[:-3], PING * 3000])
def test_a_client_that_pipelined_and_left_cancels_its_call(run: Run, how: str, more: bytes) -> None:
    async def main() -> None:
        pool = StandInPool(outcome=None)
        async with serving(pool) as client:
            async with raw(client) as sock:
                await send(sock, post(BODY))
                await until(lambda: pool.held)
                await asyncio.sleep(0.2)  # long enough for its client to be watched
                await send(sock, more)
                if how == "reset":
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await until(lambda: pool.cancelled)
            await asyncio.sleep(0.1)
            assert len(pool.calls) == 1

    run(main())


def test_a_client_that_pipelined_at_once_and_left_cancels_its_call(run: Run) -> None:
    async def main() -> None:
        pool = StandInPool(outcome=None)
        async with serving(pool) as client:
            async with raw(client) as sock:
                await send(sock, post(BODY) * 3)
                await until(lambda: pool.held)
            await until(lambda: pool.cancelled)
            assert len(pool.calls) == 1

    run(main())


def test_many_pipelined_requests_of_all_sizes_are_answered_in_order(run: Run) -> None:
    async def main() -> None:
        pool = StandInPool()
        big = post(b" " * (3 * 64 * 1024) + BODY)
        async with serving(pool) as client, client.connect() as (reader, writer):
            some = [PING, post(BODY), big, post(b"{"), PING, big] * 30
            writer.write(b"".join(some))
            for one in some:
                expected = 422 if one == post(b"{") else 200
                assert (await read_reply(reader)).status == expected
            assert len(pool.calls) == 90

    run(main())


def test_a_request_pipelined_in_pieces_outlasts_the_call_before(run: Run) -> None:
    async def main() -> None:
        pool = StandInPool(outcome=None)
        limit = {"FLASHPOOL_HEADER_TIMEOUT_S": "0.3"}
        async with serving(pool, **limit) as client, client.connect() as (reader, writer):
            writer.write(post(BODY) + PING[:10])
            await until(lambda: pool.held)
            await asyncio.sleep(1.5)  # the call's time is not the client's
            pool.finish(1, DONE)
            assert (await read_reply(reader)).status == 200
            writer.write(PING[10:])
            assert (await read_reply(reader)).status == 200
            writer.write(post(BODY) + PING[:10])
            await until(lambda: pool.held)
            pool.finish(2, DONE)
            assert (await read_reply(reader)).status == 200
            assert (await at_end(reader)).startswith(b"HTTP/1.1 408 ")

    run(main())


@pytest.mark.slow
def test_a_flood_of_pipelined_requests_is_not_taken_in(run: Run) -> None:
    async def main() -> None:
        pool = StandInPool(outcome=None)
        async with serving(pool) as client, raw(client) as sock:
            await send(sock, post(BODY))
            await until(lambda: pool.held)
            before = psutil.Process().memory_info().rss
            with contextlib.suppress(asyncio.TimeoutError):
                loop = asyncio.get_running_loop()
                await asyncio.wait_for(loop.sock_sendall(sock, PING * 2_000_000), 2)
                raise AssertionError("all of it was read")
            assert psutil.Process().memory_info().rss < before + 90 * MB  # PING * 2M is 66

    run(main())


@pytest.mark.parametrize("at_once", [False, True])
def test_garbage_behind_a_request_is_not_taken_for_its_answer(run: Run, at_once: bool) -> None:
    async def main() -> None:
        garbage = b"{}garbage\r\n\r\n"
        pool = StandInPool(outcome=None)
        async with serving(pool) as client, client.connect() as (reader, writer):
            writer.write(post(BODY) + (garbage if at_once else b""))
            await until(lambda: pool.held)
            writer.write(garbage)
            await asyncio.sleep(0.2)
            pool.finish(1, DONE)
            assert (await read_reply(reader)).status == 200
            assert (await at_end(reader)).startswith(b"HTTP/1.1 400 ")

    run(main())


# Upgrades


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
def test_headers_too_large_however_they_arrive(run: Run, size: int, before: bytes) -> None:
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
def test_headers_within_the_limit_pass(run: Run, before: bytes) -> None:
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
def test_what_is_no_body_within_a_body(run: Run, endless: bytes) -> None:
    async def main() -> None:
        async with serving(StandInPool()) as client, raw(client) as sock:
            head = b"POST /execute HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"
            await send(sock, head)
            with contextlib.suppress(ConnectionError):
                await send(sock, endless)
            await until(lambda: closed(sock))

    run(main())


def closed(sock: socket.socket) -> bool:
    try:
        return sock.recv(65536) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_trailers_are_no_headers(run: Run) -> None:
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


def test_a_thousand_idle_connections_are_no_burden(run: Run) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2500:
        pytest.skip("needs two thousand descriptors, and may not have them here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))

    async def main() -> None:
        async with serving(StandInPool()) as client:
            idle = [await connected(client) for _ in range(1000)]
            begun = time.process_time()
            await asyncio.sleep(2)
            assert time.process_time() - begun < 1, (
                "half of a core, of which all of pytest is a part"
            )
            assert (await client.execute()).status == 200
            for sock in idle:
                sock.close()

    try:
        run(main())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_draining_server_closes_the_connections_it_answers_on(run: Run) -> None:
    async def main() -> None:
        pool = StandInPool(outcome=None)
        async with serving(pool) as client:
            for data, status in ((post(BODY), 503), (PING, 503)):
                async with client.connect() as (reader, writer):
                    pool.draining = False
                    writer.write(PING)
                    reply = await read_reply(reader)
                    assert (reply.status, reply.headers.get("connection")) == (200, None)
                    pool.draining = True
                    writer.write(data)
                    reply = await read_reply(reader)
                    assert (reply.status, reply.headers["connection"]) == (status, "close")
                    assert await at_end(reader) == b""
            pool.draining = False
            async with client.connect() as (reader, writer):
                writer.write(post(BODY))
                await until(lambda: pool.held)
                pool.draining = True
                pool.finish(1, DONE)
                reply = await read_reply(reader)
                assert (reply.status, reply.headers["connection"]) == (200, "close")

    run(main())
