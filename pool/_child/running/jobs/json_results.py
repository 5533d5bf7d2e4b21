"""Encodes a handler's result as JSON, or names the part that JSON cannot express.

The text is that of `json.dumps`. Values that only Python could read are refused: NaN and the
infinities, half of a surrogate pair, and lists nested more deeply than other JSON readers support.
"""

from __future__ import annotations

import json

from ...serialization.exception_report import class_of, summary

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

#: Most levels of nested lists and dictionaries.
DEPTH = 200
#: Most characters of a path, and of a key in a path; most values that are searched.
_PLACE = 300
_KEY = 60
_PLACES = 1_000_000
_INFINITY = float("inf")
_ATOMS = (str, int, float, bool, type(None))


class NotJson(Exception):
    """A value cannot be sent as JSON; the message names the place and the value."""


def encode(value: Any, name: str) -> bytes:
    """Return the value as JSON; ``name``: what an error message calls the value.

    Raises:
        NotJson: the value cannot be expressed as JSON.
    """
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        found = _problem(value, name)
        told = found or f"{name} cannot be written as JSON ({summary(error)})"
        raise NotJson(_sentence(told)) from None
    if "\\ud" in text or text.count("[") + text.count("{") > DEPTH:
        found = _problem(value, name)
        if found:
            raise NotJson(_sentence(found))
    return text.encode("ascii")


def _sentence(problem: str) -> str:
    return (
        f"{problem}. JSON holds dictionaries with text as keys, lists, text, finite numbers, true, "
        "false and None: return these"
    )


def _problem(value: Any, name: str) -> str:
    """Return the problem and its place; empty if the value has no problem."""
    within: list[int] = []
    levels: list[Iterator[tuple[str, Any]]] = [iter([(name, value)])]
    for _ in range(_PLACES):
        found = next(levels[-1], None)
        if found is None:
            levels.pop()
            if not levels:
                return ""
            within[len(levels) - 1 :] = []
            continue
        place, inner = found
        if told := _of_atom(place, inner):
            return told
        if isinstance(inner, (dict, list, tuple)):
            if id(inner) in within:
                return f"{_shown(place)} is a {class_of_value(inner)} that contains itself"
            if len(levels) > DEPTH:
                return f"{_shown(place)} is more than {DEPTH} levels deep"
            if told := _of_keys(place, inner):
                return told
            within.append(id(inner))
            levels.append(_inner(place, inner))
    return ""


def _of_atom(place: str, value: Any) -> str:
    """Return the problem of a value itself, apart from its members."""
    if isinstance(value, (dict, list, tuple)):
        return ""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return (
                f"{_shown(place)} is text with half of a surrogate pair, which is not a character"
            )
        return ""
    if isinstance(value, float) and not abs(value) < _INFINITY:
        return f"{_shown(place)} is {float.__repr__(value)}, which is not a JSON number"
    if isinstance(value, _ATOMS):
        return ""
    return f"{_shown(place)} is of the type {class_of_value(value)}, which JSON has no form for"


def _of_keys(place: str, value: Any) -> str:
    if not isinstance(value, dict):
        return ""
    for key in value:
        if isinstance(key, _ATOMS):
            if told := _of_atom("a key", key):
                return f"{_shown(place)}: {told}"
        else:
            return f"{_shown(place)} has a key of the type {class_of_value(key)}: {_key(key)}"
    return ""


def _inner(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield f"{place}[{_key(key)}]", inner
    else:
        for at, inner in enumerate(value):
            yield f"{place}[{at}]", inner


def class_of_value(value: Any) -> str:
    """Return the name of a value's class, without running user code."""
    return class_of(value) if isinstance(value, BaseException) else type(value).__qualname__


def _key(key: Any) -> str:
    try:
        text = repr(key)
    except BaseException:  # the user's class has a broken repr
        text = f"a {class_of_value(key)}"
    return text if len(text) <= _KEY else f"{text[:_KEY]}..."


def _shown(place: str) -> str:
    half = _PLACE // 2
    shown = place if len(place) <= _PLACE else f"{place[:half]} ... {place[-half:]}"
    return shown.encode("utf-8", "backslashreplace").decode()
