"""The pool: supervisor, scheduler, zygotes, workers, GPUs, and `Pool` itself.

Names are imported when they are first used: who needs one module of this package, such
as the builder of environments, must not pay for all of it, nor close a circle.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .calls import Receipt
    from .errors import (
        CallError,
        Cancelled,
        EnvironmentError,
        EnvironmentStartFailed,
        FlashpoolError,
        InstanceConflict,
        InstanceLost,
        InvalidRequest,
        OutOfMemory,
        Overloaded,
        PoolClosed,
        RemoteException,
        ResidentLost,
        ResultNotSerializable,
        ResultTooLarge,
        SoftTimeout,
        Timeout,
        WorkerCrashed,
    )
    from .executor.call_options import CallOptions
    from .executor.futures import CallFuture
    from .executor.pool import Pool, PoolView
    from .executor.remote_instances import RemoteInstance
    from .executor.streams import RemoteIterator
    from .executor.tracebacks import RemoteTraceback

__all__ = [
    "CallError",
    "CallFuture",
    "CallOptions",
    "Cancelled",
    "EnvironmentError",
    "EnvironmentStartFailed",
    "FlashpoolError",
    "InstanceConflict",
    "InstanceLost",
    "InvalidRequest",
    "OutOfMemory",
    "Overloaded",
    "Pool",
    "PoolClosed",
    "PoolView",
    "Receipt",
    "RemoteException",
    "RemoteInstance",
    "RemoteIterator",
    "RemoteTraceback",
    "ResidentLost",
    "ResultNotSerializable",
    "ResultTooLarge",
    "SoftTimeout",
    "Timeout",
    "WorkerCrashed",
]

#: Where the names are that are not in `errors`.
_HOMES = {
    "CallFuture": "executor.futures",
    "CallOptions": "executor.call_options",
    "Pool": "executor.pool",
    "PoolView": "executor.pool",
    "Receipt": "calls",
    "RemoteInstance": "executor.remote_instances",
    "RemoteIterator": "executor.streams",
    "RemoteTraceback": "executor.tracebacks",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f".{_HOMES.get(name, 'errors')}", __name__)
    value = globals()[name] = getattr(home, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
