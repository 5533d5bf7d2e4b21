"""`serve`: an admin listener for a program with a `Pool`, on the loop of the pool.

with Pool() as pool, serve(pool) as admin:
    print(admin.url)
"""

from __future__ import annotations

import dataclasses
import socket
from types import TracebackType
from typing import TYPE_CHECKING, Final

from flashpool.frontends.exposure import check_admin
from flashpool.frontends.http_server.listener import url
from flashpool.frontends.settings.table import Settings

from .listener import Admin, open_socket
from .served import Served

if TYPE_CHECKING:
    from flashpool.pool import Pool
    from flashpool.pool.backend import Backend


class AdminServer:
    """An admin listener of a pool. It stops with `close`, or with the pool."""

    def __init__(self, pool: Pool, settings: Settings, sock: socket.socket) -> None:
        self.url: Final = url(sock)
        # The pool starts here, as it would with a first call.
        self._attachments = pool._pool()._engine_to_submit().attachments
        self._admin: Admin | None = None
        self._settings = settings
        self._sock = sock

    def start(self) -> None:
        """Start serving; return once the listener accepts connections.

        Raises:
            PoolClosed: the pool is shut down.
        """
        self._attachments.attach(self._make)

    def _make(self, backend: Backend) -> Admin:
        self._admin = Admin(
            Served(pool=backend, settings=self._settings, mode="program"), self._sock
        )
        return self._admin

    def close(self) -> None:
        """Stop serving; the pool continues."""
        admin, self._admin = self._admin, None
        if admin is not None:
            self._attachments.detach(admin)

    def __enter__(self) -> AdminServer:  # noqa: PYI034 - Self is not in Python 3.10
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<AdminServer {self.url}>"


def serve(pool: Pool, *, host: str | None = None, port: int | None = None) -> AdminServer:
    """Serve statistics, probes and the page of a pool, by default on loopback.

    ``host`` and ``port`` override FLASHPOOL_ADMIN_HOST and FLASHPOOL_ADMIN_PORT; port 0 picks a
    free port. The token is FLASHPOOL_ADMIN_TOKEN, or is created and kept as in a server.

    Raises:
        ListenError: the address cannot be bound.
        OpenServerError: the address is open to the network, and no token guards it.
        PoolClosed: the pool is shut down.
        SettingsError: a FLASHPOOL_* variable is invalid.
    """
    settings = Settings.from_environ()
    origins = dict(settings.origins)
    if port is not None:
        origins["admin_port"] = "environment"
    settings = dataclasses.replace(
        settings,
        admin_host=settings.admin_host if host is None else host,
        admin_port=(settings.admin_port or 0) if port is None else port,
        origins=origins,
    )
    check_admin(settings)
    sock = open_socket(settings)
    assert sock is not None
    try:
        server = AdminServer(pool, settings, sock)
        server.start()
    except BaseException:
        sock.close()
        raise
    return server
