"""The SDK's heartbeat process, made to exit with its worker, and not before.

The SDK starts the heartbeat as a daemonic child, which Python ends when the worker exits normally.
If the worker is killed, the child continues to report that a dead worker's jobs are in progress.
Here the kernel kills the child with its parent.

If the child is killed (the child is as large as the worker, so the kernel may choose it when memory
runs out), the SDK does not notice, and the platform considers a worker lost that still has jobs.
Here a thread of the worker takes over: a second fork would copy all sockets of a running pool. The
same applies to a child that exited before the loop could notice.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from typing import Any, Final

from runpod.serverless.modules import rp_ping
from runpod.serverless.modules.worker_state import JobsProgress, PingJobMirror

_log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG: Final = 1


class Heartbeat:
    """Replaces the SDK's heartbeat in the child. The worker creates this object."""

    def __init__(self, loop: Callable[..., Any]) -> None:
        self._loop = loop
        self._parent = os.getpid()

    def __call__(self, *args: Any) -> None:
        """Ping as long as the worker lives. Runs in the child's only thread."""
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != self._parent:
            os._exit(0)  # the worker died before prctl
        # Ignore Ctrl-C of a terminal: the worker handles it, and needs pings until it exits.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._loop(*args)

    async def keep(self) -> None:
        """Wait for the child to exit, if one was started; then ping from a thread."""
        if not rp_ping.Heartbeat._process_started:
            return  # the variables of a pod are not set: no platform expects pings
        how = "before the worker began"
        for child in multiprocessing.active_children():
            await _exited(child.sentinel)
            how = f"exit code {child.exitcode}"
        _log.warning(
            "The heartbeat process exited (%s): continuing the heartbeat in this process", how
        )
        # A new mirror: the child may have died while it held the lock of the old one.
        mirror = PingJobMirror()
        JobsProgress().set_mirror(mirror)
        threading.Thread(target=self._loop, args=(mirror,), name="heartbeat", daemon=True).start()


async def _exited(sentinel: int) -> None:
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sentinel, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(sentinel)
