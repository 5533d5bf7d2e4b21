"""One process of an app: its worker, ledger and output."""

from __future__ import annotations

import mmap
import os

from flashpool.pool._child import app_messages
from flashpool.pool.workers.worker import Worker

from .output import AppOutput


class AppProcess:
    """One worker of an app."""

    __slots__ = (
        "closing",
        "dead",
        "ledger",
        "ledger_fd",
        "loaded_at",
        "number",
        "once",
        "output",
        "worker",
    )

    def __init__(self, number: int, worker: Worker, slots: int, name: str, *, once: bool) -> None:
        self.number = number
        #: Whether the process serves a single request.
        self.once = once
        self.worker = worker
        self.output = AppOutput(name, worker.pid)
        #: When the app was loaded, in seconds since 1970.
        self.loaded_at: float | None = None
        self.dead = False
        #: Whether the process was asked to shut down.
        self.closing = False
        fd = os.memfd_create("flashpool-app", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, slots * app_messages.ENTRY.size)
            self.ledger = mmap.mmap(fd, 0)
        except BaseException:
            os.close(fd)
            raise
        #: The ledger's descriptor, until it is sent to the worker.
        self.ledger_fd = fd

    def has_begun(self, slot: int, number: int) -> bool:
        """Return whether a request has entered the application."""
        (found,) = app_messages.ENTRY.unpack_from(self.ledger, slot * app_messages.ENTRY.size)
        return bool(found == number)
