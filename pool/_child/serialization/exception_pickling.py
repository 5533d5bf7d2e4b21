"""Encodes an exception: a report for people and programs, and a pickle to re-raise.

    exc -> report (bounded, plain text; does not refer to the user's object)
             |-> error     "ValueError: boom", then the traceback with the user's frames
             `-> details   class, message, arguments, notes, frames, cause, context, members
        -> pickle          tblib's, of the same frames; loaded once here as a test

Exceptions are user code: ``__str__`` may raise, print or return 100 MB, and causes may form a
cycle. Whatever they do, `capture` returns.
"""

from __future__ import annotations

import sys
from types import TracebackType

from . import pickling
from .exception_report import (
    ARGS,
    CAUSE,
    CONTEXT,
    PIECE_LIMIT,
    TRACEBACK,
    describe,
    members_of,
    read,
    summary,
    text_of,
)
from .live_module import SDK_NAME
from .user_frames import depth_of, user_traceback

TYPE_CHECKING = False
if TYPE_CHECKING:
    import io
    from collections.abc import Iterator
    from typing import Any

__all__ = ["PICKLE_LIMIT", "Unserializable", "capture", "summary"]

#: Most bytes of a pickled exception.
PICKLE_LIMIT = 16 * 1024 * 1024
#: Most frames of a traceback in the pickle: tblib nests them, and pickle's nesting is limited.
PICKLED_FRAMES = 100
#: Most links of a chain of causes in the pickle, for the same reason.
PICKLED_CHAIN = 24


class Unserializable(Exception):
    """The result cannot be serialized (``ResultNotSerializable`` for callers)."""


class _Unfaithful(Exception):
    """The pickle loads, but not to the same exception."""


def capture(exc: BaseException) -> tuple[dict[str, Any], bytes]:
    """Return the record of an exception, and its pickle; b"" if it cannot be pickled.

    Never raises.
    """
    with pickling.RecursionGuard():
        try:
            record = _record(exc)
        except BaseException as error:
            record = _least(exc, error)
        data, why = _pickle(exc)
    record["details"]["pickle"] = _versions() if data else {"absent": why}
    return record, data


def _record(exc: BaseException) -> dict[str, Any]:
    report = describe(exc)
    details = report.as_dict()
    if (missing := _missing_module(exc)) is not None:
        details["missing_module"] = missing
        if SDK_NAME in sys.modules:
            details["sent_alone"] = True
    return {"error_type": report.name, "error": report.text(), "details": details}


def _missing_module(exc: BaseException) -> str | None:
    """Return the missing package of a failed import, which the caller may add to the call."""
    name = read(exc, "name") if isinstance(exc, ModuleNotFoundError) else None
    if type(name) is not str:
        return None
    package = name.partition(".")[0]
    if not all(map(str.isidentifier, name.split("."))) or len(name) > PIECE_LIMIT:
        return None
    if package in sys.stdlib_module_names:
        return None
    try:
        from importlib.util import find_spec

        found = find_spec(package)
        if found is None:
            return package
        # In a namespace such as `google`, one package may be installed and another not.
        namespace = found.origin is None and found.submodule_search_locations is not None
        return name if namespace and name != package else None
    except BaseException:
        return None  # the package exists without a spec, or a finder of the user raised


def _least(exc: BaseException, error: BaseException) -> dict[str, Any]:
    """Return a minimal record, if the report failed."""
    name = type.__dict__["__name__"].__get__(type(exc))  # a metaclass may override it
    message = text_of(exc)
    told = f"{name}: {message}" if message else name
    return {
        "error_type": name,
        "error": f"{told} (no more can be told of it: {summary(error)})",
        "details": {"class_name": name, "module": None, "message": message},
    }


def _versions() -> dict[str, str]:
    """Return versions that the reader of the pickle must match."""
    tblib = sys.modules.get("tblib")
    return {
        "tblib": getattr(tblib, "__version__", "unknown"),
        "python": ".".join(map(str, sys.version_info[:2])),
    }


# -- The pickle -------------------------------------------------------------------------


def _pickle(exc: BaseException) -> tuple[bytes, str]:
    """Return the pickle; or b"", and why there is no pickle."""
    try:
        try:
            return _faithful(exc, _links(exc)), ""
        except Exception as error:
            if not pickling.is_too_deep(error):
                raise
            # Perhaps a cycle through the members of a group: try without the chain.
            return _faithful(exc, {}), ""
    except pickling.TooLarge:
        return b"", f"its pickle is larger than {PICKLE_LIMIT} bytes"
    except BaseException as error:
        return b"", summary(error)


def _faithful(exc: BaseException, links: dict[int, _Link]) -> bytes:
    def by_reference(file: io.BytesIO, protocol: int) -> pickling.Pickler:
        return _ByReference(file, protocol, links)

    def by_value() -> pickling.NewPickler:
        return _by_value(links)

    data = pickling.dump_with(exc, by_reference, by_value, PICKLE_LIMIT)
    _check(exc, pickling.loads(data), links)
    return data


class _Link:
    """The chain and the traceback that an exception gets in the pickle."""

    __slots__ = ("cause", "context", "traceback")

    def __init__(self, exc: BaseException, *, chained: bool = True) -> None:
        self.cause: BaseException | None = CAUSE(exc) if chained else None
        self.context: BaseException | None = CONTEXT(exc) if chained else None
        self.traceback, _ = user_traceback(TRACEBACK(exc), PICKLED_FRAMES)


def _links(exc: BaseException) -> dict[int, _Link]:
    """Return a link for each exception that is reached; links that would close a cycle are cut.

    tblib pickles causes among the arguments of the constructor, before the exception is in pickle's
    memo: a cycle would never end, and a long chain would nest too deep.
    """
    links: dict[int, _Link] = {}
    _follow(exc, links, ())
    return links


def _follow(exc: BaseException, links: dict[int, _Link], path: tuple[int, ...]) -> None:
    if id(exc) in links or len(path) > 2 * PICKLED_CHAIN:
        return
    link = links[id(exc)] = _Link(exc)
    path = (*path, id(exc))
    link.cause = _allowed(link.cause, path)
    link.context = _allowed(link.context, path)
    for other in (link.cause, link.context, *members_of(exc)):
        if other is not None:
            _follow(other, links, path)


def _allowed(other: BaseException | None, path: tuple[int, ...]) -> BaseException | None:
    return None if id(other) in path or len(path) > PICKLED_CHAIN else other


def _reduce(exc: BaseException, links: dict[int, _Link]) -> tuple[Any, ...]:
    """Return tblib's reduction of an exception, with the chain and traceback of its link.

    tblib's own way is to register the class for all pickles of the process, and misses exceptions
    that are attributes; this function does neither.
    """
    function, arguments, *rest = _tblib_reduction(exc)
    # An exception that is only an attribute of another keeps its traceback, but not its chain.
    link = links.get(id(exc)) or _Link(exc, chained=False)
    chain = (link.cause, link.traceback, link.context)
    return (function, (*arguments[:2], *chain, *arguments[5:]), *rest)


def _tblib_reduction(exc: BaseException) -> tuple[Any, ...]:
    """Return tblib's reduction; for constructors of builtins, one that calls the constructor.

    tblib does not call these, and so would lose attributes that only they set: ``SystemExit.code``,
    ``StopIteration.value``, all of a `SyntaxError` and of a `UnicodeDecodeError`.
    """
    from tblib import pickling_support

    kind = type(exc)
    maker = next(base for base in kind.__mro__ if "__init__" in vars(base))
    # Members of a group may lead back to it, and tblib handles such cycles better.
    ours = maker.__module__ == "builtins" and maker.__name__ != "BaseExceptionGroup"
    reduced: Any
    if not ours or kind.__reduce__ is not BaseException.__reduce__:
        reduced = pickling_support.pickle_exception(exc)
        return tuple(reduced)
    reduced = exc.__reduce__()
    function, arguments, *rest = reduced
    chain = (None, None, None, exc.__suppress_context__, getattr(exc, "__notes__", None))
    return (pickling_support.unpickle_exception, (function, arguments, *chain), *rest)


def _reduce_traceback(traceback: TracebackType) -> tuple[Any, ...]:
    from tblib.pickling_support import pickle_traceback

    reduced: tuple[Any, ...] = pickle_traceback(traceback)
    return reduced


class _ByReference(pickling.ByReference):
    """Pickles exceptions whose classes the reader can import."""

    def __init__(self, file: io.BytesIO, protocol: int, links: dict[int, _Link]) -> None:
        super().__init__(file, protocol)
        self._links = links

    def reducer_override(self, obj: Any) -> Any:
        reduced = super().reducer_override(obj)
        if issubclass(type(obj), BaseException):
            return _reduce(obj, self._links)
        return _reduce_traceback(obj) if type(obj) is TracebackType else reduced


def _by_value(links: dict[int, _Link]) -> pickling.NewPickler:
    """Return a pickler for exceptions of classes defined in the call's own code."""
    from .by_value.pickler import Pickler

    class ByValue(Pickler):
        def reducer_override(self, obj: Any) -> Any:
            if issubclass(type(obj), BaseException):
                return _reduce(obj, links)
            if type(obj) is TracebackType:
                return _reduce_traceback(obj)
            return super().reducer_override(obj)

    pickler: pickling.NewPickler = ByValue
    return pickler


# -- Is it the same exception? ----------------------------------------------------------


def _check(exc: BaseException, copy: BaseException, links: dict[int, _Link]) -> None:
    """Compare a loaded exception with the original, along the whole chain.

    Raises:
        _Unfaithful: a reader would get an exception that differs from the original.
    """
    seen: set[int] = set()
    pairs = [(exc, copy)]
    while pairs:
        one, other = pairs.pop()
        if id(one) not in seen:
            seen.add(id(one))
            link = links.get(id(one)) or _Link(one, chained=False)
            for what, before, after in _facts(one, other, link):
                if before != after:
                    raise _Unfaithful(f"its {what} changes from {before!r:.200} to {after!r:.200}")
            pairs += [(a, b) for a, b in _pairs(one, other, link) if a is not None]


def _facts(one: BaseException, other: BaseException, link: _Link) -> Iterator[tuple[str, Any, Any]]:
    yield "class", type(one), type(other)
    yield "message", _stable(one), _stable(other)
    yield "arguments", [*map(type, ARGS(one))], [*map(type, ARGS(other))]
    yield "traceback", depth_of(link.traceback), depth_of(TRACEBACK(other))
    yield "members", len(members_of(one)), len(members_of(other))
    yield "notes", len(read(one, "__notes__") or ()), len(read(other, "__notes__") or ())


def _pairs(one: BaseException, other: BaseException, link: _Link) -> Iterator[tuple[Any, Any]]:
    yield link.cause, CAUSE(other)
    yield link.context, CONTEXT(other)
    yield from zip(members_of(one), members_of(other), strict=True)


def _stable(exc: BaseException) -> str:
    """Return the message, without addresses of objects."""
    import re

    return re.sub("0x[0-9a-f]+", "0x", text_of(exc))
