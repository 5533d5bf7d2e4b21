"""``flashpool serve lb`` and ``serve app``: from settings to a process that exits with status 0.

    bind the sockets -> harden -> loop: service, admin, /execute or an app -> first signal: drain
      |                                                               |  (second: at once)
      `- ModeError, OpenServerError, ListenError: nothing has started `-> stop, close, 0

During a drain the listener stays open, so that probes get 503 and clients get Retry-After.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Protocol

from starlette.types import ASGIApp

from flashpool.frontends import modes
from flashpool.frontends.admin import Admin, Served, bind_admin
from flashpool.frontends.admin.served import Mode
from flashpool.frontends.apps.preparation import AppSource
from flashpool.frontends.assembly import make_live_routes, make_service
from flashpool.frontends.exposure import check_admin, check_open
from flashpool.frontends.http_server.listener import Listener, bind
from flashpool.frontends.server_process import (
    give_way,
    harden,
    raise_descriptors,
    run_loop,
    stop_signals,
)
from flashpool.frontends.service import Service
from flashpool.frontends.settings.table import Settings
from flashpool.frontends.shutdown import Shutdown

from .app import create_app
from .deployed import DeployedEndpoint

_log = logging.getLogger(__name__)


class LbServer(Listener):
    """A listener whose first signal begins a drain, and whose second signal ends it."""

    def __init__(
        self,
        app: ASGIApp,
        service: Service,
        settings: Settings,
        on_start: Callable[[], None],
    ) -> None:
        self._deployed = app if isinstance(app, DeployedEndpoint) else None
        super().__init__(app, settings, websockets=self._deployed is not None)
        self._on_start = on_start
        what = "call" if self._deployed is None else "request"
        self._shutdown = Shutdown(service, settings.drain_s, self._exit, what=what)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then announce the addresses."""
        await super().startup(sockets)
        self._on_start()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Queue signals for the loop."""
        loop = asyncio.get_running_loop()

        def enqueue(signum: int, _frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self._on_signal, signum)

        before = {signum: signal.signal(signum, enqueue) for signum in stop_signals()}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _on_signal(self, signum: int) -> None:
        if self._deployed is None or not self._deployed.restarts_at(signum):
            self._shutdown.on_signal(signal.Signals(signum).name)

    def _exit(self) -> None:
        # Only now: the clients of cancelled calls get their answers while the listener is open.
        self.should_exit = True


def serve_lb(
    settings: Settings,
    announce: Callable[[socket.socket, socket.socket | None], None],
    *,
    port_setting: str = "FLASHPOOL_PORT",
) -> None:
    """Serve until a signal. ``announce`` is called with both sockets once the server listens.

    ``port_setting``: the setting to change if the port is in use, for an error.
    """
    if modes.of_balanced(os.environ) is modes.Mode.DEPLOYED_BALANCED:
        source = AppSource(settings, os.environ, modes.resource(os.environ))
        serve_app(settings, source, announce, port_setting=port_setting)
        return
    check_open(settings)
    _run(settings, partial(_live_app, settings=settings), "live", announce, port_setting)


def _live_app(service: Service, *, admin: Admin, settings: Settings) -> ASGIApp:
    return create_app(service, settings, admin, make_live_routes(service, settings))


def serve_app(
    settings: Settings,
    source: AppSource,
    announce: Callable[[socket.socket, socket.socket | None], None],
    *,
    port_setting: str = "FLASHPOOL_PORT",
) -> None:
    """Serve a deployed app, on any address without a token: the app runs only its own code."""
    check_admin(settings)
    _run(
        settings,
        partial(DeployedEndpoint, settings=settings, source=source),
        "app",
        announce,
        port_setting,
    )


class _MakeApp(Protocol):
    def __call__(self, service: Service, *, admin: Admin) -> ASGIApp: ...


def _run(
    settings: Settings,
    make_app: _MakeApp,
    mode: Mode,
    announce: Callable[[socket.socket, socket.socket | None], None],
    port_setting: str,
) -> None:
    raise_descriptors(settings)
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(bind(settings.host, settings.port, port_setting))
        socks = [sock]
        if settings.health_port not in (None, settings.port):
            health = bind(settings.host, settings.health_port, "FLASHPOOL_HEALTH_PORT")
            socks.append(stack.enter_context(health))
        admin_sock = stack.enter_context(bind_admin(settings))
        harden()
        give_way()
        run_loop(_serve(settings, make_app, mode, socks, admin_sock, announce))


async def _serve(
    settings: Settings,
    make_app: _MakeApp,
    mode: Mode,
    socks: list[socket.socket],
    admin_sock: socket.socket | None,
    announce: Callable[[socket.socket, socket.socket | None], None],
) -> None:
    service = make_service(settings, settings.result_limit_mb * 1024 * 1024)
    app = make_app(service, admin=Admin(Served.of(service, settings, mode), admin_sock))
    server = LbServer(app, service, settings, lambda: announce(socks[0], admin_sock))
    await server.serve(sockets=socks)
