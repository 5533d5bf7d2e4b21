"""The ASGI front-end of an app, over a service that a test scripts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from flashpool.frontends.apps.serving.asgi_proxy import AppProxy
from flashpool.frontends.http_server.request_cycle import CUT
from flashpool.pool import call_ids
from flashpool.pool._child import app_messages
from flashpool.pool.apps import AppEnd, AppRequest, AppSink, AppState, EndKind

#: The id that a service gives to its first request.
MADE = call_ids.name_of(1).encode()


class Service:
    """A scripted app service."""

    def __init__(self, on_request: Callable[[AppSink], None]) -> None:
        self.on_request = on_request
        self.state = AppState.SERVED
        self.failure = ""
        self.busy = 0
        self.requests: list[AppRequest] = []
        self.bodies: list[tuple[bytes, bool]] = []
        self.credits = 0
        self.left: list[int] = []
        # What is served, too.
        self.service = self
        self.problem = ""
        self.generated = True

    def request(self, request: AppRequest, sink: AppSink) -> int:
        self.requests.append(request)
        self.on_request(sink)
        return len(self.requests)

    def body(self, number: int, piece: bytes, more: bool) -> None:
        self.bodies.append((piece, more))

    def credit(self, number: int, size: int) -> None:
        self.credits += size

    def leave(self, number: int) -> None:
        self.left.append(number)


def ends(kind: EndKind, **fields: Any) -> Callable[[AppSink], None]:
    return lambda sink: sink.ended(AppEnd(kind=kind, **fields))


def answers(*parts: bytes) -> Callable[[AppSink], None]:
    def answer(sink: AppSink) -> None:
        sink.response(200, [(b"x-a", b"1")], parts[0], len(parts) > 1)
        for at, part in enumerate(parts[1:], 2):
            sink.piece(part, at < len(parts))

    return answer


def ask(
    service: Service,
    path: str = "/",
    method: str = "GET",
    *,
    body: tuple[bytes, ...] = (b"",),
    headers: tuple[tuple[bytes, bytes], ...] = (),
    draining: bool = False,
    generated: bool = True,
) -> list[dict[str, Any]]:
    """Send a request through the proxy; return the ASGI messages to the client."""
    sent: list[dict[str, Any]] = []
    pieces = list(body)
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "scheme": "http",
        "http_version": "1.1",
        "root_path": "",
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "headers": list(headers),
    }

    async def receive() -> dict[str, Any]:
        if pieces:
            piece = pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(pieces)}
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    async def run() -> None:
        service.generated = generated
        proxy = AppProxy(service, max_body_mb=1, draining=lambda: draining)
        await asyncio.wait_for(proxy(scope, receive, send), 30)

    asyncio.run(run())
    return sent


def told(sent: list[dict[str, Any]]) -> tuple[int, dict[str, str], Any]:
    """Return status, headers and JSON body."""
    start, body = sent
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], headers, json.loads(body["body"]) if body["body"] else None


def test_an_answer_is_forwarded_piece_by_piece() -> None:
    service = Service(answers(b"a", b"bc", b"d"))
    start, *bodies = ask(service)
    assert (start["status"], start["headers"]) == (200, [(b"x-a", b"1"), (b"x-request-id", MADE)])
    assert [(one["body"], one["more_body"]) for one in bodies] == [
        (b"a", True),
        (b"bc", True),
        (b"d", False),
    ]
    # Credit is given for the bytes of each piece but the last, which nothing follows.
    assert service.credits == 3
    assert service.left == []


def ids(sent: list[dict[str, Any]]) -> list[bytes]:
    return [value for name, value in sent[0]["headers"] if name == b"x-request-id"]


def test_an_answer_carries_the_clients_request_id() -> None:
    given = ((b"x-request-id", b"order-9:2"),)
    assert ids(ask(Service(answers(b"a")), headers=given)) == [b"order-9:2"]
    assert ids(ask(Service(ends(EndKind.CRASHED)), headers=given)) == [b"order-9:2"]
    assert ids(ask(Service(ends(EndKind.RAISED)), headers=given)) == [b"order-9:2"]
    assert ids(ask(Service(answers(b"a")), "/execute", headers=given)) == [b"order-9:2"]
    # The app receives the client's header as well.
    service = Service(answers(b"a"))
    ask(service, headers=given)
    assert app_messages.paired(list(service.requests[0].fields), 6) == list(given)


@pytest.mark.parametrize("given", [b"", b"two words", b"-a", b"x" * 129, "é".encode()])
def test_an_invalid_request_id_is_replaced(given: bytes) -> None:
    headers = ((b"x-request-id", given),)
    assert ids(ask(Service(answers(b"a")), headers=headers)) == [MADE]
    (made,) = ids(ask(Service(answers(b"a")), "/execute", headers=headers))
    assert call_ids.number_of(made.decode())


def test_a_request_id_set_by_the_app_takes_precedence() -> None:
    def answer(sink: AppSink) -> None:
        sink.response(200, [(b"x-request-id", b"mine")], b"a", False)

    assert ids(ask(Service(answer), headers=((b"x-request-id", b"theirs"),))) == [b"mine"]


@pytest.mark.parametrize(
    ("kind", "method", "status", "again"),
    [
        (EndKind.CRASHED, "GET", 502, True),
        (EndKind.CRASHED, "POST", 502, False),
        (EndKind.LOST, "OPTIONS", 503, True),
        (EndKind.LOST, "PUT", 503, False),
        (EndKind.REFUSED, "POST", 503, True),
        (EndKind.LATE, "GET", 504, False),
        (EndKind.FAILED, "GET", 503, True),
    ],
)
def test_a_request_without_an_answer_gets_an_error_with_its_cause(
    kind: EndKind, method: str, status: int, again: bool
) -> None:
    service = Service(ends(kind, error_type="Why", message="it did", phase="run"))
    found, headers, body = told(ask(service, method=method))
    assert found == status
    assert body == {"detail": "It did", "error_type": "Why", "phase": "run"}
    assert ("retry-after" in headers) == again


def test_an_exception_is_answered_without_details() -> None:
    start, body = ask(Service(ends(EndKind.RAISED, message="a secret")))
    assert (start["status"], body["body"]) == (500, b"Internal Server Error")


def test_an_incomplete_answer_is_cut() -> None:
    def answer(sink: AppSink) -> None:
        sink.response(200, [], b"some", True)
        sink.ended(AppEnd(kind=EndKind.CRASHED))

    assert ask(Service(answer))[-1] == {"type": CUT}


@pytest.mark.parametrize(
    "path", ["/execute", "/execute/", "//execute", "/./execute", "/a/../execute", "/../execute"]
)
def test_requests_for_execute_never_reach_a_generated_app(path: str) -> None:
    service = Service(answers(b""))
    assert told(ask(service, path, "POST"))[0] == 404
    assert service.requests == []
    assert told(ask(service, path, "POST", generated=False))[0] == 200


@pytest.mark.parametrize("path", ["/api/execute", "/execute/more", "/executes", "/EXECUTE"])
def test_other_paths_reach_the_app(path: str) -> None:
    assert told(ask(Service(answers(b"")), path))[0] == 200


@pytest.mark.parametrize(
    ("state", "failure", "draining", "status"),
    [
        (AppState.LOADING, "", False, 204),
        (AppState.SERVED, "", False, 200),
        (AppState.FAILED, "it raised", False, 503),
        (AppState.SERVED, "", True, 503),
    ],
)
def test_ping_answers_with_the_state_of_the_app(
    state: AppState, failure: str, draining: bool, status: int
) -> None:
    service = Service(answers(b""))
    service.state, service.failure = state, failure
    found, _, body = told(ask(service, "/ping", draining=draining))
    assert found == status
    if failure:
        assert body["reason"] == failure
    assert service.requests == []
    assert told(ask(service, "/ping", "POST"))[0] == 200


def test_a_body_is_sent_only_within_the_apps_window() -> None:
    sinks: list[AppSink] = []
    service = Service(sinks.append)
    window = app_messages.WINDOW
    pieces = (b"x" * 100, b"y" * window, b"z" * 100, b"end")

    def body(number: int, piece: bytes, more: bool) -> None:
        service.bodies.append((piece, more))
        sent = sum(len(one) for one, _ in service.bodies) + 100
        if sent >= 100 + window:
            # The window is full; nothing beyond it was sent.
            asyncio.get_running_loop().call_soon(sinks[0].room, 200)
        if not more:
            answers(b"done")(sinks[0])

    service.body = body  # type: ignore[method-assign]
    assert ask(service, method="POST", body=pieces)[-1]["body"] == b"done"
    assert service.requests[0].body == b"x" * 100
    assert b"".join(piece for piece, _ in service.bodies) == b"".join(pieces[1:])
    assert [more for _, more in service.bodies][-1] is False


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_that_is_too_large_gets_413(declared: bool) -> None:
    service = Service(lambda _: None)
    service.body = lambda *_: None  # type: ignore[method-assign]
    headers = ((b"content-length", b"2000000"),) if declared else ()
    body = tuple([b"x" * 60_000] * 40)
    sinks: list[AppSink] = []

    def on_request(sink: AppSink) -> None:
        sinks.append(sink)
        sink.room(10_000_000)

    service.on_request = on_request
    status, sent, _ = told(ask(service, method="POST", body=body, headers=headers))
    assert (status, sent["connection"]) == (413, "close")
    assert len(service.requests) == (0 if declared else 1)
    assert service.left == ([] if declared else [1])


@pytest.mark.parametrize("value", [b"soon", b"-1", b"0", b"nan", b"inf", b"1e999"])
def test_a_clients_time_limit_has_to_be_a_finite_number(value: bytes) -> None:
    status, _, body = told(ask(Service(answers(b"")), headers=((b"flashpool-timeout", value),)))
    assert (status, body["error_type"]) == (422, "InvalidRequest")


def test_a_clients_time_limit_header_is_not_forwarded() -> None:
    service = Service(answers(b""))
    ask(service, headers=((b"a", b"1"), (b"x-flashpool-timeout-s", b"3"), (b"b", b"2")))
    (request,) = service.requests
    assert app_messages.paired(list(request.fields), 6) == [(b"a", b"1"), (b"b", b"2")]


def test_a_clients_own_time_limit_gets_504() -> None:
    service = Service(lambda _: None)
    status, _, body = told(ask(service, headers=((b"flashpool-timeout", b"0.1"),)))
    assert (status, body["phase"]) == (504, "client")
    assert service.left == [1]


def test_requests_during_a_drain_are_refused() -> None:
    status, headers, _ = told(ask(Service(answers(b"")), draining=True))
    assert (status, headers["connection"], headers["retry-after"]) == (503, "close", "1")
