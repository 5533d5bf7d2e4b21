"""A bare ASGI application, quick to load, whose routes misbehave."""

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import sys
import time
from typing import Any
from urllib.parse import parse_qsl

NOTES: list[str] = []
LEFT: list[Any] = []


class Answered(Exception):
    """Raised when the route has sent its answer itself."""


async def pid() -> int:
    return os.getpid()


async def notes() -> list[str]:
    return NOTES


async def echo(headers: list[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in headers}


async def leave() -> None:
    sys.exit(3)


async def leave_in_a_thread() -> None:
    await asyncio.to_thread(sys.exit, 3)


async def leave_in_a_task() -> str:
    with contextlib.suppress(SystemExit):
        await asyncio.create_task(leave())
    return "went on"


async def interrupt() -> None:
    raise KeyboardInterrupt


async def crash(how: str = "exit", after: float = 0.0) -> None:
    await asyncio.sleep(after)
    if how == "exit":
        os._exit(7)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "thread":
        await asyncio.to_thread(ctypes.string_at, 0)
    ctypes.string_at(0)


async def loop() -> None:
    while True:
        pass


def _loop() -> None:
    while True:
        time.sleep(0.01)


async def loop_in_a_thread() -> None:
    try:
        await asyncio.to_thread(_loop)
    except asyncio.CancelledError:
        # Like a framework's thread pool, which waits for its thread.
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)


async def stubborn() -> None:
    print("is stubborn")
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)


async def sleep(seconds: float) -> str:
    print(f"sleeps {seconds:g}")
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        NOTES.append(f"cancelled {seconds:g}")
        raise
    return "slept"


async def block(seconds: float) -> str:
    print(f"blocks {seconds:g}", flush=True)
    time.sleep(seconds)
    return "blocked"


async def until_gone(receive: Any) -> str:
    print("waits")
    while (await receive())["type"] != "http.disconnect":
        pass
    NOTES.append("gone")
    return "over"


async def linger(seconds: float, send: Any) -> None:
    await respond(send, b"answered")
    await asyncio.sleep(seconds)
    NOTES.append("lingered")
    raise Answered


async def size(receive: Any) -> int:
    found = 0
    while True:
        message = await receive()
        found += len(message.get("body", b""))
        if not message.get("more_body"):
            return found


async def stream(send: Any, pieces: int, size: int = 1, pause: float = 0.0) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(pieces):
        await asyncio.sleep(pause)
        await send({"type": "http.response.body", "body": b"x" * size, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
    raise Answered


async def cut(send: Any, how: str) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"some of it", "more_body": True})
    await asyncio.sleep(0.05)
    if how == "crash":
        os._exit(9)
    if how == "raise":
        raise ValueError("in the middle")
    raise Answered


async def head_then(send: Any, how: str) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if how == "crash":
        os._exit(9)
    raise ValueError("before the body")


async def fork() -> dict[str, int]:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
    return {"forked": int(child != 0)}


async def fork_in_a_thread() -> dict[str, int]:
    child = await asyncio.to_thread(os.fork)
    return {"forked": int(child != 0)}


async def close_descriptors() -> str:
    os.closerange(3, 1024)
    return "closed"


async def garble() -> str:
    for fd in range(1024, 4096):
        with contextlib.suppress(OSError):
            os.write(fd, b"not a frame at all, and long enough to look like none")
    await asyncio.sleep(60)
    return "written"


async def daemon() -> int:
    read, write = os.pipe()
    if not os.fork():
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(write, b"x")
        while True:
            time.sleep(60)
    os.read(read, 1)
    return os.getpid()


async def leak(mib: int) -> None:
    held = bytearray(mib << 20)
    for at in range(0, len(held), 4096):
        held[at] = 1
    LEFT.append(held)
    await asyncio.sleep(60)


async def odd(what: str, send: Any) -> None:
    """Send messages that ASGI does not allow."""
    start = {"type": "http.response.start", "status": 200, "headers": []}
    body = {"type": "http.response.body", "body": b"four"}
    messages = {
        "order": [body],
        "twice": [start, start],
        "newline": [{**start, "headers": [(b"x-a", b"1\r\nx-b: 2")]}],
        "name": [{**start, "headers": [(b"x a", b"1")]}],
        "status": [{**start, "status": 99}],
        "longer": [{**start, "headers": [(b"content-length", b"3")]}, body],
        "shorter": [{**start, "headers": [(b"content-length", b"9")]}, body],
        "type": [{"type": "http.response.trailers"}],
        "nothing": [],
        "only-head": [start],
    }
    for message in messages[what]:
        await send(message)
    raise Answered


async def say(text: str) -> str:
    print(text)
    return text


ROUTES = {
    f"/{one.__name__.replace('_', '-')}": one
    for one in (
        *(pid, notes, echo, leave, leave_in_a_thread, leave_in_a_task, interrupt, crash, loop),
        *(loop_in_a_thread, stubborn, sleep, block, until_gone, linger, size, stream, cut),
        *(head_then, garble, fork, fork_in_a_thread, close_descriptors, daemon, leak, odd, say),
    )
}


async def lifespan(receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    print("the app shuts down")
    await send({"type": "lifespan.shutdown.complete"})


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    route = ROUTES[scope["path"]]
    query = dict(parse_qsl(scope["query_string"].decode()))
    given = {"receive": receive, "send": send, "headers": scope["headers"]}
    arguments = {}
    for name, kind in route.__annotations__.items():
        if name in given:
            arguments[name] = given[name]
        elif name in query:
            arguments[name] = kind(query[name])
    try:
        found = await route(**arguments)
    except Answered:
        return
    await respond(send, json.dumps(found).encode())


async def respond(send: Any, body: bytes) -> None:
    length = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": length})
    await send({"type": "http.response.body", "body": body})
