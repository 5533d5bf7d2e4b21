"""The outcome of a call as bytes for the supervisor: result or exception, and the call's changes.

User code may have damaged the interpreter by then, so the functions needed here are bound
beforehand.
"""

from __future__ import annotations

import builtins
import sys

# Bound here: user code may have replaced or deleted them when the outcome is reported.
from builtins import BaseException, OSError, TimeoutError, getattr, isinstance, len, list, type  # noqa: UP029

from .. import processes, wire
from ..renewal import prepared
from ..sdk.handles import NeedsProcess, NeedsResident
from ..serialization import exception_pickling, flash, payload
from . import invoke

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..channel import Channel

    #: Form of the result, its bytes and descriptors; and the failure, if any.
    Outcome = tuple[str, bytes, list[int], dict[str, Any]]

#: The builtins of this process, and their original values.
_BUILTINS = builtins.__dict__
_OWN_BUILTINS = _BUILTINS.copy()


def encoded(
    value: Any, request: flash.Invocation | None, result_limit: int | None, *, last: bool
) -> Outcome:
    """Return the outcome of a call that returned; ``request`` is None if the call was pickled.

    ``last``: this process exits now, so nothing else will use the value.
    """
    if value is invoke.STREAMED:
        if request is None or request.items is None:
            return "stream", b"", [], {}
        value = request.items
    if request is None:
        return "pickle", *_dump(payload.dump_result, value, last), {}
    body = _dump(flash.dump_result, value, request.as_json)
    if result_limit is not None and len(body) > result_limit:
        return "pickle", b"", [], _too_large(len(body), result_limit)
    return "json" if request.as_json else "pickle", body, [], {}


def failed(error: BaseException) -> Outcome:
    """Return the outcome of a call that raised, or that could not be begun or answered."""
    _BUILTINS.update(_OWN_BUILTINS)
    if isinstance(error, wire.BadRequest):
        return "pickle", b"", [], {"error_type": "InvalidRequest", "error": str(error)}
    if isinstance(error, exception_pickling.Unserializable):
        return "pickle", b"", [], {"error_type": "ResultNotSerializable", "error": str(error)}
    if isinstance(error, (NeedsResident, NeedsProcess)):
        return "pickle", b"", [], {"error_type": type(error).__name__, "error": str(error)}
    if type(error).__name__ == "SoftTimeout" and isinstance(error, TimeoutError):
        _, _, found = _capture(error)
        # The pool, and not user code, caused this exception.
        return "pickle", b"", [], {**found, "user": False}
    return "pickle", *_capture(error)


def _dump(dump: Callable[[Any, bool], Any], value: Any, how: bool) -> Any:
    """Dump a result; if that fails and user code changed builtins, restore them and try again."""
    try:
        return dump(value, how)
    except BaseException:
        if _BUILTINS == _OWN_BUILTINS:
            raise
        _BUILTINS.update(_OWN_BUILTINS)
        return dump(value, how)


def _capture(error: BaseException) -> tuple[bytes, list[int], dict[str, Any]]:
    """Return a report of the exception, or of the damage that prevents such a report."""
    try:
        record, body = exception_pickling.capture(error)
    except BaseException as problem:
        return b"", [], _damaged(problem, error)
    return body, [], {"user": True, **record}


def _damaged(problem: BaseException, raised: BaseException | None = None) -> dict[str, Any]:
    """Return the failure of a worker whose interpreter is damaged."""
    what = exception_pickling.summary(problem)
    error = (
        "the worker could not report how the call ended, because the call damaged its "
        f"interpreter (builtins, modules or hooks that Python itself needs): {what}"
    )
    if raised is not None:
        error += f". The call had raised {exception_pickling.summary(raised)}"
    return {"error_type": "WorkerCrashed", "error": error, "details": {"internal": what}}


def answer_damaged(
    channel: Channel,
    outcome: Outcome,
    run_s: float,
    error: BaseException,
    kind: int = wire.RESULT,
    number: bytes = b"",
) -> None:
    """Send the outcome after a first attempt failed, with as little of Python as possible."""
    _BUILTINS.update(_OWN_BUILTINS)
    form, body, fds, failure = outcome
    try:
        try:
            meta = wire.ResultMeta(ok=not failure, form=form, run_s=run_s, rss_kb=0, more=failure)
            channel.send(kind, number + meta.pack(), body, fds)
        except OSError:
            raise
        except BaseException as again:
            more = _damaged(again)
            meta = wire.ResultMeta(ok=False, form="pickle", run_s=run_s, rss_kb=0, more=more)
            channel.send(kind, number + meta.pack(), b"", [])
    except OSError:
        raise
    except BaseException:
        raise wire.Damaged(exception_pickling.summary(error)) from None


def changes(env: dict[str, str] | None, *, imported: bool) -> dict[str, list[str]]:
    """Return changes by the call to surroundings that imports read (``changed``), and variables
    that libraries may read (``native``).
    """
    found: dict[str, list[str]] = {}
    try:
        there, varying = prepared.surroundings, prepared.varying
        changed = there.changed()
        if not (changed or imported):
            return found
        if changed := [what for what in changed if what[4:] not in varying]:
            found["changed"] = changed
        names = {*(env or ()), *(what[4:] for what in changed if what.startswith("env:"))}
        own = [name for name in names - varying if "*" not in name]
        if imported and own and (native := there.known_to_libraries(own)):
            found["native"] = native
    except BaseException:
        # User code broke modules needed here: assume that all surroundings changed.
        found["changed"] = ["env:*", "path"]
    return found


def flush_output() -> None:
    """Flush printed output before the result is sent."""
    for stream in ("stdout", "stderr"):
        try:
            getattr(sys, stream).flush()
        except BaseException:  # replaced, closed or broken by user code
            pass
    processes.flush_c_streams()


def _too_large(size: int, limit: int) -> dict[str, Any]:
    return {
        "error_type": "ResultTooLarge",
        "error": f"the result is {size} bytes encoded and the answer may hold {limit}. "
        "Return less, or write it to a file or object store and return where it is.",
        "details": {"size": size, "limit": limit},
    }


def installed(names: list[str]) -> list[str]:
    """Return those modules that any process of this environment could import, too."""
    found = []
    for name in names:
        loader = getattr(getattr(sys.modules.get(name), "__spec__", None), "loader", None)
        kind = loader if isinstance(loader, type) else type(loader)
        if kind.__module__ in {"_frozen_importlib", "_frozen_importlib_external"}:
            found.append(name)
    return found
