"""A response is sent as its application produced it, in as few writes as possible."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from flashpool.frontends.http_server.request_cycle import Cycle
from support.frontends.sockets import Run
from support.frontends.stand_in import StandInPool
from support.frontends.wire import at_end, read_reply, serving

JSON = (b"content-type", b"application/json")


class Transport:
    """A transport that records each write."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        assert data, "nothing to write is no reason to write"
        self.writes.append(data)

    def writelines(self, pieces: list[bytes]) -> None:
        assert all(pieces), "some loops never come to the end of an empty piece"
        self.writes.append(b"".join(pieces))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


class Flow:
    write_paused = False

    def resume_reading(self) -> None:
        pass


def answered(
    app: Callable[..., Awaitable[None]], method: str = "GET", *, keep_alive: bool = True
) -> Transport:
    """Run one request to an application; return the transport with its writes."""

    async def main() -> Transport:
        transport: Any = Transport()
        flow: Any = Flow()
        logger: Any = NoLog()
        cycle = Cycle(
            scope={"method": method},  # type: ignore[typeddict-item]
            transport=transport,
            flow=flow,
            logger=logger,
            access_logger=logger,
            access_log=False,
            default_headers=[(b"date", b"today")],
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=keep_alive,
            on_response=lambda: None,
        )
        await cycle.run_asgi(app)
        return transport  # type: ignore[no-any-return]

    return asyncio.run(main())


class NoLog:
    def error(self, *_: object, **__: object) -> None:
        pass


def app_of(
    *bodies: bytes, status: int = 200, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> Callable[..., Awaitable[None]]:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for number, body in enumerate(bodies, 1):
            more = number < len(bodies)
            await send({"type": "http.response.body", "body": body, "more_body": more})

    return app


def with_length(*bodies: bytes, length: int | None = None) -> Callable[..., Awaitable[None]]:
    size = sum(map(len, bodies)) if length is None else length
    return app_of(*bodies, headers=(JSON, (b"content-length", b"%d" % size)))


HEAD = b"HTTP/1.1 200 OK\r\ndate: today\r\ncontent-type: application/json\r\n"


@pytest.mark.parametrize("size", [2, 1_000_000])
def test_head_and_body_are_written_at_once(size: int) -> None:
    transport = answered(with_length(b"x" * size))
    assert transport.writes == [HEAD + b"content-length: %d\r\n\r\n" % size + b"x" * size]
    assert not transport.closed


def test_a_body_in_parts_is_sent_as_it_arrives() -> None:
    writes = answered(with_length(b"one", b"", b"two", b"")).writes
    assert writes == [HEAD + b"content-length: 6\r\n\r\none", b"two"]


def test_a_body_without_a_length_is_chunked() -> None:
    writes = answered(app_of(b"one", b"", b"two" * 10)).writes
    assert writes == [
        b"HTTP/1.1 200 OK\r\ndate: today\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n",
        b"1e\r\n" + b"two" * 10 + b"\r\n0\r\n\r\n",
    ]


def test_an_answer_to_head_has_no_body() -> None:
    assert answered(with_length(b"{}"), "HEAD").writes == [HEAD + b"content-length: 2\r\n\r\n"]
    assert b"chunked" not in answered(app_of(b"x"), "HEAD").writes[0]


def test_a_204_answer_has_no_body() -> None:
    head = b"HTTP/1.1 204 No Content\r\ndate: today\r\n\r\n"
    assert answered(app_of(b"", status=204)).writes == [head]


def test_either_side_can_have_the_connection_closed() -> None:
    said = (b"Connection", b"close")
    for transport in (
        answered(app_of(b"", status=204, headers=(said,))),
        answered(app_of(b"", status=204), keep_alive=False),
    ):
        assert transport.writes[0].lower().count(b"connection: close\r\n") == 1
        assert transport.closed


async def fails_half_way(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [JSON]})
    raise ValueError


@pytest.mark.parametrize(
    "app",
    [
        fails_half_way,
        with_length(b"longer", length=3),
        with_length(b"shorter", length=30),
        app_of(b"x", headers=((b"x", b"a\r\nset-cookie: b"),)),
        app_of(b"x", headers=((b"x y", b"a"),)),
        app_of(b"x", headers=((b"content-length", b"-1"),)),
    ],
    ids=["fails", "too long", "too short", "value", "name", "length"],
)
def test_an_invalid_response_is_replaced_by_500(app: Callable[..., Awaitable[None]]) -> None:
    (written,) = answered(app).writes
    assert written.startswith(b"HTTP/1.1 500 ")


def test_an_idle_connection_is_closed(run: Run) -> None:
    async def main() -> None:
        async with serving(StandInPool(), FLASHPOOL_KEEPALIVE_S="1") as client:
            for used in (True, False):
                async with client.connect() as (reader, writer):
                    for _ in range(3 if used else 1):
                        writer.write(b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n")
                        assert (await read_reply(reader)).status == 200
                        await asyncio.sleep(0.6 if used else 0)
                    assert await at_end(reader) == b""

    run(main())
