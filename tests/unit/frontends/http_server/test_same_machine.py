"""Requests of web pages to a port on loopback, from a browser on this machine."""

import asyncio

import pytest

from flashpool.frontends.http_server.same_machine import SameMachine


def status(loopback: bool, **headers: str) -> int:
    sent = []

    async def app(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        sent.append(message)

    pairs = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope = {"type": "http", "headers": pairs}
    asyncio.run(SameMachine(app, loopback=loopback)(scope, None, send))
    return sent[0]["status"]


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:8001",
        "127.1.2.3",
        "localhost:8001",
        "LOCALHOST",
        "flashpool.localhost:1",
        "[::1]:8001",
        "",
    ],
)
def test_loopback_host_names_are_accepted(host):
    assert status(True, host=host) == 200
    assert status(True) == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example:8001", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1", "[::"],
)
def test_other_host_names_are_refused_on_loopback(host):
    assert status(True, host=host) == 403
    assert status(False, host=host) == 200, "a pod's address, or a name that its network gives it"


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("http://localhost:8001", 200),
        ("http://localhost:8002", 403),
        ("https://evil.example", 403),
        ("null", 403),
        ("", 403),
        ("http://[", 403),
    ],
)
@pytest.mark.parametrize("loopback", [True, False])
def test_pages_of_other_origins_are_refused(origin, expected, loopback):
    assert status(loopback, host="localhost:8001", origin=origin) == expected


def test_lifespan_events_pass():
    seen = []

    async def app(scope, _receive, _send):
        seen.append(scope["type"])

    asyncio.run(SameMachine(app, loopback=True)({"type": "lifespan"}, None, None))
    assert seen == ["lifespan"]
