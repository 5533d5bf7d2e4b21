"""What is sent of an exception: a report for people and programs, and a pickle to re-raise.

    exc -> Report (bounded, plain text; the last touch of the user's object)
             |-> error     "ValueError: boom", then the traceback with the user's frames
             `-> details   class, message, arguments, notes, frames, cause, context, members
        -> pickle          tblib's, of the same frames; loaded once here to see that it works

Exceptions are user code: their ``__str__`` may raise, hold 100 MB or print, their causes
may go in circles. Whatever they do, `capture` answers.
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

#: Bytes of pickled exception that are sent at most.
PICKLE_LIMIT = 16 * 1024 * 1024
#: Frames of a traceback in the pickle; tblib nests them, and pickle nests no deeper.
PICKLED_FRAMES = 100
#: Links of a chain of causes in the pickle, for the same reason.
PICKLED_CHAIN = 24


class Unserializable(Exception):
    """The result cannot be carried back (``ResultNotSerializable`` outside)."""


class _Unfaithful(Exception):
    """The pickle loads, but not to the same exception."""


def capture(exc: BaseException) -> tuple[dict[str, Any], bytes]:
    """The record of an exception, and its pickle, or b"" where it cannot travel.

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
    """Return the package of a failed import if no part of it is installed: the caller
    may name it.
    """
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
        return None  # it is there, without a spec; or a finder of the user's raised


def _least(exc: BaseException, error: BaseException) -> dict[str, Any]:
    """Return a minimal report, if even reporting failed."""
    name = type.__dict__["__name__"].__get__(type(exc))  # a metaclass may lie, or raise
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
    """The pickle, or b"" and why not."""
    try:
        try:
            return _faithful(exc, _links(exc)), ""
        except Exception as error:
            if not pickling.is_too_deep(error):
                raise
            # A circle through the members of a group, perhaps: without its chain it may do.
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
    """Stands for an exception in the pickle, with its own chain and traceback removed."""

    __slots__ = ("cause", "context", "traceback")

    def __init__(self, exc: BaseException, *, chained: bool = True) -> None:
        self.cause: BaseException | None = CAUSE(exc) if chained else None
        self.context: BaseException | None = CONTEXT(exc) if chained else None
        self.traceback, _ = user_traceback(TRACEBACK(exc), PICKLED_FRAMES)


def _links(exc: BaseException) -> dict[int, _Link]:
    """Return a link for each exception reached; edges that close a circle are cut.

    tblib saves causes among the arguments of the constructor, before the exception is in
    pickle's memo: a circle would never end, and a long chain nests too deep.
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
    """Return tblib's reduction, with the links' chain and traceback.

    tblib's own way is to register the class for all pickles of the process, and misses
    exceptions that are attributes; this does neither.
    """
    function, arguments, *rest = _tblib_reduction(exc)
    # An exception that is only an attribute of another keeps its traceback, not its chain.
    link = links.get(id(exc)) or _Link(exc, chained=False)
    chain = (link.cause, link.traceback, link.context)
    return (function, (*arguments[:2], *chain, *arguments[5:]), *rest)


def _tblib_reduction(exc: BaseException) -> tuple[Any, ...]:
    """tblib's, but for constructors of builtins, which it takes for ones it must not call.

    tblib alone would lose attributes that only these set: ``SystemExit.code``,
    ``StopIteration.value``, all of a `SyntaxError` and of a `UnicodeDecodeError`.
    """
    from tblib import pickling_support

    kind = type(exc)
    maker = next(base for base in kind.__mro__ if "__init__" in vars(base))
    # A group's members may lead back to it, and tblib handles such circles better.
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
    """Pickles exceptions of classes defined in the call's own code."""
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
    """Compare what was loaded with what was dumped, down the whole chain.

    Raises:
        _Unfaithful: a reader would get another exception than was raised.
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
    """Return the message without addresses of objects."""
    import re

    return re.sub("0x[0-9a-f]+", "0x", text_of(exc))
