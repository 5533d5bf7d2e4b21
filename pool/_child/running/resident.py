"""A worker that stays: it creates an instance, then runs calls in it until it must close.

The instance is that of a class, or a function whose start hook has run (`sdk.live_function`).

    LOAD   -> class -> instance -> LOADED
    CALL n -> method(*args)     -> RESULT n              one at a time; or,
    CALL n -> task on the loop  -> OUTPUT n*, RESULT n   if calls may overlap (`resident_loop`)
    CANCEL n                    (only for overlapping calls: others end with their process)
    CLOSE  -> close() or a similar method, then exit

The supervisor decides which calls may overlap, from the methods that LOADED lists. It marks
overlapping calls, and while one runs, it sends only overlapping calls. So a plain method never runs
inside a running loop, and may use `asyncio.run` as usual. Between plain calls the loop, if it
exists, continues with the tasks that the instance left on it.

Each call has its own output: a plain call has descriptors 1 and 2 to itself; for overlapping calls,
see `output_routing`.
"""

from __future__ import annotations

import gc
import os
import sys
from time import monotonic

from .. import wire
from ..renewal import prepared
from ..serialization import exception_pickling, flash, payload, user_code
from . import invoke, process_exit, worker
from .item_stream import ItemSender, LinkCredit
from .outcome import encoded, flush_output
from .outcome import failed as raised
from .resident_link import ResidentLink
from .resident_loop import ResidentLoop, failed, is_overlapping
from .soft_timeout import SoftLimit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..channel import Channel

#: Share of the remaining grace that threads get at the exit.
_SHARE_OF_THREADS = 0.8
_UNLIMITED = SoftLimit(None)
#: Methods with which an instance may close itself; the first that exists is called.
_CLOSERS = ("close", "aclose", "__exit__", "__aexit__")


def _forget(env: dict[str, str]) -> None:
    """Unset the environment variables of a call."""
    try:
        for name in env:
            os.environ.pop(name, None)
    except BaseException:  # user code replaced os.environ
        pass


def live(channel: Channel, load: wire.Frame) -> None:
    """Create the instance, serve calls, and close."""
    resident = Resident(channel, load)
    try:
        if resident.load(load):
            resident.serve()
    except (wire.Closed, wire.Damaged, OSError):
        raise
    except BaseException as error:
        # User code broke what flashpool needs here, such as the loop.
        raise wire.Damaged(exception_pickling.summary(error)) from error


class Resident:
    """The instance and the calls in it."""

    def __init__(self, channel: Channel, load: wire.Frame) -> None:
        self.pickled, *_, env = wire.unpack_call_meta(load.meta)
        self.link = ResidentLink(channel, env)
        self.instance: Any = None
        #: Created as soon as a loop is needed.
        self.overlapping: ResidentLoop | None = None
        #: Number of modules before any user code was loaded.
        self.modules = len(sys.modules)

    # Loading.

    def load(self, frame: wire.Frame) -> bool:
        """Create the instance; return whether that succeeded."""
        start = monotonic()
        body = b""
        failure: dict[str, Any] = {}
        overlapping: list[str] = []
        try:
            if self.link.env:
                worker.set_variables(self.link.env)
            self.instance = self.make(frame)
            overlapping = user_code.async_methods(type(self.instance))
        except BaseException as error:  # even SystemExit is a result
            _, body, _, failure = raised(error)
        if os.getpid() != self.link.pid:
            os._exit(0)
        flush_output()
        more: dict[str, Any] = {**failure, "modules": self.link.new_modules()}
        more.update(self.link.changes(self.link.env or {}))
        if not failure:
            more["overlapping"] = overlapping
        self.link.send(wire.LOADED, b"", ("pickle", body, [], more), monotonic() - start)
        return not failure

    def make(self, frame: wire.Frame) -> Any:
        """Create the instance; on the loop, if any method is async."""
        if self.pickled:
            cls, args, kwargs = payload.load_call(frame.body, frame.fds, invoke.each)
        elif flash.is_function(frame.body):
            from ..sdk import live_function

            return live_function.load(frame.body, self.on_loop)
        else:
            cls, args, kwargs = flash.load_class(frame.body)
        if not (isinstance(cls, type) and user_code.async_methods(cls)):
            return cls(*args, **kwargs)
        return self.on_loop().run(user_code.made_on_loop(cls, args, kwargs))

    # Serving.

    def serve(self) -> None:
        """Serve until the worker must close, or the supervisor is gone."""
        while True:
            frame = self.next_alone()
            if frame.kind == wire.CLOSE:
                self.close()
                return
            if frame.kind == wire.CALL:
                self.run_alone(frame)

    def next_alone(self) -> wire.Frame:
        """Return the next frame that must run alone; overlapping calls run meanwhile."""
        if self.overlapping is None:
            frame = self.link.channel.receive()
            if not is_overlapping(frame):
                return frame
            self.link.channel.frames.insert(0, frame)
        return self.on_loop().serve()

    def on_loop(self) -> ResidentLoop:
        """Return the runner of calls on the loop; create it at the first request."""
        if self.overlapping is None:
            before = set(sys.modules)
            self.overlapping = ResidentLoop(self.link, self.read, self.items_of)
            # Do not report modules that this imported as imports of user code.
            self.link.known.update(sys.modules.keys() - before)
        return self.overlapping

    def run_alone(self, frame: wire.Frame) -> None:
        number, meta = wire.split_number(frame.meta)
        _, stream, limit, _, soft_s, env = wire.unpack_call_meta(meta)
        start = monotonic()
        try:
            if env:
                os.environ.update(env)
            method, args, kwargs, request = self.read(frame)
            on_item = self.items_of(number, request) if stream else None
            with SoftLimit(soft_s) as limited:
                value = self.finish(method(*args, **kwargs), on_item, limited)
            outcome = encoded(value, request, limit, last=False)
        except BaseException as error:  # even SystemExit is a result
            outcome = failed(error)
        self.link.streams.pop(number, None)
        if os.getpid() != self.link.pid:
            # User code forked, and this is the child: only the original process may answer.
            os._exit(0)
        if env:
            _forget(env)
        flush_output()
        self.link.send(wire.RESULT, wire.NUMBER.pack(number), outcome, monotonic() - start)

    def finish(
        self,
        value: Any,
        on_item: Callable[[Any], None] | None,
        limited: SoftLimit = _UNLIMITED,
    ) -> Any:
        """Await or iterate a method's result; all async code of the instance shares one loop."""
        if not invoke.needs_loop(value):
            return invoke.run(lambda: value, (), {}, on_item)
        return self.on_loop().run(limited.on_loop(invoke.complete(value, on_item)))

    def read(
        self, frame: wire.Frame
    ) -> tuple[Callable[..., Any], Any, Any, flash.Invocation | None]:
        """Return a call's method, its arguments, and the request if it is not pickled."""
        if not self.pickled:
            call = flash.load_method(frame.body, self.instance)
            return call.function, call.args, call.kwargs, call
        name, args, kwargs = payload.load_call(frame.body, frame.fds, invoke.each)
        return user_code.find_method(self.instance, name), args, kwargs, None

    def items_of(self, number: int, request: flash.Invocation | None) -> ItemSender:
        """Return the stream of a call's items."""
        dump = payload.dump_result if request is None else request.dump_item
        credit = LinkCredit(self.link, lambda: self.on_loop().loop)
        self.link.streams[number] = credit.add
        meta = wire.NUMBER.pack(number)
        return ItemSender(
            lambda body, fds: self.link.send_frame(wire.ITEM, meta, body, fds), dump, credit
        )

    # Ends.

    def close(self) -> None:
        """Let the instance close itself, then exit like a program; exceptions are printed."""
        began = monotonic()
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
        # Threads get most of the remaining grace; the rest is for hooks and finalizers.
        left_s = (prepared.grace_s - (monotonic() - began)) * _SHARE_OF_THREADS
        process_exit.run(self.modules, lambda *_: None, left_s)
        flush_output()
