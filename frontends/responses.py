"""Encodes an `Outcome`, or a refusal, as a response.

    success   {"success":true,"result":"<base64>", ... ,"receipt":{...}}
    failure   {"success":false,"error":"<message + traceback>","error_type": ... }

The result is the largest part and is already encoded, so a response is built by joining bytes,
without parsing. All fields of the old worker are present; flashpool adds ``error_type``,
``exception``, ``details`` and ``receipt``.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, NamedTuple

import msgspec

from flashpool.pool.calls import NOWHERE, Outcome, Receipt
from flashpool.pool.errors import FlashpoolError
from flashpool.pool.instance_records import InstanceRecord
from flashpool.pool.workers.ends import outcomes

#: HTTP status of refusals; every other outcome is answered with 200.
STATUS: Final[Mapping[str, int]] = {
    "InvalidRequest": 422,
    "Unauthorized": 401,
    "InstanceConflict": 409,
    "PayloadTooLarge": 413,
    "Overloaded": 503,
    "PoolClosed": 503,
}

#: Advice for a module that is not installed.
_REMEDY: Final = (
    "name the package that provides it in `dependencies`; a file of your own, in `modules`"
)
#: The same advice for a client that sends one file and no others.
_REMEDY_ALONE: Final = (
    "name the package that provides it in the resource's `dependencies`. If it is a file of your "
    "own: a dev session sends the one file that has the function, so its code has to be in that file"
)
_BASE64: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="
_ANY_JSON: Final = msgspec.json.Decoder(msgspec.Raw)
_encode: Final = msgspec.json.encode
#: Longest Retry-After, in seconds.
_LONGEST_RETRY_S: Final = 3600


class Answer(NamedTuple):
    """A response: status, JSON body, and for some refusals the seconds until a retry."""

    status: int
    body: bytes
    retry_after: int | None = None


def of_outcome(outcome: Outcome, result_limit: int | None) -> Answer:
    """Return the response of a call that was accepted."""
    if outcome.error_type is None:
        outcome = _checked(outcome, result_limit)
    if outcome.error_type is None:
        return Answer(200, _success(outcome))
    status = 200 if outcome.from_user else STATUS.get(outcome.error_type or "", 200)
    # A request that was refused before it had an environment has nothing for a receipt.
    body = _failure(outcome, has_receipt=status == 200 or bool(outcome.receipt.environment))
    return Answer(status, body, _retry_after(status, outcome.details))


def of_error(error: FlashpoolError, status: int | None = None) -> Answer:
    """Return the response of a request that was refused."""
    outcome = outcome_of(error)
    status = status or STATUS.get(type(error).__name__, 200)
    body = _failure(outcome, has_receipt=status == 200)
    return Answer(status, body, _retry_after(status, error.details))


def outcome_of(error: FlashpoolError) -> Outcome:
    """Return the outcome of a request that did not become a call."""
    return Outcome(
        error_type=type(error).__name__,
        error=error.message,
        details=error.details,
        receipt=Receipt(provision=NOWHERE),
    )


def _success(outcome: Outcome) -> bytes:
    if outcome.format == "json":
        head, tail = b'{"success":true,"result":null,"json_result":', b',"error":null,"stdout":'
    elif outcome.format == "stream":
        # The items were streamed. The client requires a result, and gets an empty list.
        head, tail = b'{"success":true,"result":null,"json_result":[]', b',"error":null,"stdout":'
    else:
        head, tail = b'{"success":true,"result":"', b'","json_result":null,"error":null,"stdout":'
    return b"".join(
        (
            head,
            outcome.body,
            tail,
            _text(outcome.output) if outcome.output else b'""',
            b',"instance_id":null,"instance_info":null,"receipt":'
            if outcome.instance is None
            else _instance(outcome.instance),
            _encode(outcome.receipt.as_dict()),
            b',"warnings":%b}' % _encode(outcome.warnings) if outcome.warnings else b"}",
        )
    )


def _failure(outcome: Outcome, *, has_receipt: bool = True) -> bytes:
    fields: dict[str, Any] = {
        "success": False,
        "result": None,
        "json_result": None,
        # An empty error would read as "unknown error" at the client.
        "error": outcomes.told(
            outcome, _REMEDY_ALONE if "sent_alone" in outcome.details else _REMEDY
        )
        or outcome.error_type,
        "stdout": msgspec.Raw(_text(outcome.output)),
        "instance_id": outcome.instance.instance if outcome.instance else None,
        "instance_info": outcome.instance.as_dict() if outcome.instance else None,
        "error_type": outcome.error_type,
        "details": outcome.details,
        "receipt": outcome.receipt.as_dict() if has_receipt else None,
    }
    if outcome.warnings:
        fields["warnings"] = list(outcome.warnings)
    if outcome.exception:
        fields["exception"] = base64.b64encode(outcome.exception).decode("ascii")
    return _encode(fields)


def _instance(record: InstanceRecord) -> bytes:
    name, facts = _encode(record.instance), _encode(record.as_dict())
    return b',"instance_id":%b,"instance_info":%b,"receipt":' % (name, facts)


def _text(output: bytes) -> bytes:
    return _encode(output.decode("utf-8", "replace"))


def _checked(outcome: Outcome, limit: int | None) -> Outcome:
    """Return the outcome, or a failure in its place if a response cannot hold its body."""
    size = len(outcome.body)
    if limit is not None and size > limit:
        return _instead(
            outcome,
            "ResultTooLarge",
            f"The encoded result has {size} bytes, the limit is {limit} "
            "(FLASHPOOL_RESULT_LIMIT_MB). Return less, or write it to the volume.",
            size=size,
            limit=limit,
        )
    if _may_stand(outcome.body, outcome.format):
        return outcome
    # Only user code that found the worker's channel can have written this.
    return _instead(outcome, "WorkerCrashed", "The worker's result message is malformed.")


def _may_stand(body: bytes, form: str) -> bool:
    if form == "stream":  # its items were sent before
        return not body
    return is_json(body) if form == "json" else is_base64(body)


def is_base64(text: bytes) -> bool:
    """Return whether the text may be placed between quotes: base64, as workers encode it."""
    return not text.translate(None, _BASE64)


def is_json(text: bytes) -> bool:
    """Return whether the text may be placed in an answer unchanged."""
    try:
        text.decode()
        _ANY_JSON.decode(text)
    except (ValueError, RecursionError):
        return False
    return True


def _instead(outcome: Outcome, error_type: str, message: str, **details: int) -> Outcome:
    error = f"{error_type}: {message}"
    return replace(outcome, body=b"", error_type=error_type, error=error, details=details)


def _retry_after(status: int, details: Mapping[str, object]) -> int | None:
    if status != 503:
        return None
    seconds = details.get("retry_after_s")
    # Only user code that found the worker's channel writes an invalid or endless number.
    if isinstance(seconds, (int, float)) and 1 < seconds < _LONGEST_RETRY_S:
        return math.ceil(seconds)
    return 1
