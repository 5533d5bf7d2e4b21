"""The loop of a resident: calls that overlap, streams, and what the instance leaves on it.

    serve: until there is a frame that is for when nothing runs; a task for each overlapping CALL
    run:   one coroutine, to its end; other tasks go on

Between them the loop stands still, while a plain call has the process to itself. It runs
until somebody stops it, in place of until a task is done: a task for each frame would take
longer than most calls.

Two things tear through a loop: SystemExit and KeyboardInterrupt, of whatever task. The
call that raised one has it as its end; one of a task that somebody left here is printed.
"""

from __future__ import annotations

import os
import sys
from time import monotonic

from . import exceptions, invoke, printing, wire, worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine
    from typing import Any

    from .resident import Resident
    from .worker import Outcome


class Overlapping:
    """What runs on the loop of a resident."""

    def __init__(self, host: Resident) -> None:
        import asyncio

        self.host = host
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self.tasks: dict[int, asyncio.Task[None]] = {}
        #: Why nothing can be received or sent any more.
        self.failure: BaseException | None = None
        self.loop.add_reader(host.channel.fd, self.on_readable)
        printing.route()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """The result of a coroutine."""
        task = self.loop.create_task(coroutine)
        task.add_done_callback(lambda _task: self.loop.stop())
        while not task.done():
            self.turn(task)
        return task.result()

    def serve(self) -> wire.Frame:
        """Run overlapping calls as they come, until there is a frame that is none."""
        frames = self.host.channel.frames
        while True:
            while frames:
                frame = frames.pop(0)
                if not self.take(frame):
                    return frame
            self.turn()

    def turn(self, own: asyncio.Task[Any] | None = None) -> None:
        """Run the loop until it is stopped; what ``own`` raises is for whoever has it."""
        if self.failure is not None:
            raise self.failure
        try:
            self.loop.run_forever()
        except (SystemExit, KeyboardInterrupt):
            if own is None or not own.done():
                sys.excepthook(*sys.exc_info())

    def on_readable(self) -> None:
        if self.host.forked:
            return  # what comes is the first process's
        channel = self.host.channel
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
        """Act on a frame; False when it is for when nothing runs."""
        if frame.kind == wire.CANCEL:
            task = self.tasks.get(wire.split_number(frame.meta)[0])
            if task is not None:
                task.cancel()
        elif frame.kind == wire.CREDIT:
            self.host.take_credit(frame)
        elif is_overlapping(frame):
            self.start(frame)
        else:
            return False
        return True

    def fail(self, error: BaseException) -> None:
        """Nothing can be received or sent any more."""
        self.failure = self.failure or error
        self.loop.stop()

    # Calls.

    def start(self, frame: wire.Frame) -> None:
        number, _ = wire.split_number(frame.meta)
        task = self.tasks[number] = self.loop.create_task(self.call(number, frame))
        task.add_done_callback(lambda task: self.on_done(number, task))

    async def call(self, number: int, frame: wire.Frame) -> None:
        _, stream, limit, *_ = wire.unpack_call_meta(wire.split_number(frame.meta)[1])
        start = monotonic()
        written = printing.begin(self.host, number)
        try:
            method, args, kwargs, request = self.host.read(frame)
            on_item = self.host.items_of(number, request) if stream else None
            value = await invoke.complete(method(*args, **kwargs), on_item)
            outcome = worker.encoded(value, request, limit, last=False)
        except BaseException as error:  # SystemExit and its like are results
            outcome = failed(error)
        if os.getpid() != self.host.pid:
            os._exit(0)
        worker.flush_output()
        written.close()
        self.host.send(wire.RESULT, wire.NUMBER.pack(number), outcome, monotonic() - start)

    def on_done(self, number: int, task: asyncio.Task[None]) -> None:
        """Answer for a call that was cancelled before it began; nothing of it ran, not even ours."""
        del self.tasks[number]
        self.host.streams.pop(number, None)
        if task.cancelled():
            import asyncio

            outcome = failed(asyncio.CancelledError())
            self.host.send(wire.RESULT, wire.NUMBER.pack(number), outcome, 0.0)
        elif (error := task.exception()) is not None:
            self.fail(error)

    def close(self) -> None:
        """Cancel what is left on the loop, and wait a little for it."""
        self.loop.remove_reader(self.host.channel.fd)
        invoke.close_loop(self.loop)


class Items:
    """Sends a generator's items, at most a window ahead of whoever takes them."""

    def __init__(
        self,
        host: Resident,
        number: int,
        dump: Callable[[Any], tuple[bytes, list[int]]],
    ) -> None:
        self.host = host
        self.number = wire.NUMBER.pack(number)
        self.dump = dump
        self.left = wire.WINDOW
        #: Set while somebody waits for the window to open, on the loop.
        self.opened: asyncio.Future[None] | None = None

    def __call__(self, item: Any) -> None:
        """Send one item; blocks while the window is used up, as no other call runs then."""
        while self.left == 0:
            self.take()
        self.left -= 1
        body, fds = self.dump(item)
        self.host.send_frame(wire.ITEM, self.number, body, fds)

    async def room(self) -> None:
        """Until the window is open, without blocking the loop."""
        while self.left == 0:
            self.opened = self.host.on_loop().loop.create_future()
            await self.opened

    def take(self) -> None:
        """Wait for the next frame; while a call runs alone it is a credit."""
        self.host.take_credit(self.host.channel.receive())

    def add(self, items: int) -> None:
        """Its reader took some."""
        self.left += items
        if self.opened is not None and not self.opened.done():
            self.opened.set_result(None)


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


def is_overlapping(frame: wire.Frame) -> bool:
    """Whether it is a call that may run beside others."""
    return frame.kind == wire.CALL and wire.overlaps(frame.meta)
