"""The load-balanced front-end for a server that is not ours: ``uvicorn lb_handler:app``.

What `serving` does around its listener is done here as far as an application can: settings,
the refusal of open addresses (uvicorn's ``--host`` is looked for where uvicorn finds it), the
hardening of the process, and the admin port while the application lives. Signals, deadlines
and the drain are uvicorn's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI

from flashpool.envs import StoreUnavailable
from flashpool.envs.places import check_volume
from flashpool.pool.settings import Settings, SettingsError

from . import modes
from .admin import Admin, bind_admin
from .assembly import make_service
from .hardening import harden
from .lb import create_app
from .logs import configure_log
from .pending import CallPool
from .serving import OpenServerError, check_open

_log = logging.getLogger(__name__)

_LOCAL = "127.0.0.1"


def create_hosted_app() -> FastAPI:
    """The application, by the environment; exits with a message where there can be none."""
    try:
        modes.check_live(modes.of_balanced(os.environ), os.environ)
        settings = Settings.from_environ(
            {**os.environ, "FLASHPOOL_HOST": _host(sys.argv, os.environ)}
        )
        check_open(settings)
        oddities = check_volume(settings.to_env_settings())
    except (modes.ModeError, SettingsError, OpenServerError, StoreUnavailable) as error:
        # uvicorn would print the traceback of an exception around it.
        raise SystemExit(f"Error: {error}") from None
    configure_log(settings.log_level)
    for sentence in oddities:
        _log.warning(sentence)
    harden()
    service = make_service(settings, settings.result_limit_mb * 1024 * 1024)
    app = create_app(service, settings)
    _add_admin(app, service.pool, settings)
    return app


def _add_admin(app: FastAPI, pool: CallPool, settings: Settings) -> None:
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(of: FastAPI) -> AsyncIterator[None]:
        # Bound here: a process that only imports the application has no business with ports.
        sock = await asyncio.to_thread(bind_admin, settings)
        admin = Admin(pool, settings, sock)
        async with inner(of):
            await admin.start()
            try:
                yield
            finally:
                await admin.stop()

    app.router.lifespan_context = lifespan


def _host(command: Sequence[str], environ: Mapping[str, str]) -> str:
    """Where uvicorn is told to listen: by its last option, else by its variable."""
    host = environ.get("UVICORN_HOST")
    for option, value in zip(command, [*command[1:], ""], strict=True):
        if option == "--host":
            host = value
        elif option.startswith("--host="):
            host = option.partition("=")[2]
    return host or _LOCAL
