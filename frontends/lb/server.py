"""``flashpool serve lb``: from settings to a process that ends with exit status 0.

    bind both sockets -> harden -> loop: service, admin, /execute -> first signal: drain
      |                                                               |  (second: at once)
      `- ModeError, OpenServerError, ListenError: nothing was started `-> stop, close, 0

While it drains the listener stays open: probes must hear 503 and calls be told to come
back, which a closed port could not say.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from types import FrameType
from typing import Any, Final

from flashpool.frontends import modes
from flashpool.frontends.admin import Admin, bind_admin
from flashpool.frontends.assembly import make_service
from flashpool.frontends.http_server.listener import Listener, bind
from flashpool.frontends.server_process import harden
from flashpool.frontends.service import Service
from flashpool.frontends.settings.table import Settings

from .app import create_app

_log = logging.getLogger(__name__)

#: What asks a server to leave: the first one begins a drain, the second cuts it.
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class OpenServerError(Exception):
    """Anybody on the network could run code here; the message says how to prevent it."""


class LbServer(Listener):
    """The listener of ``/execute``; its first signal begins a drain, its second cuts it."""

    def __init__(
        self, service: Service, admin: Admin, settings: Settings, on_start: Callable[[], None]
    ) -> None:
        super().__init__(create_app(service, settings, admin), settings)
        self._service = service
        self._drain_s = settings.drain_s
        self._on_start = on_start
        self._leaving: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say where."""
        await super().startup(sockets)
        self._on_start()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Have signals queued for the loop."""
        loop = asyncio.get_running_loop()

        def enqueue(signum: int, _frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self._on_signal, signum)

        before = {signum: signal.signal(signum, enqueue) for signum in SIGNALS}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _on_signal(self, signum: int) -> None:
        name = signal.Signals(signum).name
        if self._leaving is None:
            stats = self._service.pool.stats()
            running = _calls(stats.slots.busy + stats.queue.depth + self._service.preparing)
            _log.info("%s: draining for at most %g s: %s to finish", name, self._drain_s, running)
            self._leaving = asyncio.ensure_future(self._leave())
        else:
            _log.info("%s again: leaving at once", name)
            self._hurry.set()

    async def _leave(self) -> None:
        try:
            why = await self._service.finish(self._drain_s, self._hurry)
            # Calls still there end as cancelled, and their clients hear of it before the
            # listener closes.
            before = self._cancelled()
            await self._service.stop(f"the server stopped before the call had finished ({why})")
            _log.info("Stopped; %s cancelled", _calls(self._cancelled() - before))
        finally:
            self.should_exit = True

    def _cancelled(self) -> int:
        return int(self._service.pool.stats().outcomes.get("Cancelled", 0))


def _calls(number: int) -> str:
    return "1 call" if number == 1 else f"{number} calls"


def serve_lb(
    settings: Settings,
    announce: Callable[[socket.socket, socket.socket], None],
    *,
    port_setting: str = "FLASHPOOL_PORT",
) -> None:
    """Serve until a signal. ``announce`` is called with both sockets once it listens.

    ``port_setting`` is what to set where the port is taken.
    """
    modes.check_live(modes.of_balanced(os.environ), os.environ)
    check_open(settings)
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(bind(settings.host, settings.port, port_setting))
        admin_sock = stack.enter_context(bind_admin(settings))
        harden()
        give_way()
        run_loop(_serve(settings, sock, admin_sock, announce))


async def _serve(
    settings: Settings,
    sock: socket.socket,
    admin_sock: socket.socket,
    announce: Callable[[socket.socket, socket.socket], None],
) -> None:
    service = make_service(settings, settings.result_limit_mb * 1024 * 1024)
    admin = Admin(service.pool, settings, admin_sock)
    server = LbServer(service, admin, settings, lambda: announce(sock, admin_sock))
    await server.serve(sockets=[sock])


def check_admin(settings: Settings) -> None:
    """Refuse to show the pool's inside to a whole network by accident."""
    if not settings.allow_open and not is_loopback(settings.admin_host):
        raise OpenServerError(
            f"Refusing to show stats on {settings.admin_host}: they hold names and error texts "
            "of calls, and no token guards them. Set FLASHPOOL_ADMIN_HOST=127.0.0.1 or, where "
            "the network itself is guarded, FLASHPOOL_ALLOW_OPEN=yes."
        )


def check_open(settings: Settings) -> None:
    """The same, and refuse to serve code execution to one."""
    check_admin(settings)
    if settings.allow_open or settings.token or is_loopback(settings.host):
        return
    if not settings.on_pod:
        raise OpenServerError(
            f"Refusing to listen on {settings.host} without a token: whoever reaches it could "
            "run code here. Set FLASHPOOL_TOKEN, or FLASHPOOL_HOST=127.0.0.1, or, where the "
            "network itself is guarded, FLASHPOOL_ALLOW_OPEN=yes."
        )
    _log.warning(
        "Listening on %s without a token, as RunPod's pods do: the platform is the only guard. "
        "FLASHPOOL_TOKEN adds one",
        settings.host,
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def give_way() -> None:
    """Wait for a core in turn, in place of taking it from a call whenever something arrives.

    The server is woken several times for each call, and each time would push a worker aside
    that is about to answer. As it is, more has arrived when its turn comes, and is done
    together. Zygotes, and so calls, are scheduled as ever; builds of environments like it.
    """
    if os.sched_getscheduler(0) == os.SCHED_OTHER:  # else somebody has decided
        with contextlib.suppress(OSError):
            policy = os.SCHED_BATCH | os.SCHED_RESET_ON_FORK
            os.sched_setscheduler(0, policy, os.sched_param(0))


def run_loop(main: Coroutine[Any, Any, None]) -> None:
    """``asyncio.run``, on uvloop where that is installed."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)
