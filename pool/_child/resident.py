"""A worker that stays: it makes an instance, then runs calls in it until told to close.

    LOAD   -> class -> instance -> LOADED
    CALL n -> method(*args)     -> RESULT n         one at a time, or,
    CALL n -> task on one loop  -> OUTPUT n*, RESULT n   where calls may overlap
    CANCEL n                    (an overlapping call only: others end with their process)
    CLOSE  -> close() or its like, and the end

The supervisor decides what may overlap, from what LOADED says of the methods: an
overlapping call is marked, and while one runs every other is. So a plain method never
finds itself in a running loop, and may use `asyncio.run` as anywhere else; and between
plain calls the loop, once there is one, goes on with the tasks that the instance left on it.

What a call prints is its own: a plain one has descriptors 1 and 2 to itself. Overlapping
ones share them, so what their Python code prints is sent with the number of the call whose
context it is in.
"""

from __future__ import annotations

import gc
import os
import sys
from time import monotonic

from . import exceptions, flash, invoke, payload, processes, user_code, wire, worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from contextvars import ContextVar
    from typing import Any

    from .channel import Channel
    from .worker import Outcome

#: Code flags of functions whose calls may overlap: coroutines and async generators.
_ASYNC = 0x80 | 0x200
#: What an instance may have to close itself with; the first one there is called.
_CLOSERS = ("close", "aclose", "__exit__", "__aexit__")
#: Bytes of unfinished line kept of an overlapping call before they are sent.
_LINE_LIMIT = 8192


def live(channel: Channel, load: wire.Frame) -> None:
    """Load, serve, close."""
    resident = Resident(channel, load)
    if resident.load(load):
        resident.serve()


class Resident:
    """The instance and the calls in it."""

    def __init__(self, channel: Channel, load: wire.Frame) -> None:
        import threading

        self.channel = channel
        self.pid = os.getpid()
        self.pickled, _, _, env = wire.unpack_call_meta(load.meta)
        if env:
            os.environ.update(env)
        self.known = set(sys.modules)
        self.instance: Any = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.tasks: dict[int, asyncio.Task[None]] = {}
        #: Streams under way, by the numbers of their calls.
        self.streams: dict[int, _Items] = {}
        #: Frames go out whole, though threads of user code print meanwhile.
        self.sending = threading.Lock()

    # Loading.

    def load(self, frame: wire.Frame) -> bool:
        """Make the instance, and say whether that went well."""
        start = monotonic()
        body = b""
        failure: dict[str, Any] = {}
        try:
            self.instance = self.make(frame)
        except BaseException as error:  # SystemExit and its like are results
            _, body, _, failure = worker.failed(error)
        if os.getpid() != self.pid:
            os._exit(0)
        more: dict[str, Any] = {**failure, "modules": self.new_modules()}
        if not failure:
            more["overlapping"] = overlapping_methods(type(self.instance))
        self.send(wire.LOADED, b"", ("pickle", body, [], more), monotonic() - start)
        return not failure

    def make(self, frame: wire.Frame) -> Any:
        if self.pickled:
            cls, args, kwargs = payload.load_call(frame.body, frame.fds)
            return cls(*args, **kwargs)
        return flash.load_instance(frame.body)

    def new_modules(self) -> list[str]:
        new = [name for name in sys.modules if name not in self.known]
        self.known.update(new)
        return worker.installed(new) if new else []

    # Serving.

    def serve(self) -> None:
        """Until told to close, or the supervisor is gone."""
        while True:
            frame = self.next_alone()
            if frame.kind == wire.CLOSE:
                self.close()
                return
            if frame.kind == wire.CALL:
                self.run_alone(frame)

    def next_alone(self) -> wire.Frame:
        """The next frame that is for when nothing runs; overlapping calls run meanwhile."""
        if self.loop is None:
            frame = self.channel.receive()
            if not _overlaps(frame):
                return frame
            self.channel.frames.insert(0, frame)
            self.loop = self.new_loop()
        return self.loop.run_until_complete(self.serve_overlapping())

    def run_alone(self, frame: wire.Frame) -> None:
        number, meta = wire.split_number(frame.meta)
        _, stream, limit, _ = wire.unpack_call_meta(meta)
        start = monotonic()
        try:
            method, args, kwargs, request = self.read(frame)
            on_item = self.items_of(number, request) if stream else None
            value = self.finish(method(*args, **kwargs), on_item)
            outcome = worker.encoded(value, request, limit, last=False)
        except BaseException as error:  # SystemExit and its like are results
            outcome = failed(error)
        self.streams.pop(number, None)
        if os.getpid() != self.pid:
            # User code forked and its child came back here too: only one may answer.
            os._exit(0)
        worker.flush_output()
        self.send(wire.RESULT, wire.NUMBER.pack(number), outcome, monotonic() - start)

    def items_of(self, number: int, request: flash.Invocation | None) -> _Items:
        """The stream of a call's items."""
        dump = payload.dump_result if request is None else request.dump_item
        self.streams[number] = items = _Items(self, number, dump)
        return items

    def take_credit(self, frame: wire.Frame) -> None:
        """Somebody took items of a stream."""
        number, meta = wire.split_number(frame.meta)
        if number in self.streams:
            self.streams[number].add(wire.CREDIT_META.unpack(meta)[0])

    def finish(self, value: Any, on_item: Callable[[Any], None] | None) -> Any:
        """See through what a method returned; all that is async shares one loop."""
        if not invoke.needs_loop(value):
            return invoke.run(lambda: value, (), {}, on_item)
        if self.loop is None:
            self.loop = self.new_loop()
        return self.loop.run_until_complete(invoke.complete(value, on_item))

    def read(
        self, frame: wire.Frame
    ) -> tuple[Callable[..., Any], Any, Any, flash.Invocation | None]:
        """What a call names, its arguments, and the request where it is not pickled."""
        if not self.pickled:
            call = flash.load_method(frame.body, self.instance)
            return call.function, call.args, call.kwargs, call
        name, args, kwargs = payload.load_call(frame.body, frame.fds)
        return user_code.find_method(self.instance, name), args, kwargs, None

    # Overlapping.

    def new_loop(self) -> asyncio.AbstractEventLoop:
        import asyncio

        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        _route_output()
        return loop

    async def serve_overlapping(self) -> wire.Frame:
        """Start overlapping calls as they come; returns what is none."""
        assert self.loop is not None
        alone: asyncio.Future[wire.Frame] = self.loop.create_future()
        self.loop.add_reader(self.channel.fd, self.on_readable, alone)
        try:
            self.on_buffered(alone)
            return await alone
        finally:
            self.loop.remove_reader(self.channel.fd)

    def on_readable(self, alone: asyncio.Future[wire.Frame]) -> None:
        try:
            frame = self.channel.receive()
        except (wire.Closed, OSError) as error:
            if not alone.done():
                alone.set_exception(error)
            return
        self.on_frame(frame, alone)
        self.on_buffered(alone)

    def on_buffered(self, alone: asyncio.Future[wire.Frame]) -> None:
        """Frames that were read together with an earlier one."""
        while self.channel.frames and not alone.done():
            self.on_frame(self.channel.frames.pop(0), alone)

    def on_frame(self, frame: wire.Frame, alone: asyncio.Future[wire.Frame]) -> None:
        if frame.kind == wire.CANCEL:
            task = self.tasks.get(wire.split_number(frame.meta)[0])
            if task is not None:
                task.cancel()
        elif frame.kind == wire.CREDIT:
            self.take_credit(frame)
        elif _overlaps(frame):
            assert self.loop is not None
            number, _ = wire.split_number(frame.meta)
            self.tasks[number] = self.loop.create_task(self.run_overlapping(number, frame))
        else:
            alone.set_result(frame)

    async def run_overlapping(self, number: int, frame: wire.Frame) -> None:
        _, stream, limit, _ = wire.unpack_call_meta(wire.split_number(frame.meta)[1])
        written = _Written(self, number)
        _current.set(written)
        start = monotonic()
        try:
            method, args, kwargs, request = self.read(frame)
            on_item = self.items_of(number, request) if stream else None
            value = await invoke.complete(method(*args, **kwargs), on_item)
            outcome = worker.encoded(value, request, limit, last=False)
        except BaseException as error:
            outcome = failed(error)
        self.streams.pop(number, None)
        del self.tasks[number]
        written.flush()
        self.send(wire.RESULT, wire.NUMBER.pack(number), outcome, monotonic() - start)

    # Ends.

    def send(self, kind: int, number: bytes, outcome: Outcome, run_s: float) -> None:
        form, body, fds, more = outcome
        rss_kb = processes.peak_rss_kb()
        ok = "error_type" not in more
        if len(sys.modules) > len(self.known):
            more = {**more, "modules": self.new_modules()}
        meta = wire.ResultMeta(ok=ok, form=form, run_s=run_s, rss_kb=rss_kb, more=more)
        self.send_frame(kind, number + meta.pack(), body, fds)

    def send_frame(self, kind: int, meta: bytes, body: bytes, fds: list[int]) -> None:
        with self.sending:
            self.channel.send(kind, meta, body, fds)

    def close(self) -> None:
        """Let the instance close itself; what that raises is printed."""
        try:
            for name in _CLOSERS:
                closer = getattr(self.instance, name, None)
                if callable(closer):
                    self.run_closer(closer, (None, None, None) if "exit" in name else ())
                    break
        except BaseException:
            sys.excepthook(*sys.exc_info())
        self.instance = None
        gc.collect()
        worker.flush_output()

    def run_closer(self, closer: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.finish(closer(*args), None)


def overlapping_methods(cls: type[Any]) -> list[str]:
    """Names of the methods whose calls may run together: ``async def`` ones."""
    found = []
    for name in dir(cls):
        method = getattr(cls, name, None)
        code = getattr(getattr(method, "__func__", method), "__code__", None)
        if code is not None and code.co_flags & _ASYNC:
            found.append(name)
    return found


def failed(error: BaseException) -> Outcome:
    """The end of a call that raised; it may be the instance's as well."""
    form, body, fds, more = worker.failed(error)
    if _leaves_cuda_unusable(error):
        more["poisoned"] = "it met a CUDA error that a process does not recover from"
    return form, body, fds, more


def _leaves_cuda_unusable(error: BaseException) -> bool:
    """After most errors of the driver each further use of its context fails; a lack of memory is none."""
    if not isinstance(error, RuntimeError) or "torch" not in sys.modules:
        return False
    text = exceptions.summary(error)
    return "CUDA error" in text and "out of memory" not in text


def _overlaps(frame: wire.Frame) -> bool:
    return frame.kind == wire.CALL and wire.overlaps(frame.meta)


class _Items:
    """Sends a generator's items, at most a window ahead of whoever takes them."""

    def __init__(
        self, resident: Resident, number: int, dump: Callable[[Any], tuple[bytes, list[int]]]
    ) -> None:
        self.resident = resident
        self.number = wire.NUMBER.pack(number)
        self.dump = dump
        self.left = wire.WINDOW
        #: Set while somebody waits for the window to open, on the loop.
        self.opened: asyncio.Future[None] | None = None

    def __call__(self, item: Any) -> None:
        """Send one item; blocks while the window is used up, as no other call runs then."""
        while self.left == 0:
            self.resident.take_credit(self.resident.channel.receive())
        self.left -= 1
        body, fds = self.dump(item)
        self.resident.send_frame(wire.ITEM, self.number, body, fds)

    async def room(self) -> None:
        """Until the window is open, without blocking the loop."""
        while self.left == 0:
            loop = self.resident.loop
            assert loop is not None
            self.opened = loop.create_future()
            await self.opened

    def add(self, items: int) -> None:
        """Its reader took some."""
        self.left += items
        if self.opened is not None and not self.opened.done():
            self.opened.set_result(None)


# -- What overlapping calls print --------------------------------------------------------


class _Written:
    """What one overlapping call wrote, sent line by line."""

    def __init__(self, resident: Resident, number: int) -> None:
        self.resident = resident
        self.number = wire.NUMBER.pack(number)
        self.line = ""

    def write(self, text: str) -> None:
        self.line += text
        if "\n" in text or len(self.line) > _LINE_LIMIT:
            self.flush()

    def flush(self) -> None:
        line, self.line = self.line, ""
        if line:
            data = line.encode("utf-8", "backslashreplace")
            self.resident.send_frame(wire.OUTPUT, self.number, data, [])


class _Routed:
    """A standard stream: text goes to the call in whose context it is written, else on."""

    def __init__(self, stream: Any, current: ContextVar[_Written | None]) -> None:
        self._stream = stream
        self._current = current

    def write(self, text: str) -> int:
        """As any text stream's."""
        written = self._current.get()
        if written is None:
            return int(self._stream.write(text))
        written.write(text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """As any text stream's."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """As any text stream's; a call's unfinished line waits for its end."""
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


_current: ContextVar[_Written | None]


def _route_output() -> None:
    """From now on overlapping calls may print."""
    global _current
    from contextvars import ContextVar

    _current = ContextVar("flashpool_call", default=None)
    old = sys.stderr
    sys.stdout = _Routed(sys.stdout, _current)
    sys.stderr = _Routed(sys.stderr, _current)
    logging = sys.modules["logging"]
    handlers = [*logging.root.handlers, logging.lastResort]
    for handler in handlers:
        if getattr(handler, "stream", None) is old:
            handler.stream = sys.stderr
