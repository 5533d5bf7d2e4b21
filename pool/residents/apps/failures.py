"""Why an app cannot be loaded: through its own fault, or for want of what may come back."""

from __future__ import annotations

from typing import Final

from flashpool.pool.exit_causes import Cause

#: A detail of the cause when no worker can be had.
NO_WORKER: Final = "no_worker"
#: Failures of an environment that it will have again, unless what is asked for changes.
_OWN: Final = frozenset(
    {
        *("InterpreterMissing", "ResolutionFailed", "SourceRefused", "VerificationFailed"),
        *("BuildFailed", "CompilerMissing", "SystemPackagesFailed"),
    }
)


def passes(cause: Cause) -> bool:
    """Whether loading it may go well later, with everything of the app as it is.

    What the app does itself, a death included, is its own fault: of an environment, what the index
    or its packages say; not that the index, the volume, room on a disk or a GPU is missing.
    """
    details = cause.details
    if "kind" in details:
        return details["kind"] not in _OWN
    return NO_WORKER in details or details.get("phase") == "build"
