"""The ends of requests that the app has not answered, with their messages."""

from __future__ import annotations

from collections.abc import Iterable

from flashpool.pool._child import app_messages
from flashpool.pool.apps import AppEnd, EndKind
from flashpool.pool.exit_causes import Cause

from . import states
from .requests import LiveRequest

_HOW = {
    app_messages.UNANSWERED: (EndKind.RAISED, "AppRaised"),
    app_messages.CANCELLED: (EndKind.RAISED, "Cancelled"),
    app_messages.CUT: (EndKind.CUT, "AppRaised"),
    app_messages.FINE: (EndKind.ANSWERED, ""),
}


def of_task(how: int) -> AppEnd | None:
    """Return the end of a request whose task is over; None for a way of ending that is unknown.

    ``how``: the worker's report.
    """
    found = _HOW.get(how)
    return None if found is None else AppEnd(kind=found[0], error_type=found[1], began=True)


def late(live: LiveRequest, queue_timeout_s: float | None) -> AppEnd:
    """Return the end of a request that exceeded a time limit."""
    limit = live.limit_s
    if live.worker is None:
        phase = "queue"
        what = f"waited for a worker longer than {queue_timeout_s:g} s (FLASHPOOL_QUEUE_TIMEOUT_S)"
    elif live.socket:
        phase, what = "idle", f"had no message for its limit of {limit:g} s"
    else:
        stood = " of its answer's next piece" if live.started else ""
        phase, what = "run", f"ran longer than its limit{stood} of {limit:g} s"
    whose = "WebSocket" if live.socket else "request"
    message = f"the {whose} {what} (phase: {phase})"
    return AppEnd(kind=EndKind.LATE, error_type="Timeout", message=message, phase=phase)


def lost(command: states.LoseRequest, cause: Cause) -> AppEnd:
    """Return the end of a request whose worker died from this cause."""
    message, kind, error_type = cause.message, EndKind.CRASHED, cause.error_type
    if command.sibling:
        message = f"its worker was ended because of another request: {cause.message}"
        kind, error_type = EndKind.LOST, "ResidentLost"
    return AppEnd(kind=kind, error_type=error_type, message=message, began=command.began)


def not_loaded(failure: str) -> AppEnd:
    """Return the end of a request whose app cannot be loaded."""
    message = f"the application cannot be loaded: {failure}"
    return AppEnd(kind=EndKind.FAILED, error_type="AppNotLoaded", message=message)


def refused(why: str) -> AppEnd:
    """Return the end of a request that is refused, because no room is free or the pool stops."""
    return AppEnd(kind=EndKind.REFUSED, error_type="Overloaded", message=why)


def too_many(waiting: int) -> AppEnd:
    """Return the end of a request if the wait queue is full."""
    return refused(f"{waiting} requests wait already")


def target(fields: Iterable[bytes]) -> str:
    """Return method and path of a request, for messages."""
    _, method, _, path, *_ = fields
    return f"{method.decode()} {path.decode('utf-8', 'backslashreplace')!r}"
