"""Decides whether an app's own fault keeps it from loading, or something temporary."""

from __future__ import annotations

from typing import Final

from flashpool.pool.exit_causes import Cause

#: A detail of the cause if no worker is available.
NO_WORKER: Final = "no_worker"
#: Failures of an environment that repeat unless the request changes.
_OWN: Final = frozenset(
    {
        *("InterpreterMissing", "ResolutionFailed", "SourceRefused", "VerificationFailed"),
        *("BuildFailed", "CompilerMissing", "SystemPackagesFailed"),
    }
)


def passes(cause: Cause) -> bool:
    """Return whether loading may succeed later, with an unchanged app.

    What the app itself does, including a death, is its own fault. So are failures of its
    environment that the index or packages report; not so a missing index, volume, disk space or
    GPU.
    """
    details = cause.details
    if "kind" in details:
        return details["kind"] not in _OWN
    return NO_WORKER in details or details.get("phase") == "build"
