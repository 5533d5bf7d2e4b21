"""A worker that stays: it makes an instance, then runs calls in it until told to close.

    LOAD   -> class -> instance -> LOADED
    CALL n -> method(*args)     -> RESULT n         one at a time, or,
    CALL n -> task on one loop  -> OUTPUT n*, RESULT n   where calls may overlap (`overlapping`)
    CANCEL n                    (an overlapping call only: others end with their process)
    CLOSE  -> close() or its like, and the end

The supervisor decides what may overlap, from what LOADED says of the methods: an
overlapping call is marked, and while one runs every other is. So a plain method never
finds itself in a running loop, and may use `asyncio.run` as anywhere else; and between
plain calls the loop, once there is one, goes on with the tasks that the instance left on it.

What a call prints is its own: a plain one has descriptors 1 and 2 to itself, for others see
`printing`.
"""

from __future__ import annotations

import gc
import os
import sys
from time import monotonic

from . import exceptions, flash, invoke, payload, preparation, processes, user_code, wire, worker
from .overlapping import Items, Overlapping, failed, is_overlapping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .channel import Channel
    from .worker import Outcome

#: Code flags of functions whose calls may overlap: coroutines and async generators.
_ASYNC = 0x80 | 0x200
#: What an instance may have to close itself with; the first one there is called.
_CLOSERS = ("close", "aclose", "__exit__", "__aexit__")


def live(channel: Channel, load: wire.Frame) -> None:
    """Load, serve, close."""
    resident = Resident(channel, load)
    try:
        if resident.load(load):
            resident.serve()
    except (wire.Closed, wire.Damaged, OSError):
        raise
    except BaseException as error:
        # User code broke what this needs, its loop for one.
        raise wire.Damaged(exceptions.summary(error)) from error


class Resident:
    """The instance and the calls in it."""

    def __init__(self, channel: Channel, load: wire.Frame) -> None:
        import threading

        self.channel = channel
        self.pid = os.getpid()
        self.pickled, _, _, _, self.env = wire.unpack_call_meta(load.meta)
        self.known = set(sys.modules)
        #: What was changed of what imports read, as told so far.
        self.changed: list[str] = []
        self.instance: Any = None
        #: There as soon as something needs a loop.
        self.overlapping: Overlapping | None = None
        #: Streams under way, by the numbers of their calls.
        self.streams: dict[int, Items] = {}
        #: Frames go out whole, though threads of user code print meanwhile.
        self.sending = threading.Lock()
        #: Whether this is a process that user code forked: it must not touch the channel.
        self.forked = False
        os.register_at_fork(after_in_child=self.on_forked)

    def on_forked(self) -> None:
        self.forked = True

    # Loading.

    def load(self, frame: wire.Frame) -> bool:
        """Make the instance, and say whether that went well."""
        start = monotonic()
        body = b""
        failure: dict[str, Any] = {}
        overlapping: list[str] = []
        try:
            if self.env:
                worker.set_variables(self.env)
            self.instance = self.make(frame)
            overlapping = overlapping_methods(type(self.instance))
        except BaseException as error:  # SystemExit and its like are results
            _, body, _, failure = worker.failed(error)
        if os.getpid() != self.pid:
            os._exit(0)
        worker.flush_output()
        more: dict[str, Any] = {**failure, "modules": self.new_modules()}
        more.update(self.changes(self.env or {}))
        if not failure:
            more["overlapping"] = overlapping
        self.send(wire.LOADED, b"", ("pickle", body, [], more), monotonic() - start)
        return not failure

    def make(self, frame: wire.Frame) -> Any:
        if self.pickled:
            cls, args, kwargs = payload.load_call(frame.body, frame.fds)
            return cls(*args, **kwargs)
        return flash.load_instance(frame.body)

    def changes(self, env: dict[str, str] | None = None) -> dict[str, list[str]]:
        """As `worker.changes`; what was told before is no news."""
        found = worker.changes(env, imported=env is not None)
        changed = found.pop("changed", [])
        if changed != self.changed:
            self.changed = found["changed"] = changed
        return found

    def new_modules(self) -> list[str]:
        new = [name for name in list(sys.modules) if name not in self.known]
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
        if self.overlapping is None:
            frame = self.channel.receive()
            if not is_overlapping(frame):
                return frame
            self.channel.frames.insert(0, frame)
        return self.on_loop().serve()

    def on_loop(self) -> Overlapping:
        """What runs on the loop; from here on there is one."""
        if self.overlapping is None:
            self.overlapping = Overlapping(self)
        return self.overlapping

    def run_alone(self, frame: wire.Frame) -> None:
        number, meta = wire.split_number(frame.meta)
        _, stream, limit, *_ = wire.unpack_call_meta(meta)
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

    def finish(self, value: Any, on_item: Callable[[Any], None] | None) -> Any:
        """See through what a method returned; all that is async shares one loop."""
        if not invoke.needs_loop(value):
            return invoke.run(lambda: value, (), {}, on_item)
        return self.on_loop().run(invoke.complete(value, on_item))

    def read(
        self, frame: wire.Frame
    ) -> tuple[Callable[..., Any], Any, Any, flash.Invocation | None]:
        """What a call names, its arguments, and the request where it is not pickled."""
        if not self.pickled:
            call = flash.load_method(frame.body, self.instance)
            return call.function, call.args, call.kwargs, call
        name, args, kwargs = payload.load_call(frame.body, frame.fds)
        return user_code.find_method(self.instance, name), args, kwargs, None

    def items_of(self, number: int, request: flash.Invocation | None) -> Items:
        """The stream of a call's items."""
        dump = payload.dump_result if request is None else request.dump_item
        self.streams[number] = items = Items(self, number, dump)
        return items

    def take_credit(self, frame: wire.Frame) -> None:
        """Somebody took items of a stream."""
        if frame.kind != wire.CREDIT:
            return
        number, meta = wire.split_number(frame.meta)
        if number in self.streams:
            self.streams[number].add(wire.CREDIT_META.unpack(meta)[0])

    # Ends.

    def send(self, kind: int, number: bytes, outcome: Outcome, run_s: float) -> None:
        """Send the end of a call, or of the loading."""
        form, body, fds, more = outcome
        try:
            rss_kb = processes.peak_rss_kb()
            ok = "error_type" not in more
            if len(sys.modules) > len(self.known):
                more = {**more, "modules": self.new_modules(), **self.changes(self.env or {})}
            elif preparation.held is not None:
                more = {**more, **self.changes()}
            meta = wire.ResultMeta(ok=ok, form=form, run_s=run_s, rss_kb=rss_kb, more=more)
            self.send_frame(kind, number + meta.pack(), body, fds)
        except OSError:
            raise
        except BaseException as error:
            worker.answer_damaged(self.channel, outcome, run_s, error, kind, number)

    def send_frame(self, kind: int, meta: bytes, body: bytes, fds: list[int]) -> None:
        if self.forked:
            # It came back from a call that it was forked in: the first process answers.
            os._exit(0)
        with self.sending:
            self.channel.send(kind, meta, body, fds)

    def close(self) -> None:
        """Let the instance close itself; what that raises is printed."""
        try:
            for name in _CLOSERS:
                closer = getattr(self.instance, name, None)
                if callable(closer):
                    self.finish(closer(*((None,) * 3 if "exit" in name else ())), None)
                    break
            closer = None
            if self.overlapping is not None:
                self.overlapping.close()
        except BaseException:
            sys.excepthook(*sys.exc_info())
        self.instance = None
        gc.collect()
        worker.flush_output()


def overlapping_methods(cls: type[Any]) -> list[str]:
    """Names of the methods whose calls may run together: ``async def`` ones."""
    found = []
    for name in dir(cls):
        method = getattr(cls, name, None)
        code = getattr(getattr(method, "__func__", method), "__code__", None)
        if getattr(code, "co_flags", 0) & _ASYNC:
            found.append(name)
    return found
