"""Clients that do not read, pipeline, hang up or flood; real sockets, both loops."""

import asyncio
import contextlib
import ctypes
import gc
import resource
import socket
import struct
import time

import psutil
import pytest

from flashpool.pool.calls import Outcome, Receipt
from support.frontends.sockets import PING, Run, connected, raw, send
from support.frontends.stand_in import NONE, StandInPool
from support.frontends.wire import (
    BODY,
    PATIENCE_S,
    at_end,
    post,
    read_reply,
    serving,
    until,
)

DONE = Outcome(body=NONE, receipt=Receipt(pid=7))
MB = 1 << 20
FAST = {"FLASHPOOL_SEND_TIMEOUT_S": "1"}


def test_a_client_that_never_reads_is_disconnected(run: Run) -> None:
    async def main() -> None:
        pool = StandInPool(outcome=Outcome(body=b"A" * (9 * MB), receipt=Receipt(pid=7)))
        async with serving(pool, **FAST) as client, raw(client, 4096) as sock:
            begun = time.monotonic()
            await send(sock, post(BODY))
            await until(lambda: pool.calls)
            # The kernel reports the reset although no byte was read: the answer was dropped.
            await until(lambda: sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
            assert time.monotonic() - begun >= 1

    run(main())


@pytest.mark.slow
def test_unread_answers_do_not_accumulate_in_memory(run: Run) -> None:
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
                ctypes.CDLL(None).malloc_trim(0)  # otherwise libc may keep freed memory
                return process.memory_info().rss < before + 30 * MB

            await until(freed)

    run(main())


def test_a_watched_call_leaves_no_reference_cycle_to_its_result(run: Run) -> None:
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


def test_a_slow_reader_gets_the_whole_answer(run: Run) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        pool = StandInPool(outcome=Outcome(body=b"A" * (9 * MB), receipt=Receipt(pid=7)))
        limit = {"FLASHPOOL_SEND_TIMEOUT_S": "2"}
        async with serving(pool, **limit) as client, raw(client, 256 * 1024) as sock:
            await send(sock, post(BODY, Connection="close"))
            got, begun = 0, time.monotonic()
            # The reader is slow for twice the limit, but never idle for more than a part of it.
            while data := await asyncio.wait_for(loop.sock_recv(sock, 256 * 1024), PATIENCE_S):
                got += len(data)
                if time.monotonic() - begun < 4:
                    await asyncio.sleep(0.2)
            assert got > 9 * MB

    run(main())


@pytest.mark.slow
def test_an_idle_connection_does_not_count_as_one_that_does_not_read(run: Run) -> None:
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
def test_a_client_that_disconnects_after_pipelining_cancels_its_call(
    run: Run, how: str, more: bytes
) -> None:
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


def test_a_client_that_pipelines_at_once_and_disconnects_cancels_its_call(run: Run) -> None:
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


def test_a_request_pipelined_in_pieces_may_outlast_the_call_before_it(run: Run) -> None:
    async def main() -> None:
        pool = StandInPool(outcome=None)
        limit = {"FLASHPOOL_HEADER_TIMEOUT_S": "0.3"}
        async with serving(pool, **limit) as client, client.connect() as (reader, writer):
            writer.write(post(BODY) + PING[:10])
            await until(lambda: pool.held)
            await asyncio.sleep(1.5)  # the call's time does not count against the client
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
def test_a_flood_of_pipelined_requests_is_not_buffered(run: Run) -> None:
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
def test_garbage_after_a_request_does_not_replace_its_answer(run: Run, at_once: bool) -> None:
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


def test_a_thousand_idle_connections_use_little_cpu(run: Run) -> None:
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


def test_a_draining_server_closes_connections_after_their_answers(run: Run) -> None:
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
