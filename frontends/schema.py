"""The fields of a request, checked without parsing the body twice.

Only fields that the server acts on are decoded. Source, arguments and shipped modules stay spans of
the body (`msgspec.Raw`): their syntax is checked here, and the worker reads them. A request is
refused here if no worker could run it, and the server never turns user data into objects.

Server and worker parse a body alike: the last of two equal keys counts; NaN, Infinity and lone
surrogates are not valid JSON. No message repeats values of the request.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Final, NamedTuple

import msgspec
from msgspec import Raw

from flashpool.pool.errors import InvalidRequest
from flashpool.pool.limits import (
    CONCURRENCY_ACCEPTS,
    MEMORY_ACCEPTS,
    SECONDS_MAX,
    SEED_ACCEPTS,
    fits_concurrency,
    fits_memory,
    fits_seconds,
    fits_seed,
    is_variable,
)

from . import schema_errors

#: Longest name, most entries of a list or table, and most characters that these contain.
NAME_LIMIT: Final = 256
COUNT_LIMIT: Final = 1000
TEXT_LIMIT: Final = 32 * 1024

_MOST: Final = f"at most {COUNT_LIMIT} entries and {TEXT_LIMIT} characters"

#: The value of an absent field.
NULL: Final = Raw(b"null")
#: Fields that the worker reads, and the first byte of their values.
_LIST: Final = ord("[")
_OBJECT: Final = ord("{")
_NONE: Final = ord("n")
_SHAPES: Final = (
    ("args", _LIST),
    ("kwargs", _OBJECT),
    ("modules", _OBJECT),
    ("constructor_args", _LIST),
    ("constructor_kwargs", _OBJECT),
)


class FunctionRequest(msgspec.Struct, frozen=True, gc=False):
    """The control fields of a request, and spans of the rest; other fields are ignored."""

    function_name: str | None = None
    function_code: Raw = NULL
    args: Raw = NULL
    kwargs: Raw = NULL
    modules: Raw = NULL
    dependencies: list[str] | None = None
    system_dependencies: list[str] | None = None
    execution_type: str = "function"
    class_name: str | None = None
    class_code: Raw = NULL
    constructor_args: Raw = NULL
    constructor_kwargs: Raw = NULL
    method_name: str | None = None
    instance_id: str | None = None
    create_new_instance: bool | None = None
    accelerate_downloads: bool | None = None
    serialization_format: str | None = None
    # Optional fields that flashpool adds.
    timeout_s: float | None = None
    soft_timeout_s: float | None = None
    memory_mb: int | None = None
    gpus: int | None = None
    scratch: bool | None = None
    seed: int | None = None
    max_concurrency: int | None = None
    instance_must_exist: bool | None = None
    env: dict[str, str] | None = None
    python_version: str | None = None
    refresh: bool | None = None
    isolation: str | None = None
    idempotent: bool | None = None
    #: The call's place in its caller's trace: the headers of W3C Trace Context.
    traceparent: str | None = None
    tracestate: str | None = None
    #: Read by the worker: whether a generator's items are streamed and also are the result.
    return_aggregate_stream: bool | None = None


class _Body(FunctionRequest, frozen=True, gc=False):
    """A request, or a request that is wrapped as a job: ``{"input": {...}}``."""

    input: Raw = NULL


class _Exact(FunctionRequest, frozen=True, gc=False, forbid_unknown_fields=True):
    """A request with only known fields: the usual case, decoded in one pass."""


_KNOWN: Final = frozenset(FunctionRequest.__struct_fields__) | {"input"}
#: Larger bodies are not searched for misspelt fields, because the search parses them again.
_SEARCH_LIMIT: Final = 64 * 1024

_NAMES: Final = msgspec.json.Decoder(dict[str, Raw])
_EXACT: Final = msgspec.json.Decoder(_Exact)
_BODY: Final = msgspec.json.Decoder(_Body)
_REQUEST: Final = msgspec.json.Decoder(FunctionRequest)


class Decoded(NamedTuple):
    """A request that was checked."""

    request: FunctionRequest
    #: The request's own bytes, without a wrapper.
    body: bytes
    #: Fields that are ignored, and what was probably meant.
    warnings: tuple[str, ...] = ()


def decode(body: bytes) -> Decoded:
    """Read and check a request, or raise `InvalidRequest`."""
    if not body:
        raise InvalidRequest("The request body is empty; it must be a JSON object")
    try:
        decoded = _request(body)
        body = decoded.body
        if not body.isascii():
            body.decode()  # spans are not decoded, so their bytes were not checked
    except msgspec.ValidationError as error:
        raise InvalidRequest(schema_errors.misfit(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(
            f"The request body is not valid JSON: {_without_data(error)}"
        ) from None
    except RecursionError:
        raise InvalidRequest("The request body is nested too deeply") from None
    try:
        _check(decoded.request)
    except InvalidRequest as error:
        # Most often, a required field is missing because its name is misspelt.
        raise InvalidRequest(". ".join((error.message, *decoded.warnings))) from None
    return decoded


def _request(body: bytes) -> Decoded:
    try:
        return Decoded(_EXACT.decode(body), body)
    except msgspec.ValidationError:
        pass  # unknown fields, or an invalid value: the second parse finds out
    request: FunctionRequest = _BODY.decode(body)
    if _is_object(request.input):  # type: ignore[attr-defined]
        body = bytes(request.input)  # type: ignore[attr-defined]
        request = _REQUEST.decode(body)
    if len(body) > _SEARCH_LIMIT:
        return Decoded(request, body)
    return Decoded(request, body, schema_errors.near_misses(_NAMES.decode(body), _KNOWN))


def _without_data(error: Exception) -> str:
    # UnicodeDecodeError would quote the byte.
    return "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)


def _is_object(raw: Raw) -> bool:
    return bytes(memoryview(raw)[:1]) == b"{"


def _check(request: FunctionRequest) -> None:
    if request.execution_type == "function":
        _check_code("function_name", request.function_name, "function_code", request.function_code)
    elif request.execution_type == "class":
        _check_code("class_name", request.class_name, "class_code", request.class_code)
        _check_method(request.method_name or "__call__")
    else:
        raise InvalidRequest("execution_type must be function or class")
    # Most requests have few of these fields: only fields that are present are checked.
    if request.serialization_format is not None:
        _check_format(request)
    for name, opening in _SHAPES:
        raw = getattr(request, name)
        if raw is not NULL and (first := memoryview(raw)[0]) != opening and first != _NONE:
            kind = "a list" if opening == _LIST else "an object"
            raise InvalidRequest(f"{name} must be {kind}")
    if _optional(request) != _NONE_GIVEN:
        _check_optional(request)
    for name in ("dependencies", "system_dependencies"):
        entries = getattr(request, name)
        if entries and (len(entries) > COUNT_LIMIT or sum(map(len, entries)) > TEXT_LIMIT):
            raise InvalidRequest(f"{name} is too large: {_MOST}")


def _check_optional(request: FunctionRequest) -> None:
    for name, check in _OPTIONAL:
        if getattr(request, name) is not None:
            check(request)


def _check_limits(request: FunctionRequest) -> None:
    if request.timeout_s is not None and not fits_seconds(request.timeout_s):
        raise InvalidRequest(f"timeout_s must be more than 0 and at most {SECONDS_MAX}")
    if request.soft_timeout_s is not None and not fits_seconds(request.soft_timeout_s):
        raise InvalidRequest(f"soft_timeout_s must be more than 0 and at most {SECONDS_MAX}")
    if request.memory_mb is not None and not fits_memory(request.memory_mb):
        raise InvalidRequest(f"memory_mb must be {MEMORY_ACCEPTS}")
    if request.gpus is not None and not 0 <= request.gpus <= COUNT_LIMIT:
        raise InvalidRequest("gpus must be 0 or more")
    if request.seed is not None and not fits_seed(request.seed):
        raise InvalidRequest(f"seed must be {SEED_ACCEPTS}")


def _check_code(name_field: str, name: str | None, code_field: str, code: Raw) -> None:
    if not name:
        raise InvalidRequest(f"{name_field} is required")
    _check_name(name_field, name)
    span = bytes(code)
    if not span.startswith(b'"'):
        raise InvalidRequest(f"{code_field} is required, and must be text")
    if b"\\u0000" in span and "\0" in msgspec.json.decode(span, type=str):
        raise InvalidRequest(f"{code_field} holds a NUL character")


def _check_method(name: str) -> None:
    _check_name("method_name", name)
    if name.startswith("_") and name != "__call__":
        raise InvalidRequest("method_name must not begin with _, unless it is __call__")


def _check_name(field: str, name: str) -> None:
    if len(name) > NAME_LIMIT or not name.isidentifier():
        raise InvalidRequest(f"{field} must be an identifier of at most {NAME_LIMIT} characters")


def _check_instance(request: FunctionRequest) -> None:
    if request.max_concurrency is not None and not fits_concurrency(request.max_concurrency):
        raise InvalidRequest(f"max_concurrency must be {CONCURRENCY_ACCEPTS}")
    name = request.instance_id
    if name is None and request.instance_must_exist:
        raise InvalidRequest("instance_must_exist needs an instance_id")
    if name is not None and not (0 < len(name) <= NAME_LIMIT and name.isprintable()):
        raise InvalidRequest(f"instance_id must be printable, of 1 to {NAME_LIMIT} characters")


def _check_format(request: FunctionRequest) -> None:
    if request.serialization_format not in ("cloudpickle", "json"):
        raise InvalidRequest("serialization_format must be cloudpickle or json")


def _check_isolation(request: FunctionRequest) -> None:
    if request.isolation != "call":
        raise InvalidRequest("isolation must be call")


def _check_env(request: FunctionRequest) -> None:
    env = request.env or {}
    if len(env) > COUNT_LIMIT or sum(map(len, env.values())) > TEXT_LIMIT:
        raise InvalidRequest(f"env is too large: {_MOST}")
    for name, value in env.items():
        if not is_variable(name, value):
            raise InvalidRequest("env has a name or value that an environment variable cannot have")


#: Optional fields with the functions that check them, in this order.
_OPTIONAL: Final[tuple[tuple[str, Callable[[FunctionRequest], None]], ...]] = (
    ("timeout_s", _check_limits),
    ("soft_timeout_s", _check_limits),
    ("memory_mb", _check_limits),
    ("gpus", _check_limits),
    ("seed", _check_limits),
    ("max_concurrency", _check_instance),
    ("instance_must_exist", _check_instance),
    ("instance_id", _check_instance),
    ("isolation", _check_isolation),
    ("env", _check_env),
)
_optional: Final = attrgetter(*(name for name, _ in _OPTIONAL))
_NONE_GIVEN: Final = (None,) * len(_OPTIONAL)
