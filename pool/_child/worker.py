"""A worker: one forked process, one call.

    set itself apart -> wait for CALL -> decode -> user code -> RESULT -> os._exit

Frames travel on a high private descriptor, so that user code that prints to, closes or
scribbles over the low ones cannot touch them; 1 and 2 are the call's output pipe.
"""

from __future__ import annotations

import os
import resource
import socket
import sys
import time

from . import preparation, processes, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap
    from typing import Any, NoReturn

#: The channel's descriptor, beyond what ``closerange(3, 1024)`` and friends reach.
CHANNEL_FD = 2011
#: Exit status of a worker whose channel user code destroyed.
CHANNEL_LOST = 81
#: Larger requests than this are refused by the front-ends long before.
_BODY_LIMIT = 1 << 40


def run(channel_fd: int, output_fd: int, start: wire.Meta, marks: mmap.mmap, mark: int) -> NoReturn:
    """Be a worker. Called in the fresh fork, on the zygote's stack, and never returns."""
    status = CHANNEL_LOST
    try:
        os.setsid()
        processes.become_subreaper()
        channel = _settle_descriptors(channel_fd, output_fd)
        _enter(start["workdir"])
        preparation.restore_lock_hooks()
        if start["method"] == "spawn":
            preparation.prepare(start, lambda *_, **__: None)
            channel.send(wire.WORKER_READY, {})
        call = channel.receive()
        marks[mark] = 1
        _serve(channel, call)
        status = 0
    except (wire.Closed, BrokenPipeError, ConnectionResetError):
        status = 0
    except BaseException:  # noqa: BLE001 - our own failure; what is known goes to the output
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def _settle_descriptors(channel_fd: int, output_fd: int) -> Channel:
    """Keep 0 (``/dev/null``), 1, 2 and the channel; close all that the zygote had."""
    os.dup2(output_fd, 1)
    os.dup2(output_fd, 2)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    high = min(CHANNEL_FD, soft - 1)
    os.dup2(channel_fd, high, inheritable=False)
    os.closerange(3, high)
    return Channel(high)


def _enter(workdir: str) -> None:
    try:
        os.chdir(workdir)
    except OSError:
        # An earlier call removed it; that is no reason for this one to fail.
        os.chdir("/")


def _serve(channel: Channel, call: wire.Frame) -> None:
    """Run the call; send exactly one RESULT, from the process that got the call."""
    pid = os.getpid()
    meta = call.meta
    os.environ.update(meta["env"])
    known = len(sys.modules)
    began = time.monotonic()
    record, body, fds = _outcome(channel, call)
    if os.getpid() != pid:
        # User code forked and its child came back here too: only one may answer.
        os._exit(0)
    record["run_s"] = time.monotonic() - began
    record["rss_kb"] = processes.peak_rss_kb()
    if len(sys.modules) > known:
        record["modules"] = _installed(list(sys.modules)[known:])
    _flush()
    channel.send(wire.RESULT, record, body, fds)


def _installed(names: list[str]) -> list[str]:
    """Those of the modules that any process of this environment could import as well."""
    found = []
    for name in names:
        loader = getattr(getattr(sys.modules.get(name), "__spec__", None), "loader", None)
        if type(loader).__module__ in {"_frozen_importlib", "_frozen_importlib_external"}:
            found.append(name)
    return found


def _outcome(channel: Channel, call: wire.Frame) -> tuple[dict[str, Any], bytes, list[int]]:
    """The call's end, whatever happened: a record, a body, descriptors."""
    from . import exceptions

    try:
        return _result(channel, call)
    except wire.BadRequest as error:
        return {"ok": False, "error_type": "InvalidRequest", "error": str(error)}, b"", []
    except exceptions.Unserializable as error:
        return {"ok": False, "error_type": "ResultNotSerializable", "error": str(error)}, b"", []
    except BaseException as error:  # noqa: BLE001 - SystemExit and its like are results
        record, pickled = exceptions.capture(error)
        return {"ok": False, "user": True, **record}, pickled, []


def _result(channel: Channel, call: wire.Frame) -> tuple[dict[str, Any], bytes, list[int]]:
    from . import flash, invoke, payload

    if call.meta["codec"] == "pickle":
        function, args, kwargs = payload.load_call(call.body, call.fds)
        value = _run(channel, call.meta, function, args, kwargs)
        if value is invoke.STREAMED:
            return {"ok": True, "format": "stream"}, b"", []
        body, fds = payload.dump_result(value)
        return {"ok": True, "format": "pickle"}, body, fds
    request = flash.load_call(call.body)
    value = _run(channel, call.meta, request.function, request.args, request.kwargs)
    if value is invoke.STREAMED:
        return {"ok": True, "format": "stream"}, b"", []
    body = flash.dump_result(value, request.as_json)
    limit = call.meta["result_limit"]
    if limit is not None and len(body) > limit:
        return _too_large(len(body), limit), b"", []
    return {"ok": True, "format": "json" if request.as_json else "pickle"}, body, []


def _run(channel: Channel, meta: wire.Meta, function: Any, args: Any, kwargs: Any) -> Any:
    from . import invoke

    on_item = ItemSender(channel).send if meta["stream"] else None
    return invoke.run(function, args, kwargs, on_item)


def _too_large(size: int, limit: int) -> dict[str, Any]:
    return {
        "ok": False,
        "error_type": "ResultTooLarge",
        "error": f"the result is {size} bytes encoded and the answer may hold {limit}. "
        "Return less, or write it to a file or object store and return where it is.",
        "details": {"size": size, "limit": limit},
    }


def _flush() -> None:
    """Push out what Python and C have buffered; the streams may be anything by now."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:  # noqa: BLE001, PERF203 - replaced, closed or broken by user code
            pass
    processes.flush_c_streams()


class ItemSender:
    """Sends a generator's items, at most a window ahead of whoever takes them."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.left = wire.WINDOW
        channel.send(wire.STREAM, {})

    def send(self, item: Any) -> None:
        """Send one item; blocks while the window is used up."""
        from . import payload

        while self.left == 0:
            self.left += self.channel.receive().meta["items"]
        self.left -= 1
        body, fds = payload.dump_result(item)
        self.channel.send(wire.ITEM, {}, body, fds)


class Channel:
    """The worker's end; blocking."""

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
        fds = fds or []
        head = wire.head(kind, meta, len(body), len(fds))
        sent = self.sock.sendmsg([head, body], wire.rights(fds))
        for fd in fds:
            os.close(fd)
        if sent < len(head):
            self.sock.sendall(head[sent:])
            sent = len(head)
        if sent - len(head) < len(body):
            self.sock.sendall(memoryview(body)[sent - len(head) :])
