"""WebSockets of a deployed app behave as under plain uvicorn: the same dialogue with both."""

import asyncio
import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from e2e.app_servers import AppServer, plain_uvicorn, serving_app
from e2e.app_sockets import Talk, talked
from e2e.server import until
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.typing import Subprotocol

from flashpool.pool import call_ids

#: A connection that the client keeps outlives the test that opened it.
pytestmark = pytest.mark.shared_pool

Both = tuple[AppServer, AppServer]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    folder = tmp_path_factory.mktemp("sockets")
    with serving_app(folder, resource="web") as ours, plain_uvicorn(folder) as plain:
        yield ours, plain


async def _everything(client: ClientConnection) -> Any:
    found = [client.subprotocol, client.response.headers.get_all("x-own")]
    with contextlib.suppress(ConnectionClosed):
        while True:
            message = await client.recv()
            found.append(message if len(message) < 2000 else (len(message), hash(message)))
    return [*found, client.close_code, client.close_reason]


async def _text(client: ClientConnection) -> Any:
    await client.send("grüße")
    return await client.recv()


async def _binary(client: ClientConnection) -> Any:
    await client.send(b"\x00\xff")
    return await client.recv()


async def _empty(client: ClientConnection) -> Any:
    await client.send("")
    await client.send(b"")
    return await client.recv(), await client.recv()


async def _fragments(client: ClientConnection) -> Any:
    await client.send(["ab", "cd", "ef"])
    await client.send([b"1", b"2"])
    return await client.recv(), await client.recv()


async def _large(client: ClientConnection) -> Any:
    await client.send(b"xyz" * 1_000_000)
    return hash(await client.recv())


async def _many(client: ClientConnection) -> Any:
    async def send() -> None:
        for number in range(3000):
            await client.send(f"{number}" * 50)

    sending = asyncio.ensure_future(send())
    found = [await client.recv() for _ in range(3000)]
    await sending
    return found


async def _too_large(client: ClientConnection) -> Any:
    await client.send(b"x" * (17 * 1024 * 1024))
    return len(await client.recv())


async def _ping(client: ClientConnection) -> Any:
    await (await client.ping(b"here"))
    return "pong"


TALKS: dict[str, tuple[str, Talk, dict[str, Any]]] = {
    "text": ("/ws/echo", _text, {}),
    "text without compression": ("/ws/echo", _text, {"compression": None}),
    "binary": ("/ws/echo", _binary, {}),
    "empty messages": ("/ws/echo", _empty, {}),
    "fragments": ("/ws/echo", _fragments, {}),
    "a large message": ("/ws/echo", _large, {}),
    "a message that is too large": ("/ws/echo", _too_large, {"compression": None}),
    "many messages": ("/ws/echo", _many, {}),
    "ping": ("/ws/echo", _ping, {}),
    "scope": ("/ws/scope/a%20b?q=1", _everything, {"subprotocols": [Subprotocol("x")]}),
    "subprotocol": (
        "/ws/subprotocol",
        _everything,
        {"subprotocols": [Subprotocol("one"), Subprotocol("two")]},
    ),
    "refusal": ("/ws/refuse", _everything, {}),
    "an answer in its place": ("/ws/deny", _everything, {}),
    "a path that is none": ("/ws/none", _everything, {}),
    "a path of another kind": ("/items/1", _everything, {}),
    "an exception before it is accepted": ("/ws/raise-before", _everything, {}),
    "an exception": ("/ws/raise", _everything, {}),
    "a return": ("/ws/return", _everything, {}),
    "messages of the app": ("/ws/send?size=300000&count=9", _everything, {}),
    "messages of two tasks": ("/ws/two-tasks", _everything, {}),
}


@pytest.mark.parametrize("name", TALKS)
def test_a_websocket_behaves_as_under_plain_uvicorn(both: Both, name: str) -> None:
    path, talk, options = TALKS[name]
    ours, plain = (talked(server, path, talk, **options) for server in both)
    assert ours == plain


@pytest.mark.parametrize(
    ("code", "reason"), [(1000, ""), (1001, "going"), (4321, "own"), (None, "")]
)
def test_the_app_gets_its_clients_close_code(both: Both, code: int | None, reason: str) -> None:
    async def close(client: ClientConnection) -> None:
        await client.send("x")
        await client.recv()
        if code is None:
            client.transport.abort()
        else:
            await client.close(code, reason)

    def ends(server: AppServer) -> Any:
        talked(server, "/ws/echo", close)
        return until(lambda: server.http.get("/ws/ends").json())

    ours, plain = map(ends, both)
    assert ours == plain


def test_a_dead_worker_closes_with_1011_and_the_next_one_serves(both: Both) -> None:
    ours, _ = both
    before = ours.http.get("/pid").json()

    async def outlive(client: ClientConnection) -> Any:
        with contextlib.suppress(OSError):
            await asyncio.to_thread(ours.http.get, "/die")
        return await client.recv()

    assert talked(ours, "/ws/echo", outlive)[:2] == ("closed", CloseCode.INTERNAL_ERROR)
    assert ours.http.get("/pid").json() != before
    assert talked(ours, "/ws/echo", _text) == "grüße"


def test_the_handshake_is_answered_with_the_id_of_the_request(both: Both) -> None:
    async def ids(client: ClientConnection) -> Any:
        assert client.response is not None
        return client.response.headers.get_all("x-request-id")

    ours, _ = both
    given = {"additional_headers": {"X-Request-Id": "chat-1"}}
    assert talked(ours, "/ws/echo", ids, **given) == ["chat-1"]
    (made,) = talked(ours, "/ws/echo", ids)
    assert call_ids.number_of(made) is None  # the id of another process
    assert call_ids.GIVEN.fullmatch(made)


def test_execute_is_refused_as_a_websocket_too(both: Both) -> None:
    ours, _ = both
    status, _, body = talked(ours, "/./execute/", _everything)
    assert (status, json.loads(body)) == (404, {"detail": "Not Found"})


def test_an_invalid_handshake_is_answered(both: Both) -> None:
    ours, _ = both
    head = b"GET /ws/echo HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    for rest in (b"\r\n", b"sec-websocket-key: no\r\n\r\n", b"x: %b\r\n\r\n" % (b"y" * 20_000)):
        with socket.create_connection(("127.0.0.1", ours.port), timeout=30) as sock:
            sock.sendall(head + rest)
            answer = b""
            while chunk := sock.recv(65536):
                answer += chunk
            assert answer.startswith(b"HTTP/1.1 4")


def test_a_websocket_over_the_limit_gets_503(tmp_path: Any) -> None:
    with serving_app(tmp_path, resource="web", FLASHPOOL_APP_WEBSOCKETS="1") as server:

        async def second(client: ClientConnection) -> Any:
            await client.send("x")
            await client.recv()
            found = await asyncio.to_thread(talked, server, "/ws/echo", _text)
            return found[0], await asyncio.to_thread(lambda: server.http.get("/pid").status_code)

        assert talked(server, "/ws/echo", second) == (503, 200)
        # There is room once the app's task has ended, which its client cannot observe.
        until(lambda: talked(server, "/ws/echo", _text) == "grüße")


def test_operators_see_the_sockets_of_each_route(both: Both) -> None:
    ours, _plain = both

    def counts() -> dict[str, dict[str, int]]:
        (app,) = ours.stats()["apps"]
        return {one["route"]: dict(one["requests"]) for one in app["routes"]}

    def of(route: str, kind: str) -> int:
        return counts().get(route, {}).get(kind, 0)

    kinds = {
        "/ws/echo": ("/ws/echo", "1xx"),
        "/ws/scope/a": ("/ws/scope/{name}", "1xx"),
        "/ws/refuse": ("/ws/refuse", "4xx"),
        "/ws/nowhere": ("(none)", "4xx"),
    }
    before = {place: of(*place) for place in kinds.values()}
    for path in kinds:
        talked(ours, path, _text)
    for place in kinds.values():
        until(lambda place=place: of(*place) == before[place] + 1)
    assert "/ws/scope/a" not in counts()
