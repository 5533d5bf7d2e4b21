"""Reads JSON from untrusted code: only values that every JSON reader accepts, of bounded depth."""

from __future__ import annotations

import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

INFINITY = float("inf")
_WHOLE = 1 << 64
_SHOWN = 20
#: Most levels of nested lists and dictionaries; reports of exceptions with many causes are deepest.
_DEPTH = 100


def read(data: bytes) -> Any:
    """Decode JSON strictly.

    Raises:
        ValueError: the data is not JSON, or has a value that other code could not write or read as
            JSON: half a surrogate pair, NaN, a number that is too large, or deep nesting.
    """
    text = data.decode()
    found = _decoder.decode(text)
    if "\\u" in text:
        json.dumps(found, ensure_ascii=False).encode()
    if text.count("[") + text.count("{") > _DEPTH and _is_deep(found):
        raise ValueError(f"it is nested more than {_DEPTH} levels deep")
    return found


def _whole(text: str) -> int:
    number = int(text)
    if not -_WHOLE // 2 <= number < _WHOLE:
        raise ValueError("a number of more than 64 bits")
    return number


def _finite(text: str) -> float:
    number = float(text)
    if not abs(number) < INFINITY:
        raise ValueError(f"not a JSON number: {text[:_SHOWN]}")
    return number


_decoder = json.JSONDecoder(parse_int=_whole, parse_float=_finite, parse_constant=_finite)


def _is_deep(found: Any) -> bool:
    level = [found]
    for _ in range(_DEPTH):
        level = [
            inner
            for one in level
            if type(one) in (dict, list)
            for inner in (one.values() if type(one) is dict else one)
        ]
    return bool(level)
