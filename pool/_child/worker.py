"""A worker's one call: wait for CALL -> decode -> user code -> RESULT.

All it needs is imported here, at the top, once in the zygote: an ``import`` statement on
the way of a call would touch a dozen pages, and each page a worker touches is copied.
"""

from __future__ import annotations

import builtins
import os
import socket
import sys
import time

from . import exceptions, flash, invoke, payload, processes, user_code, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    #: A record for the RESULT's meta, its body, its descriptors.
    Outcome = tuple[dict[str, Any], bytes, list[int]]

#: Larger requests than this are refused by the front-ends long before.
_BODY_LIMIT = 1 << 40
_BUILTINS = builtins.__dict__.copy()


class Channel:
    """The worker's end of its channel; blocking."""

    def __init__(self, fd: int) -> None:
        # Named in full, or the constructor asks the kernel what it is.
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fd)
        self.reader = wire.FrameReader(_BODY_LIMIT)
        self.frames: list[wire.Frame] = []

    def receive(self) -> wire.Frame:
        """The next frame.

        Raises:
            Closed: the supervisor is gone, or has no use for this worker.
        """
        while not self.frames:
            data, fds = wire.receive(self.sock)
            if not data:
                raise wire.Closed
            self.frames += self.reader.feed(data, fds)
        return self.frames.pop(0)

    def send(
        self, kind: int, meta: wire.Meta, body: bytes = b"", fds: list[int] | None = None
    ) -> None:
        """Send a frame whole; closes the descriptors that went with it."""
        head = wire.head(kind, meta, len(body), len(fds) if fds else 0)
        sent = self.sock.sendmsg([head, body], wire.rights(fds) if fds else ())
        for fd in fds or ():
            os.close(fd)
        if sent < len(head):
            self.sock.sendall(head[sent:])
            sent = len(head)
        if sent - len(head) < len(body):
            self.sock.sendall(memoryview(body)[sent - len(head) :])


def serve(channel: Channel, began: Callable[[], None]) -> None:
    """Run the one call; send exactly one RESULT, from the process that got the call.

    ``began`` is called when user code may run from there on.
    """
    call = channel.receive()
    began()
    pid = os.getpid()
    env = call.meta["env"]
    if env:
        os.environ.update(env)
    known = len(sys.modules)
    start = time.monotonic()
    record, body, fds = _outcome(channel, call)
    if os.getpid() != pid:
        # User code forked and its child came back here too: only one may answer.
        os._exit(0)
    record["run_s"] = time.monotonic() - start
    try:
        _answer(channel, known, record, body, fds)
    except (TypeError, AttributeError):
        # Not ours: user code replaced builtins that we, and the standard library, use.
        builtins.__dict__.update(_BUILTINS)
        _answer(channel, known, record, body, fds)


def _answer(
    channel: Channel, known: int, record: dict[str, Any], body: bytes, fds: list[int]
) -> None:
    record["rss_kb"] = processes.peak_rss_kb()
    if len(sys.modules) > known:
        record["modules"] = _installed(list(sys.modules)[known:])
    _flush()
    channel.send(wire.RESULT, record, body, fds)


def _outcome(channel: Channel, call: wire.Frame) -> Outcome:
    """The call's end, whatever happened."""
    try:
        return _flash(channel, call) if call.meta["codec"] == "flash" else _pickle(channel, call)
    except wire.BadRequest as error:
        return {"ok": False, "error_type": "InvalidRequest", "error": str(error)}, b"", []
    except exceptions.Unserializable as error:
        return {"ok": False, "error_type": "ResultNotSerializable", "error": str(error)}, b"", []
    except BaseException as error:  # SystemExit and its like are results
        record, pickled = exceptions.capture(error)
        return {"ok": False, "user": True, **record}, pickled, []


def _flash(channel: Channel, call: wire.Frame) -> Outcome:
    request = flash.load_call(call.body)
    value = invoke.run(request.function, request.args, request.kwargs, _items(channel, call))
    if value is invoke.STREAMED:
        return {"ok": True, "format": "stream"}, b"", []
    body = flash.dump_result(value, request.as_json)
    limit = call.meta["result_limit"]
    if limit is not None and len(body) > limit:
        return _too_large(len(body), limit), b"", []
    return {"ok": True, "format": "json" if request.as_json else "pickle"}, body, []


def _pickle(channel: Channel, call: wire.Frame) -> Outcome:
    function, args, kwargs = payload.load_call(call.body, call.fds)
    value = invoke.run(function, args, kwargs, _items(channel, call))
    if value is invoke.STREAMED:
        return {"ok": True, "format": "stream"}, b"", []
    body, fds = payload.dump_result(value)
    return {"ok": True, "format": "pickle"}, body, fds


def _items(channel: Channel, call: wire.Frame) -> Callable[[Any], None] | None:
    return _ItemSender(channel).send if call.meta["stream"] else None


def _too_large(size: int, limit: int) -> dict[str, Any]:
    return {
        "ok": False,
        "error_type": "ResultTooLarge",
        "error": f"the result is {size} bytes encoded and the answer may hold {limit}. "
        "Return less, or write it to a file or object store and return where it is.",
        "details": {"size": size, "limit": limit},
    }


def _installed(names: list[str]) -> list[str]:
    """Those of the modules that any process of this environment could import as well."""
    found = []
    for name in names:
        loader = getattr(getattr(sys.modules.get(name), "__spec__", None), "loader", None)
        kind = loader if isinstance(loader, type) else type(loader)
        if kind.__module__ in {"_frozen_importlib", "_frozen_importlib_external"}:
            found.append(name)
    return found


def _flush() -> None:
    """Push out what Python and C have buffered; the streams may be anything by now."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:  # replaced, closed or broken by user code
            pass
    processes.flush_c_streams()


class _ItemSender:
    """Sends a generator's items, at most a window ahead of whoever takes them."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.left = wire.WINDOW
        self.told = False

    def send(self, item: Any) -> None:
        """Send one item; blocks while the window is used up."""
        while self.left == 0:
            self.left += self.channel.receive().meta["items"]
        self.left -= 1
        body, fds = payload.dump_result(item)
        self.channel.send(wire.ITEM, {}, body, fds)


# -- Warming up --------------------------------------------------------------------------

_REHEARSAL = b'{"function_name":"f","function_code":"def f(x): return x","args":["gAVLAS4="]}'
_ROUNDS = 20


def rehearse() -> None:
    """Make calls to nothing, so that workers inherit what a first call builds.

    The interpreter rewrites code in place while it is new, fills caches and creates what
    it creates late. In a zygote that happens once; in workers each page of it would be
    copied by every call. More than halves a call's time on CPython 3.11.
    """
    main = sys.modules["__main__"]
    near, far = socket.socketpair()
    with near, far:
        channel = Channel(far.detach())
        meta = {"codec": "flash", "env": {}, "stream": False, "result_limit": None}
        for _ in range(_ROUNDS):
            near.sendmsg([wire.head(wire.CALL, meta, len(_REHEARSAL), 0), _REHEARSAL])
            serve(channel, _nothing)
            wire.receive(near)
        channel.sock.close()
    _rehearse_failure()
    user_code.forget()
    sys.modules["__main__"] = main


def _rehearse_failure() -> None:
    for _ in range(2):
        try:
            raise ValueError("rehearsal")
        except ValueError as error:
            exceptions.capture(error)


def _nothing() -> None:
    pass
