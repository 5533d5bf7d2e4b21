"""A deployed app answers as it does under plain uvicorn: the same request, to both."""

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from e2e.app_servers import AppServer, plain_uvicorn, serving_app
from e2e.server import until

#: A connection that the client keeps outlives the test that opened it.
pytestmark = pytest.mark.shared_pool

#: Headers that the server sets itself; all others are the app's.
OWN_HEADERS = ("date", "server", "x-request-id")

Both = tuple[AppServer, AppServer]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    folder = tmp_path_factory.mktemp("parity")
    with serving_app(folder, resource="web") as ours, plain_uvicorn(folder) as plain:
        yield ours, plain


def seen(server: AppServer, response: httpx.Response) -> Any:
    """Return the parts of an answer that a client may rely on."""
    headers = [
        (name, value.replace(b":%d" % server.port, b":port"))
        for name, value in response.headers.raw
        if name.lower().decode() not in OWN_HEADERS
    ]
    return response.status_code, headers, response.content


REQUESTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{
        f"{method} echo": (method, "/echo", {"content": b"abc" if method != "GET" else None})
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD")
    },
    "unusual method": ("PROPFIND", "/items/1", {}),
    "unknown path": ("GET", "/nowhere", {}),
    "query": ("GET", "/echo?a=1&a=2&b=%20x&c", {}),
    "percent-encoded path": ("GET", "/echo/a%2Fb%20c%C3%A9", {}),
    "path and query parameters": ("GET", "/items/12?q=x&many=4", {}),
    "wrong path parameter": ("GET", "/items/twelve", {}),
    "wrong method": ("DELETE", "/items/1", {}),
    "json": ("POST", "/items", {"json": {"name": "a", "price": 2}}),
    "json without a field": ("POST", "/items", {"json": {"price": 2}}),
    "broken json": (
        "POST",
        "/items",
        {"content": b"{", "headers": {"content-type": "application/json"}},
    ),
    "no body": ("POST", "/items", {}),
    "form": ("POST", "/form", {"data": {"name": "a", "age": "4"}}),
    "multipart": (
        "POST",
        "/files",
        {"files": {"raw": b"12345", "upload": ("u.txt", b"x" * 300_000)}, "data": {"note": "n"}},
    ),
    "chunked": ("POST", "/echo", {"content": iter([b"ab", b"cd", b"ef"])}),
    "streamed answer": ("GET", "/stream", {}),
    "empty stream": ("GET", "/stream?pieces=0", {}),
    "large pieces": ("GET", "/stream?pieces=7&size=300000", {}),
    "synchronous stream": ("GET", "/sync-stream", {}),
    "large answer": ("GET", "/large?size=3000000", {}),
    "HEAD of a large answer": ("HEAD", "/large?size=10", {}),
    "large body": ("POST", "/upload", {"content": b"y" * 3_000_000}),
    "both ways": ("POST", "/upper", {"content": b"abc" * 400_000}),
    "events": ("GET", "/events", {}),
    "cookies": ("GET", "/cookies", {"headers": {"cookie": "x=1; y=2"}}),
    "redirect": ("GET", "/redirect", {}),
    "redirect of a slash": ("GET", "/items/", {}),
    "file": ("GET", "/file", {}),
    "range": ("GET", "/file", {"headers": {"range": "bytes=2-5"}}),
    "wrong range": ("GET", "/file", {"headers": {"range": "bytes=90-"}}),
    "static file": ("GET", "/static/page.txt", {}),
    "no static file": ("GET", "/static/none.txt", {}),
    "no content": ("GET", "/no-content", {}),
    "mounted app": ("GET", "/api/hello", {}),
    "execute of a mounted app": ("POST", "/api/execute", {}),
    "own exception": ("GET", "/own-error", {}),
    "docs": ("GET", "/docs", {}),
    "headers that come twice": ("GET", "/echo", {"headers": [("x-a", "1"), ("x-a", "2")]}),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_an_answer_is_that_of_plain_uvicorn(both: Both, name: str) -> None:
    method, path, options = REQUESTS[name]
    if isinstance(options.get("content"), Iterator):
        pieces = list(options["content"])
        REQUESTS[name] = (method, path, {"content": pieces})
        options = {"content": pieces}

    def ask(server: AppServer) -> Any:
        given = dict(options)
        if isinstance(given.get("content"), list):
            given["content"] = iter(given["content"])
        return seen(server, server.http.request(method, path, **given))

    ours, plain = map(ask, both)
    assert ours == plain


@pytest.mark.parametrize("name", ["/raise", "/raise-sync", "/unencodable"])
def test_an_exception_is_500_without_details_and_the_connection_goes_on(
    both: Both, name: str
) -> None:
    ours, plain = (server.http.get(name) for server in both)
    assert (ours.status_code, ours.text) == (plain.status_code, plain.text)
    assert ours.status_code == 500
    assert "secret" not in ours.text
    assert "connection" not in ours.headers


@pytest.mark.parametrize("path", ["/exit", "/exit-sync"])
def test_sys_exit_in_a_route_is_500_and_the_state_stays(both: Both, path: str) -> None:
    ours, _ = both
    before = ours.http.get("/state").json()
    assert ours.http.get(path).status_code == 500
    after = ours.http.get("/state").json()
    assert after == {**before, "requests": before["requests"] + 1}


def test_headers_come_once_in_their_order(both: Both) -> None:
    ours, plain = (server.http.get("/duplicates").headers.raw for server in both)
    twice = [value for name, value in ours if name.lower() == b"x-twice"]
    assert twice == [b"1", b"2"]
    # uvicorn adds a date of its own to that of the app.
    assert [value for name, value in ours if name.lower() == b"date"] == [b"some day"]
    assert len([1 for name, _ in plain if name.lower() == b"date"]) == 2
    assert not [value for name, value in ours if name.lower() == b"server"]


def test_openapi_is_the_apps_without_execute(both: Both) -> None:
    ours, plain = (server.http.get("/openapi.json").json() for server in both)
    assert plain["paths"].pop("/execute")
    # The description of a route with several methods names one of them, at random.
    assert ours["paths"].pop("/echo")
    assert plain["paths"].pop("/echo")
    assert ours == plain


@pytest.mark.parametrize(
    "path",
    [
        "/execute",
        "/execute?x=1",
        "/%65xecute",
        "//execute",
        "/execute/",
        "/./execute",
        "/a/../execute",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_execute_is_not_found_however_it_is_written(both: Both, path: str, method: str) -> None:
    ours, _ = both
    head = f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{{}}"
    assert raw(ours, head.encode()).startswith(b"HTTP/1.1 404 ")


def raw(server: AppServer, data: bytes, until_closed: bool = False) -> bytes:
    """Send these bytes; return what the server sends up to the end of its first answer."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as sock:
        sock.sendall(data)
        answer = b""
        while chunk := sock.recv(65536):
            answer += chunk
            if not until_closed and b"\r\n\r\n" in answer:
                break
        return answer


def test_ping_is_answered_whatever_the_app_has(both: Both) -> None:
    ours, _ = both
    response = ours.http.get("/ping")
    assert (response.status_code, response.json()) == (200, {"status": "healthy"})
    assert ours.http.head("/ping").status_code == 200


def test_http_1_0_and_connection_close_end_the_connection(both: Both) -> None:
    def ask(head: bytes) -> Callable[[AppServer], list[bytes]]:
        def lines(server: AppServer) -> list[bytes]:
            answer = raw(server, head, until_closed=True)
            return [
                one
                for one in answer.split(b"\r\n")
                if not one.lower().startswith((b"date:", b"server:", b"x-request-id:"))
            ]

        return lines

    for head in (
        b"GET /items/1 HTTP/1.0\r\n\r\n",
        b"GET /items/1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    ):
        ours, plain = map(ask(head), both)
        assert ours == plain


def test_pipelined_requests_are_answered_in_order(both: Both) -> None:
    ours, _ = both
    one = b"GET /items/%d HTTP/1.1\r\nhost: x\r\n%b\r\n"
    data = one % (1, b"") + one % (2, b"") + one % (3, b"connection: close\r\n")
    answer = raw(ours, data, until_closed=True)
    places = [answer.index(b'"item_id":%d' % number) for number in (1, 2, 3)]
    assert places == sorted(places)


def test_a_body_is_asked_for_when_the_app_wants_it(both: Both) -> None:
    head = b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\nexpect: 100-continue\r\n\r\n"
    for server in both:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as sock:
            sock.sendall(head % b"/echo")
            assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
            sock.sendall(b"body")
            answer = sock.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200 OK")
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as sock:
            sock.sendall(head % b"/nowhere")
            assert sock.recv(100).startswith(b"HTTP/1.1 404 ")


def test_pieces_of_a_stream_come_as_they_are_made(both: Both) -> None:
    ours, _ = both
    with ours.http.stream("GET", "/stream?pieces=3&pause=0.3") as response:
        times = [time.monotonic() for _ in response.iter_raw()]
    assert len(times) == 3
    assert times[-1] - times[0] > 0.3


def test_a_background_task_runs_after_the_answer(both: Both) -> None:
    ours, _ = both
    assert ours.http.get("/background?note=behind").json() == {"will": "behind"}
    until(lambda: "behind" in ours.http.get("/notes").json())


def test_state_of_the_lifespan_and_of_the_module_lasts(both: Both) -> None:
    ours, _ = both
    first, second = (ours.http.get("/state").json() for _ in range(2))
    assert first["answer"] == 42
    assert first["same"]
    assert second["requests"] == first["requests"] + 1


def test_what_a_route_prints_is_in_the_log(both: Both) -> None:
    ours, _ = both
    ours.http.get("/print?text=hello-there")
    until(lambda: ": hello-there [" in ours.log() and ": to stderr: hello-there [" in ours.log())


def test_what_a_route_prints_is_logged_with_its_requests_id(both: Both) -> None:
    ours, _ = both
    answer = ours.http.get("/print-everywhere?text=red", headers={"X-Request-Id": "order-9:2"})
    assert answer.headers["x-request-id"] == "order-9:2"
    made = ours.http.get("/print-everywhere?text=blue").headers["x-request-id"]
    for text, name in (("red", "order-9:2"), ("blue", made)):
        lines = [f"{text} {how}" for how in ("in parts", "behind its answer", "without an end")]
        for line in (*lines, f"WARNING:root:{text} in a thread"):
            until(lambda line=line, name=name: f": {line} [request {name}]\n" in ours.log())
        # This output cannot be attributed to a request.
        until(lambda text=text: f": {text} past Python\n" in ours.log())


def test_an_id_of_the_apps_own_stays(both: Both) -> None:
    ours, _ = both
    answer = ours.http.get("/own-id", headers={"X-Request-Id": "order-9:2"})
    assert answer.headers.get_list("x-request-id") == ["the app's"]


def test_a_traceback_is_logged_with_its_requests_id(both: Both) -> None:
    ours, _ = both
    for path in ("/raise", "/raise-sync"):
        name = f"failing{path}"
        assert ours.http.get(path, headers={"X-Request-Id": name}).status_code == 500
        until(lambda name=name: f"secret [request {name}]" in ours.log())
