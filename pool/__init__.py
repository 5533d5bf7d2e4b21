"""The pool: supervisor, scheduler, zygotes, workers, GPUs, and `Pool` itself.

Names are imported when they are first used (`lazy_names`): code that needs one module of this
package, such as the builder of environments, does not import all of it, and imports form no cycle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flashpool.envs.lazy_names import lazy_names

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

#: The modules that define the names that are not in `errors`.
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

__getattr__, __dir__ = lazy_names(globals(), __all__, _HOMES)
