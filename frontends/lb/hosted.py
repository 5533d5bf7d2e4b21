"""The load-balanced front-end under another server: ``uvicorn lb_handler:app``.

The application does most of what `server` does around its listener: settings, the refusal of open
addresses (from uvicorn's ``--host`` or variable), hardening of the process, and the admin port
during the lifespan. Deadlines for clients are uvicorn's. So are signals, except that uvicorn would
wait for running calls without a limit:

    signal --> uvicorn: no new connections, wait for unanswered requests --> shutdown
         `---> here: drain --(its limit, or a second signal)--> cancel the calls, and answer them
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import FrameType
from typing import Any, Protocol

from starlette.types import ASGIApp

from flashpool.envs import StoreUnavailable
from flashpool.envs.store.locations import check_volume
from flashpool.frontends import modes
from flashpool.frontends.admin import Admin, Served, stats_url
from flashpool.frontends.admin.listener import open_socket
from flashpool.frontends.apps.preparation import AppSource
from flashpool.frontends.assembly import make_live_routes, make_service
from flashpool.frontends.exposure import OpenServerError, check_admin, check_open
from flashpool.frontends.http_server.listener import bind
from flashpool.frontends.http_server.side_listener import SideListener, WithoutLife
from flashpool.frontends.logs.setup import configure_log
from flashpool.frontends.logs.writer import print_from_threads, wait_for_readers
from flashpool.frontends.server_process import (
    TooFewDescriptors,
    give_way,
    harden,
    has_terminal,
    raise_descriptors,
    stop_signals,
)
from flashpool.frontends.service import Service
from flashpool.frontends.settings.table import Settings, SettingsError
from flashpool.frontends.shutdown import Shutdown

from .app import create_app
from .deployed import DeployedEndpoint

_log = logging.getLogger(__name__)

_LOCAL = "127.0.0.1"
_Handler = Callable[[int, FrameType | None], Any]


def create_hosted_app() -> ASGIApp:
    """Return the application that the environment asks for; exit with a message on errors."""
    try:
        mode = modes.of_balanced(os.environ)
        settings = Settings.from_environ(
            {**os.environ, "FLASHPOOL_HOST": _host(sys.argv, os.environ)}
        )
        check = check_open if mode is modes.Mode.LIVE_BALANCED else check_admin
        check(settings)
        raise_descriptors(settings)
        oddities = check_volume(settings.to_env_settings())
    except (
        modes.ModeError,
        SettingsError,
        OpenServerError,
        StoreUnavailable,
        TooFewDescriptors,
    ) as error:
        # uvicorn would print the traceback of an exception around it.
        raise SystemExit(f"Error: {error}") from None
    print_from_threads()
    configure_log(settings.log_level, settings.log_format)
    for sentence in oddities:
        _log.warning(sentence)
    harden()
    give_way()
    service = make_service(settings, settings.result_limit_mb * 1024 * 1024)
    if mode is modes.Mode.LIVE_BALANCED:
        app = create_app(service, settings, routes=make_live_routes(service, settings))
        what = f"Live calls, on slots: {settings.slots}"
        _surround(app.router, app, service, Served.of(service, settings, "live"), what)
        return app
    resource = modes.resource(os.environ)
    endpoint = DeployedEndpoint(service, settings, AppSource(settings, os.environ, resource))
    served = Served.of(service, settings, "app")
    _surround(endpoint, endpoint, service, served, f"The app {resource}")
    return endpoint


class _Side(Protocol):
    """A listener beside that of the hosting server."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


class _Living(Protocol):
    """An application with a lifespan that can be wrapped."""

    lifespan_context: Callable[[Any], AbstractAsyncContextManager[Any]]


def _surround(living: _Living, app: ASGIApp, service: Service, served: Served, what: str) -> None:
    inner, settings = living.lifespan_context, served.settings

    @asynccontextmanager
    async def lifespan(of: Any) -> AsyncIterator[None]:
        # Bound here: a process that only imports the application must not take ports.
        sock = await asyncio.to_thread(open_socket, settings)
        probes = await asyncio.to_thread(_bind_probes, settings)
        _log.info("%s; stats: %s", what, stats_url(sock))
        sides: list[_Side] = [Admin(served, sock)]
        sides += [SideListener(WithoutLife(app), settings, one) for one in probes]
        async with inner(of):
            for side in sides:
                await side.start()
            try:
                with _minding_signals(service, settings.drain_s, living):
                    yield
            finally:
                for side in sides:
                    await side.stop()
        # uvicorn logs its last lines after this, and then exits by the signal that stopped it.
        wait_for_readers()

    living.lifespan_context = lifespan


def _bind_probes(settings: Settings) -> list[socket.socket]:
    """Return the socket of FLASHPOOL_HEALTH_PORT, unless uvicorn listens on that port."""
    port = settings.health_port
    if port is None or str(port) == _option("--port", sys.argv, os.environ, "UVICORN_PORT"):
        return []
    return [bind(settings.host, port, "FLASHPOOL_HEALTH_PORT")]


@contextlib.contextmanager
def _minding_signals(service: Service, drain_s: float, living: _Living) -> Iterator[None]:
    """Make the first signal begin a drain and the second end it, in addition to uvicorn's handlers.

    A signal that reloads a deployed app does only that.
    """
    deployed = living if isinstance(living, DeployedEndpoint) else None
    what = "call" if deployed is None else "request"
    loop, shutdown = asyncio.get_running_loop(), Shutdown(service, drain_s, what=what)

    def on_signal(signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGHUP and deployed is not None and not has_terminal():
            loop.call_soon_threadsafe(deployed.restarts_at, signum)
            return
        loop.call_soon_threadsafe(shutdown.on_signal, signal.Signals(signum).name)
        before[signum](signum, frame)

    before = _handlers()
    there = {signum: signal.getsignal(signum) for signum in before}
    for signum in before:
        signal.signal(signum, on_signal)
    try:
        yield
    finally:
        for signum, handler in there.items():
            signal.signal(signum, handler)
        shutdown.abandon()


def _handlers() -> dict[int, _Handler]:
    """Return the server's signal handlers; empty if the server handles signals in another way."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    found = {signum: signal.getsignal(signum) for signum in stop_signals()}
    if found.get(signal.SIGHUP) is signal.SIG_DFL:
        # uvicorn does not handle SIGHUP, and would be killed by it.
        found[signal.SIGHUP] = found[signal.SIGTERM]
    return {signum: handler for signum, handler in found.items() if callable(handler)}


def _host(command: Sequence[str], environ: Mapping[str, str]) -> str:
    """Return the address on which uvicorn listens."""
    return _option("--host", command, environ, "UVICORN_HOST") or _LOCAL


def _option(name: str, command: Sequence[str], environ: Mapping[str, str], variable: str) -> str:
    """Return an option of uvicorn: the last on its command line, else its environment variable."""
    found = environ.get(variable, "")
    for option, value in zip(command, [*command[1:], ""], strict=True):
        if option == name:
            found = value
        elif option.startswith(f"{name}="):
            found = option.partition("=")[2]
    return found
