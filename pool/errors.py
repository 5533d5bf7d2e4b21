"""Every way a call or a request can fail, one tree.

    FlashpoolError
    |-- InvalidRequest          the request is malformed; fix it and send it again
    |-- Unauthorized            no token, or a wrong one
    |-- InstanceConflict        another class, or other packages, under a name in use
    |-- PayloadTooLarge         the request is larger than the server accepts
    |-- Overloaded              queue full or draining; retry after ``retry_after_s``
    |-- PoolClosed              submitted to a pool that was shut down (a RuntimeError too)
    `-- CallError               the call was accepted, and ended without a result of its own
        |-- Timeout             a limit passed: queue, build, start or run (a TimeoutError too)
        |   `-- SoftTimeout     the call's soft limit passed; raised within the call
        |-- WorkerCrashed       its process died: signal, exit code, last output
        |-- OutOfMemory         its process was killed for memory, with the evidence
        |-- ResultTooLarge      the result is larger than the answer may be
        |-- ResultNotSerializable   the result cannot be pickled or written as JSON
        |-- Cancelled           the caller cancelled it, or went away
        |-- ResidentLost        another call's failure took the shared worker; safe to retry
        |-- InstanceLost        the instance that the call requires is gone; says why
        |-- RemoteException     user code raised an exception that cannot be rebuilt here
        `-- EnvironmentError    its virtualenv cannot be built, or its zygote does not start
            `-- EnvironmentStartFailed

Each error carries a message for people and ``details``, plain data for programs; the name of its
class is the ``error_type`` of a response. Pickling keeps message and details.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

Details = dict[str, Any]


class FlashpoolError(Exception):
    """Base of all errors of flashpool.

    ``details`` holds JSON-able facts (phase, signal, exit_code, limits).
    """

    #: Whether sending the same call again, unchanged, may succeed.
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details: Details = details

    def __reduce__(self) -> tuple[Callable[..., FlashpoolError], tuple[Any, ...]]:
        # Exception's own __reduce__ replays args only and would lose the details.
        return _rebuild, (type(self), self.message, self.details)


def _rebuild(kind: type[FlashpoolError], message: str, details: Details) -> FlashpoolError:
    return kind(message, **details)


class InvalidRequest(FlashpoolError, ValueError):
    """The request is malformed, or its arguments cannot be decoded."""


class Unauthorized(FlashpoolError):
    """The bearer token is missing or wrong."""


class PayloadTooLarge(FlashpoolError):
    """The request's body is larger than the server accepts."""


class Overloaded(FlashpoolError):
    """The queue is full or the pool is draining; ``details['retry_after_s']`` says when."""

    retryable: ClassVar[bool] = True


class PoolClosed(FlashpoolError, RuntimeError):
    """The pool was shut down, or belongs to another process."""


class InstanceConflict(FlashpoolError):
    """The instance of that name has other code, packages or resources."""


class CallError(FlashpoolError):
    """A call that was accepted and did not end with a result or a user exception."""


class Timeout(CallError, TimeoutError):
    """A time limit passed; ``details['phase']`` is queue, build, start or run."""


class SoftTimeout(Timeout):
    """The call's soft time limit passed: raised in its main thread, so that ``finally`` runs.

    In a call that cannot import this class, a `TimeoutError` of the same name is raised.
    """


class WorkerCrashed(CallError):
    """The worker died; ``details`` has ``signal``, ``exit_code`` and ``last_output``."""


class OutOfMemory(CallError):
    """The worker was killed for memory; ``details`` has ``evidence`` and ``confidence``."""


class ResultTooLarge(CallError):
    """The result does not fit into the answer; ``details`` has ``size`` and ``limit``."""


class ResultNotSerializable(CallError):
    """The result cannot be pickled or written as JSON."""


class Cancelled(CallError):
    """The call was cancelled."""


class ResidentLost(CallError):
    """The shared worker was killed because of another call in it."""

    retryable: ClassVar[bool] = True


class InstanceLost(CallError):
    """The instance was evicted, closed or lost, and the call requires the existing one."""


class RemoteException(CallError):
    """User code raised an exception that cannot be rebuilt here.

    ``details['class_name']`` is its qualified class name.
    """


class EnvironmentError(CallError):  # noqa: A001 - the documented error_type; the builtin is an alias of OSError
    """The environment of the call cannot be used."""


class EnvironmentStartFailed(EnvironmentError):
    """The environment's interpreter did not start; ``details`` has its last output."""


#: error_type -> class, to rebuild an error from its type, message and details.
BY_NAME: dict[str, type[FlashpoolError]] = {
    kind.__name__: kind
    for kind in (
        InvalidRequest,
        Unauthorized,
        InstanceConflict,
        PayloadTooLarge,
        Overloaded,
        PoolClosed,
        Timeout,
        SoftTimeout,
        WorkerCrashed,
        OutOfMemory,
        ResultTooLarge,
        ResultNotSerializable,
        Cancelled,
        ResidentLost,
        InstanceLost,
        RemoteException,
        EnvironmentError,
        EnvironmentStartFailed,
    )
}
