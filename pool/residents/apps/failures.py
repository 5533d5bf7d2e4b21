"""Decides whether a load failed because of the app itself, or for a temporary cause."""

from __future__ import annotations

from typing import Final

from flashpool.pool.exit_causes import Cause

#: The detail that marks a cause as "no worker is available".
NO_WORKER: Final = "no_worker"
#: Failures of an environment that repeat unless the app changes.
_OWN: Final = frozenset(
    {
        *("InterpreterMissing", "ResolutionFailed", "SourceRefused", "VerificationFailed"),
        *("BuildFailed", "CompilerMissing", "SystemPackagesFailed"),
    }
)


def passes(cause: Cause) -> bool:
    """Return whether loading may succeed later, with an unchanged app.

    An error or death in the app is its own fault. So are failures of its environment that the index
    or its packages cause; a missing index, volume, disk space or GPU is temporary.
    """
    details = cause.details
    if "kind" in details:
        return details["kind"] not in _OWN
    return NO_WORKER in details or details.get("phase") == "build"
