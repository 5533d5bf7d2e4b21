"""Turns a call's failure into the exception that its caller sees.

    Outcome -- from user code --> the original exception, unpickled, with its frames
       |            `-- cannot be rebuilt here --> RemoteException
       `------ ended by the pool --> errors.BY_NAME[error_type], with details

The text of the remote traceback becomes the cause at the end of the exception's own chain of
causes, so that an uncaught error prints it, with source lines that this machine does not have. Only
the program that made the call does this: unpickling runs code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from flashpool.pool._child.serialization.by_value import known_classes
from flashpool.pool._child.serialization.payload import say
from flashpool.pool.calls import Outcome
from flashpool.pool.errors import BY_NAME, CallError, FlashpoolError, RemoteException, WorkerCrashed
from flashpool.pool.exit_causes import TAIL_HEADING
from flashpool.pool.workers.ends import outcomes

#: Advice that is for requests, and the same advice for `Pool`.
_ADVICE: Final = {
    "Raise timeout_s": "Raise timeout",
    "give the server more slots": "give the pool more max_workers",
    "raise FLASHPOOL_QUEUE_LIMIT": "raise queue_limit",
}
#: Advice for a module that is not installed.
_REMEDY: Final = 'name the package that provides it, as in pool.options(dependencies=["a-package"])'


class RemoteTraceback(Exception):
    """The traceback of the worker, as text; the cause of the exception that a call raised."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text.rstrip()}\n"""'


def restore(outcome: Outcome) -> BaseException:
    """Return the exception for a failed outcome; never raise it."""
    if not outcome.from_user:
        return _of_pool(outcome)
    exception = _unpickle(outcome)
    if outcome.error:
        _attach(exception, RemoteTraceback(outcomes.told(outcome, _REMEDY)))
    return exception


def _of_pool(outcome: Outcome) -> FlashpoolError:
    kind = BY_NAME.get(outcome.error_type or "", CallError)
    error = kind(_advising(outcome.error or "") or f"the call ended as {outcome.error_type}")
    error.details.update(outcome.details)
    return error


def refused(error: Exception) -> Exception:
    """Return the error of a refused call, with advice for programs."""
    if not isinstance(error, FlashpoolError):
        return error
    return type(error)(_advising(error.message), **error.details)


def _advising(message: str) -> str:
    """Replace advice for requests by advice for programs; keep the call's last output."""
    words, heading, output = message.partition(TAIL_HEADING)
    for name, ours in _ADVICE.items():
        words = words.replace(name, ours)
    return f"{words}{heading}{output}"


def _unpickle(outcome: Outcome) -> BaseException:
    if not outcome.exception:
        return _stand_in(outcome, "it cannot be pickled")
    try:
        exception = known_classes.load(outcome.exception)
    except BaseException as error:  # noqa: BLE001 - the class's own code; its exit must not be ours
        return _stand_in(outcome, f"unpickling it here failed with {say(error)}")
    if not isinstance(exception, BaseException):
        return _stand_in(
            outcome, f"it came back as {type(exception).__name__}, which is not an exception"
        )
    return exception


def _stand_in(outcome: Outcome, why: str) -> RemoteException:
    name = _class_name(outcome.details) or outcome.error_type or "Exception"
    last_line = (outcome.error or "").strip().rpartition("\n")[2]
    error = RemoteException(f"the call raised {name} ({why}): {last_line}")
    error.details.update(outcome.details)
    error.details["class_name"] = name
    return error


def _class_name(details: Mapping[str, Any]) -> str | None:
    name = details.get("class_name")
    return name if isinstance(name, str) else None


def _attach(exception: BaseException, text: RemoteTraceback) -> None:
    """Set the text as the cause where the chain of causes ends; keep the user's own causes."""
    seen = {id(exception)}
    last = exception
    while last.__cause__ is not None:
        last = last.__cause__
        if id(last) in seen:
            return
        seen.add(id(last))
    suppressed = last.__suppress_context__
    last.__cause__ = text
    last.__suppress_context__ = suppressed


def unexpected(error: BaseException) -> FlashpoolError:
    """Return the error for futures that fail because the pool's loop ended with this error."""
    failure = WorkerCrashed(f"the pool's own thread failed, and this call with it: {say(error)}")
    failure.__cause__ = error
    return failure
