"""Finds the first place in a value that JSON cannot express."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Most values that are searched, and most levels.
_MOST = 100_000
_DEPTH = 200
_SHOWN = 60
_PLAIN = (str, bool, int, type(None))


def where(value: Any) -> str:
    """Return the place, such as ``at result['a'][3], which is nan``; empty if none is found."""
    try:
        found = _find(value)
    except Exception:  # the user's subclasses may do anything
        return ""
    if found is None:
        return ""
    path, what = found
    return f"at result{path}, {what}"


def _find(value: Any) -> tuple[str, str] | None:
    left = _MOST
    waiting: list[tuple[str, Any, int]] = [("", value, 0)]
    while waiting and left:
        left -= 1
        path, one, depth = waiting.pop()
        if isinstance(one, float):
            if one - one != 0:
                return path, f"which is {one!r}"
        elif isinstance(one, dict):
            for key in one:
                if not isinstance(key, (*_PLAIN, float)):
                    return path, f"which has a key of type {type(key).__name__}"
            inner = [(f"{path}[{_shown(key)}]", item, depth + 1) for key, item in one.items()]
            waiting += reversed(inner) if depth < _DEPTH else ()
        elif isinstance(one, (list, tuple)):
            inner = [(f"{path}[{at}]", item, depth + 1) for at, item in enumerate(one)]
            waiting += reversed(inner) if depth < _DEPTH else ()
        elif not isinstance(one, _PLAIN):
            return path, f"which is of type {type(one).__name__}"
    return None


def _shown(key: Any) -> str:
    text = repr(key)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
