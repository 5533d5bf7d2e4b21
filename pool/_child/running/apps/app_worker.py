"""A worker with an ASGI application: it loads the app, then answers requests until it must close.

    LOAD_APP     -> module -> application -> start-up -> LOADED
    REQUEST n    -> a task on the loop: `exchange`
    BODY n, CREDIT n, DISCONNECT n, CANCEL n -> that exchange
    CLOSE        -> the application's shutdown, then exit

All requests run together on the loop; functions that are not coroutines run in the thread pool of
the application's framework. The module is loaded on the running loop, as servers do.

Two exceptions escape from the loop: SystemExit and KeyboardInterrupt. If a request raises one, its
task catches it, and only that request ends. If a task that outlives its request raises one, it is
printed, and the loop continues.
"""

from __future__ import annotations

import asyncio
import gc
import json
import mmap
import os
import sys
import traceback
from time import monotonic

from ... import app_messages, wire
from ...renewal import prepared
from ...serialization import exception_pickling
from .. import invoke, output_routing, process_exit, worker
from ..outcome import failed, flush_output
from ..resident_link import ResidentLink
from . import loading, routes
from .lifespan import Lifespan
from .link import AppLink
from .threads import is_in_thread
from .websocket import SocketExchange, exchange_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from ...channel import Channel
    from .exchange import Asgi, Exchange

#: Share of the remaining grace that threads get at the exit.
_SHARE_OF_THREADS = 0.8
#: Seconds between checks whether a task to be cancelled still waits for a thread.
_AGAIN_S = 0.02


def live(channel: Channel, load: wire.Frame) -> None:
    """Load the application, serve requests, and close."""
    see_through(AppWorker(channel, load))


def see_through(app: AppWorker) -> None:
    """Run a worker from loading to closing."""
    try:
        if app.load():
            app.serve()
    except (wire.Closed, wire.Damaged, OSError):
        raise
    except BaseException as error:
        # User code broke what flashpool needs here, such as the loop.
        raise wire.Damaged(exception_pickling.summary(error)) from error


class AppWorker:
    """The application and its requests."""

    def __init__(self, channel: Channel, load: wire.Frame) -> None:
        *_, env = wire.unpack_call_meta(load.meta)
        self.resident = ResidentLink(channel, env)
        self.what = json.loads(load.body)
        self.modules = len(sys.modules)
        (fd,) = load.take_fds()
        ledger = mmap.mmap(fd, 0)
        os.close(fd)
        self.loop = loading.new_loop()
        asyncio.set_event_loop(self.loop)
        self.link = AppLink(
            self.resident, ledger, self.loop, once=self.what["once"], ids=self.what["ids"]
        )
        self.app: Asgi = _no_app
        self.lifespan: Lifespan | None = None
        self.closing = False

    # Loading.

    def load(self) -> bool:
        """Load the application; return whether that succeeded."""
        start = monotonic()
        more: dict[str, Any] = {}
        body = b""
        loaded = False
        try:
            if self.resident.env:
                worker.set_variables(self.resident.env)
            self.begin()
            names = self.resident.new_modules()
            more["routes"] = routes.routes_of(self.app)
            more["modules"] = loading.importable_elsewhere(names, self.what["directory"])
            loaded = True
        except BaseException as error:  # even SystemExit is a result
            _, body, _, more = failed(error)
        if os.getpid() != self.resident.pid:
            os._exit(0)
        flush_output()
        self.resident.send(wire.LOADED, b"", ("pickle", body, [], more), monotonic() - start)
        return loaded

    def begin(self) -> None:
        output_routing.route()
        self.run(self.start())

    async def start(self) -> None:
        self.app = loading.load(self.what)
        self.lifespan = lifespan = Lifespan(self.app)
        await lifespan.startup()
        if not lifespan.over:
            self.link.state = lifespan.state
        if (threads := self.what["threads"]) is not None and "anyio" in sys.modules:
            limiter = sys.modules["anyio"].to_thread.current_default_thread_limiter()
            limiter.total_tokens = threads

    def run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine to its end."""
        task = self.loop.create_task(coroutine)
        task.add_done_callback(lambda _: self.loop.stop())
        while not task.done():
            self.turn(task)
        task.result()

    def turn(self, own: asyncio.Task[Any] | None = None) -> None:
        """Run the loop until it is stopped; an exception of ``own`` is left to its owner."""
        if self.link.failure is not None:
            raise self.link.failure
        try:
            self.loop.run_forever()
        except (SystemExit, KeyboardInterrupt):
            if own is None or not own.done():
                traceback.print_exc()

    # Serving.

    def serve(self) -> None:
        """Serve until the worker must close, or the supervisor is gone."""
        channel = self.resident.channel
        self.loop.add_reader(channel.fd, self.on_readable)
        # libuv sets the channel non-blocking; every sender sends frames whole.
        os.set_blocking(channel.fd, True)
        while not self.closing:
            self.turn()
        self.loop.remove_reader(channel.fd)
        self.close()

    def on_readable(self) -> None:
        if self.resident.forked:
            return  # frames are for the original process
        channel = self.resident.channel
        try:
            self.take(channel.receive())
            while channel.frames:
                self.take(channel.frames.pop(0))
        except (wire.Closed, OSError) as error:
            self.loop.remove_reader(channel.fd)
            self.link.fail(error if isinstance(error, OSError) else BrokenPipeError())

    def take(self, frame: wire.Frame) -> None:
        """Handle a frame."""
        if frame.kind == wire.REQUEST:
            exchange = exchange_of(self.link, frame)
            self.link.exchanges[exchange.number] = exchange
            exchange.task = self.loop.create_task(exchange.run(self.app))
        elif frame.kind == wire.CLOSE:
            self.closing = True
            self.loop.stop()
        elif len(frame.meta) >= wire.NUMBER.size:
            number, _ = wire.split_number(frame.meta)
            found = self.link.exchanges.get(number)
            if found is not None:
                self.tell(found, frame)

    def tell(self, exchange: Exchange, frame: wire.Frame) -> None:
        """Handle a frame of a request that is not over."""
        if frame.kind == wire.BODY:
            _, flags = app_messages.unpack_flags(frame.meta)
            exchange.take(frame.body, bool(flags & app_messages.MORE))
        elif frame.kind == wire.CREDIT:
            _, size = app_messages.unpack_credit(frame.meta)
            exchange.add_room(size)
        elif frame.kind == wire.DISCONNECT:
            exchange.leave()
        elif frame.kind == wire.CANCEL:
            self.cancel(exchange)
        elif isinstance(exchange, SocketExchange):
            self.tell_socket(exchange, frame)

    def tell_socket(self, socket: SocketExchange, frame: wire.Frame) -> None:
        """Handle a frame of a WebSocket that is not over."""
        if frame.kind == wire.MESSAGE:
            _, flags = app_messages.unpack_flags(frame.meta)
            socket.take_message(frame.body, flags)
        elif frame.kind == wire.CLOSING:
            _, code, reason = app_messages.unpack_closing(frame.meta)
            socket.close(code, reason)

    def cancel(self, exchange: Exchange) -> None:
        task = exchange.task
        assert task is not None
        if not exchange.has_begun:
            exchange.gone = True  # its task has nothing left to do
        elif is_in_thread(task):
            self.loop.call_later(_AGAIN_S, self.cancel_still, exchange)
        else:
            task.cancel()

    def cancel_still(self, exchange: Exchange) -> None:
        """Try again to cancel a task that waited for a thread.

        If the thread takes too long, the supervisor stops this worker.
        """
        if not exchange.over:
            self.cancel(exchange)

    # Ends.

    def close(self) -> None:
        """Let the application shut down, then exit like a program; exceptions are printed."""
        began = monotonic()
        try:
            if self.lifespan is not None:
                self.run(self.lifespan.shutdown())
            invoke.close_loop(self.loop)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        self.app = _no_app
        self.lifespan = None
        gc.collect()
        # Threads get most of the remaining grace; the rest is for hooks and finalizers.
        left_s = (prepared.grace_s - (monotonic() - began)) * _SHARE_OF_THREADS
        process_exit.run(self.modules, lambda *_: None, left_s)
        flush_output()


async def _no_app(*_: Any) -> None:
    """Stand in for the app before it is loaded and after it is closed."""
