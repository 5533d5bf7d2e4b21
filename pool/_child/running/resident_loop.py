"""The loop of a resident: overlapping calls, streams, and tasks that the instance leaves on it.

    serve: a task for each overlapping CALL, until a frame arrives that must run alone
    run:   one coroutine, to its end; other tasks continue

While a plain call has the process to itself, the loop stands still. It runs until it is stopped,
instead of until a task is done: a task for each frame would take longer than most calls.

Two exceptions escape from the loop: SystemExit and KeyboardInterrupt, of any task. A call that
raises one ends with it; an exception of a task that outlives its call is printed.
"""

from __future__ import annotations

import os
import sys
from time import monotonic

from .. import wire
from ..serialization import exception_pickling
from . import invoke, output_routing
from .outcome import encoded, flush_output
from .outcome import failed as raised
from .soft_timeout import SoftLimit

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine
    from typing import Any

    from .item_stream import ItemSender
    from .outcome import Outcome
    from .resident_link import ResidentLink


class ResidentLoop:
    """Runs calls on the loop of a resident."""

    def __init__(
        self,
        link: ResidentLink,
        read: Callable[[wire.Frame], Any],
        items_of: Callable[[int, Any], ItemSender],
    ) -> None:
        """``read``: decodes a call. ``items_of``: creates the stream of a call's items."""
        import asyncio

        self.link = link
        self.read = read
        self.items_of = items_of
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self.tasks: dict[int, asyncio.Task[None]] = {}
        #: Why the channel is unusable, if it is.
        self.failure: BaseException | None = None
        self.loop.add_reader(link.channel.fd, self.on_readable)
        output_routing.route()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine to its end, and return its result."""
        task = self.loop.create_task(coroutine)
        task.add_done_callback(lambda _task: self.loop.stop())
        while not task.done():
            self.turn(task)
        return task.result()

    def serve(self) -> wire.Frame:
        """Run overlapping calls as they arrive, until a frame arrives that must run alone."""
        frames = self.link.channel.frames
        while True:
            while frames:
                frame = frames.pop(0)
                if not self.take(frame):
                    return frame
            self.turn()

    def turn(self, own: asyncio.Task[Any] | None = None) -> None:
        """Run the loop until it is stopped; an exception of ``own`` is left to its owner."""
        if self.failure is not None:
            raise self.failure
        try:
            self.loop.run_forever()
        except (SystemExit, KeyboardInterrupt):
            if own is None or not own.done():
                sys.excepthook(*sys.exc_info())

    def on_readable(self) -> None:
        if self.link.forked:
            return  # frames are for the original process
        channel = self.link.channel
        try:
            frame = channel.receive()
        except (wire.Closed, OSError) as error:
            self.loop.remove_reader(channel.fd)
            self.fail(error)
            return
        while self.take(frame):
            if not channel.frames:
                return
            frame = channel.frames.pop(0)
        channel.frames.insert(0, frame)
        self.loop.stop()

    def take(self, frame: wire.Frame) -> bool:
        """Handle a frame; return False if it must run alone."""
        if frame.kind == wire.CANCEL:
            task = self.tasks.get(wire.split_number(frame.meta)[0])
            if task is not None:
                task.cancel()
        elif frame.kind == wire.CREDIT:
            self.link.take_credit(frame)
        elif is_overlapping(frame):
            self.start(frame)
        else:
            return False
        return True

    def fail(self, error: BaseException) -> None:
        """Record that the channel is unusable, and stop the loop."""
        self.failure = self.failure or error
        self.loop.stop()

    def allow_threads(self, number: int) -> None:
        """Let ``number`` functions run in threads beside the loop."""
        from concurrent.futures import ThreadPoolExecutor

        self.loop.set_default_executor(ThreadPoolExecutor(number))

    # Calls.

    def start(self, frame: wire.Frame) -> None:
        number, _ = wire.split_number(frame.meta)
        task = self.tasks[number] = self.loop.create_task(self.call(number, frame))
        task.add_done_callback(lambda task: self.on_done(number, task))

    async def call(self, number: int, frame: wire.Frame) -> None:
        meta = wire.split_number(frame.meta)[1]
        _, stream, limit, _, soft_s, _ = wire.unpack_call_meta(meta)
        start = monotonic()
        written = output_routing.begin(self.link, number)
        try:
            method, args, kwargs, request = self.read(frame)
            on_item = self.items_of(number, request) if stream else None
            whole = invoke.complete(method(*args, **kwargs), on_item)
            value = await SoftLimit(soft_s).on_loop(whole)
            outcome = encoded(value, request, limit, last=False)
        except BaseException as error:  # even SystemExit is a result
            outcome = failed(error)
        if os.getpid() != self.link.pid:
            os._exit(0)
        flush_output()
        written.close()
        self.link.send(wire.RESULT, wire.NUMBER.pack(number), outcome, monotonic() - start)

    def on_done(self, number: int, task: asyncio.Task[None]) -> None:
        """Answer for a call that was cancelled before it began to run."""
        del self.tasks[number]
        self.link.streams.pop(number, None)
        if task.cancelled():
            import asyncio

            outcome = failed(asyncio.CancelledError())
            self.link.send(wire.RESULT, wire.NUMBER.pack(number), outcome, 0.0)
        elif (error := task.exception()) is not None:
            self.fail(error)

    def close(self) -> None:
        """Cancel the tasks that are left on the loop, and wait a little for them."""
        self.loop.remove_reader(self.link.channel.fd)
        invoke.close_loop(self.loop)


def failed(error: BaseException) -> Outcome:
    """Return the outcome of a call that raised; ``poisoned``: the instance must not be reused."""
    form, body, fds, more = raised(error)
    if _leaves_cuda_unusable(error):
        more["poisoned"] = "it met a CUDA error that a process does not recover from"
    return form, body, fds, more


def _leaves_cuda_unusable(error: BaseException) -> bool:
    """Return whether an error makes all further use of CUDA fail, as lack of memory does not."""
    if not isinstance(error, RuntimeError) or "torch" not in sys.modules:
        return False
    text = exception_pickling.summary(error)
    return "CUDA error" in text and "out of memory" not in text


def is_overlapping(frame: wire.Frame) -> bool:
    """Return whether a frame is a call that may overlap others."""
    return frame.kind == wire.CALL and wire.overlaps(frame.meta)
