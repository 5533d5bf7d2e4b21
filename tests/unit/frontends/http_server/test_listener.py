import asyncio
import socket

import pytest

from flashpool.frontends.http_server.connection import HEADERS_LIMIT
from flashpool.frontends.http_server.listener import ListenError, bind, url
from flashpool.pool.calls import Outcome
from support.frontends.stand_in import NONE, StandInPool
from support.frontends.wire import BODY, Client, at_end, post, read_reply, run, serving, until

FAST = {"FLASHPOOL_HEADER_TIMEOUT_S": "0.3"}


async def last_words(client: Client, *pieces: bytes, pause: float = 0.0) -> bytes:
    """Return the server's answer to a client that sends these pieces and then waits."""
    async with client.connect() as (reader, writer):
        end = asyncio.ensure_future(at_end(reader))
        for piece in pieces:
            if end.done():
                break
            writer.write(piece)
            await asyncio.sleep(pause)
        return await end


def test_a_silent_client_is_disconnected() -> None:
    async def main() -> None:
        async with serving(StandInPool(), **FAST) as client:
            assert await last_words(client) == b""

    run(main())


@pytest.mark.parametrize(
    "pieces",
    [
        [b"G"] * 1,
        [bytes((byte,)) for byte in b"POST /execute HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 100],
        [b"\r\n"] * 100,
        [b"GET /ping HTTP/1.1\r\n", *[b"X-%d: y\r\n" % i for i in range(100)]],
    ],
    ids=["one byte", "bytes", "empty lines", "headers"],
)
def test_headers_that_arrive_too_slowly_time_out(pieces: list[bytes]) -> None:
    async def main() -> None:
        async with serving(StandInPool(), **FAST) as client:
            said = await last_words(client, *pieces, pause=0.05)
            # A piece that arrives after the answer resets the connection, and the answer is lost.
            assert said.startswith(b"HTTP/1.1 408 ") or not said

    run(main())


def test_the_deadline_applies_to_later_requests_too() -> None:
    async def main() -> None:
        async with serving(StandInPool(), **FAST) as client, client.connect() as (reader, writer):
            writer.write(post(BODY))
            assert (await read_reply(reader)).status == 200
            await asyncio.sleep(1.5)  # idle time between requests is allowed
            writer.write(post(BODY))
            assert (await read_reply(reader)).status == 200
            writer.write(b"POST /exec")
            assert (await at_end(reader)).startswith(b"HTTP/1.1 408 ")

    run(main())


def test_endless_headers_are_refused() -> None:
    async def main() -> None:
        async with serving(StandInPool()) as client:
            for head in (b"GET /ping HTTP/1.1\r\nX: ", b"GET /", b"GET /ping HTTP/1.1\r\n"):
                filler = b"a: b\r\n" if head.endswith(b"\n") else b"a" * 6
                said = await last_words(client, head, filler * (HEADERS_LIMIT // 6 + 1))
                assert said.startswith(b"HTTP/1.1 431 ")

    run(main())


def test_an_endless_unread_body_does_not_keep_a_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flashpool.frontends.http_server.listener._MARGIN_S", 0.0)

    async def main() -> None:
        async with (
            serving(StandInPool(), FLASHPOOL_RECEIVE_TIMEOUT_S="0.3") as client,
            client.connect() as (reader, writer),
        ):
            writer.write(b"GET /ping HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
            assert (await read_reply(reader)).status == 200
            end = asyncio.ensure_future(at_end(reader))
            while not end.done():
                writer.write(b"1\r\nx\r\n")
                await asyncio.sleep(0.05)
            assert await end == b""

    run(main())


@pytest.mark.parametrize(
    "data", [b"\0" * 100, b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 9]
)
def test_malformed_requests_get_400(data: bytes) -> None:
    async def main() -> None:
        async with serving(StandInPool()) as client:
            assert (await last_words(client, data)).startswith(b"HTTP/1.1 400 ")

    run(main())


DONE = Outcome(body=NONE)


@pytest.fixture
def room_for_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashpool.frontends.http_server.sockets.connection_limit", lambda: 2)


@pytest.mark.usefixtures("room_for_two")
def test_a_new_connection_is_closed_when_all_others_are_in_use() -> None:
    pool = StandInPool(outcome=None)

    async def main() -> None:
        async with (
            serving(pool) as client,
            client.connect() as (reader, writer),
            client.connect() as (other, second),
        ):
            writer.write(post(BODY))
            second.write(post(BODY))
            await until(lambda: len(pool.held) == 2)
            assert await last_words(client) == b""
            for call_id in list(pool.held):
                pool.finish(call_id, DONE)
            assert (await read_reply(reader)).status == 200
            assert (await read_reply(other)).status == 200

    run(main())


@pytest.mark.usefixtures("room_for_two")
@pytest.mark.parametrize("used", [True, False], ids=["kept", "silent"])
def test_the_longest_idle_connection_is_closed_to_make_room(used: bool) -> None:
    async def main() -> None:
        async with (
            serving(StandInPool()) as client,
            client.connect() as (oldest, first),
            client.connect() as (newer, second),
        ):
            if used:
                for reader, writer in (oldest, first), (newer, second):
                    writer.write(post(BODY))
                    assert (await read_reply(reader)).status == 200
            assert (await client.get("/ping")).status == 200
            assert await at_end(oldest) == b""
            second.write(post(BODY))
            assert (await read_reply(newer)).status == 200

    run(main())


def test_the_error_for_a_port_in_use_names_the_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ListenError, match=f"port {port}: it is in use; set FLASHPOOL_PORT"):
            bind("127.0.0.1", port, "FLASHPOOL_PORT")
    with pytest.raises(ListenError, match="Cannot listen on no-such-host"):
        bind("no-such-host.invalid", 0, "FLASHPOOL_PORT")


def test_an_address_is_shown_as_a_url() -> None:
    with bind("0.0.0.0", 0, "FLASHPOOL_PORT") as sock:
        assert url(sock) == f"http://127.0.0.1:{sock.getsockname()[1]}"
