"""Turns a FunctionRequest (JSON bytes) into a call, and a result into text.

    body -> JSON -> checked fields -> modules -> code in a fresh module -> function
                                   -> base64 -> unpickled arguments     -> Invocation
    value -> pickle -> base64 text          (or JSON text, as the request says)

Arguments come last, because they may refer to classes that the modules define. A malformed request
raises a `BadRequest` that names the field, what was expected and what was found. Exceptions of user
code are not changed.
"""

from __future__ import annotations

import json
import sys
from binascii import a2b_base64, b2a_base64

from ..wire import BadRequest
from . import live_module, pickling, user_code, user_modules
from .exception_pickling import Unserializable, summary
from .source_loader import check_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

    Request = dict[str, Any]

_JSON_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}
_JSON_HINT = '(for plain JSON values set "serialization_format": "json")'
#: An item of a stream, as SDK 2.0 expects it.
_ENVELOPE = b'{"success":true,"__stream__":true,"json_result":%b}'
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="


class Invocation:
    """The function to call, its arguments, and how to encode the result."""

    __slots__ = ("args", "as_json", "enveloped", "function", "items", "kwargs")

    def __init__(
        self,
        function: Callable[..., Any],
        args: list[Any],
        kwargs: dict[str, Any],
        *,
        as_json: bool,
        keep_items: bool = True,
        enveloped: bool = False,
    ) -> None:
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.as_json = as_json
        #: Items of a generator that were also sent one by one; None: items are not kept.
        self.items: list[Any] | None = [] if keep_items else None
        #: Whether the client expects each item in an envelope.
        self.enveloped = enveloped

    def dump_item(self, item: Any) -> tuple[bytes, list[int]]:
        """Encode an item as text, and keep it for the result if needed."""
        if self.items is not None:
            self.items.append(item)
        body = dump_result(item, self.as_json)
        return (_ENVELOPE % body if self.enveloped else body), []


def load_call(body: bytes) -> Invocation:
    """Read a request, load its code, and decode its arguments.

    Raises:
        BadRequest: the request is malformed.
        BaseException: user code raised it while it was loaded.
    """
    request = read_request(body)
    as_json = _is_json(request)
    _install_modules(request)
    execution_type = request.get("execution_type") or "function"
    if execution_type == "function":
        function = _function(request)
    elif execution_type == "class":
        function = _method(request, as_json)
    else:
        raise BadRequest(f"execution_type: expected 'function' or 'class', got {execution_type!r}")
    args, kwargs = _arguments(request, "args", "kwargs", as_json)
    return _invocation(request, function, args, kwargs, as_json)


def _invocation(
    request: Request,
    function: Callable[..., Any],
    args: list[Any],
    kwargs: dict[str, Any],
    as_json: bool,
) -> Invocation:
    return Invocation(
        function,
        args,
        kwargs,
        as_json=as_json,
        keep_items=request.get("return_aggregate_stream") is not False,
        enveloped=as_json and live_module.SDK_NAME in sys.modules,
    )


def is_function(body: bytes) -> bool:
    """Return whether a request is for a function, and not for a method of an instance."""
    return (read_request(body).get("execution_type") or "function") == "function"


def run_module(body: bytes) -> tuple[ModuleType, str]:
    """Run the module in a request for a function; return it and the function's name.

    Raises:
        BadRequest: the request is malformed.
        BaseException: user code raised it.
    """
    request = read_request(body)
    _install_modules(request)
    name = _text(request, "function_name")
    return user_code.run_source(_code(request), name), name


def load_class(body: bytes) -> tuple[type[Any], list[Any], dict[str, Any]]:
    """Return the class of the instance that a request describes, and its constructor's arguments.

    Raises:
        BadRequest: the request is malformed.
        BaseException: user code raised it.
    """
    request = read_request(body)
    _install_modules(request)
    return _class(request, _is_json(request))


def load_method(body: bytes, instance: object) -> Invocation:
    """Return the call of a method of an existing instance that a request asks for.

    Raises:
        BadRequest: the request is malformed, or the instance has no such method.
    """
    request = read_request(body)
    as_json = _is_json(request)
    name = _expect("method_name", request.get("method_name") or "__call__", str)
    method = user_code.find_method(instance, name)
    args, kwargs = _arguments(request, "args", "kwargs", as_json)
    return _invocation(request, method, args, kwargs, as_json)


def _install_modules(request: Request) -> None:
    modules = _field(request, "modules", dict)
    if not modules:
        return
    for path, text in modules.items():
        _expect(f"modules[{path!r}]", text, str)
    user_modules.install_modules(modules)


# -- The request ------------------------------------------------------------------------


def read_request(body: bytes) -> Request:
    """Parse a request strictly, and unwrap ``{"input": request}``."""
    try:
        # The scanner itself, without `json.loads` around it: lean, as `worker` explains.
        text = str(body, "utf-8")
        request: Any
        request, end = _scan(text, 0) if text[:1] == "{" else (None, -1)
        if end != len(text):
            request = _decode(text)
    except RecursionError:
        raise BadRequest("the body is nested too deep") from None
    except StopIteration:
        raise BadRequest("the body is not JSON: it does not begin with a value") from None
    except ValueError as error:
        raise BadRequest(f"the body is not JSON: {error}") from None
    if type(request) is not dict:
        raise BadRequest(f"the body: expected an object, got {_JSON_NAMES[type(request)]}")
    if "input" in request and "function_name" not in request and "class_name" not in request:
        request = _expect("input", request["input"], dict)
    return request  # type: ignore[no-any-return]


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if number - number != 0:
        raise ValueError(f"{text[:40]} is too large for a number")
    return number


_decoder = json.JSONDecoder(parse_float=_finite, parse_constant=_refuse)
_decode = _decoder.decode
_scan: Callable[[str, int], tuple[Any, int]] = _decoder.scan_once  # type: ignore[attr-defined]


def _expect(field: str, value: Any, kind: type[Any]) -> Any:
    if isinstance(value, kind):
        return value
    raise BadRequest(f"{field}: expected {_JSON_NAMES[kind]}, got {_JSON_NAMES[type(value)]}")


def _field(request: Request, name: str, kind: type[Any]) -> Any:
    """Return an optional field; empty if it is missing or null."""
    value = request.get(name)
    return kind() if value is None else _expect(name, value, kind)


def _text(request: Request, name: str) -> str:
    """Return a required string, which must not be empty."""
    value = request.get(name)
    if not value or type(value) is not str:
        got = "an empty string" if value == "" else _JSON_NAMES[type(value)]
        raise BadRequest(f"{name}: expected a string, got {got if name in request else 'nothing'}")
    return value


def _is_json(request: Request) -> bool:
    name = request.get("serialization_format") or "cloudpickle"
    if name in ("cloudpickle", "json"):
        return bool(name == "json")
    raise BadRequest(f"serialization_format: expected 'cloudpickle' or 'json', got {name!r:.80}")


# -- What to call -----------------------------------------------------------------------


def _function(request: Request) -> Callable[..., Any]:
    name = _text(request, "function_name")
    return user_code.find_function(user_code.run_source(_code(request), name), name)


def _code(request: Request) -> str:
    code = _text(request, "function_code")
    check_text("function_code", code)
    return code


def _method(request: Request, as_json: bool) -> Callable[..., Any]:
    """Return a method of an instance that is created for this call."""
    name = _expect("method_name", request.get("method_name") or "__call__", str)
    cls, args, kwargs = _class(request, as_json)
    if user_code.async_methods(cls):
        return user_code.call_on_loop(cls, args, kwargs, name)
    return user_code.find_method(user_code.build_instance(cls, args, kwargs), name)


def _class(request: Request, as_json: bool) -> tuple[type[Any], list[Any], dict[str, Any]]:
    name = _text(request, "class_name")
    code = _text(request, "class_code")
    check_text("class_code", code)
    cls = user_code.build_class(code, name)
    args, kwargs = _arguments(request, "constructor_args", "constructor_kwargs", as_json)
    return cls, args, kwargs


# -- Arguments --------------------------------------------------------------------------


def _arguments(
    request: Request, args_field: str, kwargs_field: str, as_json: bool
) -> tuple[list[Any], dict[str, Any]]:
    args = _field(request, args_field, list)
    kwargs = _field(request, kwargs_field, dict)
    if not as_json:
        args = [_argument(f"{args_field}[{i}]", value) for i, value in enumerate(args)]
        kwargs = {k: _argument(f"{kwargs_field}[{k!r}]", value) for k, value in kwargs.items()}
    return args, kwargs


def _argument(field: str, value: Any) -> Any:
    if type(value) is not str:
        got = _JSON_NAMES[type(value)]
        raise BadRequest(f"{field}: expected base64 of a pickle, got {got} {_JSON_HINT}")
    try:
        data = _unbase64(value)
    except ValueError as error:
        raise BadRequest(f"{field}: expected base64 of a pickle: {error} {_JSON_HINT}") from None
    try:
        return pickling.loads(data)
    except Exception as error:
        hint = "; is it in 'dependencies'?" if isinstance(error, ImportError) else ""
        raise BadRequest(f"{field}: cannot be unpickled: {summary(error)}{hint}") from error


if sys.version_info >= (3, 11):

    def _unbase64(text: str) -> bytes:
        return a2b_base64(text, strict_mode=True)

else:

    def _unbase64(text: str) -> bytes:
        data = text.encode("ascii")
        strange = data.translate(None, _BASE64)
        if strange:
            raise ValueError(f"{strange[:1]!r} is not base64")
        return a2b_base64(data)


# -- The result -------------------------------------------------------------------------


def dump_result(value: object, as_json: bool) -> bytes:
    """Encode a result as ASCII text: base64 of its pickle, or JSON.

    Raises:
        Unserializable: the value cannot be encoded, whatever its own code raised.
    """
    try:
        if as_json:
            text = _encode(value)
            if "\\ud" in text:
                _encode_as_is(value).encode()  # raises for half of a surrogate pair
            return text.encode("ascii")
        return b2a_base64(pickling.dumps(value), newline=False)
    except BaseException as error:
        place = ""
        if as_json:
            from .json_faults import where

            place = where(value)
        raise Unserializable(_why_not(value, error, _FORMS[as_json], place)) from error


_FORMS = {
    False: (
        "pickled",
        "Return plain data, without what holds a lock, an open file or a connection",
    ),
    True: (
        "written as JSON",
        "Return dicts with string keys, lists, strings, finite numbers, booleans or None",
    ),
}


def _why_not(value: object, error: BaseException, form: tuple[str, str], place: str) -> str:
    kind = type(value)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    verb, advice = form
    if pickling.is_too_deep(error):
        return f"the result, of type {name}, is nested too deep to be {verb}. Return it flatter"
    place = place and f", {place}"
    return f"the result, of type {name}, cannot be {verb}: {summary(error)}{place}. {advice}"


_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode
_encode_as_is = json.JSONEncoder(allow_nan=False, ensure_ascii=False).encode
