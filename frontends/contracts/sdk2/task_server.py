"""``flashpool serve task``: the server of a task's pod, from settings to exit status 0."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Final

from flashpool.frontends.admin import Admin, Served, bind_admin
from flashpool.frontends.assembly import make_service
from flashpool.frontends.exposure import check_admin
from flashpool.frontends.http_server.listener import bind
from flashpool.frontends.lb.server import LbServer
from flashpool.frontends.server_process import give_way, harden, raise_descriptors, run_loop
from flashpool.frontends.settings.table import Settings

from .task_app import TaskApp

__all__ = ["TaskTokenMissing", "serve_task", "task_variables"]

_TOKEN: Final = "RUNPOD_TASK_TOKEN"  # noqa: S105 - the name of a variable
_PORT: Final = "RUNPOD_TASK_PORT"
_IDLE: Final = "RUNPOD_TASK_IDLE_TIMEOUT"
_DEFAULT_PORT: Final = "8080"
_DEFAULT_IDLE_S: Final = 600.0
_Announce = Callable[[socket.socket, socket.socket | None], None]


class TaskTokenMissing(Exception):
    """Without a token, no client can send a task; the message says what to set."""


def task_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the defaults of settings in a task's pod, such as no time limit."""
    found = {
        "FLASHPOOL_PORT": environ.get(_PORT, "") or _DEFAULT_PORT,
        "FLASHPOOL_CALL_TIMEOUT_S": "none",
    }
    return {name: value for name, value in found.items() if not environ.get(name)}


def serve_task(settings: Settings, announce: _Announce) -> None:
    """Serve until a signal. ``announce`` is called with both sockets once the server listens.

    Raises:
        TaskTokenMissing: no token is set.
    """
    if not os.environ.get(_TOKEN):
        raise TaskTokenMissing(f"{_TOKEN} is not set; without it no client may send a task")
    check_admin(settings)
    raise_descriptors(settings)
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(bind(settings.host, settings.port, _PORT))
        admin_sock = stack.enter_context(bind_admin(settings))
        harden()
        give_way()
        run_loop(_serve(settings, sock, admin_sock, announce))


async def _serve(
    settings: Settings, sock: socket.socket, admin_sock: socket.socket | None, announce: _Announce
) -> None:
    service = make_service(settings, settings.result_limit_mb * 1024 * 1024)
    app = TaskApp(
        service,
        Admin(Served.of(service, settings, "live"), admin_sock),
        token=os.environ[_TOKEN],
        most_bytes=settings.max_body_mb * 1024 * 1024,
        idle_s=_idle_s(os.environ),
        end_pod=_pod_end(os.environ),
    )
    server = LbServer(app, service, settings, lambda: announce(sock, admin_sock))
    await server.serve(sockets=[sock])


def _idle_s(environ: Mapping[str, str]) -> float:
    with suppress(ValueError):
        return max(1.0, float(environ.get(_IDLE, _DEFAULT_IDLE_S)))
    return _DEFAULT_IDLE_S


def _pod_end(environ: Mapping[str, str]) -> Callable[[], None] | None:
    """Return the function that terminates this pod; None outside a pod, or without permission."""
    pod, key = environ.get("RUNPOD_POD_ID"), environ.get("RUNPOD_API_KEY")
    return partial(_end_pod, pod, key) if pod and key else None


def _end_pod(pod: str, key: str) -> None:
    import runpod

    runpod.api_key = key
    runpod.terminate_pod(pod)
